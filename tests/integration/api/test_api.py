"""The HTTP API on real services: what it answers, and that it fails in one way only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import psycopg
import pytest
import redis.asyncio

from cloudsync.feeds.keys import REVOKED_CHANNEL
from cloudsync.protocol.codes import ERROR_MEANINGS
from cloudsync.registry import clients
from cloudsync.registry.revocations import was_revoked
from cloudsync.settings import Settings
from cloudsync.sharding import cell_of

Bearer = Callable[..., dict[str, str]]
Serve = Callable[[Settings], AbstractAsyncContextManager[httpx.AsyncClient]]


def failure(response: httpx.Response, status: int, code: str) -> str:
    """The message of a failed answer, after checking its form."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body["error"]) == ["code", "message"]
    assert body["error"]["code"] == code
    assert code in ERROR_MEANINGS
    return str(body["error"]["message"])


async def test_endpoint_names_the_cell_and_hands_gateways_out_in_turn(
    api: httpx.AsyncClient, bearer: Bearer
) -> None:
    found = [(await api.get("/v1/endpoint", headers=bearer("ada"))).json() for _ in range(3)]
    cell = cell_of("ada", 4)
    assert [body["url"] for body in found] == [f"ws://{host}.test/ws/{cell}" for host in "aba"]
    assert {body["cell"] for body in found} == {cell}
    assert found[0]["protocol"] == "cloudsync.v1"


async def test_a_client_is_issued_listed_and_revoked(
    api: httpx.AsyncClient, bearer: Bearer, redis_url: str
) -> None:
    headers = bearer()
    made = await api.post(
        "/v1/clients", headers=headers, json={"name": "Ada's laptop ✓", "platform": "python"}
    )
    assert made.status_code == 201
    client = made.json()
    assert client["client_id"].startswith("c_")
    assert len(client["client_id"]) == 24
    assert (client["name"], client["platform"], client["last_seen_at"]) == ("Ada's laptop ✓", "python", None)
    assert (await api.get("/v1/clients", headers=headers)).json() == {"clients": [client]}

    async with redis.asyncio.Redis.from_url(redis_url) as server, server.pubsub() as listener:
        await listener.subscribe(REVOKED_CHANNEL)
        await listener.get_message(timeout=5)  # the subscription itself
        for _ in range(2):  # a repeat is answered, and published, the same
            gone = await api.delete(f"/v1/clients/{client['client_id']}", headers=headers)
            assert (gone.status_code, gone.content) == (204, b"")
            message = await listener.get_message(timeout=5)
            assert message
            assert message["data"].decode() == client["client_id"]
    assert (await api.get("/v1/clients", headers=headers)).json() == {"clients": []}


async def test_registering_needs_no_body(api: httpx.AsyncClient, bearer: Bearer) -> None:
    for body in (None, b"{}", b"null"):
        made = await api.post(
            "/v1/clients", headers={**bearer(), "Content-Type": "application/json"}, content=body
        )
        assert made.status_code == 201, made.text
        assert made.json()["name"] is None


async def test_clients_are_their_users_own(api: httpx.AsyncClient, bearer: Bearer) -> None:
    client_id = (await api.post("/v1/clients", headers=bearer())).json()["client_id"]
    for other in (bearer("bob"), bearer("ada", "globex")):
        assert (await api.get("/v1/clients", headers=other)).json() == {"clients": []}
        hidden = await api.delete(f"/v1/clients/{client_id}", headers=other)
        unknown = await api.delete("/v1/clients/c_0000000000000000000000", headers=other)
        assert failure(hidden, 404, "not_found") == failure(unknown, 404, "not_found")
    assert len((await api.get("/v1/clients", headers=bearer())).json()["clients"]) == 1


async def test_odd_client_ids_are_not_found(api: httpx.AsyncClient, bearer: Bearer) -> None:
    for client_id in ("x", "c_", "c_%00" + "0" * 21, "..", "c_" + "0" * 5000, "%F0%9F%98%80"):
        failure(await api.delete(f"/v1/clients/{client_id}", headers=bearer()), 404, "not_found")


async def test_a_user_has_a_hundred_clients_at_most_even_at_once(
    api: httpx.AsyncClient, bearer: Bearer, settings: Settings
) -> None:
    headers = bearer()

    async def register() -> httpx.Response:
        for _ in range(20):  # a crowd waits for its turn two seconds at most, then is told to come again
            answer = await api.post("/v1/clients", headers=headers)
            if answer.status_code != 503:
                break
        return answer

    made = await asyncio.gather(*(register() for _ in range(105)))
    assert sorted(answer.status_code for answer in made) == [201] * 100 + [409] * 5
    refused = next(answer for answer in made if answer.status_code == 409)
    assert "100 clients" in failure(refused, 409, "limit_reached")
    assert (await api.post("/v1/clients", headers=bearer("bob"))).status_code == 201
    client_id = next(answer for answer in made if answer.status_code == 201).json()["client_id"]
    await api.delete(f"/v1/clients/{client_id}", headers=headers)
    assert (await api.post("/v1/clients", headers=headers)).status_code == 201


async def test_who_left_nothing_behind_and_was_unseen_for_long_gives_way(
    api: httpx.AsyncClient, bearer: Bearer, database: str, settings: Settings
) -> None:
    headers = bearer("crowd")

    async def register(ephemeral: bool) -> httpx.Response:
        return await api.post("/v1/clients", headers=headers, json={"ephemeral": ephemeral})

    made = [(await register(ephemeral)).json()["client_id"] for ephemeral in ([False, True, True] * 34)[:100]]
    assert (await register(True)).status_code == 409, "nobody was unseen for long enough"
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        age = "UPDATE cloudsync.clients SET created_at = now() - interval '1 day' WHERE client_id = ANY(%s)"
        await connection.execute(age, (made[:3],))
        await clients.seen(connection, [made[1]])
        new = (await register(False)).json()["client_id"]
    left = {each["client_id"] for each in (await api.get("/v1/clients", headers=headers)).json()["clients"]}
    assert left == {*made, new} - {made[2]}
    assert (await register(True)).status_code == 409
    async with redis.asyncio.from_url(settings.redis_events_url) as client:
        assert await was_revoked(client, made[2])


async def test_without_a_good_token_nothing_is_served(api: httpx.AsyncClient) -> None:
    routes = [
        ("GET", "/v1/endpoint"),
        ("GET", "/v1/clients"),
        ("POST", "/v1/clients"),
        ("DELETE", "/v1/clients/x"),
    ]
    for authorization in (None, "Bearer", "Bearer x.y.z", "Basic YTpi", "x"):
        for method, path in routes:
            headers = {"Authorization": authorization} if authorization else {}
            answer = await api.request(method, path, headers=headers)
            failure(answer, 401, "bad_token")
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_an_expired_token_says_so(api: httpx.AsyncClient, bearer: Bearer) -> None:
    answer = await api.get("/v1/endpoint", headers=bearer(lifetime_s=-60))
    assert "expired" in failure(answer, 401, "bad_token")


BAD_BODIES = (
    (b'{"name": 7}', "name"),
    (json.dumps({"name": "x" * 201}).encode(), "name"),
    (json.dumps({"name": "a\x00b"}).encode(), "name"),
    (json.dumps({"platform": "x" * 101}).encode(), "platform"),
    (b"{", "JSON"),
    (b"\xff\xfe", ""),
    (b"[]", ""),
    (b'{"name": "\\ud800"}', ""),
    (b"[" * 60_000, ""),
    (b'{"name": 1' + b"0" * 50_000 + b"}", ""),
)


async def test_bad_bodies_are_refused_without_being_repeated(api: httpx.AsyncClient, bearer: Bearer) -> None:
    headers = {**bearer(), "Content-Type": "application/json"}
    for body, word in BAD_BODIES:
        message = failure(await api.post("/v1/clients", headers=headers, content=body), 422, "bad_request")
        assert word in message
        assert len(message) < 600
        assert "xxx" not in message


async def test_what_is_too_large_is_not_read(api: httpx.AsyncClient, bearer: Bearer) -> None:
    headers = {**bearer(), "Content-Type": "application/json"}
    failure(await api.post("/v1/clients", headers=headers, content=b" " * 65_537), 413, "too_large")

    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 1024

    failure(await api.post("/v1/clients", headers=headers, content=endless()), 413, "too_large")
    fits = b'{"name": "ok"}' + b" " * (65_536 - 14)
    assert (await api.post("/v1/clients", headers=headers, content=fits)).status_code == 201


async def test_unknown_paths_and_methods_have_registered_codes(
    api: httpx.AsyncClient, bearer: Bearer
) -> None:
    failure(await api.get("/nothing"), 404, "not_found")
    refused = await api.put("/v1/clients", headers=bearer())
    failure(refused, 405, "method_not_allowed")
    assert "GET" in refused.headers["allow"] or "POST" in refused.headers["allow"]


async def test_development_tokens_work_at_once(api: httpx.AsyncClient) -> None:
    made = await api.post("/v1/dev/token", json={"tenant": "acme", "user": "zoé"})
    assert made.status_code == 200
    headers = {"Authorization": f"Bearer {made.json()['token']}"}
    assert (await api.get("/v1/endpoint", headers=headers)).json()["cell"] == cell_of("zoé", 4)
    for body in ({"tenant": "", "user": "x"}, {"tenant": "x"}, {"tenant": "x", "user": "y" * 201}):
        failure(await api.post("/v1/dev/token", json=body), 422, "bad_request")


async def test_browsers_may_call_in_development(api: httpx.AsyncClient, bearer: Bearer) -> None:
    origin = {"Origin": "http://localhost:3000"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = await api.options("/v1/clients", headers={**origin, **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in preflight.headers
    for answer in (await api.get("/v1/endpoint", headers=origin), await api.get("/nothing", headers=origin)):
        assert answer.headers["access-control-allow-origin"] == "*", "a failure can be read, too"


async def test_a_deployment_has_neither_token_route_nor_cross_origin_calls(
    settings: Settings, serve: Serve
) -> None:
    deployment = settings.model_copy(
        update={"mode": "deployment", "jwt_secret": "", "jwks_url": "http://127.0.0.1:9/keys"}
    )
    async with serve(deployment) as api:
        failure(await api.post("/v1/dev/token", json={"tenant": "a", "user": "b"}), 404, "not_found")
        answer = await api.get("/healthz", headers={"Origin": "http://localhost:3000"})
        assert "access-control-allow-origin" not in answer.headers
        assert "/v1/dev/token" not in (await api.get("/openapi.json")).json()["paths"]
        for unreachable in ("eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.e30.AA",):
            headers = {"Authorization": f"Bearer {unreachable}"}
            failure(await api.get("/v1/endpoint", headers=headers), 503, "unavailable")


async def test_openapi_describes_every_answer(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    assert document["info"]["title"] == "CloudSync API"
    assert document["info"]["version"]
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    described = {
        (path, method): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert set(described) == {
        ("/healthz", "get"), ("/readyz", "get"), ("/v1/endpoint", "get"), ("/v1/clients", "get"),
        ("/v1/clients", "post"), ("/v1/clients/{client_id}", "delete"), ("/v1/dev/token", "post"),
        ("/v1/conflicts", "get"), ("/v1/conflicts/{conflict_id}/resolve", "post"),
    }  # fmt: skip
    for (path, _), operation in described.items():
        assert operation["summary"]
        if path.startswith("/v1") and "dev" not in path:
            assert operation["security"] == [{"HTTPBearer": []}]
            assert {"401", "503"} <= set(operation["responses"])
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert "204" in described["/v1/clients/{client_id}", "delete"]["responses"]


async def test_health_and_readiness(api: httpx.AsyncClient) -> None:
    assert (await api.get("/healthz")).json() == {"status": "ok"}
    ready = await api.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]) == (200, {"postgres": "ok", "redis": "ok"})


async def test_a_database_that_is_not_migrated_is_not_ready(
    settings: Settings, postgres: Any, serve: Serve
) -> None:
    bare = settings.model_copy(update={"postgres_url": postgres.url()})
    async with serve(bare) as api:
        ready = await api.get("/readyz")
        assert ready.json()["checks"]["postgres"] == "not migrated"
        token = (await api.post("/v1/dev/token", json={"tenant": "a", "user": "b"})).json()["token"]
        answer = await api.get("/v1/clients", headers={"Authorization": f"Bearer {token}"})
        failure(answer, 503, "unavailable")


async def test_verify_answers_alike_for_every_reason(
    database: str, api: httpx.AsyncClient, bearer: Bearer
) -> None:
    from cloudsync.errors import ClientRefused
    from cloudsync.tokens import Principal

    headers = bearer()
    live, revoked = [(await api.post("/v1/clients", headers=headers)).json()["client_id"] for _ in range(2)]
    await api.delete(f"/v1/clients/{revoked}", headers=headers)
    ada, bob, globex = (Principal(*who, 0) for who in (("acme", "ada"), ("acme", "bob"), ("globex", "ada")))
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await clients.verify(connection, ada, live)
        answers = set()
        for principal, client_id in (
            (bob, live), (globex, live), (ada, revoked), (ada, "c_0000000000000000000000"), (ada, ""),
            (ada, "c_\x00"), (ada, "c_\ud800" + "0" * 21), (ada, live + "\n"), (ada, "x" * 100_000),
        ):  # fmt: skip
            with pytest.raises(ClientRefused) as refused:
                await clients.verify(connection, principal, client_id)
            answers.add(str(refused.value))
        assert len(answers) == 1

        await clients.seen(connection, [live, "c_unknown"])
        (found,) = await clients.list_clients(connection, ada)
        assert found.client_id == live
        assert found.last_seen_at is not None
        await clients.seen(connection, [])
