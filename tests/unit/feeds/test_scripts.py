"""The scripts in Redis, each against what it promises, on a real Valkey."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudsync.feeds import scripts


@pytest.fixture
def server(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def at(now_ms: int, script: str) -> str:
    """The script as it runs while the server's clock shows this."""
    clock = (
        "local server = redis\n"
        "local redis = {call = function(name, ...)\n"
        f"  if name == 'TIME' then return {{'{now_ms // 1000}', '{now_ms % 1000 * 1000}'}} end\n"
        "  return server.call(name, ...)\n"
        "end}\n"
    )
    first, _, rest = script.partition("\n")
    return f"{first}\n{clock}{rest}"


class Feed:
    """One feed as the relay's scripts see it."""

    names = ("{x}feed", "{x}tail", "{x}marks")
    waiting = 0
    """Bytes that wait for routing, as the last trim said."""

    def __init__(self, server: redis.Redis) -> None:
        self.server = server

    def append(
        self, expected: str, entry_id: str, payload: bytes = b"x", *, events: int = 1, now_ms: int = 0,
        mark_ms: int = 0, mark_bytes: int = 0,
    ) -> str:  # fmt: skip
        answer: Any = self.server.eval(
            at(now_ms, scripts.APPEND), 3, *self.names, expected, entry_id, payload, events, "tag", "chan",
            mark_ms, mark_bytes, "",
        )  # fmt: skip
        return answer.decode()

    def trim(self, oldest_ms: int = 0, budget_bytes: int = 10**9) -> int:
        names = (*self.names, "{x}floor", "{x}done")
        script = at(oldest_ms + 60_000, scripts.TRIM)
        gone, self.waiting = self.server.eval(script, 5, *names, 60_000, budget_bytes)  # type: ignore[misc]
        return int(gone)

    @property
    def ids(self) -> list[str]:
        entries: Any = self.server.xrange("{x}feed")
        return [i.decode() for i, _ in entries]

    @property
    def floor(self) -> bytes | None:
        return self.server.get("{x}floor")  # type: ignore[return-value]


@pytest.fixture
def feed(server: redis.Redis) -> Feed:
    return Feed(server)


def test_append_behind_the_expected_tail_only(feed: Feed) -> None:
    assert feed.append("0-0", "10-1") == "10-1"
    before = feed.server.dump("{x}feed"), feed.server.dump("{x}tail"), feed.server.dump("{x}marks")
    assert feed.append("0-0", "20-1") == "10-1"  # a mismatch answers with the true tail
    assert feed.append("9-1", "20-1") == "10-1"
    assert feed.append("0-0", "10-1") == "10-1"  # the same again: an answer, no second entry
    assert before == (feed.server.dump("{x}feed"), feed.server.dump("{x}tail"), feed.server.dump("{x}marks"))
    assert feed.append("10-1", "20-1") == "20-1"
    assert feed.ids == ["10-1", "20-1"]


def test_append_counts_events_outside_the_seal_and_wakes(feed: Feed) -> None:
    pubsub = feed.server.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe("chan")
    pubsub.get_message(timeout=1)
    feed.append("0-0", "10-1", events=3)
    feed.append("10-1", "18446744073709551615-99", events=4)
    entries: Any = feed.server.xrange("{x}feed")
    assert [f[b"n"] for _, f in entries] == [b"3", b"7"]
    woken = [pubsub.get_message(timeout=2)["data"] for _ in range(2)]  # type: ignore[index]
    assert woken == [b"10-1", b"18446744073709551615-99"]
    feed.append("0-0", "30-1")
    assert pubsub.get_message(timeout=0.05) is None  # what was not appended wakes nobody
    pubsub.close()


def test_an_append_that_redis_refuses_changes_nothing(feed: Feed) -> None:
    feed.append("0-0", "10-1")
    with pytest.raises(redis.ResponseError):
        feed.append("10-1", "5-1")  # older than the stream's last
    assert feed.ids == ["10-1"]
    assert feed.server.hget("{x}tail", "id") == b"10-1"


def filled(feed: Feed, count: int, payload: bytes = b"x" * 100) -> None:
    last = "0-0"
    for n in range(1, count + 1):
        last = feed.append(last, f"{n}0-1", payload, now_ms=n * 1000)


def test_trim_by_age_sets_the_floor_and_never_passes_done(feed: Feed) -> None:
    filled(feed, 10)
    assert feed.trim(oldest_ms=10**9) == 0  # nothing has been routed
    assert feed.floor is None
    feed.server.set("{x}done", "40-1")
    assert feed.trim(oldest_ms=10**9) == 4
    assert feed.ids == [f"{n}0-1" for n in range(5, 11)]
    assert feed.floor == b"40-1"
    feed.server.set("{x}done", "100-1")
    assert feed.trim(oldest_ms=6500) == 2
    assert (feed.ids[0], feed.floor) == ("70-1", b"60-1")


def test_a_clock_that_was_set_back_stops_no_trimming(feed: Feed) -> None:
    """What came after it is trimmed by size as ever; by age once its time has come."""
    last = "0-0"
    for n in range(1, 11):
        last = feed.append(last, f"{n}0-1", b"x" * 100, now_ms=(10_000 - n) * 1000, mark_ms=900)
    feed.server.set("{x}done", "100-1")
    assert feed.trim(budget_bytes=500) == 4
    assert feed.trim(oldest_ms=9_994_500) == 0
    assert feed.trim(oldest_ms=9_995_001) == 5


def test_trim_never_empties(feed: Feed) -> None:
    filled(feed, 5)
    feed.server.set("{x}done", "50-1")
    feed.trim(oldest_ms=10**9, budget_bytes=0)
    assert feed.ids == ["50-1"]
    assert feed.trim(oldest_ms=10**9, budget_bytes=0) == 0
    assert feed.append("50-1", "60-1") == "60-1"


def test_trim_by_bytes_keeps_the_newest(feed: Feed) -> None:
    filled(feed, 10)
    feed.server.set("{x}done", "100-1")
    feed.trim(budget_bytes=350)
    assert feed.ids == ["70-1", "80-1", "90-1", "100-1"] or feed.ids == ["80-1", "90-1", "100-1"]
    assert feed.trim(budget_bytes=350) == 0


def test_trim_says_how_much_waits_for_routing(feed: Feed) -> None:
    filled(feed, 10)  # 100 bytes each, a mark for each
    assert (feed.trim(budget_bytes=500), feed.waiting) == (0, 900)  # but for the oldest
    feed.server.set("{x}done", "60-1")
    assert (feed.trim(budget_bytes=500), feed.waiting) == (4, 300)
    assert (feed.trim(budget_bytes=350), feed.waiting) == (2, 300)
    feed.server.set("{x}done", "100-1")
    assert (feed.trim(budget_bytes=350), feed.waiting) == (0, 0)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 300), st.integers(0, 3000)), min_size=1, max_size=25),  # noqa: E501
    st.integers(0, 25), st.integers(0, 60_000), st.integers(0, 4000), st.sampled_from([0, 2000]),
)  # fmt: skip
def test_trim_against_its_promise(
    feed: Feed, entries: list[tuple[int, int, int]], routed: int, oldest_ms: int, budget: int, mark_ms: int
) -> None:
    """Never past `done`, never the last; the floor is the last that went, and nothing above it is gone."""
    feed.server.flushall()
    ids, last, now_ms = [], "0-0", 0
    for n, (step, size, pause_ms) in enumerate(entries, 1):
        now_ms += pause_ms
        last = feed.append(last, f"{n * 100}-{step}", b"x" * size,
                           now_ms=now_ms, mark_ms=mark_ms, mark_bytes=400)  # fmt: skip
        ids.append(last)
    done = ids[min(routed, len(ids)) - 1] if routed else None
    if done:
        feed.server.set("{x}done", done)
    gone = feed.trim(oldest_ms=oldest_ms, budget_bytes=budget)
    assert feed.ids == ids[gone:]
    assert feed.ids[-1] == ids[-1]
    assert feed.floor == (ids[gone - 1].encode() if gone else None)
    if gone:
        assert done is not None
        assert gone <= ids.index(done) + 1


# Deliveries


def deliver(server: redis.Redis, entry_id: str, *, shard: int = 0, size: int = 10, budget: int = 1000) -> int:
    names = ("{g}stream", "{g}sent", "{g}token")
    return int(server.eval(scripts.DELIVER, 3, *names, b"x" * size, budget, 60_000, shard, entry_id))


def chain(server: redis.Redis) -> list[tuple[bytes, bytes, bytes]]:
    entries: Any = server.xrange("{g}stream")
    places = [tuple(f[b"p"].split(b":")) for _, f in entries]
    return [(shard, previous, entry_id) for shard, entry_id, previous in places]


def test_deliveries_are_chained_per_shard(server: redis.Redis) -> None:
    server.set("{g}token", "t")
    assert [deliver(server, "10-1"), deliver(server, "12-1", shard=3), deliver(server, "20-1")] == [1, 1, 1]
    assert deliver(server, "20-1") == 0  # a repeat
    assert deliver(server, "15-1") == 0
    assert deliver(server, "9-9") == 0
    assert deliver(server, "100-1") == 1  # by number, not by text
    assert deliver(server, "18446744073709551615-1") == 1
    assert deliver(server, "18446744073709551615-2") == 1
    assert chain(server)[:4] == [
        (b"0", b"0-0", b"10-1"), (b"3", b"0-0", b"12-1"), (b"0", b"10-1", b"20-1"), (b"0", b"20-1", b"100-1"),
    ]  # fmt: skip
    assert chain(server)[-1] == (b"0", b"18446744073709551615-1", b"18446744073709551615-2")


def test_an_unregistered_gateway_gets_nothing(server: redis.Redis) -> None:
    assert deliver(server, "10-1") == -1
    assert server.exists("{g}stream", "{g}sent") == 0


def test_over_budget_shows_as_a_gap(server: redis.Redis) -> None:
    server.set("{g}token", "t")
    assert deliver(server, "10-1", size=600) == 1
    assert deliver(server, "20-1", size=600) == -2
    assert deliver(server, "30-1", size=100) == 1
    assert chain(server) == [(b"0", b"0-0", b"10-1"), (b"0", b"20-1", b"30-1")]  # 20-1 is seen to be missing
    assert server.hget("{g}sent", "0") == b"30-1"
    entries: Any = server.xrange("{g}stream")
    ms, number = entries[-1][0].decode().split("-")
    server.eval(scripts.CONSUMED, 2, "{g}stream", "{g}sent", f"{ms}-{int(number) + 1}", 700)
    assert server.hget("{g}sent", "bytes") == b"0"
    assert server.xlen("{g}stream") == 0
    assert deliver(server, "40-1", size=900) == 1
    assert chain(server) == [(b"0", b"30-1", b"40-1")]  # the chain goes on behind what was trimmed


# Leases


def lease(server: redis.Redis, token: str, wanted: int = 16, ttl_ms: int = 60_000) -> list[int]:
    names = [f"{{x}}lock{n}" for n in range(4)]
    return server.eval(scripts.LEASE, 4, *names, token, ttl_ms, wanted)  # type: ignore[no-any-return]


def test_leases_are_exclusive_renewed_and_given_back_by_their_holder_only(server: redis.Redis) -> None:
    locks = [f"{{x}}lock{n}" for n in range(4)]
    assert lease(server, "a", 2) == [1, 2]
    assert lease(server, "b") == [3, 4]
    assert lease(server, "a") == []
    assert server.eval(scripts.RENEW, 4, *locks, "a", 60_000) == [3, 4]
    server.eval(scripts.RELEASE, 4, *locks, "a")
    assert [server.get(name) for name in locks] == [None, None, b"b", b"b"]
    server.pexpire(locks[2], 1)
    while server.exists(locks[2]):
        pass
    assert server.eval(scripts.RENEW, 2, locks[2], locks[3], "b", 60_000) == [1]


def routed(
    server: redis.Redis, token: str, expected: str, entry_id: str, ttl_ms: int = 60_000, *, audited: str = "",
) -> int:  # fmt: skip
    keys = ["{x}lock0", "{x}done", "{x}audit", "{x}audit_size"]
    budget_bytes = 100
    arguments = [token, ttl_ms, expected, entry_id, audited, budget_bytes]
    return int(server.eval(scripts.ROUTED, len(keys), *keys, *arguments))


def test_done_moves_with_the_lease_and_from_where_it_was(server: redis.Redis) -> None:
    assert routed(server, "a", "0-0", "10-1") == 0  # no lease
    lease(server, "a")
    assert routed(server, "b", "0-0", "10-1") == 0  # another's
    assert routed(server, "a", "5-1", "10-1") == 0  # not from there
    assert server.get("{x}done") is None
    assert routed(server, "a", "0-0", "10-1", 90_000) == 1
    assert routed(server, "a", "0-0", "20-1") == 0
    assert server.get("{x}done") == b"10-1"
    assert 60_000 < server.pttl("{x}lock0") <= 90_000  # type: ignore[operator]


def test_what_was_routed_is_left_for_the_audit_within_a_budget(server: redis.Redis) -> None:
    lease(server, "a")
    assert routed(server, "a", "0-0", "10-1", audited="x" * 60) == 1
    assert routed(server, "a", "10-1", "20-1", audited="y" * 60) == 1  # does not fit: routing goes on
    assert routed(server, "a", "0-0", "30-1", audited="z") == 0  # not moved: nothing is told
    assert routed(server, "a", "20-1", "30-1") == 1
    assert routed(server, "a", "30-1", "40-1", audited="w" * 40) == 1
    entries: Any = server.xrange("{x}audit")
    assert [(i, f[b"p"], f[b"d"][:1]) for i, f in entries] == [
        (b"10-1", b"0-0", b"x"),
        (b"40-1", b"30-1", b"w"),  # the missing positions show
    ]
    assert server.get("{x}audit_size") == b"100"
    server.eval(scripts.AUDITED, 2, "{x}audit", "{x}audit_size", "10-1", 60)
    assert server.get("{x}audit_size") == b"40"
    server.eval(scripts.AUDITED, 2, "{x}audit", "{x}audit_size", "40-1", 1)
    assert not server.exists("{x}audit_size"), "an empty stream holds nothing, whatever was counted"


def test_an_audit_stream_that_refuses_does_not_hold_up_routing(server: redis.Redis) -> None:
    lease(server, "a")
    server.set("{x}audit", "not a stream")
    assert routed(server, "a", "0-0", "10-1", audited="x") == 1
    assert server.get("{x}done") == b"10-1"
    assert not server.exists("{x}audit_size")
