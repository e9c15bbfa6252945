"""A session with a store: whatever is delivered, lost, repeated or cut off by a crash, nothing is lost."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cloudsync.client.change import Change
from cloudsync.client.session import ACK_DELAY_S, Session
from cloudsync.client.store import Batch, Store
from cloudsync.client.subscription import Subscription
from cloudsync.clock import Timestamp
from sync_server import ALWAYS, UNLUCKY, SyncServer


class Device:
    """An application's process with a store, which may die at any moment."""

    def __init__(self, path: Path, server: SyncServer) -> None:
        self.path, self.server = path, server
        self.now_s = 0.0
        self.connected = False
        self.durable: dict[Any, int] = {}
        """The newest version of each row that was ever committed."""
        self.written: list[Change] = []
        """What the application was told is queued."""
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
        for number, change in self.session.outbox.writes.changes.items():
            assert number in {known for known, _ in self.store.changes()}, change
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
        for (key,), version in replica.versions.items():
            assert version >= self.durable.get(key, 0), "an older version came back"
        if self.view.state != "held":
            return
        for event in self.server.history[: int(self.session.cursor or 0)]:
            place = (event["key"]["id"],)
            _, _, wanted = replica.state(place)
            newest = max(replica.known(place), -1 if wanted is None else wanted)
            gone = place not in replica.rows and self.server.deleted(event)
            assert gone or newest >= event["version"], "the cursor is ahead of the rows"

    def write(self, op: Any, key: int, value: int) -> None:
        values = {"a": value} if op != "delete" else {}
        change, _ = self.session.write(op, "t", {"id": key}, values, now_s=self.now_s)
        assert change.number not in [earlier.number for earlier in self.written]
        self.written.append(change)
        self.answer()

    def check_shown(self) -> None:
        """The application sees its own changes on top of what is confirmed, and nothing else."""
        if not self.view.complete:
            return
        unseen = [
            c for c in self.session.outbox._confirmed if self.view.overlay._until.get(c.number) is not None
        ]
        rows = dict(self.view.replica.rows)
        for change in (*unseen, *self.session.outbox.writes.changes.values()):
            place = (change.key["id"],)
            if change.op == "delete":
                rows.pop(place, None)
            elif change.op == "create" or place in rows:
                rows[place] = {**rows.get(place, {}), **change.key, **change.values}
        assert self.view.rows == rows
        assert len(self.view.rows) == len(rows) == len(list(self.view.rows.values()))

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
            self.check_shown()
            if self.view.complete:
                assert (ALWAYS,) in self.view.replica.rows, "a row that was always there was not to be seen"

    def wait(self, passing_s: float = 2 * ACK_DELAY_S) -> None:
        self.now_s += passing_s
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
def device() -> Iterator[tuple[Device, SyncServer]]:
    with tempfile.TemporaryDirectory() as folder:
        server = SyncServer()
        found = Device(Path(folder) / "client.db", server)
        yield found, server
        found.store.close()


steps = st.one_of(
    st.tuples(st.just("change"), st.integers(0, 3), st.one_of(st.none(), st.integers(1, 9))),
    st.tuples(st.just("change"), st.integers(0, 3), st.integers(1, 9)),
    st.tuples(st.just("take"), st.integers(1, 6)),
    st.tuples(st.just("connect"), st.sampled_from(["replay", "differential", "resync"])),
    st.tuples(st.sampled_from(["beat", "wait", "lose", "crash", "reset", "forget one"])),
    st.tuples(
        st.just("write"),
        st.sampled_from(["create", "update", "update", "delete"]),
        st.integers(0, 3),
        st.sampled_from([1, 2, 3, UNLUCKY]),
    ),
    st.tuples(st.sampled_from(["busy", "row first", "row last"])),
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@example([("connect", "replay"), ("write", "create", 3, 1), ("change", 3, None)])
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
                case "write" if client.session.outbox.writes.next_number:
                    client.write(*arguments)
                case "busy":
                    server.busy += 1
                case "row first" | "row last":
                    server.row_first = name == "row first"
                case "forget one":
                    # An update that never comes; a later one of the same row makes the client ask for it.
                    lost = [f for f in server.outbox if f["type"] == "data.update"][-2:-1]
                    later = [f["key"] for f in server.outbox if f["type"] == "data.update"][-1:]
                    if lost and lost[0]["key"] == later[0]:
                        lost[0] |= {"type": "sync.batch", "events": []}
            client.check_shown()
        client.connect("replay")
        for _ in range(20):
            client.take(10_000)
            client.wait(100.0)
            server.beat()
        client.take(10_000)
        assert shown(client.view) == server.rows
        assert client.session.caught_up
        assert not client.session.outbox.writes.changes
        assert set(server.answers) == {change.number for change in client.written}, "each was judged"
        numbers = [number for _, number in server.applied]
        assert len(set(numbers)) == len(numbers), "none was applied twice"
        stamps = [Timestamp.parse(change.at) for change in client.written]
        assert stamps == sorted(set(stamps))
        client.wait()
        client.crash()
        assert shown(client.view) == server.rows, "everything acknowledged is in the file"


def shown(view: Subscription) -> dict[int, int]:
    return {key[0]: row["a"] for key, row in view.rows.items()}


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
