"""A routing task's slice of time: every database with clients is routed side by side, by one blocking read.

A task that kept to one database would let the others wait until it is idle, and there may be more databases
than workers. So whoever lingers takes its share of the shards of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import redis
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.feeds.connection import text_of
from cloudsync.feeds.keys import DATABASES, Keys, epoch_key
from cloudsync.routing.router import Router
from cloudsync.settings import Settings

_BLOCK_MS: Final = 250
_SHARE_EVERY_S: Final = 0.5
_JOIN_S: Final = 1.5
_JOIN_EVERY_S: Final = 0.05

_log = logs.get("routing")


class Slice:
    """Routes until idle, out of time, or told to stop. `first` is the database that the task was sent for."""

    def __init__(
        self, client: redis.Redis, first: Router, settings: Settings, *, make: Callable[[Keys], Router]
    ) -> None:
        self._redis = client
        self._settings = settings
        self._make = make
        self._routers: dict[Keys, Router] = {first.keys: first}
        self._given_up: set[Keys] = set()
        self.routed_events = 0

    @property
    def routers(self) -> list[Router]:
        """Those of the databases that are served now; after the end, that were served last."""
        return list(self._routers.values())

    def linger(self, stop: Callable[[], bool]) -> int:
        """Route; returns the number of events routed.

        Shards that nobody serves are leased as they come free; when more tasks are at work than when the
        slice began, the surplus is given back. Raises redis errors.
        """
        began = active = time.monotonic()
        share_due = 0.0
        try:
            while not stop() and self._routers:
                now = time.monotonic()
                if (
                    now - began > self._settings.routing_slice_s
                    or now - active > self._settings.routing_idle_s
                ):
                    break
                if now >= share_due:
                    self._share()
                    share_due = now + (_SHARE_EVERY_S if self._busy else _JOIN_EVERY_S)
                    if not self._routers:
                        break
                for router in self._busy:
                    router.renew(now)
                if not self._busy:
                    # All shards are served by others, who give some back at their next look: wait for that.
                    if now - active > _JOIN_S:
                        break
                    time.sleep(_JOIN_EVERY_S)
                    continue
                if self._step():
                    active = time.monotonic()
        finally:
            for router in self.routers:
                router.leave()
        return self.routed_events

    @property
    def _busy(self) -> list[Router]:
        return [router for router in self._routers.values() if router.holds]

    def _share(self) -> None:
        """Serve the databases that have clients by now, and no epoch that is over."""
        for keys in self._with_clients():
            if keys not in self._routers and keys not in self._given_up:
                self._routers[keys] = self._make(keys)
        for keys, router in list(self._routers.items()):
            router.share()
            if router.outdated:  # nothing will come here any more
                self._drop(keys)

    def _with_clients(self) -> Iterator[Keys]:
        members: Any = self._redis.smembers(DATABASES)
        ids = sorted(member.decode() for member in members)
        with self._redis.pipeline(transaction=False) as pipeline:
            for database_id in ids:
                pipeline.get(epoch_key(database_id))
            epochs = pipeline.execute()
        found = [Keys(i, str(text_of(e))) for i, e in zip(ids, epochs, strict=True) if e is not None]
        with self._redis.pipeline(transaction=False) as pipeline:
            for keys in found:
                pipeline.zcard(keys.gateways)
            gateways = pipeline.execute()
        return (keys for keys, count in zip(found, gateways, strict=True) if count)

    def _step(self) -> int:
        routers = self._busy
        routed = 0
        for router, entries, log in read(self._redis, routers, _BLOCK_MS):
            try:
                routed += router.route(entries, log)
            except RedisError:
                raise
            except Exception:
                if len(self._routers) == 1:
                    raise
                # Another database's, and a task that is sent for it tries again; the rest goes on.
                _log.exception("a database is not routed by this task", database=router.keys.database_id)
                self._given_up.add(router.keys)
                self._drop(router.keys)
        self.routed_events += routed
        return routed

    def _drop(self, keys: Keys) -> None:
        self._routers.pop(keys).leave()


def read(
    client: redis.Redis, routers: list[Router], block_ms: int
) -> Iterator[tuple[Router, list[Any], Any]]:
    """What came in the feeds of each router's shards, and then in its registry's log. Raises redis errors."""
    feeds = [router.streams() for router in routers]
    streams: Any = {feed: after for each in feeds for feed, after in each.items()}
    with client.pipeline(transaction=False) as pipeline:
        # One round trip: Redis runs the other commands when the first has stopped blocking.
        pipeline.xread(streams, count=max(router.count for router in routers), block=block_ms)
        for router in routers:
            router.ask(pipeline)
        answer, *registry_logs = pipeline.execute()
    arrived = dict(answer or ())
    for router, names, log in zip(routers, feeds, registry_logs, strict=True):
        entries = [(feed, arrived[feed]) for name in names if (feed := name.encode()) in arrived]
        if entries:
            yield router, entries, log
