"""A replica converges whatever is repeated, cut off or missing, and never goes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.client import replica as module
from cloudsync.client.frames import Data, DataCreate, DataDelete, DataUpdate
from cloudsync.client.replica import Replica


def create(key: Any, version: int, **row: Any) -> DataCreate:
    return DataCreate(key={"id": key}, version=version, row={"id": key, **row})


def update(key: Any, version: int, previous: int, **changes: Any) -> DataUpdate:
    return DataUpdate(key={"id": key}, version=version, prev_version=previous, changes=changes)


def delete(key: Any, version: int) -> DataDelete:
    return DataDelete(key={"id": key}, version=version)


class Server:
    """A table's history as a server would tell it, and the rows after it."""

    def __init__(self, steps: list[tuple[int, str, int]]) -> None:
        self.events: list[Data] = []
        self.rows: dict[tuple[int], dict[str, int]] = {}
        self.versions: dict[int, int] = {}
        self.states: list[dict[tuple[int], dict[str, int]]] = [{}]
        for key, column, value in steps:
            self._step(key, column, value)
            self.states.append(dict(self.rows))

    def _step(self, key: int, column: str, value: int) -> None:
        held = self.rows.get((key,))
        before = self.versions.get(key, 0)
        version = self.versions[key] = before + 1
        if held is None:
            self.rows[key,] = {"id": key, "a": value, "b": value}
            self.events.append(create(key, version, a=value, b=value))
        elif value == 0:
            del self.rows[key,]
            self.events.append(delete(key, version))
        else:
            self.rows[key,] = {**held, column: value}
            self.events.append(update(key, version, before, **{column: value}))

    def refetch(self, key: dict[str, int]) -> Data:
        number = key["id"]
        row = self.rows.get((number,))
        if row is None:
            return delete(number, self.versions.get(number, 0))
        return DataCreate(key=key, version=self.versions[number], row=row)


steps = st.lists(st.tuples(st.integers(1, 3), st.sampled_from("ab"), st.integers(0, 4)), max_size=40)


@given(steps, st.data())
def test_any_prefix_with_any_going_back_converges(
    history: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    """Deliveries are in order, but may start again from any earlier event, as a replay does."""
    server, replica = Server(history), Replica(["id"])
    end = data.draw(st.integers(0, len(server.events)))
    at = 0
    newest: dict[Any, int] = {}
    for _ in range(data.draw(st.integers(0, 4))):
        upto = data.draw(st.integers(at, end))
        for event in server.events[at:upto]:
            replica.apply(event)
            for key, version in replica.versions.items():
                assert version >= newest.get(key, 0), "a row went back"
                newest[key] = version
        at = data.draw(st.integers(0, upto))
    for event in server.events[at:end]:
        replica.apply(event)
    assert replica.rows == server.states[end]
    assert replica.refetches() == []
    assert replica.versions.keys() == replica.rows.keys()


@given(steps, st.data())
def test_a_snapshot_from_any_moment_and_a_replay_from_before_converge(
    history: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    server, replica = Server(history), Replica(["id"])
    taken = data.draw(st.integers(0, len(server.events)))
    past = Server(history[:taken])
    for (key,), row in past.rows.items():
        replica.apply(DataCreate(key={"id": key}, version=past.versions[key], row=row))
    for event in server.events[data.draw(st.integers(0, taken)) :]:
        replica.apply(event)
    for key in replica.refetches():
        replica.apply(server.refetch(key))
    assert replica.rows == server.rows


@given(steps, st.data())
def test_missing_updates_are_noticed_and_fetched(
    history: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    """Whatever update is missing: once a later one of that row arrives, the row is asked for as a whole."""
    server, replica = Server(history), Replica(["id"])
    dropped = data.draw(st.sets(st.integers(0, 40)))
    last_update = {
        event.key["id"]: number for number, event in enumerate(server.events) if isinstance(event, DataUpdate)
    }
    for number, event in enumerate(server.events):
        if number in dropped and isinstance(event, DataUpdate) and last_update[event.key["id"]] != number:
            continue
        replica.apply(event)
    while asked := replica.refetches():
        for key in asked:
            replica.apply(server.refetch(key))
    assert replica.rows == server.rows


def test_a_row_is_replaced_never_altered() -> None:
    replica = Replica(["id"])
    replica.apply(create(1, 1, a=1))
    read = replica.rows[1,]
    replica.apply(update(1, 2, 1, a=2))
    assert read == {"id": 1, "a": 1}
    assert replica.rows[1,] == {"id": 1, "a": 2}


def test_rows_that_never_changed_have_version_zero() -> None:
    replica = Replica(["id"])
    assert replica.apply(create(1, 0, a=1))
    assert replica.apply(create(1, 0, a=1)) is None
    assert replica.apply(update(1, 1, 0, a=2))
    assert replica.rows[1,] == {"id": 1, "a": 2}


def test_an_update_of_a_row_that_is_not_held_asks_for_it_once() -> None:
    replica = Replica(["id"])
    assert replica.apply(update(1, 5, 4, a=1)) is None
    assert replica.apply(update(1, 6, 5, a=2)) is None
    assert replica.refetches() == [{"id": 1}]
    assert replica.refetches() == []
    applied = replica.apply(create(1, 6, a=2))
    assert applied
    assert applied.op == "create"
    assert replica.refetches() == []


def test_an_answer_older_than_what_was_heard_of_is_asked_for_again_within_reason() -> None:
    replica = Replica(["id"])
    replica.apply(create(1, 1, a=1))
    replica.apply(update(1, 4, 3, a=4))
    assert replica.refetches() == [{"id": 1}]
    replica.apply(create(1, 2, a=2))
    assert replica.refetches() == [{"id": 1}], "newer, but not new enough"
    asked = 0
    for _ in range(10):
        replica.apply(create(1, 2, a=2))
        asked += len(replica.refetches())
    assert asked == 3, "a server that keeps giving the same old row is not asked for ever"
    replica.apply(update(1, 5, 4, a=5))
    assert replica.refetches() == [{"id": 1}], "but a later change tries again"


def test_version_zero_answers_that_a_row_is_gone() -> None:
    replica = Replica(["id"])
    replica.apply(create(1, 3, a=1))
    assert replica.apply(delete(1, 0)) is None, "nobody asked: an old delete"
    replica.apply(update(1, 6, 5, a=2))
    applied = replica.apply(delete(1, 0))
    assert applied
    assert applied.op == "delete"
    assert replica.rows == {}
    replica.ask_again()
    assert replica.refetches() == []


def test_a_deleted_row_does_not_come_back_by_a_repeat() -> None:
    replica = Replica(["id"])
    for event in (create(1, 1, a=1), delete(1, 2), create(1, 1, a=1), update(1, 2, 1, a=3)):
        replica.apply(event)
    assert replica.rows == {}
    assert replica.refetches() == []
    assert replica.apply(create(1, 3, a=9))


def test_a_delete_of_a_row_that_was_never_held_stops_what_is_older() -> None:
    replica = Replica(["id"])
    assert replica.apply(delete(1, 5)) is None
    assert replica.apply(create(1, 4, a=1)) is None
    assert replica.rows == {}


def test_tombstones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOMBSTONES_KEPT", 10)
    replica = Replica(["id"])
    for number in range(100):
        replica.apply(create(number, 1))
        replica.apply(delete(number, 2))
    assert len(replica._tombstones) == 10
    assert replica.apply(create(99, 1)) is None, "the newest are the ones that are kept"


def test_replace_tells_the_differences_and_keeps_the_mapping() -> None:
    replica, other = Replica(["id"]), Replica(["id"])
    for number in (1, 2, 3):
        replica.apply(create(number, 1, a=number))
    other.apply(create(1, 7, a=1))
    other.apply(create(2, 2, a=20))
    other.apply(create(4, 1, a=4))
    rows = replica.rows
    found = [(applied.op, applied.key, applied.changes) for applied in replica.replace(other)]
    assert sorted(found) == [("create", (4,), {}), ("delete", (3,), {}), ("update", (2,), {"a": 20})]
    assert replica.rows is rows
    assert rows == other.rows
    assert replica.versions == {(1,): 7, (2,): 2, (4,): 1}


def test_keys_of_any_json_value_are_usable() -> None:
    replica = Replica(["a", "b"])
    key = {"b": {"x": [1, {"y": None}]}, "a": [1, [2]]}
    replica.apply(DataCreate(key=key, version=1, row=dict(key)))
    replica.apply(DataUpdate(key=key, version=2, prev_version=1, changes={"c": 1}))
    (held,) = replica.rows
    assert held == replica.key_of(key)
    assert replica.rows[held]["c"] == 1


def test_columns_that_went_leave_the_rows() -> None:
    replica = Replica(["id"])
    replica.apply(create(1, 1, a=1, b=2))
    replica.keep_columns({"id", "b"})
    assert replica.rows[1,] == {"id": 1, "b": 2}
