"""What a client does with every way in which a connection can end, against a server that plays them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from cloudsync import client as cloudsync_client
from cloudsync.client import Client, ProtocolBroken, TenantDisabled, TokenCallbackFailed, TooManyConnections
from cloudsync.client import failures as client_failures
from cloudsync.errors import ClientRefused, TokenRefused

Eventually = Callable[..., Awaitable[Any]]
SCHEMA = {"table": "public.t", "key": ["id"], "columns": [{"name": "id", "type": "integer"}]}


class Line:
    """One connection at the server's side."""

    def __init__(
        self, platform: FakePlatform, socket: ServerConnection, hello: dict[str, Any], token: str
    ) -> None:
        self.platform, self.socket, self.hello, self.token = platform, socket, hello, token
        self.n = 0
        self.said: list[dict[str, Any]] = []

    async def send(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def deliver(self, **event: Any) -> None:
        self.n += 1
        await self.send(n=self.n, **event)

    async def snapshot(self, sub: str) -> None:
        await self.send(type="subscribed", id=sub, schema=SCHEMA)
        events = [
            {"type": "data.create", "key": {"id": id_}, "version": version, "row": {"id": id_}}
            for id_, version in self.platform.rows.items()
        ]
        await self.deliver(type="sync.batch", sub=[sub], events=events, snapshot=True, last=True)


class FakePlatform:
    """`GET /v1/endpoint` and a gateway that welcomes, answers subscriptions, and otherwise does as told."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.tokens: list[str] = []
        self.refused_tokens: set[str] = set()
        self.resumed: str | None = "resync"
        self.rows: dict[int, int] = {1: 1}
        self.missed: list[dict[str, Any]] = []
        self.refuse_endpoint = 0
        self.welcoming: Callable[[Line], Awaitable[None]] | None = None
        self.url = ""

    @property
    def line(self) -> Line:
        return self.lines[-1]

    def http(self, connection: ServerConnection, request: Request) -> Response | None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if request.path.startswith("/ws/"):
            return None
        self.tokens.append(token)
        body = {"url": self.url.replace("http:", "ws:") + "/ws/1", "cell": 1, "protocol": "cloudsync.v1"}
        status = 200
        if self.refuse_endpoint:
            self.refuse_endpoint -= 1
            status, body = 503, {"error": {"code": "unavailable", "message": "Later."}}
        elif token in self.refused_tokens:
            status, body = 401, {"error": {"code": "bad_token", "message": "The token has expired."}}
        text = json.dumps(body).encode()
        headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(text))})
        return Response(status, "", headers, text)

    async def serve(self, socket: ServerConnection) -> None:
        hello = json.loads(await socket.recv())
        assert socket.request
        line = Line(self, socket, hello, socket.request.headers["Authorization"].removeprefix("Bearer "))
        self.lines.append(line)
        if self.welcoming is not None:
            await self.welcoming(line)
        resumed = self.resumed if hello.get("cursor") else None
        held = [subscription["id"] for subscription in hello.get("subscriptions", [])]
        await line.send(
            type="welcome", session="x", resumed=resumed, cursor=f"k{len(self.lines)}", heartbeat_s=20,
            limits={}, server_time="",
        )  # fmt: skip
        if resumed in ("replay", "differential") and held:
            await line.deliver(type="sync.batch", sub=held, events=self.missed, last=True)
        async for text in socket:
            frame = json.loads(text)
            line.said.append(frame)
            if frame["type"] == "subscribe":
                await line.snapshot(frame["id"])


@pytest.fixture
async def fake() -> AsyncIterator[FakePlatform]:
    platform = FakePlatform()
    async with serve(
        platform.serve, "127.0.0.1", 0, process_request=platform.http,
        subprotocols=["cloudsync.v1"], compression=None,
    ) as server:  # fmt: skip
        assert isinstance(server, Server)
        platform.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        yield platform


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_failures.backoff_s, "__kwdefaults__", {"base_s": 0.01, "cap_s": 0.05})


@asynccontextmanager
async def connected(fake: FakePlatform, token: Any = "t1", **options: Any) -> AsyncIterator[Client]:
    async with cloudsync_client.connect(fake.url, token=token, client_id="c_x", **options) as client:
        yield client


@pytest.mark.parametrize("code", [1001, 1006, 1011, 1012, 4000, 4002, 4003, 4004, 4005, 4499])
async def test_closes_that_mean_come_again(
    fake: FakePlatform, eventually_async: Eventually, code: int
) -> None:
    async with connected(fake) as client:
        view = await client.subscribe("t")
        fake.rows = {2: 1}
        if code == 1006:
            fake.line.socket.transport.abort()
        else:
            await fake.line.socket.close(code, "because")
        await view.wait_for(lambda rows: set(rows) == {(2,)}, timeout_s=10)
        await eventually_async(lambda: client.state == "live")
        hello = fake.line.hello
        assert hello["client_id"] == "c_x"
        assert hello["cursor"] == "k1"
        assert hello["subscriptions"] == [{"id": "s1", "table": "t"}]
        assert len(fake.tokens) == len(fake.lines), "the endpoint is asked again every time"


@pytest.mark.parametrize(
    ("code", "kind"),
    [(4500, TokenRefused), (4501, ClientRefused), (4502, ProtocolBroken), (4503, TenantDisabled),
     (4504, TooManyConnections), (4999, cloudsync_client.ServerRefused)],
)  # fmt: skip
async def test_closes_that_mean_stop(fake: FakePlatform, code: int, kind: type[Exception]) -> None:
    async with connected(fake, token=lambda: "t1") as client:
        view = await client.subscribe("t")
        waiting = asyncio.create_task(view.wait_for(lambda _: False))
        changes = view.changes()
        await asyncio.sleep(0)
        await fake.line.send(type="error", code="whatever", message="This is why.")
        await fake.line.socket.close(code)
        async with asyncio.timeout(10):
            with pytest.raises(kind, match="This is why"):
                await client.wait_stopped()
            for ended in (waiting, anext(changes), client.subscribe("t")):
                with pytest.raises(kind):
                    await ended
        assert client.state == "offline"
        assert client.error is view.error
        assert set(view.rows) == {(1,)}, "what was held can still be read"
    assert len(fake.lines) == 1


async def test_a_stop_at_the_first_greeting_is_raised_on_entering(fake: FakePlatform) -> None:
    async def refuse(line: Line) -> None:
        await line.socket.close(4501)

    fake.welcoming = refuse
    with pytest.raises(ClientRefused):
        async with connected(fake):
            pass


async def test_draining_is_left_at_the_moment_that_was_named(
    fake: FakePlatform, eventually_async: Eventually
) -> None:
    async with connected(fake) as client:
        await client.subscribe("t")
        began = time.monotonic()
        await fake.line.send(type="server.draining", reconnect_in_ms=300)
        await eventually_async(lambda: len(fake.lines) == 2)
        assert time.monotonic() - began >= 0.3
        await fake.line.send(type="server.draining", reconnect_in_ms=300)
        await fake.line.socket.close(4000)
        began = time.monotonic()
        await eventually_async(lambda: len(fake.lines) == 3)
        assert time.monotonic() - began >= 0.2, "also if the server closes first"


async def test_a_replay_keeps_the_view_and_subscribes_nothing_anew(
    fake: FakePlatform, eventually_async: Eventually
) -> None:
    fake.resumed = "replay"
    async with connected(fake) as client:
        view = await client.subscribe("t")
        states: list[str] = []
        client.on_state(states.append)
        fake.missed = [{"type": "data.create", "key": {"id": 4}, "version": 1, "row": {"id": 4}}]
        await fake.line.socket.close(4000)
        await eventually_async(lambda: len(fake.lines) == 2 and client.state == "live")
        assert states == ["offline", "replaying", "live"]
        assert set(view.rows) == {(1,), (4,)}
        event = {"type": "data.create", "sub": ["s1"], "key": {"id": 5}, "version": 1, "row": {"id": 5}}
        await fake.line.deliver(**event)
        await view.wait_for(lambda rows: set(rows) == {(1,), (4,), (5,)}, timeout_s=10)
        assert [frame for frame in fake.line.said if frame["type"] == "subscribe"] == []
        await eventually_async(lambda: {"type": "ack", "n": 2} in fake.line.said)


async def test_an_expired_token_is_replaced_by_the_callback(
    fake: FakePlatform, eventually_async: Eventually
) -> None:
    made: list[str] = []

    async def make() -> str:
        made.append(f"t{len(made)}")
        return made[-1]

    async with connected(fake, token=make) as client:
        assert (made, fake.line.token) == (["t0"], "t0")
        await fake.line.socket.close(4001)
        await eventually_async(lambda: len(fake.lines) == 2 and client.state == "live")
        assert fake.line.token == "t1"
        await fake.line.socket.close(4000)
        await eventually_async(lambda: len(fake.lines) == 3 and client.state == "live")
        assert fake.line.token == "t1", "a token that is good is used again"
        fake.refused_tokens.add("t1")
        await fake.line.socket.close(4000)
        await eventually_async(lambda: len(fake.lines) == 4 and client.state == "live")
        assert fake.line.token == "t2"


async def test_a_token_is_renewed_before_it_expires(fake: FakePlatform, eventually_async: Eventually) -> None:
    made: list[str] = []

    def make() -> str:
        made.append(f"t{len(made)}")
        return made[-1]

    async with connected(fake, token=make):
        await fake.line.send(type="heartbeat", cursor=None, lag_ms=0, token_expires_in=3600)
        await fake.line.send(type="heartbeat", cursor=None, lag_ms=0, token_expires_in=30)
        await eventually_async(lambda: fake.line.said == [{"type": "auth", "token": "t1"}])
        assert len(fake.lines) == 1


async def test_a_fixed_token_that_expired_ends_the_client(fake: FakePlatform) -> None:
    async with connected(fake, token="t1") as client:
        fake.refused_tokens.add("t1")
        await fake.line.socket.close(4001)
        async with asyncio.timeout(10):
            with pytest.raises(TokenRefused, match="expired"):
                await client.wait_stopped()


async def test_a_callback_that_keeps_giving_refused_tokens_ends_the_client(fake: FakePlatform) -> None:
    async with connected(fake, token=lambda: "t1") as client:
        fake.refused_tokens.add("t1")
        await fake.line.socket.close(4000)
        async with asyncio.timeout(10):
            with pytest.raises(TokenRefused):
                await client.wait_stopped()
    assert 2 <= len(fake.tokens) <= 3


async def test_a_failing_callback_is_the_applications_at_first_and_passing_later(
    fake: FakePlatform, eventually_async: Eventually
) -> None:
    broken = True

    def make() -> str:
        if broken:
            raise OSError("no network")
        return "t1"

    with pytest.raises(TokenCallbackFailed) as failed:
        async with connected(fake, token=make):
            pass
    assert isinstance(failed.value.__cause__, OSError)
    broken = False
    async with connected(fake, token=make) as client:
        broken = True
        await fake.line.socket.close(4001)
        await eventually_async(lambda: client.state == "offline")
        broken = False
        await eventually_async(lambda: client.state == "live")


async def test_an_api_that_is_away_is_waited_for(fake: FakePlatform, eventually_async: Eventually) -> None:
    fake.refuse_endpoint = 3
    async with connected(fake) as client:
        assert client.state == "live"
        assert client.lost_because is None
        fake.refuse_endpoint = 3
        await fake.line.socket.close(4004)
        await eventually_async(lambda: client.state == "offline")
        await eventually_async(lambda: client.lost_because == "Later.")
        await eventually_async(lambda: client.state == "live")
        assert client.lost_because is None
    assert len(fake.tokens) == 8


async def test_a_server_that_breaks_the_protocol_is_left_in_the_end(fake: FakePlatform) -> None:
    async with connected(fake) as client:
        await client.subscribe("t")

        async def nonsense(line: Line) -> None:
            await line.socket.send("nonsense")

        fake.welcoming = nonsense
        await fake.line.socket.send("nonsense")
        async with asyncio.timeout(10):
            with pytest.raises(ProtocolBroken):
                await client.wait_stopped()
    assert 3 <= len(fake.lines) <= 6


async def test_a_frame_too_large_to_take_is_said_not_tried_for_ever(fake: FakePlatform) -> None:
    async with connected(fake, max_frame_bytes=10_000) as client:
        fake.rows = dict.fromkeys(range(1000), 1)
        with pytest.raises(ProtocolBroken, match="larger than this client takes"):
            async with asyncio.timeout(10):
                await client.subscribe("t")


async def test_a_view_that_stalls_is_renewed(fake: FakePlatform) -> None:
    async with connected(fake) as client:
        view = await client.subscribe("t")
        fake.rows = {3: 1}
        await fake.line.send(type="error", code="unavailable", message="Later.", ref="s1")
        await view.wait_for(lambda rows: set(rows) == {(3,)}, timeout_s=10)
        assert [frame["type"] for frame in fake.line.said if frame["type"] != "ack"] == [
            "subscribe", "unsubscribe", "subscribe",
        ]  # fmt: skip


async def test_leaving_while_a_subscription_waits_says_so_to_the_server(
    fake: FakePlatform, eventually_async: Eventually
) -> None:
    async with connected(fake) as client:
        await client.subscribe("t")
        fake.line.snapshot = lambda _: asyncio.sleep(0)  # type: ignore[method-assign]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.subscribe("u"), 0.05)
        await eventually_async(lambda: {"type": "unsubscribe", "id": "s2"} in fake.line.said)


async def test_a_callback_that_fails_does_not_stop_the_others(fake: FakePlatform) -> None:
    reports: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, report: reports.append(report))
    try:
        async with connected(fake) as client:
            view = await client.subscribe("t")
            seen: list[Any] = []

            def fail(_: object) -> None:
                raise RuntimeError("mine")

            view.on_change(fail)
            remove = view.on_change(seen.append)
            changes = view.changes()
            event = {"type": "data.create", "sub": ["s1"], "key": {"id": 5}, "version": 1, "row": {"id": 5}}
            await fake.line.deliver(**event)
            assert (await asyncio.wait_for(anext(changes), 10)).key == (5,)
            remove()
            await fake.line.deliver(type="data.delete", sub=["s1"], key={"id": 5}, version=2)
            assert (await asyncio.wait_for(anext(changes), 10)).op == "delete"
        assert len(seen) == 1
        assert [str(report["exception"]) for report in reports] == ["mine", "mine"]
    finally:
        loop.set_exception_handler(None)


async def test_a_reader_of_changes_that_falls_behind_is_told(fake: FakePlatform) -> None:
    async with connected(fake) as client:
        view = await client.subscribe("t")
        slow, fast = view.changes(limit=3), view.changes()
        for number in range(10, 20):
            event = {
                "type": "data.create",
                "sub": ["s1"],
                "key": {"id": number},
                "version": 1,
                "row": {"id": number},
            }
            await fake.line.deliver(**event)
        await view.wait_for(lambda rows: len(rows) == 11, timeout_s=10)
        with pytest.raises(cloudsync_client.FellBehind):
            await anext(slow)
        assert [(await anext(fast)).key[0] for _ in range(10)] == list(range(10, 20))


def test_backoff_doubles_up_to_its_cap_and_spreads_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []

    def highest(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    monkeypatch.setattr(client_failures.random, "uniform", highest)
    waits = [client_failures.backoff_s(attempt, base_s=0.5, cap_s=30.0) for attempt in (0, 1, 2, 5, 6, 99)]
    assert waits == [0.5, 1.0, 2.0, 16.0, 30.0, 30.0]
    assert {low for low, _ in drawn} == {0}
