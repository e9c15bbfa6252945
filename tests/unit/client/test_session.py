"""The client's protocol core: frames in, frames and actions out, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.client.actions import Beat, Changed, Complaint, Completed, Failed, Leaving, Stalled, Welcomed
from cloudsync.client.errors import ProtocolBroken, ServerRefused
from cloudsync.client.session import ACK_BYTES, ACK_DELAY_S, ACK_FRAMES, Session
from cloudsync.client.subscription import Subscription
from cloudsync.errors import UnknownTable
from cloudsync.protocol.messages import decode_client_frame

SCHEMA = {
    "table": "public.t",
    "key": ["id"],
    "columns": [{"name": "id", "type": "integer"}, {"name": "a", "type": "integer"}],
}


class Peer:
    """The server's side of a session in a test: numbers deliveries, keeps what the client said."""

    def __init__(self, session: Session | None = None) -> None:
        self.session = session or Session(sdk="test")
        self.session.client_id = "c_test"
        self.now_s = 100.0
        self.n = 0

    def connect(self, *, resumed: str | None = None, cursor: str | None = "k1") -> dict[str, Any]:
        """A new connection, welcomed; the hello."""
        self.n = 0
        self.session.opened()
        (hello,) = self.said()
        self.send(
            type="welcome",
            session="x",
            resumed=resumed,
            cursor=cursor,
            heartbeat_s=20,
            limits={},
            server_time="",
        )
        return hello

    def send(self, **frame: Any) -> list[Any]:
        return self.raw(json.dumps(frame).encode())

    def raw(self, data: bytes) -> list[Any]:
        return self.session.receive(data, now_s=self.now_s, wall_us=1_000_000)

    def deliver(self, sub: str | list[str], *events: dict[str, Any], **more: Any) -> list[Any]:
        """One event as itself, several (or `batch=True`) as a batch."""
        self.n += 1
        head = {"n": self.n, "sub": [sub] if isinstance(sub, str) else sub, "sent": 5}
        if len(events) == 1 and not more:
            return self.send(**{"type": events[0]["type"], **head, **events[0]})
        more.pop("batch", None)
        return self.send(type="sync.batch", **head, events=list(events), **more)

    def subscribed(self, sub: str, **more: Any) -> list[Any]:
        return self.send(type="subscribed", id=sub, schema=SCHEMA, count=0, **more)

    def snapshot(self, sub: str, *events: dict[str, Any]) -> list[Any]:
        self.subscribed(sub)
        return self.deliver(sub, *events, snapshot=True, last=True)

    def said(self) -> list[dict[str, Any]]:
        frames = [json.loads(frame) for frame in self.session.outgoing]
        for frame in self.session.outgoing:
            decode_client_frame(frame)  # the server must be able to read every one
        self.session.outgoing.clear()
        return frames

    def live(self, *rows: dict[str, Any]) -> Subscription:
        subscription = self.session.subscribe("t", None, None)
        self.snapshot(subscription.id, *rows)
        self.said()
        subscription.observed = True
        return subscription


def create(key: int, version: int, a: int = 0) -> dict[str, Any]:
    times = {"commit": 10, "feed": 20, "route": 30}
    return {
        "type": "data.create", "table": "public.t", "key": {"id": key}, "version": version,
        "row": {"id": key, "a": a}, "by": None, "at": "1-0-sql", "id": "0/1.1", "tx": "7", "times": times,
    }  # fmt: skip


def update(key: int, version: int, previous: int, **changes: int) -> dict[str, Any]:
    return {
        "type": "data.update", "table": "public.t", "key": {"id": key}, "version": version,
        "prev_version": previous, "changes": changes, "by": {"user": "ada"},
    }  # fmt: skip


def delete(key: int, version: int) -> dict[str, Any]:
    return {"type": "data.delete", "table": "public.t", "key": {"id": key}, "version": version}


def rows(subscription: Subscription) -> dict[Any, int]:
    return {key[0]: row["a"] for key, row in subscription.replica.rows.items()}


@pytest.fixture
def peer() -> Peer:
    found = Peer()
    found.connect()
    return found


def test_hello_comes_first_and_carries_who_and_what() -> None:
    peer = Peer()
    peer.session.subscribe("t", None, None)
    hello = peer.connect()
    assert hello == {"type": "hello", "client_id": "c_test", "sdk": "test"}
    assert peer.said() == [{"type": "subscribe", "id": "s1", "table": "t"}]


def test_welcome_is_reported_and_its_cursor_kept(peer: Peer) -> None:
    assert peer.session.welcomed
    assert peer.session.cursor == "k1"
    (beat,) = peer.send(type="heartbeat", cursor="k2", lag_ms=1, token_expires_in=9)
    assert isinstance(beat, Beat)
    assert peer.session.cursor == "k2"
    peer.send(type="heartbeat", cursor=None, lag_ms=1, token_expires_in=9)
    assert peer.session.cursor == "k2"


def test_subscribe_carries_where_and_columns(peer: Peer) -> None:
    peer.session.subscribe("t", {"a": {"gte": 3}}, ["id"])
    assert peer.said() == [
        {"type": "subscribe", "id": "s1", "table": "t", "where": {"a": {"gte": 3}}, "columns": ["id"]}
    ]


def test_rows_of_a_first_snapshot_show_as_they_arrive(peer: Peer) -> None:
    subscription = peer.session.subscribe("t", None, None)
    peer.subscribed("s1")
    (changed,) = peer.deliver("s1", create(1, 0, a=1), snapshot=True)
    assert isinstance(changed, Changed)
    assert rows(subscription) == {1: 1}
    assert not subscription.complete
    changed, completed = peer.deliver("s1", create(2, 4, a=2), snapshot=True, last=True)
    assert isinstance(completed, Completed)
    assert rows(subscription) == {1: 1, 2: 2}
    assert subscription.replica.versions == {(1,): 0, (2,): 4}
    assert subscription.state == "live"


def test_an_empty_snapshot_completes(peer: Peer) -> None:
    subscription = peer.session.subscribe("t", None, None)
    (completed,) = peer.snapshot("s1")
    assert isinstance(completed, Completed)
    assert subscription.complete


def test_live_events_carry_what_the_server_told(peer: Peer) -> None:
    subscription = peer.live(create(1, 1, a=1))
    ((changed),) = peer.deliver("s1", create(2, 1, a=2))
    (event,) = changed.events
    assert (event.op, event.key, event.version, event.table) == ("create", (2,), 1, "public.t")
    assert event.row == {"id": 2, "a": 2}
    assert event.times.commit == 10
    assert event.sent_us == 5
    assert event.latency_ms == pytest.approx(999.99)
    (changed,) = peer.deliver("s1", update(1, 2, 1, a=5), delete(2, 2), batch=True)
    first, second = changed.events
    assert (first.op, first.row, first.changes, first.by) == (
        "update",
        {"id": 1, "a": 5},
        {"a": 5},
        {"user": "ada"},
    )
    assert first.latency_ms is None
    assert (second.op, second.row) == ("delete", None)
    assert rows(subscription) == {1: 5}


def test_events_are_made_only_for_somebody(peer: Peer) -> None:
    subscription = peer.live()
    subscription.observed = False
    (changed,) = peer.deliver("s1", create(1, 1))
    assert changed.events == []
    assert rows(subscription) == {1: 0}


def test_one_frame_serves_several_subscriptions(peer: Peer) -> None:
    first, second = peer.live(), peer.live(create(1, 1))
    changed = peer.deliver(["s1", "s2", "s9"], create(1, 1, a=1))
    assert [action.subscription for action in changed] == [first], "the second one holds this version"
    peer.deliver(["s1", "s2"], update(1, 2, 1, a=3))
    assert rows(first) == rows(second) == {1: 3}


def test_a_wrong_previous_version_asks_for_the_row(peer: Peer) -> None:
    subscription = peer.live(create(1, 1, a=1))
    assert peer.deliver("s1", update(1, 4, 3, a=9)) == []
    assert {"type": "refetch", "sub": "s1", "key": {"id": 1}} in peer.said()
    assert rows(subscription) == {1: 1}
    (changed,) = peer.deliver("s1", create(1, 4, a=9))
    assert changed.events[0].op == "update"
    assert changed.events[0].changes == {"a": 9}
    assert not [frame for frame in peer.said() if frame["type"] == "refetch"]


def test_a_snapshot_under_way_asks_for_nothing(peer: Peer) -> None:
    subscription = peer.session.subscribe("t", None, None)
    peer.subscribed("s1")
    peer.deliver("s1", update(1, 5, 4, a=9))
    assert not [frame for frame in peer.said() if frame["type"] == "refetch"]
    peer.deliver("s1", create(1, 5, a=9), snapshot=True, last=True)
    assert not [frame for frame in peer.said() if frame["type"] == "refetch"]
    assert rows(subscription) == {1: 9}


# Acknowledging


def test_acks_come_after_enough_frames(peer: Peer) -> None:
    peer.live()
    peer.session.tick(peer.now_s + 1)
    peer.said()
    for number in range(ACK_FRAMES - 1):
        peer.deliver("s1", create(number, 1))
    assert peer.said() == []
    peer.deliver("s1", create(99, 1))
    assert peer.said() == [{"type": "ack", "n": ACK_FRAMES + 1}]
    assert peer.session.deadline_s is None


def test_acks_come_after_enough_bytes(peer: Peer) -> None:
    peer.live()
    peer.session.tick(peer.now_s + 1)
    peer.said()
    event = create(1, 1)
    event["row"]["text"] = "x" * (ACK_BYTES - 100)
    peer.deliver("s1", event)
    assert peer.said() == [{"type": "ack", "n": 2}]


def test_acks_come_in_time(peer: Peer) -> None:
    peer.live()
    first_due_s = peer.session.deadline_s
    assert first_due_s == pytest.approx(peer.now_s + ACK_DELAY_S)
    peer.now_s += ACK_DELAY_S / 2
    peer.deliver("s1", create(1, 1))
    assert peer.session.deadline_s == first_due_s, "counted from the first that waits"
    peer.session.tick(peer.now_s)
    assert peer.said() == []
    peer.session.tick(peer.now_s + ACK_DELAY_S)
    assert peer.said() == [{"type": "ack", "n": 2}]
    assert peer.session.deadline_s is None


def test_a_delivery_that_is_sent_again_is_acknowledged_at_once_and_changes_nothing(peer: Peer) -> None:
    subscription = peer.live()
    peer.deliver("s1", create(1, 1, a=1))
    peer.n -= 1
    assert peer.deliver("s1", create(1, 2, a=9)) == []
    assert peer.said() == [{"type": "ack", "n": 2}]
    assert rows(subscription) == {1: 1}


def test_a_missing_delivery_breaks_the_connection(peer: Peer) -> None:
    peer.live()
    peer.n += 1
    with pytest.raises(ProtocolBroken, match="Delivery 2 is missing"):
        peer.deliver("s1", create(1, 1))


@given(st.lists(st.tuples(st.integers(1, 60_000), st.floats(0, 0.2)), max_size=80))
def test_the_server_never_waits_longer_than_promised(frames: list[tuple[int, float]]) -> None:
    """Whatever sizes and pauses: what waits stays within 32 frames, 128 KiB and 50 ms, if ticked in time."""
    peer = Peer()
    peer.connect()
    waiting: list[tuple[float, int]] = []
    acked = 0
    for size, pause_s in frames:
        peer.now_s += pause_s
        due_s = peer.session.deadline_s
        if due_s is not None and due_s <= peer.now_s:
            peer.session.tick(due_s)
        peer.n += 1
        head = f'{{"type":"sync.batch","n":{peer.n},"sub":["s1"],"events":[],"pad":"'.encode()
        data = head + b"x" * size + b'"}'
        peer.raw(data)
        waiting.append((peer.now_s, len(data)))
        for frame in peer.said():
            assert frame["n"] > acked
            waiting = waiting[frame["n"] - acked :]
            acked = frame["n"]
        assert len(waiting) < ACK_FRAMES
        assert sum(size for _, size in waiting) < ACK_BYTES
        assert not waiting or peer.session.deadline_s is not None
        assert not waiting or peer.now_s - waiting[0][0] <= ACK_DELAY_S + 1e-9


# Coming back


def test_a_resync_swaps_the_new_snapshot_in_at_its_end(peer: Peer) -> None:
    subscription = peer.live(create(1, 1, a=1), create(2, 1, a=2))
    peer.send(type="heartbeat", cursor="k9", lag_ms=0, token_expires_in=9)
    peer.session.lost()
    assert not peer.session.caught_up
    hello = peer.connect(resumed="resync")
    assert hello["cursor"] == "k9"
    assert hello["subscriptions"] == [{"id": "s1", "table": "t"}]
    assert peer.said() == [{"type": "subscribe", "id": "s1", "table": "t"}]
    peer.subscribed("s1")
    assert peer.deliver("s1", create(2, 2, a=20), snapshot=True) == []
    assert rows(subscription) == {1: 1, 2: 2}
    (completed,) = peer.deliver("s1", create(3, 1, a=3), snapshot=True, last=True)
    assert rows(subscription) == {2: 20, 3: 3}
    assert [(e.op, e.key, e.resync) for e in completed.events] == [
        ("delete", (1,), True),
        ("update", (2,), True),
        ("create", (3,), True),
    ]
    assert peer.session.caught_up


@pytest.mark.parametrize("resumed", ["replay", "differential"])
def test_a_replay_goes_on_where_it_was(peer: Peer, resumed: str) -> None:
    subscription = peer.live(create(1, 1, a=1))
    peer.deliver("s1", update(1, 3, 2, a=3))
    peer.said()
    unfinished = peer.session.subscribe("u", None, None)
    peer.said()
    peer.session.lost()
    hello = peer.connect(resumed=resumed)
    assert [held["id"] for held in hello["subscriptions"]] == ["s1"], "only what the cursor covers"
    assert peer.said() == [{"type": "subscribe", "id": "s2", "table": "u"}]
    assert (subscription.state, unfinished.state) == ("returning", "asked")
    peer.deliver("s1", create(2, 1, a=2))
    assert rows(subscription) == {1: 1, 2: 2}, "what was missed shows as it comes"
    assert peer.said() == []
    (completed,) = peer.deliver("s1", last=True)
    assert isinstance(completed, Completed)
    assert subscription.state == "live"
    assert peer.said() == [{"type": "refetch", "sub": "s1", "key": {"id": 1}}], "what no replay brought"
    peer.deliver("s1", create(1, 3, a=3))
    assert rows(subscription) == {1: 3, 2: 2}


def test_a_cursor_that_moves_says_that_what_was_missed_has_come(peer: Peer) -> None:
    subscription = peer.live(create(1, 1))
    peer.session.lost()
    peer.connect(resumed="replay", cursor="k5")
    assert peer.session.cursor == "k1", "what was missed may yet be cut off"
    beat = {"type": "heartbeat", "lag_ms": 1, "token_expires_in": 9}
    (same,) = peer.send(**beat, cursor="k1")
    assert isinstance(same, Beat)
    assert not peer.session.caught_up
    _, completed = peer.send(**beat, cursor="k6")
    assert isinstance(completed, Completed)
    assert (subscription.state, peer.session.cursor) == ("live", "k6")


def test_a_way_back_that_is_cut_off_begins_again_from_the_same_cursor(peer: Peer) -> None:
    subscription = peer.live(create(1, 1))
    for _ in range(2):
        peer.session.lost()
        hello = peer.connect(resumed="differential", cursor="k5")
        assert (hello["cursor"], len(hello["subscriptions"])) == ("k1", 1)
        peer.deliver("s1", create(2, 7))
    assert set(rows(subscription)) == {1, 2}


def test_a_first_snapshot_that_is_cut_off_starts_over_without_events(peer: Peer) -> None:
    subscription = peer.session.subscribe("t", None, None)
    subscription.observed = True
    peer.subscribed("s1")
    peer.deliver("s1", create(1, 1), create(2, 1), snapshot=True)
    peer.session.lost()
    hello = peer.connect(resumed="resync")
    assert "subscriptions" not in hello
    assert rows(subscription) == {1: 0, 2: 0}
    (completed,) = peer.snapshot("s1", create(2, 1))
    assert rows(subscription) == {2: 0}
    assert completed.events == []


def test_nothing_is_left_to_send_of_a_lost_connection(peer: Peer) -> None:
    peer.live()
    peer.deliver("s1", update(1, 3, 2, a=3))
    peer.session.lost()
    assert peer.session.outgoing == []
    assert peer.session.deadline_s is None
    peer.session.authenticate("token")
    assert peer.session.outgoing == []


def test_a_reset_rebuilds_one_view(peer: Peer) -> None:
    subscription, other = peer.live(create(1, 1), create(2, 1)), peer.live(create(1, 1))
    peer.send(type="subscription.reset", sub="s1", reason="truncate")
    assert not peer.session.caught_up
    peer.deliver("s2", update(1, 2, 1, a=1))
    (completed,) = peer.deliver("s1", snapshot=True, last=True)
    assert [e.op for e in completed.events] == ["delete", "delete"]
    assert rows(subscription) == {}
    assert rows(other) == {1: 1}
    peer.deliver("s1", create(1, 1, a=7))
    assert rows(subscription) == {1: 7}, "versions may start lower after a reset"


def test_a_second_reset_starts_the_snapshot_over(peer: Peer) -> None:
    subscription = peer.live(create(1, 1))
    peer.send(type="subscription.reset", sub="s1", reason="truncate")
    peer.deliver("s1", create(5, 1), snapshot=True)
    peer.send(type="subscription.reset", sub="s1", reason="truncate")
    peer.deliver("s1", create(6, 1), snapshot=True, last=True)
    assert rows(subscription) == {6: 0}


def test_a_changed_schema_drops_columns(peer: Peer) -> None:
    subscription = peer.live(create(1, 1, a=4))
    schema = {**SCHEMA, "columns": [{"name": "id", "type": "integer"}]}
    peer.send(type="subscription.changed", sub="s1", schema=schema)
    assert subscription.replica.rows == {(1,): {"id": 1}}
    assert subscription.schema
    assert [column.name for column in subscription.schema.columns] == ["id"]
    peer.send(type="subscription.changed", sub="s1", mode="latest")
    assert subscription.mode == "latest"


# Errors


def test_an_error_ends_the_subscription_it_names(peer: Peer) -> None:
    subscription = peer.session.subscribe("nope", None, None)
    (failed,) = peer.send(type="error", code="unknown_table", message="There is none.", ref="s1")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, UnknownTable)
    assert failed.error.code == "unknown_table"
    assert subscription.state == "ended"
    assert peer.session.caught_up


def test_a_code_without_a_class_keeps_its_code(peer: Peer) -> None:
    peer.session.subscribe("t", None, None)
    (failed,) = peer.send(type="error", code="unavailable", message="Later.", ref="s1")
    assert isinstance(failed.error, ServerRefused)
    assert failed.error.code == "unavailable"


def test_a_view_that_stands_survives_what_passes(peer: Peer) -> None:
    subscription = peer.live(create(1, 1))
    (stalled,) = peer.send(type="error", code="unavailable", message="Later.", ref="s1")
    assert isinstance(stalled, Stalled)
    peer.said()
    peer.session.renew(subscription)
    assert peer.said() == [
        {"type": "unsubscribe", "id": "s1"},
        {"type": "subscribe", "id": "s2", "table": "t"},
    ]
    assert peer.send(type="error", code="unknown_subscription", message="?", ref="s1") == []
    assert rows(subscription) == {1: 0}
    peer.snapshot("s2", create(2, 1))
    assert rows(subscription) == {2: 0}


def test_a_view_whose_table_was_dropped_ends(peer: Peer) -> None:
    subscription = peer.live(create(1, 1))
    (failed,) = peer.send(type="error", code="table_dropped", message="Gone.", ref="s1")
    assert isinstance(failed, Failed)
    assert rows(subscription) == {1: 0}


def test_an_error_without_a_reference_concerns_the_connection(peer: Peer) -> None:
    (complaint,) = peer.send(type="error", code="bad_token", message="Expired.")
    assert isinstance(complaint, Complaint)


def test_unsubscribing_is_said_once_and_late_frames_are_ignored(peer: Peer) -> None:
    subscription = peer.live()
    peer.session.unsubscribe(subscription)
    peer.session.unsubscribe(subscription)
    peer.session.renew(subscription)
    assert [f for f in peer.said() if f["type"] != "ack"] == [{"type": "unsubscribe", "id": "s1"}]
    assert peer.deliver("s1", create(1, 1)) == []
    assert peer.subscribed("s1") == []


def test_draining_says_when(peer: Peer) -> None:
    (leaving,) = peer.send(type="server.draining", reconnect_in_ms=1500)
    assert isinstance(leaving, Leaving)
    assert leaving.reconnect_in_s == 1.5


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"type":1}', b"\xff\xfe", b'{"type":"data.create"}', b'{"type":"welcome"}',
     b'{"type":"data.create","n":1,"sub":["s1"],"key":{},"version":"7","row":{}}', b"[" * 100_000],
)  # fmt: skip
def test_what_is_not_a_frame_breaks_the_connection(peer: Peer, data: bytes) -> None:
    with pytest.raises(ProtocolBroken):
        peer.raw(data)


def test_an_event_without_its_key_breaks_the_connection(peer: Peer) -> None:
    peer.live()
    with pytest.raises(ProtocolBroken, match="key"):
        peer.deliver("s1", {**create(1, 1), "key": {"other": 1}})


def test_frames_and_fields_of_newer_servers_are_ignored(peer: Peer) -> None:
    assert peer.send(type="presence", sub="s1", members=[]) == []
    assert peer.send(type="weather", n=77) == []
    subscription = peer.live()
    peer.deliver("s1", {**create(1, 1), "colour": "blue"})
    assert rows(subscription) == {1: 0}


def test_numbers_beyond_floats_are_kept(peer: Peer) -> None:
    subscription = peer.live()
    peer.n += 1
    peer.raw(
        b'{"type":"data.create","n":%d,"sub":["s1"],"table":"public.t","key":{"id":1},"version":1,'
        b'"row":{"id":1,"a":0,"j":[1e400,123456789012345678901234567890,0.5]}}' % peer.n
    )
    huge, whole, half = subscription.replica.rows[1,]["j"]
    assert (str(huge), whole, half) == ("1E+400", 123456789012345678901234567890, 0.5)


def test_welcome_action_carries_the_frame() -> None:
    peer = Peer()
    peer.session.opened()
    (welcomed,) = peer.send(
        type="welcome", session="x", resumed=None, cursor=None, heartbeat_s=3, limits={}, server_time=""
    )
    assert isinstance(welcomed, Welcomed)
    assert welcomed.frame.heartbeat_s == 3
