"""What waits in the feeds: events beyond `done`, for how long, and whether somebody is at it."""

from __future__ import annotations

from typing import Any, NamedTuple

import redis

from cloudsync.feeds.keys import Keys
from cloudsync.feeds.scripts import NOW
from cloudsync.sharding import SHARDS


class Backlog(NamedTuple):
    """Of one database: `unserved` says that something waits in a shard that no router has leased."""

    events: int
    oldest_ms: int
    unserved: bool


def read_backlog(client: redis.Redis, keys: Keys) -> Backlog:
    """Count what is not routed. Shards are read one after the other, so the sum is of about now."""
    with client.pipeline(transaction=False) as pipeline:
        for shard in range(SHARDS):
            pipeline.hmget(keys.tail(shard), "id", "n")
            pipeline.get(keys.done(shard))
            pipeline.exists(keys.lock(shard))
        answers = pipeline.execute()
    now_ms: Any = client.eval(NOW, 1, keys.head)
    events = oldest_ms = 0
    unserved = False
    for shard, (tail, done, locked) in enumerate(
        zip(answers[::3], answers[1::3], answers[2::3], strict=True)
    ):
        if tail[0] is None or tail[0] == done:
            continue
        unserved = unserved or not locked
        # The entry at `done`, if it has not been trimmed, says how many events came before; the next one
        # has waited the longest.
        entries: Any = client.xrange(keys.feed(shard), min=done or "-", count=2 if done else 1)
        routed = int(entries.pop(0)[1][b"n"]) if entries and entries[0][0] == done else 0
        events += int(tail[1]) - routed
        if entries:
            oldest_ms = max(oldest_ms, now_ms - int(entries[0][1][b"t"]))
    return Backlog(events, oldest_ms, unserved)
