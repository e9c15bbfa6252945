"""Which PostgreSQL server feeds a database: one at a time, told from its copies.

A copy made below PostgreSQL has the id of its database, its system identifier and its timeline. What it does
not have is the postmaster (`server`), by which relays of one server know each other at once, and the stamps
that the database was given since it was made (the last, `saved`, and the `next`), by which a server that was
restarted or failed over is known to have the same storage. That the other server lives, only its lease says.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis

from cloudsync.feeds.feed import FeedsLost, Fenced
from cloudsync.feeds.keys import feeder_key
from cloudsync.feeds.scripts import RENEW_LEASE, TAKE_LEASE

LEASE_S: Final = 5.0
_HELD: Final = 0
_UNKNOWN: Final = 2
_ANOTHERS: Final = -1


class LeaseHeld(FeedsLost):
    """Another PostgreSQL server feeds the database of this id."""


class AnotherHistory(Exception):
    """What feeds and clients hold of this database id came from another database."""


class FeedLease:
    """The lease as one relay process takes it, for whichever database and server it has a session with."""

    def __init__(self) -> None:
        self.relay = secrets.token_hex(8)
        """Names this process in the lease and in the feeds that it has claimed."""
        self._refused_since_s: float | None = None
        self._unknown_since_s: float | None = None

    @property
    def contested(self) -> bool:
        """Refused for so long that the other server's relay must be alive: it has renewed the lease."""
        return self._refused_since_s is not None and time.monotonic() - self._refused_since_s > LEASE_S

    async def take(
        self, redis: Redis, database_id: str, *, server: str, stamps: Sequence[str], upcoming: str
    ) -> None:
        """Take it; at once from the same server, from another when it has expired.

        `stamps` are the database's last, the newest first: Redis may have lost that one.
        Raises LeaseHeld; AnotherHistory if the other had a database that this one has not become.
        """
        now_s = time.monotonic()
        # Redis may come back empty. Who was refused before gives the one that had the lease time to return.
        founds = self._refused_since_s is None or (
            self._unknown_since_s is not None and now_s - self._unknown_since_s > LEASE_S
        )
        answer = await redis.register_script(TAKE_LEASE)(
            keys=[feeder_key(database_id)],
            args=[server, self.relay, _ms(LEASE_S), int(founds), upcoming, *stamps],
        )
        if answer == _UNKNOWN:
            self._unknown_since_s = self._unknown_since_s or now_s
            raise LeaseHeld("Redis has forgotten who feeds this database.")
        self._unknown_since_s = None
        if answer == _HELD:
            self._refused_since_s = self._refused_since_s or now_s
            raise LeaseHeld("Another PostgreSQL server feeds this database id.")
        self._refused_since_s = None
        if answer == _ANOTHERS:
            raise AnotherHistory

    async def renew(self, redis: Redis, database_id: str, *, saved: str, upcoming: str) -> None:
        """Keep it, and say what the database is stamped with and will be next. Raises Fenced."""
        await self._renew(redis, database_id, LEASE_S, "saved", saved, "next", upcoming)

    async def release(self, redis: Redis, database_id: str) -> None:
        """Let it expire now. Raises Fenced."""
        await self._renew(redis, database_id, 0)

    async def _renew(self, redis: Redis, database_id: str, lease_s: float, *fields: str) -> None:
        renewed = await redis.register_script(RENEW_LEASE)(
            keys=[feeder_key(database_id)], args=[self.relay, _ms(lease_s), *fields]
        )
        if not renewed:
            raise Fenced("Another relay feeds this database.")


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
