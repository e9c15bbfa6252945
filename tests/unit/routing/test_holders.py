"""Leases of processes that ended are free at once; of those that live, or run elsewhere, never."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import redis

from cloudsync.feeds.keys import Keys
from cloudsync.routing.holders import free_if_dead, new_holder
from integration.routing.flow import fresh_keys
from waiting import eventually

HOLDER = "from cloudsync.routing.holders import new_holder; print(new_holder(), flush=True); input()"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as made:
        yield made


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """A process that has printed its holder and waits."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        yield started
        started.kill()


def leased(client: redis.Redis, holder: str) -> Keys:
    keys = fresh_keys()
    client.zadd(keys.routers, {holder: 1, "another": 1})
    for shard in (3, 5):
        client.set(keys.lock(shard), holder)
    client.set(keys.lock(7), "another")
    return keys


def locks(client: redis.Redis, keys: Keys) -> list[int]:
    return [shard for shard in range(16) if client.exists(keys.lock(shard))]


def test_what_a_killed_process_held_is_free(client: redis.Redis, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    holder = process.stdout.readline().strip()
    keys = leased(client, holder)
    assert not free_if_dead(client, keys, holder)
    assert locks(client, keys) == [3, 5, 7]
    process.kill()
    eventually(lambda: free_if_dead(client, keys, holder))  # a zombie, as long as nobody waits for it
    assert locks(client, keys) == [7]
    assert client.zrange(keys.routers, 0, -1) == [b"another"]
    process.wait()
    assert free_if_dead(client, keys, holder)


def test_nobody_elsewhere_is_judged(client: redis.Redis) -> None:
    own = new_holder()
    table, _, nonce = own.split(":")
    dead_there = f"{'0' * len(table)}:{2**22 + 1}:{nonce}"  # no process here has that id either
    for holder in (own, dead_there, "another"):
        keys = leased(client, holder)
        assert not free_if_dead(client, keys, holder)
        assert locks(client, keys) == [3, 5, 7]
