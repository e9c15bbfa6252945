"""kill -9 of an application between any two steps of its client: no change is lost, none applied twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from sync_server import SyncServer

EVERYTHING = [
    "change", "connection", "journal", "link", "outbox", "overlay", "replica", "session", "store",
    "subscription", "view", "writes",
]  # fmt: skip
KILLED = -9
POINTS = 30
CHANGES = [
    ("create", 5, 1), ("update", 5, 2), ("update", 0, 3), ("create", 6, 4), ("update", 5, 13),
    ("delete", 5, 0), ("update", 0, 5), ("create", 5, 6),
]  # fmt: skip


class Platform:
    """The model server behind a real socket."""

    def __init__(self) -> None:
        self.server = SyncServer()
        self.manner = "replay"
        self.url = ""

    def http(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path.startswith("/ws/"):
            return None
        body = json.dumps({"url": self.url.replace("http:", "ws:") + "/ws/1"}).encode()
        return Response(200, "", Headers({"Content-Length": str(len(body))}), body)

    async def serve(self, socket: ServerConnection) -> None:
        server = self.server
        try:
            server.greet(json.loads(await socket.recv()), self.manner)
            await self._send(socket)
            async for text in socket:
                frame = json.loads(text)
                server.hear(frame)
                if frame["type"] in ("ack", "change"):
                    server.beat()
                await self._send(socket)
        except ConnectionClosed:
            return

    async def _send(self, socket: ServerConnection) -> None:
        while self.server.outbox:
            await socket.send(json.dumps(self.server.outbox.popleft()))


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    found = Platform()
    async with serve(
        found.serve, "127.0.0.1", 0, process_request=found.http, subprotocols=["cloudsync.v1"],
        compression=None,
    ) as server:  # fmt: skip
        found.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        yield found


class Application:
    """Runs the application, killed at a line or to its end."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, url: str) -> None:
        self._process, self._folder, self._url = process, folder, url
        self.modules = EVERYTHING
        """Whose lines are counted."""

    async def run(self, case: int, *, kill_at: int | None, changes: list[Any]) -> dict[str, Any] | None:
        """What it answers; None if it was killed."""
        names = {name: str(self._folder / f"{case}.{name}") for name in ("store", "told", "answer")}
        order = {**names, "url": self._url, "modules": self.modules, "kill_at": kill_at, "changes": changes}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(100):
            status = int(await self._process.stdout.readline())
        if status == KILLED:
            return None
        assert status == 0
        return self._answer(names["answer"])

    def _answer(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(Path(path).read_text())
        return answer

    def told(self, case: int) -> list[int]:
        path = self._folder / f"{case}.told"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
async def application(platform: Platform, tmp_path: Path) -> AsyncIterator[Application]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("crashing_application.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    yield Application(process, tmp_path, platform.url)
    assert process.stdin
    process.stdin.close()
    await process.wait()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("modules", [EVERYTHING, ["journal", "store"]], ids=["anywhere", "while storing"])
async def test_killed_between_any_two_steps(
    platform: Platform, application: Application, modules: list[str]
) -> None:
    application.modules = modules
    whole = await application.run(0, kill_at=None, changes=CHANGES)
    assert whole
    assert whole["rows"] == {"0": 5, "5": 6, "6": 4}
    assert [number for _, number in platform.server.applied] == [1, 2, 3, 4, 6, 7, 8]
    step = whole["lines"] / POINTS
    assert step > 5
    chance = random.Random(20261122)
    killed = 0
    for case in range(1, POINTS + 1):
        platform.server = SyncServer()
        platform.server.row_first = case % 2 == 0
        platform.manner = ("replay", "differential", "resync")[case % 3 if modules is EVERYTHING else 0]
        first = chance.randrange(int((case - 1) * step), int(case * step)) + 1
        killed += await application.run(case, kill_at=first, changes=CHANGES) is None
        if case % 4 == 0:
            # Once more, while it comes back.
            await application.run(case, kill_at=chance.randrange(1, 400), changes=[])
        platform.server.change(1, 100 + case)
        last = await application.run(case, kill_at=None, changes=[("update", 0, 7)])
        server = platform.server
        told = application.told(case)
        assert last, f"killed at line {first}"
        assert last["rows"] == {str(key): value for key, value in server.rows.items()}, f"line {first}"
        assert set(told) <= server.answers.keys(), f"line {first}: what was accepted was lost"
        assert server.rows[0] == 7
        numbers = [number for _, number in server.applied]
        assert len(set(numbers)) == len(numbers), f"line {first}: applied twice"
        # Changes are judged in their order, so that one which is missing would show.
        assert sorted(server.answers) == list(range(1, len(server.answers) + 1)), f"line {first}"
        assert len(server.answers) - len(told) <= 1, "at most the one that was being written"
    assert killed > POINTS * 0.7
