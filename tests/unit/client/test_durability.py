"""A session with a store: whatever is delivered, lost, repeated or cut off by a crash, nothing is lost."""

from __future__ import annotations

import json
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudsync.client.session import ACK_DELAY_S, Session
from cloudsync.client.store import Batch, Store
from cloudsync.client.subscription import Subscription

SCHEMA = {
    "table": "public.t",
    "key": ["id"],
    "columns": [{"name": "id", "type": "integer"}, {"name": "a", "type": "integer"}],
}
ALWAYS = 0
"""A row that is there from the beginning and never deleted."""


class Server:
    """A table's history, and one connection at a time that tells it as a gateway does."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.rows: dict[int, int] = {}
        self.versions: dict[int, int] = {}
        self.outbox: deque[dict[str, Any]] = deque()
        self.live: set[str] = set()
        self.n = 0
        self.change(ALWAYS, 1)

    def change(self, key: int, value: int | None) -> None:
        """Set a row's value; None deletes it."""
        if value is None and (key == ALWAYS or key not in self.rows):
            return
        before = self.versions.get(key, 0)
        event: dict[str, Any] = {"table": "public.t", "key": {"id": key}, "version": before + 1}
        if value is None:
            event["type"] = "data.delete"
            del self.rows[key]
        elif key in self.rows:
            event |= {"type": "data.update", "prev_version": before, "changes": {"a": value}}
            self.rows[key] = value
        else:
            event |= {"type": "data.create", "row": {"id": key, "a": value}}
            self.rows[key] = value
        self.versions[key] = before + 1
        self.history.append(event)
        if self.live:
            self._deliver(sorted(self.live), event)

    def greet(self, hello: dict[str, Any], manner: str) -> None:
        """Welcome a client back: by replay, differential or resync."""
        self.outbox.clear()
        self.live.clear()
        self.n = 0
        held = [subscription["id"] for subscription in hello.get("subscriptions", [])]
        cursor = int(hello["cursor"]) if hello.get("cursor") else None
        if cursor is None:
            manner = ""
        welcome = {"type": "welcome", "session": "x", "resumed": manner or None, "heartbeat_s": 20}
        self.outbox.append({**welcome, "cursor": str(len(self.history)), "limits": {}, "server_time": ""})
        if manner == "replay" and held:
            for event in self.history[cursor:]:
                self._deliver(held, event)
            self._batch(held, [], last=True)
        if manner == "differential" and held:
            touched = {event["key"]["id"] for event in self.history[cursor:]}
            events = [self.state(key) for key in sorted(touched)]
            for event in events:
                self._batch(held, [event])
            self._batch(held, [], last=True)
        if manner in ("replay", "differential"):
            self.live |= set(held)

    def hear(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "subscribe":
            sub = frame["id"]
            self.outbox.append({"type": "subscribed", "id": sub, "schema": SCHEMA})
            self._snapshot(sub)
        elif frame["type"] == "refetch":
            self._deliver([frame["sub"]], self.state(frame["key"]["id"]))
        elif frame["type"] == "unsubscribe":
            self.live.discard(frame["id"])

    def reset(self) -> None:
        """As after a TRUNCATE or a partition that moved: every view starts over."""
        for sub in sorted(self.live):
            self.outbox.append({"type": "subscription.reset", "sub": sub, "reason": "test"})
            self._snapshot(sub)

    def deleted(self, event: dict[str, Any]) -> bool:
        """Whether the event's row was deleted then or later."""
        return any(
            later["type"] == "data.delete" and later["key"] == event["key"]
            for later in self.history
            if later["version"] >= event["version"]
        )

    def beat(self) -> None:
        self.outbox.append(
            {"type": "heartbeat", "cursor": str(len(self.history)), "lag_ms": 0, "token_expires_in": 99}
        )

    def state(self, key: int) -> dict[str, Any]:
        head = {"table": "public.t", "key": {"id": key}, "version": self.versions.get(key, 0)}
        if key not in self.rows:
            return {"type": "data.delete", **head}
        return {"type": "data.create", **head, "row": {"id": key, "a": self.rows[key]}}

    def _snapshot(self, sub: str) -> None:
        for key in sorted(self.rows):
            self._batch([sub], [self.state(key)])
        self._batch([sub], [], snapshot=True, last=True)
        self.live.add(sub)

    def _deliver(self, subs: list[str], event: dict[str, Any]) -> None:
        self.n += 1
        self.outbox.append({**event, "n": self.n, "sub": subs})

    def _batch(self, subs: list[str], events: list[dict[str, Any]], **more: bool) -> None:
        self.n += 1
        self.outbox.append({"type": "sync.batch", "n": self.n, "sub": subs, "events": events, **more})


class Device:
    """An application's process with a store, which may die at any moment."""

    def __init__(self, path: Path, server: Server) -> None:
        self.path, self.server = path, server
        self.now_s = 0.0
        self.connected = False
        self.durable: dict[Any, int] = {}
        """The newest version of each row that was ever committed."""
        self.start()

    def start(self) -> None:
        self.store = Store(self.path)
        self.store.belong(url="http://x", client_id="c_1")
        commit = self.store.commit

        def noting(batch: Batch, *, durable: bool = False) -> None:
            commit(batch, durable=durable)
            self.note()

        self.store.commit = noting  # type: ignore[method-assign]
        self.session = Session(store=self.store)
        self.connected = False
        self.view = self.session.subscribe("t", None, None)
        self.check_restored()

    def note(self) -> None:
        """Right after a commit: the file says what memory says."""
        for subscription in self.session.subscriptions.values():
            stored = {s.id: s for s in self.store.subscriptions()}[subscription.id]
            assert stored.complete == subscription.complete
            replica = subscription.replica
            kept = {json.loads(r.key)[0]: r for r in self.store.rows(replica.number)}
            assert {key: json.loads(r.row) for key, r in kept.items() if r.row is not None} == {
                key[0]: row for key, row in replica.rows.items()
            }
            assert {key: r.version for key, r in kept.items() if r.row is not None} == {
                key[0]: version for key, version in replica.versions.items()
            }
            for key, r in kept.items():
                self.durable[key] = max(self.durable.get(key, 0), r.version)
        assert self.store.cursor == self.session.cursor

    def check_restored(self) -> None:
        """The file is as new as it ever was, and its cursor promises no more than its rows hold."""
        if not self.view.complete:
            return
        replica = self.view.replica
        for key, version in self.durable.items():
            assert replica.known((key,)) >= version, "an older version came back"
        if self.view.state != "held":
            return
        for event in self.server.history[: int(self.session.cursor or 0)]:
            place = (event["key"]["id"],)
            _, _, wanted = replica.state(place)
            newest = max(replica.known(place), -1 if wanted is None else wanted)
            gone = place not in replica.rows and self.server.deleted(event)
            assert gone or newest >= event["version"], "the cursor is ahead of the rows"

    def crash(self) -> None:
        self.store._database.close()
        self.start()

    def connect(self, manner: str) -> None:
        self.lose()
        self.session.opened()
        (hello,) = self.said()
        self.server.greet(hello, manner)
        self.connected = True
        self.take(1)

    def lose(self) -> None:
        if self.connected:
            self.session.lost()
        self.connected = False

    def take(self, count: int) -> None:
        while count and self.connected and self.server.outbox:
            count -= 1
            frame = self.server.outbox.popleft()
            self.session.receive(json.dumps(frame).encode(), now_s=self.now_s)
            self.answer()
            if self.view.complete:
                assert (ALWAYS,) in self.view.replica.rows, "a row that was always there was not to be seen"

    def wait(self) -> None:
        self.now_s += 2 * ACK_DELAY_S
        if self.connected:
            self.session.tick(self.now_s)
            self.answer()

    def answer(self) -> None:
        for frame in self.said():
            if frame["type"] == "ack":
                self.note()
            else:
                self.server.hear(frame)

    def said(self) -> list[dict[str, Any]]:
        frames = [json.loads(frame) for frame in self.session.outgoing]
        self.session.outgoing.clear()
        return frames


@contextmanager
def device() -> Iterator[tuple[Device, Server]]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server()
        found = Device(Path(folder) / "client.db", server)
        yield found, server
        found.store.close()


steps = st.one_of(
    st.tuples(st.just("change"), st.integers(0, 3), st.one_of(st.none(), st.integers(1, 9))),
    st.tuples(st.just("change"), st.integers(0, 3), st.integers(1, 9)),
    st.tuples(st.just("take"), st.integers(1, 6)),
    st.tuples(st.just("connect"), st.sampled_from(["replay", "differential", "resync"])),
    st.tuples(st.sampled_from(["beat", "wait", "lose", "crash", "reset", "forget one"])),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=60))
def test_any_deliveries_losses_and_crashes_end_with_the_servers_rows(script: list[tuple[Any, ...]]) -> None:
    with device() as (client, server):
        for name, *arguments in script:
            match name:
                case "change":
                    server.change(*arguments)
                case "take":
                    client.take(*arguments)
                case "connect":
                    client.connect(*arguments)
                case "beat" if client.connected:
                    server.beat()
                case "wait":
                    client.wait()
                case "lose":
                    client.lose()
                case "crash":
                    client.crash()
                case "reset":
                    server.reset()
                case "forget one":
                    # An update that never comes; a later one of the same row makes the client ask for it.
                    lost = [f for f in server.outbox if f["type"] == "data.update"][-2:-1]
                    later = [f["key"] for f in server.outbox if f["type"] == "data.update"][-1:]
                    if lost and lost[0]["key"] == later[0]:
                        lost[0] |= {"type": "sync.batch", "events": []}
        client.connect("replay")
        client.take(10_000)
        client.wait()
        client.take(10_000)
        assert shown(client.view) == server.rows
        assert client.session.caught_up
        client.wait()
        client.crash()
        assert shown(client.view) == server.rows, "everything acknowledged is in the file"


def shown(view: Subscription) -> dict[int, int]:
    return {key[0]: row["a"] for key, row in view.replica.rows.items()}


def test_a_view_of_the_store_is_there_before_any_connection() -> None:
    with device() as (client, server):
        server.change(1, 5)
        client.connect("resync")
        client.take(100)
        client.wait()
        client.crash()
        assert shown(client.view) == {0: 1, 1: 5}
        assert client.view.schema
        client.session.opened()
        (hello,) = client.said()
        assert hello["cursor"] == "2"
        assert [held["id"] for held in hello["subscriptions"]] == ["s1"]


def test_the_welcome_of_a_replay_does_not_move_the_cursor() -> None:
    """Otherwise a loss before the replay's end would skip its rest."""
    with device() as (client, server):
        client.connect("resync")
        client.take(100)
        client.lose()
        server.change(1, 5)
        server.change(2, 6)
        client.connect("replay")
        client.take(1)
        assert client.session.cursor == "1"
        client.connect("replay")
        client.take(100)
        assert shown(client.view) == server.rows


def test_what_the_application_no_longer_asks_for_is_kept_apart_and_not_mixed_up() -> None:
    with device() as (client, server):
        client.session.unsubscribe(client.view)
        where = client.session.subscribe("t", {"a": {"gt": 0}, "id": 3}, ["id", "a"])
        client.connect("resync")
        client.take(100)
        assert where.complete
        client.wait()
        client.crash()
        assert not client.view.complete, "another request is another subscription"
        again = client.session.subscribe("t", {"id": 3, "a": {"gt": 0}}, ["id", "a"])
        assert again.id == where.id
        assert shown(again) == server.rows
        client.session.unsubscribe(again)
        client.session.save()
        client.crash()
        assert [s.id for s in client.session.subscriptions.values()] == [client.view.id]
