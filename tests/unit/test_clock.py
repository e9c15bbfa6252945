"""Hybrid logical clocks: never back, never the same twice, whatever the wall clock does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.clock import HybridClock, Timestamp

moments = st.integers(0, 2_000)


@given(st.lists(st.one_of(moments, st.tuples(moments, st.integers(0, 5)))))
def test_what_is_issued_is_later_than_all_before(steps: list[int | tuple[int, int]]) -> None:
    wall = [0]
    clock = HybridClock(wall_ms=lambda: wall[0])
    newest = (-1, 0)
    for step in steps:
        if isinstance(step, tuple):
            clock.observe(*step)
            newest = max(newest, step)
            continue
        wall[0] = step
        issued = clock.tick("c")
        assert (issued.ms, issued.counter) > newest
        assert issued.ms >= step
        newest = issued.ms, issued.counter
        clock = HybridClock(clock.ms, clock.counter, wall_ms=lambda: wall[0])  # a restart


@given(moments, st.integers(0), st.text(min_size=1))
def test_the_form_on_the_wire_comes_back(ms: int, counter: int, client: str) -> None:
    stamp = Timestamp(ms, counter, client)
    assert Timestamp.parse(str(stamp)) == stamp


def test_ties_are_broken_by_client() -> None:
    assert Timestamp(5, 0, "b") > Timestamp(5, 0, "a") > Timestamp(4, 9, "z")


@pytest.mark.parametrize("text", ["", "1-2", "x-1-c", "1--1-c", "-1-0-c", "１-0-c"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Timestamp.parse(text)
