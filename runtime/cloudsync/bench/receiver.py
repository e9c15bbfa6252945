"""A process of receiving clients: `python -m cloudsync.bench.receiver`, driven by `fleet` in JSON lines.

Commands come on standard input and are answered one by one on standard output; the process ends with its
input. Clients acknowledge as the real one does, and one that is closed comes back with a new snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import sys
import time
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import uvloop

from cloudsync.bench.ledger import Receipts, settle
from cloudsync.bench.payloads import PayloadReader
from cloudsync.bench.wire import FrameSocket, HandshakeFailed
from cloudsync.client.session import ACK_BYTES, ACK_DELAY_S, ACK_FRAMES
from cloudsync.protocol.messages import Ack, Hello, Subscribe, Where, encode

_HANDSHAKE_S: Final = 30.0
_RETRIES_S: Final = (0.1, 0.5, 1.0, 2.0)


class Place(msgspec.Struct):
    """Who one client is."""

    token: str
    client_id: str


class Open(msgspec.Struct, tag_field="do", tag="open"):
    """Connect and subscribe clients; answered when every one has its snapshot."""

    url: str
    table: str
    places: list[Place]
    at_once: int
    deadline_s: float
    where: Where | None = None


class Progress(msgspec.Struct, tag_field="do", tag="progress"):
    """How much has come so far."""


class Await(msgspec.Struct, tag_field="do", tag="await"):
    """Answered when every client has these versions of the sentinels, or when the time is over."""

    sentinels: dict[int, int]
    deadline_s: float


class Settle(msgspec.Struct, tag_field="do", tag="settle"):
    """The account since the last one."""

    versions: dict[str, int]
    deleted: list[str]


class Subscriber(FrameSocket):
    """One client's connection."""

    def __init__(self, fleet: Receivers, place: Place, receipts: Receipts, request: Open) -> None:
        super().__init__(request.url, place.token)
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fleet = fleet
        self._place = place
        self._receipts = receipts
        self._request = request
        self._n = 0
        self._acked = 0
        self._unacked_bytes = 0
        self._now_us = 0

    def greet(self) -> None:
        self._receipts.restart()
        self.say(encode(Hello(self._place.client_id, sdk="bench")))
        self.say(encode(Subscribe("s1", self._request.table, self._request.where)))

    def data_received(self, data: bytes) -> None:
        self._now_us = time.time_ns() // 1000
        super().data_received(data)

    def frame(self, payload: bytes) -> None:
        found = self._fleet.reader.read(payload)
        if found is None:
            if payload.startswith(b'{"type":"error"'):
                self._fleet.problems.append(payload.decode()[:300])
            return
        n, sent_us, content = found
        if n != self._n + 1:
            self._fleet.problems.append(f"delivery {n} came after {self._n}")
        self._n = n
        self._unacked_bytes += len(payload)
        self._receipts.note(content, sent_us, self._now_us)
        if content.last and not self.complete.done():
            self.complete.set_result(None)

    def read_over(self) -> None:
        if self._n - self._acked >= ACK_FRAMES or self._unacked_bytes >= ACK_BYTES:
            self.acknowledge()
        elif self._n > self._acked:
            self._fleet.acknowledge_soon(self)

    def acknowledge(self) -> None:
        if self._n > self._acked:
            self._acked = self._n
            self._unacked_bytes = 0
            self.say(encode(Ack(self._n)))

    def ended(self, code: int | None) -> None:
        self._fleet.lost(self, self._place, self._receipts, self._request, code)
        if not self.complete.done():
            self.complete.set_exception(HandshakeFailed(f"The gateway closed with {code}."))
            self.complete.exception()  # seen, also where nobody waits


class Receivers:
    """All clients of this process."""

    def __init__(self) -> None:
        self.reader = PayloadReader()
        self.receipts: list[Receipts] = []
        self.problems: list[str] = []
        self.disconnects: dict[str, int] = {}
        self._live: set[Subscriber] = set()
        self._unacknowledged: set[Subscriber] = set()
        self._ack_due = False
        self._leaving = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, request: Open) -> dict[str, Any]:
        gate = asyncio.Semaphore(request.at_once)

        async def one(place: Place, receipts: Receipts) -> None:
            async with gate:
                await self._connect(place, receipts, request)

        fresh = [Receipts() for _ in request.places]
        self.receipts += fresh
        async with asyncio.timeout(request.deadline_s):
            await asyncio.gather(*map(one, request.places, fresh))
        gc.collect()
        gc.freeze()
        gc.disable()  # receipts pile up and hold no cycles: collecting would only pause the clock
        return {"open": len(self._live)}

    def progress(self) -> dict[str, Any]:
        return {
            "deliveries": sum(r.events for r in self.receipts),
            "frames": sum(r.frames for r in self.receipts),
            "fewest": min((r.events for r in self.receipts), default=0),
            "disconnects": sum(self.disconnects.values()),
        }

    async def wait_for(self, request: Await) -> dict[str, Any]:
        deadline = time.monotonic() + request.deadline_s
        wanted = request.sentinels.items()
        while late := sum(any(r.sentinels.get(k, 0) < v for k, v in wanted) for r in self.receipts):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        return {"late": late}

    def settle(self, request: Settle) -> dict[str, Any]:
        account = settle(self.receipts, request.versions, frozenset(request.deleted))
        answer = msgspec.to_builtins(account)
        answer["disconnects"], self.disconnects = self.disconnects, {}
        answer["problems"], self.problems = self.problems[:5], []
        answer["decoded"], self.reader.decoded = self.reader.decoded, 0
        return dict(answer)

    def acknowledge_soon(self, subscriber: Subscriber) -> None:
        self._unacknowledged.add(subscriber)
        if not self._ack_due:
            self._ack_due = True
            asyncio.get_running_loop().call_later(ACK_DELAY_S, self._acknowledge)

    def lost(
        self, subscriber: Subscriber, place: Place, receipts: Receipts, request: Open, code: int | None
    ) -> None:
        self._live.discard(subscriber)
        if self._leaving or not subscriber.complete.done():
            return  # the one who connects sees to it
        self.disconnects[str(code)] = self.disconnects.get(str(code), 0) + 1
        task = asyncio.get_running_loop().create_task(self._come_back(place, receipts, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def leave(self) -> None:
        self._leaving = True
        for task in self._tasks:
            task.cancel()
        for subscriber in list(self._live):
            subscriber.leave()
        deadline = time.monotonic() + 3
        while self._live and time.monotonic() < deadline:  # noqa: ASYNC110 - a handful of polls, once
            await asyncio.sleep(0.02)

    def _acknowledge(self) -> None:
        self._ack_due = False
        for subscriber in self._unacknowledged:
            subscriber.acknowledge()
        self._unacknowledged.clear()

    async def _connect(self, place: Place, receipts: Receipts, request: Open) -> None:
        at = urlsplit(request.url)
        _, subscriber = await asyncio.get_running_loop().create_connection(
            lambda: Subscriber(self, place, receipts, request), at.hostname or "", at.port or 80
        )
        async with asyncio.timeout(_HANDSHAKE_S):
            await subscriber.greeted
        self._live.add(subscriber)
        subscriber.greet()
        await subscriber.complete

    async def _come_back(self, place: Place, receipts: Receipts, request: Open) -> None:
        for pause_s in _RETRIES_S:
            await asyncio.sleep(pause_s)
            try:
                await self._connect(place, receipts, request)
            except (OSError, HandshakeFailed) as error:
                self.problems.append(f"could not come back: {error}")
            else:
                return


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=256 * 1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    decode = msgspec.json.Decoder(Open | Progress | Await | Settle).decode
    receivers = Receivers()
    while line := await reader.readline():
        answer: dict[str, Any]
        try:
            match decode(line):
                case Open() as request:
                    answer = await receivers.open(request)
                case Progress():
                    answer = receivers.progress()
                case Await() as request:
                    answer = await receivers.wait_for(request)
                case Settle() as request:
                    answer = receivers.settle(request)
        except Exception as error:  # noqa: BLE001 - told to the driver, which raises it
            answer = {"error": f"{type(error).__name__}: {error} {receivers.problems[:3]}"}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()
    await receivers.leave()


def main() -> None:
    """Serve until standard input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_serve())


if __name__ == "__main__":
    main()
