"""The ring: what it has is without holes, and it knows what it does not have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudsync.events import ORIGIN, Position, weight_of
from cloudsync.relay.ring import Ring
from cloudsync.sharding import SHARDS
from integration.routing.flow import make_event

EVENT_BYTES = weight_of(make_event(10))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=30),
    st.integers(0, 40),
    st.tuples(st.integers(0, 3), st.integers(0, 160)),
)
def test_all_or_nothing(batches: list[tuple[int, int]], kept: int, asked: tuple[int, int]) -> None:
    ring = Ring(kept * EVENT_BYTES)
    ring.restart([ORIGIN] * SHARDS)
    everything: dict[int, list[Position]] = {}
    lsn = 10
    for shard, count in batches:
        events = [make_event(lsn + n, shard=shard) for n in range(count)]
        lsn += count
        ring.note(shard, events)
        everything.setdefault(shard, []).extend(e.position for e in events)
    shard, after = asked
    found = ring.since(shard, Position(after, 1))
    if found is not None:
        assert [e.position for e in found] == [p for p in everything.get(shard, []) if p > Position(after, 1)]
    largest = max((count for _, count in batches), default=0)
    assert ring.size_bytes <= max(kept, largest) * (EVENT_BYTES + 8)
    if sum(count for _, count in batches) < kept - 5:  # room for all
        assert found is not None


def test_what_another_relay_wrote_meanwhile_is_a_hole() -> None:
    ring = Ring(1 << 20)
    tails = [ORIGIN] * SHARDS
    ring.restart(tails)
    ring.note(0, [make_event(10)])
    tails[0] = Position(10, 1)
    ring.restart(tails)
    assert ring.since(0, ORIGIN) is not None  # as it was left
    tails[0] = Position(20, 1)
    ring.restart(tails)
    assert ring.since(0, Position(10, 1)) is None
    assert ring.since(0, Position(20, 1)) == []


def test_a_repeated_note_is_kept_once() -> None:
    ring = Ring(1 << 20)
    ring.note(0, [make_event(10)])
    ring.note(0, [make_event(10)])
    found = ring.since(0, ORIGIN)
    assert found is not None
    assert len(found) == 1
