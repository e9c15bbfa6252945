"""Conflicts at the client: what was withdrawn, what is open, and decisions that outlive the process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudsync.client.actions import Conflicted, Settled
from cloudsync.client.conflicts import Conflict, Resolution
from cloudsync.client.store import Store
from cloudsync.errors import RequestError
from cloudsync.protocol.messages import Choice
from unit.client.test_writes import Peer, row


def detected(revision: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "type": "conflict.detected", "conflict_id": "k1", "revision": revision, "table": "public.t",
        "key": {"id": 1}, "fields": ["a"], "version": 6, "base": {"a": "x"}, "theirs": {"a": "bob"},
        "mine": {"a": "ann"}, "by": {"user_id": "ann"}, "theirs_by": None, **more,
    }  # fmt: skip


class Desk(Peer):
    """A peer whose application decides."""

    def __init__(self, store: Store | None = None) -> None:
        super().__init__(store)
        self.session.decided = self.decide

    def decide(self, conflict: Conflict, choice: Choice, values: Any) -> Resolution:
        resolution, self.actions = self.session.decide(conflict, choice, values, now_s=self.now_s)
        return resolution

    def frames(self, type_: str) -> list[dict[str, Any]]:
        found = [json.loads(frame) for frame in self.session.outgoing]
        self.session.outgoing.clear()
        return [frame for frame in found if frame["type"] == type_]

    @property
    def open(self) -> list[Conflict]:
        return list(self.session.inbox.open.values())


def told(actions: list[Any]) -> list[tuple[str, str]]:
    return [(a.conflict.id, a.conflict.status) for a in actions if isinstance(a, Conflicted)]


def test_a_decision_is_one_of_three() -> None:
    desk = contested()
    desk.send(**detected())
    with pytest.raises(RequestError, match="mine, theirs, merged"):
        desk.open[0].resolve("minee")  # type: ignore[arg-type]
    assert desk.open[0].resolution is None


def contested() -> Desk:
    """Row 1 was 'x' in version 5; ann's 'ann' met bob's 'bob'."""
    desk = Desk()
    desk.live((1, 5, "x"))
    desk.write("update", 1, a="ann", n="7")
    desk.deliver(row(1, 6, "bob"))
    assert desk.shown == {1: "ann"}
    desk.send(type="change.confirmed", id=1, outcome="conflict", version=7, fields=["a"], conflict_id="k1")
    return desk


def test_the_fields_concerned_are_taken_back_and_the_others_stay() -> None:
    desk = contested()
    assert desk.view.rows[(1,)] == {"id": 1, "a": "bob", "n": "7"}
    assert told(desk.send(**detected())) == [("k1", "open")]
    assert desk.open[0].theirs == {"a": "bob"}
    desk.deliver({**row(1, 7, "bob"), "row": {"id": 1, "a": "bob", "n": "7"}})
    assert desk.view.rows[(1,)] == {"id": 1, "a": "bob", "n": "7"}
    assert not desk.view.overlay.patches


def test_a_change_that_ends_in_a_conflict_as_a_whole_is_hidden_at_once() -> None:
    desk = Desk()
    desk.live((1, 5, "x"))
    change = desk.write("update", 1, a="ann")
    desk.send(type="change.confirmed", id=1, outcome="conflict", version=6, fields=["a"], conflict_id="k1")
    assert desk.shown == {1: "x"}
    assert change.confirmation is not None
    assert (change.confirmation.outcome, change.confirmation.conflict_id) == ("conflict", "k1")


def test_the_newest_revision_counts_in_whatever_order_they_come() -> None:
    desk = contested()
    assert told(desk.send(**detected(2, theirs={"a": "cyd"}, version=8))) == [("k1", "open")]
    assert told(desk.send(**detected(1))) == []
    assert told(desk.send(**detected(2, theirs={"a": "cyd"}, version=8))) == []
    assert told(desk.send(**detected(2, theirs={"a": "cyd"}, version=9))) == [], "another field's change"
    assert (desk.open[0].theirs, desk.open[0].version) == ({"a": "cyd"}, 9)
    over = {"type": "conflict.resolved", "conflict_id": "k1", "revision": 3, "choice": "theirs", "version": 9}
    assert told(desk.send(**over)) == [("k1", "resolved")]
    assert told(desk.send(**over)) == []
    assert told(desk.send(**detected(2))) == []
    assert not desk.open


def test_two_views_tell_of_their_columns() -> None:
    desk = contested()
    desk.send(**detected())
    other = {"fields": ["n"], "theirs": {"n": "1"}, "mine": {"n": "2"}, "base": {"n": "0"}}
    assert told(desk.send(**detected(**other))) == [("k1", "open")]
    assert desk.open[0].theirs == {"a": "bob", "n": "1"}
    assert desk.open[0].base == {"a": "x", "n": "0"}


@pytest.mark.parametrize(
    ("choice", "values", "shown"),
    [("mine", None, "ann"), ("theirs", None, "bob"), ("merged", {"a": "both"}, "both")],
)
def test_a_decision_goes_out_in_order_and_shows(choice: Choice, values: Any, shown: str) -> None:
    desk = contested()
    desk.send(**detected())
    desk.session.outgoing.clear()
    resolution = desk.open[0].resolve(choice, values)
    assert desk.shown == {1: shown}
    [frame] = desk.frames("resolve")
    assert frame == {
        "type": "resolve", "id": 2, "conflict_id": "k1", "choice": choice, "base_version": 6,
        **({"values": values} if values else {}),
    }  # fmt: skip
    with pytest.raises(RequestError):
        desk.open[0].resolve("mine")
    actions = desk.confirm(2, 8)
    assert told(actions) == [("k1", "resolved")]
    assert [a.change for a in actions if isinstance(a, Settled)] == [resolution]
    assert desk.shown == {1: shown}


def test_a_decision_that_came_too_late_is_taken_back() -> None:
    desk = contested()
    desk.send(**detected())
    conflict = desk.open[0]
    conflict.resolve("mine")
    desk.send(**detected(2, theirs={"a": "cyd"}, version=8))
    desk.send(type="change.rejected", id=2, code="conflict_changed", message="Again.")
    assert desk.shown == {1: "bob"}
    assert desk.open == [conflict]
    desk.session.outgoing.clear()
    conflict.resolve("theirs")
    assert desk.frames("resolve")[0]["base_version"] == 8
    actions = desk.send(type="change.rejected", id=3, code="conflict_resolved", message="Somebody has.")
    assert told(actions) == [("k1", "resolved")]
    with pytest.raises(RequestError):
        conflict.resolve("mine")


@pytest.mark.parametrize(
    ("choice", "values"), [("merged", None), ("merged", {"n": "1"}), ("mine", {"a": "x"})]
)
def test_what_is_no_decision_uses_no_number(choice: Choice, values: Any) -> None:
    desk = contested()
    desk.send(**detected())
    with pytest.raises(RequestError):
        desk.open[0].resolve(choice, values)
    assert desk.session.outbox.writes.next_number == 2
    assert desk.open[0].resolution is None


def test_a_list_puts_right_what_was_missed() -> None:
    desk = contested()
    desk.send(**detected())
    desk.session.outgoing.clear()
    desk.send(type="conflict.reset", sub=desk.view.id)
    desk.send(type="conflict.reset", sub=desk.view.id)
    [asked] = desk.frames("conflicts")
    new = detected(conflict_id="k2")
    assert told(desk.send(type="conflict.page", id=asked["id"], conflicts=[new], next="p2")) == [
        ("k2", "open")
    ]
    [more] = desk.frames("conflicts")
    assert more == {"type": "conflicts", "id": asked["id"], "after": "p2"}
    during = detected(conflict_id="k3")
    desk.send(**during)
    assert told(desk.send(type="conflict.page", id=asked["id"], conflicts=[])) == [("k1", "resolved")]
    assert [conflict.id for conflict in desk.open] == ["k2", "k3"], "heard of while the list was on its way"
    [again] = desk.frames("conflicts")
    assert again["id"] != asked["id"], "a reset behind the question"
    desk.send(type="error", code="unavailable", message="Later.", ref=again["id"])
    assert not desk.frames("conflicts")
    desk.beat("k2")
    assert desk.frames("conflicts")


def test_a_row_that_left_makes_it_ask() -> None:
    desk = contested()
    desk.send(**detected())
    desk.session.outgoing.clear()
    desk.deliver({"type": "data.delete", "table": "public.t", "key": {"id": 2}, "version": 2})
    assert not desk.frames("conflicts")
    desk.deliver({"type": "data.delete", "table": "public.t", "key": {"id": 1}, "version": 9})
    assert desk.frames("conflicts")


def test_decisions_and_conflicts_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = Store(path)
    store.belong(url="u", client_id="c_1")
    store.register("c_1")
    desk = Desk(store)
    desk.live((1, 6, "bob"))
    desk.send(**detected())
    desk.send(**detected(conflict_id="k2", key={"id": 2}))
    desk.session.lost()
    desk.open[0].resolve("merged", {"a": "both"})
    store.close()

    store = Store(path)
    back = Desk(store)
    assert [conflict.id for conflict in back.open] == ["k1", "k2"]
    assert back.shown == {1: "both"}
    with pytest.raises(RequestError):
        back.open[0].resolve("mine")
    back.session.opened()
    back.session.outgoing.clear()
    back.send(
        type="welcome", session="x", resumed="replay", cursor="k1", heartbeat_s=20, limits={}, server_time=""
    )
    [frame] = back.frames("resolve")
    assert (frame["id"], frame["values"], frame["base_version"]) == (1, {"a": "both"}, 6)
    back.confirm(1, 7)
    back.session.save()
    store.close()
    store = Store(path)
    assert [conflict.id for conflict in Desk(store).open] == ["k2"]
    store.close()
