"""Changes of a client: shown at once, sent in order until answered, taken back when rejected."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cloudsync.client.actions import Changed, Settled
from cloudsync.client.change import Change
from cloudsync.client.errors import ChangeRejected, Closed, StoreFailed
from cloudsync.client.session import Session
from cloudsync.client.store import Batch, Store
from cloudsync.client.subscription import Subscription
from cloudsync.client.writes import CHANGES_BURST, IN_FLIGHT, INTERNAL_TRIES
from cloudsync.clock import Timestamp
from cloudsync.errors import LimitReached, RequestError
from cloudsync.protocol.messages import decode_client_frame

SCHEMA = {
    "table": "public.t",
    "key": ["id"],
    "columns": [
        {"name": "id", "type": "integer"},
        {"name": "a", "type": "text"},
        {"name": "n", "type": "bigint"},
    ],
}


class Peer:
    """A welcomed session with a live view of `t`, and the server's words for it."""

    def __init__(self, store: Store | None = None, where: dict[str, Any] | None = None) -> None:
        self.now_s = 100.0
        self.n = 0
        self.session = Session(store=store)
        if not self.session.client_id:
            self.session.issued("c_1")
        self.view = self.session.subscribe("t", where, None)
        self.view.observed = True

    def connect(self, resumed: str | None = None, **welcome: Any) -> list[dict[str, Any]]:
        self.n = 0
        self.session.opened()
        self.session.outgoing.clear()
        self.send(
            type="welcome", session="x", resumed=resumed, cursor="k1", heartbeat_s=20,
            **{"limits": {}, "server_time": "", **welcome},
        )  # fmt: skip
        return self.changes()

    def live(self, *rows: tuple[int, int, str]) -> Peer:
        self.connect()
        self.send(type="subscribed", id=self.view.id, schema=SCHEMA)
        self.deliver(*(row(*content) for content in rows), last=True)
        return self

    def send(self, **frame: Any) -> list[Any]:
        return self.session.receive(json.dumps(frame).encode(), now_s=self.now_s)

    def deliver(self, *events: dict[str, Any], **more: Any) -> list[Any]:
        self.n += 1
        return self.send(type="sync.batch", n=self.n, sub=[self.view.id], events=events, **more)

    def beat(self, cursor: str) -> list[Any]:
        return self.send(type="heartbeat", cursor=cursor, lag_ms=0, token_expires_in=99)

    def write(self, op: Any, key: Any, **values: Any) -> Change:
        change, self.actions = self.session.write(
            op, "t", {"id": key} if isinstance(key, int) else key, values, now_s=self.now_s
        )
        return change

    def confirm(self, number: int, version: int | None, outcome: str = "applied") -> list[Any]:
        return self.send(type="change.confirmed", id=number, outcome=outcome, version=version)

    def refuse(self, number: int, code: str) -> list[Any]:
        return self.send(type="error", code=code, message="Why.", ref=str(number))

    def tick(self, passing_s: float) -> list[dict[str, Any]]:
        self.now_s += passing_s
        self.session.tick(self.now_s)
        return self.changes()

    def changes(self) -> list[dict[str, Any]]:
        """The changes that were sent since the last look."""
        frames = [json.loads(frame) for frame in self.session.outgoing]
        for frame in self.session.outgoing:
            decode_client_frame(frame)
        self.session.outgoing.clear()
        return [frame for frame in frames if frame["type"] == "change"]

    def numbers(self) -> list[int]:
        return [frame["id"] for frame in self.changes()]

    @property
    def shown(self) -> dict[int, str]:
        return {key[0]: row["a"] for key, row in self.view.rows.items()}


def row(key: int, version: int, a: str) -> dict[str, Any]:
    content = {"id": key, "a": a, "n": "0"}
    return {
        "type": "data.create",
        "table": "public.t",
        "key": {"id": key},
        "version": version,
        "row": content,
    }


def update(key: int, version: int, **changes: Any) -> dict[str, Any]:
    head = {"type": "data.update", "table": "public.t", "key": {"id": key}, "version": version}
    return {**head, "prev_version": version - 1, "changes": changes}


def delete(key: int, version: int) -> dict[str, Any]:
    return {"type": "data.delete", "table": "public.t", "key": {"id": key}, "version": version}


@pytest.fixture
def peer() -> Peer:
    return Peer().live((1, 4, "one"), (2, 1, "two"))


def test_numbers_that_json_has_not_travel_as_texts(peer: Peer) -> None:
    peer.write("update", 1, a=float("nan"), n=float("-inf"))
    assert [frame["values"] for frame in peer.changes()] == [{"a": "NaN", "n": "-Infinity"}]


# What travels


def test_a_change_carries_what_the_server_needs(peer: Peer) -> None:
    peer.write("update", 1, a="new")
    peer.write("create", 7, id="7", a="seven", n=5)
    peer.write("delete", (2,))
    first, second, third = peer.changes()
    assert first.pop("at").endswith("-c_1")
    assert first == {
        "type": "change", "id": 1, "op": "update", "table": "public.t", "key": {"id": 1},
        "values": {"a": "new"}, "base_version": 4,
    }  # fmt: skip
    assert (second["id"], second["values"], second.get("base_version")) == (2, {"a": "seven", "n": 5}, None)
    assert (third["id"], third["key"], third["base_version"]) == (3, {"id": 2}, 1)
    assert first["id"] < second["id"] < third["id"]


def test_times_only_go_forward_and_behind_what_was_seen(peer: Peer) -> None:
    far = "99999999999999-7-c_other"
    peer.deliver({**update(1, 5, a="x"), "at": far})
    stamp = Timestamp.parse(peer.write("update", 1, a="y").at)
    assert (stamp.ms, stamp.counter, stamp.client) == (99999999999999, 8, "c_1")
    assert Timestamp.parse(peer.write("update", 2, a="y").at) > stamp


def test_a_client_whose_clock_is_behind_takes_the_servers() -> None:
    peer = Peer()
    peer.connect(server_time="2226-01-01T00:00:00+00:00")
    assert Timestamp.parse(peer.write("update", 1, a="x").at).ms == 8078572800000


def test_values_take_the_form_they_have_on_the_wire(peer: Peer) -> None:
    values = {
        "d": dt.date(2026, 1, 2),
        "u": uuid.UUID(int=5),
        "x": b"\x00\xff",
        "q": Decimal("1.50"),
        "j": [1],
    }
    assert peer.write("update", 1, **values).values == {
        "d": "2026-01-02", "u": "00000000-0000-0000-0000-000000000005", "x": "AP8=", "q": "1.50", "j": [1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "values", "why"),
    [({}, {}, "names no column"), ({"no": 1}, {}, "key of public.t is id"), ((1, 2), {}, "Name the key"),
     ({"id": 1}, {"a": object()}, "cannot be sent"), ({"id": 1}, {"a": [1.0, float("nan")]}, "no NaN"),
     ({"id": 1}, {"a": {"b": [float("inf")]}}, "no infinity"), (7, {}, r'names its columns, as {"id"'),
     ("one", {}, r'names its columns, as {"id"'), ({"id": 1}, {"id": 2}, "key of a row stays")],
)  # fmt: skip
def test_what_cannot_be_a_change_is_refused_and_uses_no_place(
    peer: Peer, key: Any, values: Any, why: str
) -> None:
    with pytest.raises(RequestError, match=why):
        peer.session.write("update", "t", key, values, now_s=0)
    assert not peer.session.outbox.writes.changes
    assert peer.shown == {1: "one", 2: "two"}


def test_a_change_that_the_server_would_not_take_in_is_refused() -> None:
    peer = Peer()
    peer.connect(limits={"inbound_frame_bytes": 500})
    with pytest.raises(LimitReached, match="takes 500"):
        peer.write("update", 1, a="x" * 500)
    assert not peer.session.outbox.writes.changes


def test_numbers_of_a_client_id_that_was_given_are_asked_of_the_server() -> None:
    peer = Peer()
    peer.session.outbox.writes.next_number = 0
    peer.connect()
    with pytest.raises(RequestError, match="which numbers"):
        peer.write("update", 1, a="x")
    peer.connect(last_mutation=41)
    assert peer.write("update", 1, a="x").number == 42
    peer.connect(last_mutation=7)
    assert peer.write("update", 1, a="x").number == 43, "numbers never go back"


# What shows


def test_a_change_shows_at_once_and_until_its_row_arrives(peer: Peer) -> None:
    change = peer.write("update", 1, a="mine")
    (changed,) = peer.actions
    (event,) = changed.events
    assert (event.op, event.changes, event.version, event.local) == ("update", {"a": "mine"}, 4, True)
    assert peer.shown == {1: "mine", 2: "two"}
    assert change.base == {"a": "one"}
    assert peer.view.replica.rows[1,]["a"] == "one"
    (settled,) = peer.confirm(1, 5)
    assert isinstance(settled, Settled)
    assert peer.shown[1] == "mine", "not back to the old row before the new one has come"
    assert peer.deliver(update(1, 5, a="mine")) == [], "nothing changed for who looks"
    assert peer.shown == {1: "mine", 2: "two"}
    peer.deliver(update(1, 6, a="theirs"))
    assert peer.shown[1] == "theirs"
    assert not peer.view.overlay.patches


def test_the_row_may_come_before_the_confirmation(peer: Peer) -> None:
    peer.write("update", 1, a="mine")
    peer.deliver(update(1, 5, a="mine"))
    peer.deliver(update(1, 6, a="theirs"))
    assert peer.shown[1] == "mine", "for as long as its outcome is not known"
    changed = [action for action in peer.confirm(1, 5) if isinstance(action, Changed)]
    assert peer.shown[1] == "theirs"
    assert [event.changes for event in changed[0].events] == [{"a": "theirs"}]


def test_a_rejection_takes_the_change_back_and_keeps_those_behind_it(peer: Peer) -> None:
    first = peer.write("update", 1, a="bad")
    peer.write("update", 1, n=7)
    assert dict(peer.view.rows[1,]) == {"id": 1, "a": "bad", "n": "7"}
    settled, changed = peer.send(type="change.rejected", id=1, code="check_violation", message="No.")
    assert isinstance(settled.error, ChangeRejected)
    assert (settled.error.code, str(settled.error)) == ("check_violation", "No.")
    assert settled.change is first
    assert changed.events[0].local
    assert dict(peer.view.rows[1,]) == {"id": 1, "a": "one", "n": "7"}


def test_others_changes_show_beneath(peer: Peer) -> None:
    peer.write("update", 1, a="mine")
    (changed,) = peer.deliver(update(1, 5, a="theirs", n="9"))
    assert changed.events[0].changes == {"n": "9"}
    assert dict(peer.view.rows[1,]) == {"id": 1, "a": "mine", "n": "9"}
    peer.deliver(delete(1, 6))
    assert peer.shown == {2: "two"}, "there is no row to change any more"


def test_creating_and_deleting_show(peer: Peer) -> None:
    peer.write("create", 5, a="five")
    peer.write("delete", 2)
    assert peer.shown == {1: "one", 5: "five"}
    assert len(peer.view.rows) == 2
    assert (2,) not in peer.view.rows
    peer.confirm(2, 2)
    assert peer.shown == {1: "one", 5: "five"}
    peer.deliver(delete(2, 2), row(5, 1, "five"))
    peer.confirm(1, 1)
    assert not peer.view.overlay.patches
    assert peer.shown == {1: "one", 5: "five"}


def test_a_view_shows_what_its_filter_may_hold() -> None:
    peer = Peer(where={"a": {"in": ["one", "two"]}, "n": {"lt": 5}}).live((1, 4, "one"))
    peer.write("update", 1, a="three")
    assert peer.shown == {}, "it left the view"
    peer.write("create", 2, a="two", n=7)
    peer.write("create", 3, a="two", n=-10)
    peer.write("create", 4, a="one")
    assert peer.shown == {3: "two", 4: "one"}, "what the database fills in cannot be told"


def test_what_never_arrives_in_a_view_is_forgotten_after_two_cursors() -> None:
    peer = Peer(where={"unknown": 1}).live()
    peer.write("create", 4, a="one")
    peer.confirm(1, 1)
    peer.beat("k2")
    assert peer.shown == {4: "one"}
    peer.beat("k2")
    assert peer.shown == {4: "one"}, "the same cursor says nothing new"
    peer.beat("k3")
    assert peer.shown == {}


@pytest.mark.parametrize(
    ("outcome", "version"), [("superseded", 6), ("conflict", 6), ("already_applied", None)]
)
def test_what_was_not_applied_shows_no_longer(peer: Peer, outcome: str, version: int | None) -> None:
    change = peer.write("update", 1, a="mine")
    peer.confirm(1, version, outcome)
    assert peer.shown[1] == "one"
    assert change.confirmation
    assert change.confirmation.outcome == outcome


def test_a_snapshot_keeps_what_is_not_confirmed(peer: Peer) -> None:
    peer.write("update", 1, a="mine")
    peer.write("create", 9, a="nine")
    peer.send(type="subscription.reset", sub=peer.view.id, reason="truncate")
    peer.deliver(row(1, 1, "fresh"))
    assert peer.shown == {1: "mine", 2: "two", 9: "nine"}
    (completed,) = peer.deliver(last=True)
    assert peer.shown == {1: "mine", 9: "nine"}
    assert {(event.op, event.key) for event in completed.events} == {("delete", (2,))}


def test_a_view_that_comes_later_shows_it_too(peer: Peer) -> None:
    peer.write("update", 1, a="mine")
    other = peer.session.subscribe("public.t", None, ["id", "a"])
    peer.send(type="subscribed", id=other.id, schema={**SCHEMA, "columns": SCHEMA["columns"][:2]})
    peer.n += 1
    peer.send(type="sync.batch", n=peer.n, sub=[other.id], events=[row(1, 4, "one")], last=True)
    assert other.rows[1,] == {"id": 1, "a": "mine"}


def test_key_values_are_told_apart_as_the_server_writes_them() -> None:
    peer = Peer()
    peer.connect()
    schema = {**SCHEMA, "columns": [{"name": "id", "type": "bigint"}, {"name": "a", "type": "text"}]}
    peer.send(type="subscribed", id=peer.view.id, schema=schema)
    big = {**row(1, 4, "one"), "key": {"id": "1"}, "row": {"id": "1", "a": "one"}}
    peer.deliver(big, last=True)
    change = peer.write("update", 1, a="mine")
    assert (change.key, change.base_version) == ({"id": "1"}, 4)
    assert peer.view.rows["1",]["a"] == "mine"


# Sending


def test_all_that_waits_goes_out_in_order_on_every_new_connection(peer: Peer) -> None:
    for key in (1, 2, 3):
        peer.write("update", key, a="x")
    assert peer.numbers() == [1, 2, 3]
    peer.confirm(2, 2)
    peer.session.lost()
    assert peer.numbers() == []
    peer.write("update", 4, a="x")
    assert peer.numbers() == [], "offline"
    assert [frame["id"] for frame in peer.connect("resync")] == [1, 3, 4]
    assert peer.confirm(2, 2) == [], "an answer that comes twice"
    peer.confirm(1, 5)
    assert peer.numbers() == []


def test_one_change_of_a_row_is_under_way_at_a_time_and_the_next_is_upon_it(peer: Peer) -> None:
    for text in ("x", "y", "z"):
        peer.write("update", 1, a=text)
    peer.write("update", 2, a="x")
    assert [(f["id"], f["base_version"]) for f in peer.changes()] == [(1, 4)]
    peer.confirm(1, 5)
    assert [(f["id"], f["base_version"]) for f in peer.changes()] == [(2, 5)]
    peer.confirm(2, 7)  # somebody came between: the server must see that the third has not seen it
    assert [(f["id"], f["base_version"]) for f in peer.changes()] == [(3, 5), (4, 1)]


def test_a_row_that_was_just_created_is_changed_upon_its_first_version(peer: Peer) -> None:
    peer.write("create", 5, a="x")
    peer.write("update", 5, a="y")
    assert [f["id"] for f in peer.changes()] == [1]
    peer.confirm(1, 3)
    assert [(f["id"], f["base_version"]) for f in peer.changes()] == [(2, 3)]


def test_no_more_are_under_way_than_agreed_and_no_faster() -> None:
    peer = Peer()
    peer.connect(limits={"changes_per_s": 10, "changes_burst": 20})
    for key in range(40):
        peer.write("update", key, a="x")
    assert peer.numbers() == list(range(1, IN_FLIGHT + 1))
    for number in range(1, IN_FLIGHT + 1):
        peer.confirm(number, 1)
    assert peer.numbers() == [17, 18, 19, 20], "the burst is used up"
    assert peer.session.deadline_s
    assert [f["id"] for f in peer.tick(0.101)] == [21]
    assert [f["id"] for f in peer.tick(0.301)] == [22, 23, 24]
    assert CHANGES_BURST == 100


@pytest.mark.parametrize("code", ["unavailable", "limit_reached"])
def test_what_the_server_cannot_judge_now_is_repeated_from_there(peer: Peer, code: str) -> None:
    for key in (1, 2, 3):
        peer.write("update", key, a="x")
    peer.changes()
    peer.confirm(1, 5)
    assert peer.refuse(2, code) == []
    assert peer.numbers() == []
    assert peer.shown[2] == "x"
    assert [f["id"] for f in peer.tick(60)] == [2, 3]
    peer.confirm(2, 2)
    peer.confirm(3, 1, "already_applied")
    assert not peer.session.outbox.writes.changes
    assert peer.session.outbox.writes.due_s is None


def test_a_change_that_makes_the_server_fail_is_given_up_at_last(peer: Peer) -> None:
    peer.write("update", 1, a="x")
    peer.write("update", 2, a="x")
    peer.changes()
    peer.confirm(2, 2)
    for _ in range(INTERNAL_TRIES - 1):
        assert peer.refuse(1, "internal") == []
        assert [f["id"] for f in peer.tick(60)] == [1]
    settled, _ = peer.refuse(1, "internal")
    assert settled.error.code == "internal"
    assert peer.shown[1] == "one"


def test_a_server_that_takes_no_changes_says_so(peer: Peer) -> None:
    peer.write("update", 1, a="x")
    settled, _ = peer.refuse(1, "not_supported")
    assert settled.error.code == "not_supported"
    assert peer.shown[1] == "one"
    assert not peer.session.outbox.writes.changes


# The promise


async def test_who_awaits_a_change_hears_its_outcome(peer: Peer) -> None:
    first, second, third = (peer.write("update", key, a="x") for key in (1, 2, 3))
    waiting = [asyncio.ensure_future(change.confirmed()) for change in (first, second, third)]
    await asyncio.sleep(0)
    peer.send(type="change.confirmed", id=1, outcome="merged", version=9, fields=["a"])
    peer.send(type="change.rejected", id=2, code="forbidden", message="Not yours.")
    peer.session.outbox.writes.fail(Closed())
    answer, rejection, closed = await asyncio.gather(*waiting, return_exceptions=True)
    assert (answer.outcome, answer.version, answer.fields) == ("merged", 9, ["a"])
    assert isinstance(rejection, ChangeRejected)
    assert isinstance(closed, Closed)
    assert await first.confirmed() is answer
    with pytest.raises(ChangeRejected, match="Not yours"):
        await second.confirmed()
    assert isinstance(second.error, ChangeRejected)


# The store


def opened(path: Path) -> Store:
    store = Store(path)
    store.belong(url="http://x")
    if store.client_id is None:
        store.register("c_1")
    return store


def test_changes_outlive_the_process_with_their_numbers_and_times(tmp_path: Path) -> None:
    store = opened(tmp_path / "client.db")
    peer = Peer(store).live((1, 4, "one"))
    peer.session.save()
    written = [peer.write("update", 1, a="x"), peer.write("create", 5, a="y", n=3), peer.write("delete", 1)]
    store._database.close()  # no word of farewell
    again = Peer(opened(tmp_path / "client.db"))
    assert [vars_of(change) for change in again.session.outbox.writes.changes.values()] == [
        vars_of(change) for change in written
    ]
    assert again.shown == {5: "y"}
    later = again.write("update", 5, a="z")
    assert later.number == 4
    assert Timestamp.parse(later.at) > Timestamp.parse(written[-1].at)
    assert [f["id"] for f in again.connect("replay")] == [1, 2]
    again.confirm(1, 5)
    again.session.save()
    again.session._journal.store._database.close()  # type: ignore[union-attr]
    third = Peer(opened(tmp_path / "client.db"))
    assert list(third.session.outbox.writes.changes) == [2, 3, 4]
    assert third.session.outbox.writes.changes[3].base_version == 5, "upon the first one's version"
    third.session._journal.store.close()  # type: ignore[union-attr]


def vars_of(change: Change) -> dict[str, Any]:
    return {"number": change.number, **change.content()}


def test_what_cannot_be_kept_is_not_sent_nor_shown(tmp_path: Path) -> None:
    store = opened(tmp_path / "client.db")
    peer = Peer(store).live((1, 4, "one"))
    commit = store.commit

    def failing(batch: Batch, *, durable: bool = False) -> None:
        assert durable == bool(batch.changes)
        raise StoreFailed

    store.commit = failing  # type: ignore[method-assign]
    with pytest.raises(StoreFailed):
        peer.write("update", 1, a="x")
    assert (peer.numbers(), peer.shown) == ([], {1: "one"})
    store.commit = commit  # type: ignore[method-assign]
    assert peer.write("update", 1, a="y").number == 2, "a number that may have been written is not used again"
    assert peer.numbers() == [2]
    store.close()


def test_rows_to_fetch_and_deletions_outlive_the_process(tmp_path: Path) -> None:
    store = opened(tmp_path / "client.db")
    peer = Peer(store).live((1, 4, "one"), (2, 1, "two"))
    peer.deliver({**update(1, 9, a="nine"), "prev_version": 8}, delete(2, 5))
    peer.beat("k2")
    store._database.close()
    again = Peer(opened(tmp_path / "client.db"))
    assert again.shown == {1: "one"}
    again.connect("replay")
    again.deliver(row(2, 3, "an old one"), last=True)
    assert again.shown == {1: "one"}, "a row that was deleted does not come back by a repeat"
    refetches = [json.loads(frame) for frame in again.session.outgoing]
    assert {"type": "refetch", "sub": "s1", "key": {"id": 1}} in refetches
    again.session._journal.store.close()  # type: ignore[union-attr]


def test_a_subscription_is_usable_without_any_change(peer: Peer) -> None:
    assert isinstance(peer.view, Subscription)
    assert peer.view.rows == {(1,): {"id": 1, "a": "one", "n": "0"}, (2,): {"id": 2, "a": "two", "n": "0"}}
    assert list(peer.view.rows) == [(1,), (2,)]
    assert repr(peer.view.rows) == repr(peer.view.replica.rows)
    with pytest.raises(KeyError):
        peer.view.rows[9,]
