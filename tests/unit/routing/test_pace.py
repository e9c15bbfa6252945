"""Which tasks are still wanted, by the clock of a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from cloudsync.feeds.keys import Keys
from cloudsync.routing.pace import is_due, is_stale, sent_ms
from waiting import eventually

KEYS = Keys("db", "ep")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as made:
        yield made


def test_of_tasks_that_piled_up_one_is_done(client: redis.Redis) -> None:
    assert [is_due(client, "sweep", 60) for _ in range(3)] == [True, False, False]
    assert is_due(client, "measure", 60)  # another task has its own turn


def test_the_next_interval_is_another_turn(client: redis.Redis) -> None:
    assert is_due(client, "sweep", 0.1)
    eventually(lambda: is_due(client, "sweep", 0.1))


def test_while_redis_is_full_or_gone_every_task_is_wanted(client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)
    try:
        assert is_due(client, "sweep", 60)
        assert is_due(client, "sweep", 60)
    finally:
        client.config_set("maxmemory", 0)
    assert is_due(redis.Redis(port=1), "sweep", 60)


def test_a_task_is_stale_when_it_has_waited_for_long(client: redis.Redis) -> None:
    now_ms = sent_ms(client, KEYS)
    assert not is_stale(client, KEYS, now_ms - 20_000)
    assert is_stale(client, KEYS, now_ms - 31_000)
