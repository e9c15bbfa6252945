"""Conflicts over HTTP: listed in pages, decided once, by whoever may."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from integration.api.test_api import failure
from integration.resolve.conftest import Author, Workshop

Bearer = Callable[..., dict[str, str]]


@pytest.fixture
async def conflicts(database: str) -> list[str]:
    """The ids of three conflicts of ada's, of rows 1 to 3."""
    workshop = Workshop(database)
    workshop.run(
        "CREATE TABLE notes (id integer PRIMARY KEY, tenant_id text NOT NULL DEFAULT 'acme',"
        " title text, n numeric)"
    )
    workshop.run("SELECT cloudsync.track('notes', conflict => 'manual')")
    workshop.run("INSERT INTO notes SELECT n, 'acme', 'old', 1.10 FROM generate_series(1, 3) n")
    ada: Author = await workshop.author("ada")
    found = []
    for key in (1, 2, 3):
        workshop.run("UPDATE notes SET title = 'sql', n = 0.10 WHERE id = %s", key)
        answer = await ada.confirmed("update", key, {"title": "ada", "n": "2.50"}, base_version=1)
        found.append(str(answer.conflict_id))
    await workshop.close()
    return found


async def test_pages_and_decisions(api: httpx.AsyncClient, bearer: Bearer, conflicts: list[str]) -> None:
    first = (await api.get("/v1/conflicts?limit=2", headers=bearer("bob"))).json()
    assert [conflict["conflict_id"] for conflict in first["conflicts"]] == conflicts[:2]
    told = first["conflicts"][0]
    assert (told["base"], told["theirs"], told["mine"]) == (
        {"title": "old", "n": "1.10"},
        {"title": "sql", "n": "0.10"},
        {"title": "ada", "n": "2.50"},
    )
    assert (told["table"], told["key"], told["version"]) == ("public.notes", {"id": 1}, 2)
    rest = (
        await api.get(
            "/v1/conflicts", headers=bearer("bob"), params={"after": first["next"], "table": "notes"}
        )
    ).json()
    assert ([c["conflict_id"] for c in rest["conflicts"]], rest["next"]) == (conflicts[2:], None)

    decide = f"/v1/conflicts/{conflicts[0]}/resolve"
    merged = {"choice": "merged", "values": {"title": "both"}, "base_version": 2}
    answer = await api.post(decide, headers=bearer("bob"), json=merged)
    assert answer.json() == {"conflict_id": conflicts[0], "choice": "merged", "version": 3}
    failure(await api.post(decide, headers=bearer("ada"), json={"choice": "mine"}), 409, "conflict_resolved")
    left = (await api.get("/v1/conflicts", headers=bearer("ada"))).json()["conflicts"]
    assert [conflict["conflict_id"] for conflict in left] == conflicts[1:]


async def test_what_is_refused(api: httpx.AsyncClient, bearer: Bearer, conflicts: list[str]) -> None:
    decide = f"/v1/conflicts/{conflicts[0]}/resolve"
    bob = bearer("bob")
    failure(await api.get("/v1/conflicts"), 401, "bad_token")
    failure(await api.get("/v1/conflicts?limit=1000", headers=bob), 422, "bad_request")
    failure(await api.get("/v1/conflicts?after=x", headers=bob), 422, "bad_request")
    failure(await api.get("/v1/conflicts?table=nothing", headers=bob), 404, "unknown_table")
    failure(await api.post(decide, headers=bob, json={"choice": "both"}), 422, "bad_request")
    failure(await api.post(decide, headers=bob, json={"choice": "merged"}), 422, "bad_value")
    wrong = {"choice": "merged", "values": {"n": "many"}}
    failure(await api.post(decide, headers=bob, json=wrong), 422, "bad_value")
    stale = {"choice": "mine", "base_version": 1}
    failure(await api.post(decide, headers=bob, json=stale), 409, "conflict_changed")
    for path in ("not-an-id", "f47ac10b-58cc-4372-a567-0e02b2c3d479"):
        refused = await api.post(f"/v1/conflicts/{path}/resolve", headers=bob, json={"choice": "mine"})
        failure(refused, 404, "unknown_conflict")
    stranger = bearer("ada", "other")
    assert (await api.get("/v1/conflicts", headers=stranger)).json() == {"conflicts": [], "next": None}
    failure(await api.post(decide, headers=stranger, json={"choice": "mine"}), 404, "unknown_conflict")
    answer = await api.post(decide, headers=bob, json={"choice": "theirs"})
    assert answer.json()["version"] == 2
