"""One result whatever the order of arrival; what a client has seen it may replace whatever its clock says."""

from __future__ import annotations

import itertools
import os
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from cloudsync.clock import HybridClock, Timestamp
from cloudsync.resolve.lww import NEVER, ROW, Decision, History, Stamp, Write, bounded, decide, stamps_of

FIELDS = ("a", "b", "c")
CLIENTS = ("c_ann", "c_bob", "c_cyd")
many = settings(max_examples=int(os.environ.get("CLOUDSYNC_CONVERGENCE_RUNS", "100")))


class Edit(NamedTuple):
    """A write with the value that it gives to each of its fields."""

    write: Write
    value: str


class Table:
    """One row as PostgreSQL and `row_state` keep it; applies decisions as the writer does."""

    def __init__(self) -> None:
        self.row: dict[str, str] | None = dict.fromkeys(FIELDS, "first")
        self.image: dict[str, str] = {}
        self.version = 1
        self.stamps = {ROW: Stamp(1, Timestamp(1000, 0, "sql"))}

    def apply(self, edit: Edit) -> Decision:
        decision = decide(History(self.row is not None, self.version, self.stamps), edit.write)
        new = {name: edit.value for name in decision.fields if name != ROW}
        step = decision.step
        if step == "update":
            assert self.row is not None
            self.row.update(new)
            self._stamp(decision)
        elif step == "delete":
            assert self.row is not None
            self.image, self.row = self.row, None
            self.version += 1
            self.stamps = {**self.stamps, ROW: Stamp(self.version, decision.at)}
        elif step == "revive":
            self.row = {**self.image, **new}
            self.version += 1
            known = {name: self.stamps.get(name, Stamp(0, NEVER)) for name in FIELDS}
            self.stamps = {ROW: Stamp(self.version, decision.at), **known}
            self.stamps.update({name: Stamp(self.version, decision.at) for name in new})
        elif step == "remember":
            self.image.update(new)
            self.stamps = {
                **self.stamps,
                **{name: Stamp(self.version, decision.at) for name in decision.fields},
            }
        else:
            assert step in ("nothing", "missing"), step
        return decision

    def _stamp(self, decision: Decision) -> None:
        self.version += 1
        self.stamps = {
            **self.stamps,
            **{name: Stamp(self.version, decision.at) for name in decision.fields},
        }


@st.composite
def concurrent(draw: st.DrawFn) -> list[list[Edit]]:
    """What three clients wrote to the row that all have seen in version 1, and nothing of each other's.

    Their clocks differ by less than the bound. A client that has deleted the row writes nothing more to it.
    """
    queues = []
    wall_ms = 0
    for client in CLIENTS:
        wall_ms = 2000 + draw(st.integers(0, 3))
        clock = HybridClock(wall_ms=lambda: wall_ms)  # noqa: B023 - asked before the next client
        clock.observe(1000)
        queue = []
        for number in range(draw(st.integers(0, 3))):
            wall_ms += draw(st.integers(-1, 2))
            at = clock.tick(client)
            if draw(st.integers(0, 3)) == 0:
                queue.append(Edit(Write("delete", at, base_version=1), ""))
                break
            fields = tuple(draw(st.sets(st.sampled_from(FIELDS), min_size=1)))
            queue.append(Edit(Write("update", at, fields, base_version=1), f"{client}/{number}"))
        queues.append(queue)
    return queues


def interleaved(queues: list[list[Edit]], order: list[int]) -> list[Edit]:
    """Every client's writes in their order, taken in turns."""
    waiting = [list(queue) for queue in queues]
    merged = []
    for turn in order:
        full = [queue for queue in waiting if queue]
        if not full:
            break
        merged.append(full[turn % len(full)].pop(0))
    return merged + list(itertools.chain.from_iterable(waiting))


@many
@given(concurrent(), st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), max_size=9))
def test_concurrent_writes_have_one_result_in_every_order(
    queues: list[list[Edit]], one: list[int], other: list[int]
) -> None:
    tables = []
    for order in (one, other):
        table = Table()
        for edit in interleaved(queues, order):
            table.apply(edit)
        tables.append(table)
    assert tables[0].row == tables[1].row


@many
@given(concurrent(), st.lists(st.integers(0, 2), max_size=9))
def test_the_result_is_what_the_times_say(queues: list[list[Edit]], order: list[int]) -> None:
    table = Table()
    edits = interleaved(queues, order)
    for edit in edits:
        table.apply(edit)
    deletions = [e.write.at for e in edits if e.write.op == "delete"]
    deleted = max(deletions, default=NEVER)
    updates = [e for e in edits if e.write.op == "update"]
    if deletions and all(e.write.at < deleted for e in updates):
        assert table.row is None
        return
    expected = dict.fromkeys(FIELDS, "first")
    for edit in sorted(updates, key=lambda e: e.write.at):
        expected.update(dict.fromkeys(edit.write.fields, edit.value))
    assert table.row == expected


class Replica:
    """A client that reads the row now and then, and whose clock observes what it reads."""

    def __init__(self, name: str, offset_ms: int) -> None:
        self.name = name
        self.base = 1
        self.seen_deleted = False
        self.clock = HybridClock(wall_ms=lambda: 2000 + offset_ms)
        self.clock.observe(1000)

    def read(self, table: Table) -> None:
        self.base = table.version
        self.seen_deleted = table.row is None
        for stamp in table.stamps.values():
            self.clock.observe(stamp.at.ms, stamp.at.counter)


@many
@given(
    st.lists(st.integers(-3, 3), min_size=3, max_size=3),
    st.lists(
        st.tuples(
            st.integers(0, 2), st.booleans(), st.integers(0, 4), st.sets(st.sampled_from(FIELDS), min_size=1)
        ),
        max_size=15,
    ),
)
def test_reading_in_between_changes_nothing_about_who_is_later(
    offsets: list[int], steps: list[tuple[int, bool, int, set[str]]]
) -> None:
    """With hybrid clocks whatever was seen is earlier: the table is always what the times alone say."""
    table = Table()
    replicas = [Replica(name, offset) for name, offset in zip(CLIENTS, offsets, strict=True)]
    expected = dict.fromkeys(FIELDS, ("first", NEVER))
    edited, deleted = Timestamp(1000, 0, "sql"), NEVER
    for number, (who, reads, kind, fields) in enumerate(steps):
        replica = replicas[who]
        if reads:
            replica.read(table)
        if replica.seen_deleted:
            continue
        at = replica.clock.tick(replica.name)
        if kind == 0:
            table.apply(Edit(Write("delete", at, base_version=replica.base), ""))
            deleted = max(deleted, at)
            replica.seen_deleted = True
        else:
            table.apply(Edit(Write("update", at, tuple(fields), base_version=replica.base), str(number)))
            edited = max(edited, at)
            for name in fields:
                if at > expected[name][1]:
                    expected[name] = (str(number), at)
        shown = None if deleted > edited else {name: value for name, (value, _) in expected.items()}
        assert table.row == shown


def test_a_clock_that_is_far_ahead_counts_as_the_servers() -> None:
    at = Timestamp(1_000_000, 7, "c_ann")
    assert bounded(at, 995_000) == at
    assert bounded(at, 994_999) == Timestamp(994_999, 0, "c_ann")
    assert bounded(Timestamp(1000, 1 << 40, "c_ann"), 5000) == Timestamp(5000, 0, "c_ann")


def test_ties_go_to_the_higher_client_id() -> None:
    history = History(True, 2, {ROW: Stamp(1, Timestamp(1, 0, "sql")), "a": Stamp(2, Timestamp(9, 0, "c_m"))})
    for client, step in (("c_a", "nothing"), ("c_z", "update")):
        assert decide(history, Write("update", Timestamp(9, 0, client), ("a",), 1)).step == step


def test_who_has_seen_a_change_replaces_it_whatever_the_clock_says() -> None:
    history = History(
        True, 2, {ROW: Stamp(1, Timestamp(1, 0, "sql")), "a": Stamp(2, Timestamp(900, 3, "sql"))}
    )
    decision = decide(history, Write("update", Timestamp(5, 0, "c_a"), ("a",), 2))
    assert (decision.step, decision.at) == ("update", Timestamp(900, 4, "c_a"))
    assert decide(history, Write("delete", Timestamp(5, 0, "c_a"), (), 2)).step == "delete"
    assert decide(history, Write("delete", Timestamp(5, 0, "c_a"), (), 1)).step == "nothing"


def test_fields_that_a_person_decides_about_are_left_alone() -> None:
    history = History(True, 2, {ROW: Stamp(1, Timestamp(1, 0, "sql")), "a": Stamp(2, Timestamp(2, 0, "sql"))})
    decision = decide(history, Write("update", Timestamp(9, 0, "c_a"), ("a", "b"), 1, frozenset(("a", "b"))))
    assert (decision.step, decision.fields, decision.contested) == ("update", ("b",), ("a",))


def test_whoever_knows_of_a_deletion_cannot_edit_the_row() -> None:
    history = History(False, 3, {ROW: Stamp(3, Timestamp(5, 0, "sql"))})
    assert decide(history, Write("update", Timestamp(9, 0, "c_a"), ("a",), 3)).step == "missing"
    assert decide(history, Write("update", Timestamp(9, 0, "c_a"), ("a",), 2)).step == "revive"
    assert decide(history, Write("create", Timestamp(1, 0, "c_a"), ("a",))).at == Timestamp(5, 1, "c_a")
    assert decide(History(False), Write("delete", Timestamp(9, 0, "c_a"))).step == "missing"
    assert decide(History(True), Write("create", Timestamp(9, 0, "c_a"))).step == "exists"


def test_a_time_that_is_none_counts_as_the_oldest() -> None:
    assert stamps_of({"a": {"v": 3, "at": "yesterday"}})["a"] == Stamp(3, NEVER)


def test_a_number_is_the_servers_time_in_seconds() -> None:
    assert stamps_of({"a": {"v": 3, "at": 1764360000.25}})["a"] == Stamp(
        3, Timestamp(1764360000250, 0, "sql")
    )
