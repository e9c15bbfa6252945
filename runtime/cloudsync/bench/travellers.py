"""Clients that are cut off together and come back together, each with its cursor and a view of its own."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from cloudsync.bench.payloads import PayloadReader
from cloudsync.bench.receiver import Place
from cloudsync.bench.wire import FrameSocket, HandshakeFailed
from cloudsync.client.session import ACK_BYTES, ACK_FRAMES
from cloudsync.protocol.messages import Ack, HeldSubscription, Hello, Subscribe, Where, encode

_HANDSHAKE_S: Final = 60.0
_HANDSHAKES: Final = 256
"""Handshakes under way together: a listening socket takes only so many."""


class _Control(msgspec.Struct):
    type: str
    cursor: str | None = None
    resumed: str | None = None


_decode = msgspec.json.Decoder(_Control).decode


class Traveller:
    """One client, over any number of connections: what it holds and how far it is."""

    def __init__(self, company: Company, place: Place, where: Where) -> None:
        self.company = company
        self.place = place
        self.where = where
        self.versions: dict[str, int] = {}
        self.cursor: str | None = None
        self.resumed: str | None = None
        self.caught_up_s: float | None = None
        self.caught_up: asyncio.Future[None]
        """Done with the frame that ends what was missed, or the snapshot; fails if the gateway closes."""
        self.socket: _Socket | None = None

    async def connect(self) -> None:
        at = urlsplit(self.company.url)
        self.caught_up_s = self.resumed = None
        self.caught_up = asyncio.get_running_loop().create_future()
        _, self.socket = await asyncio.get_running_loop().create_connection(
            lambda: _Socket(self), at.hostname or "", at.port or 80
        )
        async with asyncio.timeout(_HANDSHAKE_S):
            await self.socket.greeted
        held = [HeldSubscription("s1", self.company.table, self.where)] if self.versions else []
        self.socket.say(encode(Hello(self.place.client_id, self.cursor, held, "bench")))
        if not held:
            self.socket.say(encode(Subscribe("s1", self.company.table, self.where)))

    def cut(self) -> None:
        """As when a network breaks: nobody says anything."""
        if self.socket is not None:
            self.socket.abort()


class _Socket(FrameSocket):
    """One connection of a traveller. Acknowledges in time."""

    def __init__(self, traveller: Traveller) -> None:
        super().__init__(traveller.company.url, traveller.place.token)
        self._traveller = traveller
        self._n = self._acked = self._unacked_bytes = 0

    def frame(self, payload: bytes) -> None:
        company, traveller = self._traveller.company, self._traveller
        found = company.reader.read(payload)
        if found is None:
            control = _decode(payload)
            traveller.cursor = control.cursor or traveller.cursor
            if control.type == "welcome":
                traveller.resumed = control.resumed
            elif control.type not in ("heartbeat", "subscribed"):
                company.problems.append(payload.decode()[:300])
            return
        self._n, _, content = found
        self._unacked_bytes += len(payload)
        company.frames += 1
        for key, version in content.rows:
            company.events += 1
            if version > traveller.versions.get(key, -1):
                traveller.versions[key] = version
            else:
                company.repeats += 1
        if content.last:
            traveller.caught_up_s = time.monotonic()
            if not traveller.caught_up.done():
                traveller.caught_up.set_result(None)

    def read_over(self) -> None:
        waiting = self._n - self._acked
        many = waiting >= ACK_FRAMES or self._unacked_bytes >= ACK_BYTES
        if many or (waiting and self._traveller.caught_up_s is not None):
            self._acked, self._unacked_bytes = self._n, 0
            self.say(encode(Ack(self._n)))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._traveller.company.open += 1
        super().connection_made(transport)

    def ended(self, code: int | None) -> None:
        self._traveller.company.open -= 1
        if code is not None:
            self._traveller.company.problems.append(f"closed with {code}")
        if not self._traveller.caught_up.done():
            self._traveller.caught_up.set_exception(HandshakeFailed(f"The gateway closed with {code}."))


class Company:
    """All travellers of this process."""

    def __init__(self, url: str, table: str) -> None:
        self.url, self.table = url, table
        self.reader = PayloadReader()
        self.travellers: list[Traveller] = []
        self.problems: list[str] = []
        self.events = self.frames = self.repeats = self.open = 0

    async def connect(self, *, at_once: int, deadline_s: float) -> float:
        """Connect all, so many under way at a time until they are live; seconds until all are.

        Raises HandshakeFailed if the gateway sends one away.
        """
        handshakes, gate = asyncio.Semaphore(_HANDSHAKES), asyncio.Semaphore(at_once)
        began_s = time.monotonic()

        async def one(traveller: Traveller) -> None:
            async with gate:
                async with handshakes:
                    await traveller.connect()
                await traveller.caught_up

        async with asyncio.timeout(deadline_s):
            await asyncio.gather(*map(one, self.travellers))
        return time.monotonic() - began_s

    async def take_cursors(self, deadline_s: float) -> None:
        """Wait until each has a cursor that was sent after this call."""
        for traveller in self.travellers:
            traveller.cursor = None
        async with asyncio.timeout(deadline_s):
            while any(t.cursor is None for t in self.travellers):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.1)

    async def cut(self) -> None:
        """Break every connection off; returns when all are gone."""
        for traveller in self.travellers:
            traveller.cut()
        while self.open:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)

    def lost(self, versions: dict[str, dict[Any, int]]) -> int:
        """Versions that SQL has, by slice, and a client does not."""
        return sum(
            t.versions.get(key, 0) != version
            for t in self.travellers
            for key, version in versions[str(t.where)].items()
        )
