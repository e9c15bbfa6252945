"""The ledger of canaries: a hole is a loss, a tail is one only behind its position, a repeat never."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudsync.gateway.canary import CanaryLedger, Loss, Written


def written(sequence: int, lsn: int, shards: int = 2) -> Written:
    return Written(dict.fromkeys(range(shards), sequence), lsn, dict.fromkeys(range(shards), sequence * 10))


def begun(sequence: int = 5) -> CanaryLedger:
    ledger = CanaryLedger()
    assert ledger.begin(written(sequence, 100)) == []
    return ledger


def test_all_that_came_is_no_loss() -> None:
    ledger = begun()
    for shard in (0, 1):
        assert ledger.arrived(shard, 6, 60) is None
    ledger.expect(written(6, 200))
    assert ledger.settle(200) == []
    assert not ledger.awaits


def test_a_hole_is_a_loss_at_once() -> None:
    ledger = begun()
    assert ledger.arrived(1, 9, 90) == Loss(1, 3, 8)
    assert ledger.arrived(1, 10, 100) is None


def test_a_repeat_is_no_loss() -> None:
    ledger = begun()
    assert ledger.arrived(0, 6, 60) is None
    assert ledger.arrived(0, 6, 60) is None
    assert ledger.arrived(0, 4, 40) is None
    assert ledger.arrived(0, 7, 70) is None


def test_what_never_came_is_lost_once_its_position_has_passed() -> None:
    ledger = begun()
    assert ledger.arrived(0, 6, 60) is None
    ledger.expect(written(7, 200))
    assert ledger.settle(199) == []
    assert ledger.awaits
    assert ledger.settle(200) == [Loss(0, 1, 7), Loss(1, 2, 7)]
    ledger.expect(written(7, 300))
    assert ledger.settle(300) == []  # told once


def test_what_came_before_the_beginning_was_read_is_judged_by_it() -> None:
    ledger = CanaryLedger()
    assert ledger.arrived(0, 5, 50) is None
    assert ledger.arrived(0, 8, 80) is None
    assert ledger.begin(written(5, 100)) == [Loss(0, 2, 7)]
    assert ledger.arrived(0, 9, 90) is None


def test_the_age_is_that_of_the_oldest_shard() -> None:
    ledger = CanaryLedger()
    assert ledger.oldest_us() is None
    ledger.begin(written(5, 100))
    ledger.arrived(0, 6, 60)
    assert ledger.oldest_us() == 50
    ledger.arrived(1, 6, 61)
    assert ledger.oldest_us() == 60


@given(st.lists(st.booleans(), max_size=60), st.data())
def test_every_loss_is_counted_exactly_once(arrives: list[bool], data: st.DataObject) -> None:
    ledger = begun(0)
    counted = 0
    sequence = 0
    for sequence, came in enumerate(arrives, 1):
        if came:
            counted += sum(loss.events for loss in [ledger.arrived(0, sequence, 1)] if loss)
        if data.draw(st.booleans()):
            ledger.expect(Written({0: sequence}, sequence, {}))
            counted += sum(loss.events for loss in ledger.settle(sequence))
    ledger.expect(Written({0: sequence}, sequence, {}))
    counted += sum(loss.events for loss in ledger.settle(sequence))
    assert counted == arrives.count(False)
