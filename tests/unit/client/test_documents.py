"""A document for an application: undo among others' edits, what it refuses, rows that come and go."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudsync.client import ChangeRejected, Closed, TextEvent, transform_position
from cloudsync.client.actions import Settled
from cloudsync.client.undo import Undo
from cloudsync.errors import LimitReached, RequestError
from cloudsync.resolve import text as ot
from unit.client.test_editing import Person, Server


@pytest.fixture
def server() -> Server:
    return Server("hello")


@pytest.fixture
def ann(server: Server) -> Person:
    return Person(server, "ann")


def sent(person: Person) -> list[Any]:
    person._sent()
    return [json.loads(frame) for frame in person.up]


def test_one_operation_is_under_way_and_the_others_are_composed(server: Server, ann: Person) -> None:
    first = ann.document.insert(5, "!")
    rest = [ann.document.insert(6 + n, "?") for n in range(5)]
    assert [frame["op"] for frame in sent(ann)] == [[5, "!"]]
    assert rest[0] is rest[4] is not first
    ann.settle()
    assert (server.text, len(server.history)) == ("hello!?????", 2)
    assert (ann.document.revision, ann.document.pending) == (3, False)
    assert first.confirmation is not None
    assert first.confirmation.version == 2


def test_an_editor_hears_of_every_change_and_moves_its_cursor(server: Server, ann: Person) -> None:
    told: list[TextEvent] = []
    stop = ann.document.on_change(told.append)
    cursor = 5
    ann.document.insert(5, "!")
    server.write([{"d": 1}, "J"], {"client_id": "bob", "user_id": "b"})
    ann.settle()
    ann.document.undo()
    assert [(e.operation, e.origin) for e in told] == [
        ([5, "!"], "local"), ([{"d": 1}, "J"], "remote"), ([5, {"d": "!"}], "undo"),
    ]  # fmt: skip
    assert told[1].by == {"client_id": "bob", "user_id": "b"}
    for event in told:
        cursor = transform_position(cursor, event.operation, own=event.origin == "local")
    assert cursor == 5
    stop()
    ann.document.redo()
    assert len(told) == 3


def test_undo_leaves_what_others_did(server: Server, ann: Person) -> None:
    document = ann.document
    document.replace(0, 5, "one two three")
    ann.settle()
    server.write([4, {"d": 3}, "TWO"])
    server.write(["0 "])
    ann.settle()
    document._undo._undo[-1].at_s = 0.0  # long ago
    document.insert(len(document.text), " four")
    ann.settle()
    server.write([2, {"d": 1}])
    ann.settle()
    assert document.text == "0 ne TWO three four"
    document.undo()
    assert document.text == "0 ne TWO three"
    document.undo()
    assert document.text == "hello0 TWO"
    assert not document.can_undo
    assert document.undo() is None
    document.redo()
    document.redo()
    assert document.text == "0 ne TWO three four"
    document.undo()
    document.insert(0, "x")
    assert not document.can_redo
    ann.settle()
    assert server.text == document.text == "x0 ne TWO three"


def test_what_is_typed_at_once_is_undone_at_once() -> None:
    undo, text = Undo(), ""
    for n, at_s in enumerate((0.0, 0.3, 0.6, 2.0)):
        operation = ot.normalize([n, "abcd"[n]])
        text = ot.apply(text, operation)
        undo.did(ot.invert(operation), at_s, within_s=0.5)
    assert ot.apply(text, undo.undo(text)) == "abc"
    assert undo.undo("abc") == [{"d": "abc"}]


def test_an_edit_that_is_refused_is_taken_back(server: Server, ann: Person) -> None:
    server.refuses = 1.0
    bad = ann.document.insert(5, " world")
    sent(ann)
    more = ann.document.insert(0, "> ")
    ann.serve()
    server.refuses = 0.0
    ann.settle()
    assert isinstance(bad.error, ChangeRejected)
    assert bad.error.code == "forbidden"
    assert more.confirmation is not None
    assert ann.document.text == ann.shown == server.text == "> hello"


@pytest.mark.parametrize("wrong", [(9, 0), (0, 6), (-1, 0), (0, -1), ("0", 0), (0, 1.0), (0, 0, 5)])
def test_what_does_not_fit_the_text_changes_nothing(ann: Person, wrong: Any) -> None:
    with pytest.raises(ot.BadOperation):
        ann.document.replace(*(*wrong, "x")[:3])
    assert (ann.document.text, ann.document.pending, ann.document.can_undo) == ("hello", False, False)


def test_an_operation_has_to_fit_into_a_frame(server: Server, ann: Person) -> None:
    with pytest.raises(LimitReached):
        ann.document.insert(0, "x" * 3_000_000)
    assert (ann.document.text, ann.document.pending) == ("hello", False)
    for _ in range(4):
        ann.document.insert(0, "y" * 200_000)
    ann.settle()
    assert len(server.text) == 800_005
    assert len(server.history) == 4, "composed beyond what fits into a frame"


def test_what_is_no_text(ann: Person) -> None:
    for key, column in (({"id": 1}, "id"), ({"id": 1}, "none"), ({"id": 2}, "body"), ({"no": 1}, "body")):
        with pytest.raises(RequestError):
            ann.session.document(ann.subscription, key, column)
    assert ann.session.document(ann.subscription, (1,), "body") is ann.document
    ann.session.stop(Closed())
    with pytest.raises(Closed):
        ann.document.insert(0, "x")


def test_a_row_that_leaves_the_view_takes_its_edits_along(server: Server, ann: Person) -> None:
    """What is under way is answered, and what was typed behind it goes on from there."""
    ann.document.insert(5, "!")
    sent(ann)
    ann.document.insert(0, "> ")
    gone = {"type": "data.delete", "table": "public.t", "key": {"id": 1}, "version": 2}
    server.version = 2
    ann.down.append({"type": "sync.batch", "sub": [ann.subscription.id], "events": [gone]})
    ann.receive()
    assert ann.document.text == "> hello!"
    for _ in range(4):
        ann.serve()
        ann.receive()
    assert server.text == "> hello!"
    assert not ann.document.pending


def test_what_cannot_be_placed_any_more_is_refused(server: Server, ann: Person) -> None:
    ann.document.insert(5, "!")
    sent(ann)
    more = ann.document.insert(0, "> ")
    server.write(["others "])
    gone = {"type": "data.delete", "table": "public.t", "key": {"id": 1}, "version": 3}
    ann.down.append({"type": "sync.batch", "sub": [ann.subscription.id], "events": [gone]})
    ann.receive()
    ann.serve()
    ann.receive()
    assert isinstance(more.error, ChangeRejected)
    assert not ann.document.pending
    assert server.text == "others hello!"


def test_a_view_that_is_closed_stays_until_its_texts_are_saved(server: Server, ann: Person) -> None:
    edit = ann.document.insert(5, "!")
    sent(ann)
    more = ann.document.insert(6, "!")
    ann.session.unsubscribe(ann.subscription)
    assert ann.subscription.id in ann.session.subscriptions
    ann.settle()
    assert server.text == "hello!!"
    assert edit.confirmation is not None
    assert more.confirmation is not None
    assert not ann.session.subscriptions
    assert ann.subscription.state == "ended"


def test_changes_behind_a_waiting_edit_go_ahead_of_it(server: Server, ann: Person) -> None:
    ann.document.insert(5, "!")
    sent(ann)
    ann.document.insert(6, "?")
    ann.session.write("update", "u", {"id": 7}, {"a": 1}, now_s=0.0)
    frames = [json.loads(frame) for frame in ann.session.outgoing]
    assert [(f["type"], f["id"]) for f in frames] == [("change", 3)]
    ann.session.outgoing.clear()
    ann.settle()
    assert server.text == "hello!?"
    assert server.last["ann"] == 4, "the edit had to take a number behind the change"


def test_edits_of_a_row_that_is_not_saved_yet(server: Server, ann: Person) -> None:
    ann.session.write("create", "t", {"id": 2}, {"body": "new"}, now_s=0.0)
    ann.session.outgoing.clear()
    document = ann.session.document(ann.subscription, {"id": 2}, "body")
    edit = document.insert(3, "er")
    assert (document.text, document.revision, sent(ann)) == ("newer", -1, [])
    refusal = {"type": "change.rejected", "id": 1, "code": "row_exists", "message": "no"}
    actions = ann.session.receive(json.dumps(refusal).encode(), now_s=0.0)
    assert edit in [action.change for action in actions if isinstance(action, Settled)]
    assert (document.text, document.pending) == ("new", False)


def test_edits_of_a_row_that_is_saved_out_of_sight(server: Server, ann: Person) -> None:
    """A filter hides it: its text is known all the same."""
    ann.session.write("create", "t", {"id": 2}, {"body": "new"}, now_s=0.0)
    document = ann.session.document(ann.subscription, {"id": 2}, "body")
    document.insert(3, "er")
    assert sent(ann) == []
    saved = {"type": "change.confirmed", "id": 1, "outcome": "applied", "version": 7}
    ann.session.receive(json.dumps(saved).encode(), now_s=0.0)
    (frame,) = sent(ann)
    assert (frame["key"], frame["revision"], frame["op"]) == ({"id": 2}, 7, [3, "er"])
    stale = {"type": "change.rejected", "id": frame["id"], "code": "stale_revision", "message": ""}
    ann.session.receive(json.dumps(stale).encode(), now_s=0.0)
    assert (document.text, document.pending) == ("new", False), "nothing more will be heard of this row"


def test_a_listener_may_edit(ann: Person) -> None:
    """Undone in its order, and told to all in one order."""
    document = ann.document
    told: list[Any] = []

    def answer(event: TextEvent) -> None:
        if event.operation == [5, "!"]:
            document.insert(0, "> ")

    document.on_change(answer)
    document.on_change(lambda event: told.append(event.operation))
    document.insert(5, "!")
    assert document.text == "> hello!"
    assert told == [[5, "!"], ["> "]]
    document.undo()
    assert document.text == "hello"
