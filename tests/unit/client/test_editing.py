"""Three clients and SQL edit one text, over connections that the test plays: all end with one text.

Sessions, documents, stores and frames are the real ones; the server transforms as the real one does.
Deliveries come late, connections break, processes die, whole rows come in place of operations.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from cloudsync.client.session import Session
from cloudsync.client.store import Store
from cloudsync.resolve import text as ot

_RUNS = int(os.environ.get("CLOUDSYNC_TEXT_RUNS", "300"))
_ALPHABET = "ab \nä𝄞👩🏽"


class Killed(BaseException):
    """The process dies at a step of its store."""


class Server:
    """One row with one text: transforms in turn, keeps results by number, as `resolve.documents` does."""

    def __init__(self, text: str) -> None:
        self.version = 1
        self.text = text
        self.history: list[tuple[int, int, ot.Operation]] = []
        self.events: list[dict[str, Any]] = []
        self.results: dict[tuple[str, int], dict[str, Any]] = {}
        self.last: dict[str, int] = {}
        self.forgotten = 0
        self.refuses = 0.0
        self.chance = random.Random(len(text))

    def edit(self, client: str, frame: dict[str, Any]) -> dict[str, Any]:
        number = frame["id"]
        if number <= self.last.get(client, 0):
            known = self.results.get((client, number))
            answer = {"type": "change.confirmed", "id": number, "outcome": "already_applied"}
            return {**known, **answer} if known and "code" not in known else known or answer
        self.last[client] = number
        answer = self._apply(client, frame)
        self.results[client, number] = answer
        return answer

    def _apply(self, client: str, frame: dict[str, Any]) -> dict[str, Any]:
        base, operation = frame["revision"], ot.check(frame["op"])
        if base < self.forgotten:
            return {"type": "change.rejected", "id": frame["id"], "code": "stale_revision", "message": ""}
        if self.chance.random() < self.refuses:
            return {"type": "change.rejected", "id": frame["id"], "code": "forbidden", "message": ""}
        since = [each for revision, _, each in self.history if revision > base]
        for other in since:
            operation = ot.transform(operation, other, "left")
        if operation:
            self.write(operation, {"client_id": client, "mutation_id": str(frame["id"])})
        return {
            "type": "change.confirmed", "id": frame["id"], "outcome": "merged" if since else "applied",
            "version": self.version, "revision": self.version,
        }  # fmt: skip

    def write(self, operation: ot.Operation, by: dict[str, str] | None = None) -> None:
        self.text = ot.apply(self.text, operation)
        self.history.append((self.version + 1, self.version, operation))
        self.version += 1
        self.events.append({
            "type": "data.update", "table": "public.t", "key": {"id": 1}, "version": self.version,
            "prev_version": self.version - 1, "changes": {}, "by": by,
            "text": {"body": {"revision": self.version, "op": operation}},
        })  # fmt: skip

    def write_whole(self, text: str) -> None:
        """A change without an operation: a trigger's own statement."""
        self.text = text
        self.version += 1
        self.forgotten = self.version
        self.events.append({
            "type": "data.update", "table": "public.t", "key": {"id": 1}, "version": self.version,
            "prev_version": self.version - 1, "changes": {"body": text},
        })  # fmt: skip

    def forget(self) -> None:
        """As upkeep does: nothing older than now may be a base."""
        self.forgotten = self.version

    def row(self) -> dict[str, Any]:
        return {
            "type": "data.create", "table": "public.t", "key": {"id": 1}, "version": self.version,
            "row": {"id": 1, "body": self.text}, "revisions": {"body": self.version},
        }  # fmt: skip


class Person:
    """A session with a document, and what is under way on its connection."""

    def __init__(self, server: Server, name: str, path: Path | None = None) -> None:
        self.server, self.name, self.path = server, name, path
        self.n = 0
        self.told = 0
        self.up: list[bytes] = []
        self.down: list[dict[str, Any]] = []
        self.store: Store | None = None
        self.dies_in: int | None = None
        """How many more commits there are until the process dies, before or behind one."""
        self._begin()
        self.connect()
        self.settle()
        self._open()

    def _begin(self) -> None:
        if self.path is not None:
            self.store = Store(self.path)
            self._commit = self.store.commit
            self.store.commit = self._commit_or_die  # type: ignore[method-assign]
            self.store.belong(url="x")
            if self.store.client_id is None:
                self.store.register(self.name)
        self.session = Session(store=self.store)
        if self.store is None:
            self.session.issued(self.name)
        self.subscription = self.session.subscribe("t", None, None)
        self.session.outbox.on_edit = lambda: self.session.send_edits(0.0)

    def _commit_or_die(self, batch: Any, *, durable: bool = False) -> None:
        if self.dies_in == 0:
            raise Killed
        if self.dies_in is not None:
            self.dies_in -= 2
        self._commit(batch, durable=durable)
        if self.dies_in == -1:
            raise Killed

    def _open(self) -> None:
        self.document = self.session.document(self.subscription, {"id": 1}, "body")
        self.shown = self.document.text
        self.document.on_change(self._follow)

    def die(self) -> None:
        """The process is gone, and begins again with what its store holds."""
        assert self.store is not None
        self.dies_in = None
        self.store.close()
        self.up, self.down = [], []
        self._begin()
        known = self.subscription.complete
        if known:
            self._open()
        self.connect()
        if not known:
            self.settle()
            self._open()

    def _follow(self, event: Any) -> None:
        """An editor that knows nothing but what it is told."""
        self.shown = ot.apply(self.shown, event.operation)
        assert self.shown == self.document.text

    def connect(self, *, resync: bool = False) -> None:
        """A new connection; with `resync` the server has forgotten where the view was."""
        self.n = 0
        self.session.opened()
        held = json.loads(self.session.outgoing[0]).get("subscriptions")
        self.session.outgoing.clear()
        resumed = None if not held else "resync" if resync else "replay"
        self.down.append({
            "type": "welcome", "session": "x", "resumed": resumed, "cursor": "c", "heartbeat_s": 20,
            "limits": {}, "server_time": "", "last_mutation": self.server.last.get(self.name, 0),
        })  # fmt: skip
        if resumed == "replay":
            version = self.subscription.replica.versions[1,]
            missed = [event for event in self.server.events if event["version"] > version]
            self.told = len(self.server.events)
            self.down.append({**self._delivery(), "events": missed, "last": True})

    def lose(self) -> None:
        """The connection breaks: what is under way is lost, in both directions."""
        self.up, self.down = [], []
        self.session.lost()

    def snapshot(self) -> None:
        """A row as a whole, and then what comes behind it."""
        self.told = len(self.server.events)
        self.down.append({**self._delivery(), "events": [self.server.row()], "snapshot": True, "last": True})

    def _delivery(self) -> dict[str, Any]:
        return {"type": "sync.batch", "sub": [self.subscription.id]}

    def hear(self) -> None:
        """The server tells what it has not told yet."""
        if self.told < len(self.server.events):
            events = self.server.events[self.told :]
            self.told = len(self.server.events)
            self.down.append({**self._delivery(), "events": events})

    def receive(self) -> None:
        """Take the next frame in."""
        if self.down:
            frame = self.down.pop(0)
            if frame["type"] == "sync.batch":
                self.n += 1
                frame = {**frame, "n": self.n}
            self.session.receive(json.dumps(frame).encode(), now_s=0.0)
            self._sent()

    def _sent(self) -> None:
        for data in self.session.outgoing:
            frame = json.loads(data)
            if frame["type"] == "text":
                self.up.append(data)
            elif frame["type"] == "subscribe":
                columns = [
                    {"name": "id", "type": "integer"},
                    {"name": "body", "type": "text", "text": True},
                ]
                schema = {"table": "public.t", "key": ["id"], "columns": columns}
                self.down.append({"type": "subscribed", "id": frame["id"], "schema": schema})
                self.snapshot()
            elif frame["type"] == "refetch":
                self.hear()
                self.down.append({**self._delivery(), "events": [self.server.row()]})
        self.session.outgoing.clear()

    def serve(self) -> None:
        """The server takes the next operation in."""
        self._sent()
        if self.up:
            self.down.append(self.server.edit(self.name, json.loads(self.up.pop(0))))

    def settle(self) -> None:
        for _ in range(1000):
            self.serve()
            self.hear()
            self.receive()
            if not self.up and not self.down and self.told == len(self.server.events):
                return
        raise AssertionError(f"{self.name} does not come to rest: {self.down!r:.200}")


def some_operation(chance: random.Random, text: str) -> ot.Operation:
    place = chance.randint(0, len(text))
    kind = chance.random()
    gone = min(len(text) - place, chance.randint(1, 4)) if kind < 0.45 else 0
    new = "".join(chance.choices(_ALPHABET, k=chance.randint(1, 3))) if kind > 0.25 else ""
    return ot.normalize([place, {"d": gone}, new])


def run(seed: int) -> None:
    chance = random.Random(seed)
    server = Server("".join(chance.choices(_ALPHABET, k=chance.randint(0, 8))))
    server.refuses = chance.choice((0, 0, 0.2))
    people = [Person(server, name) for name in ("ann", "bob", "cyd")]
    for _ in range(chance.randint(5, 60)):
        person = chance.choice(people)
        kind = chance.random()
        if kind < 0.35:
            person.document.apply(some_operation(chance, person.document.text))
        elif kind < 0.42:
            server.write(ot.counted(some_operation(chance, server.text)) or ["x"])
        elif kind < 0.5:
            (person.document.undo if chance.random() < 0.6 else person.document.redo)()
        elif kind < 0.65:
            person.serve()
        elif kind < 0.8:
            person.hear()
        elif kind < 0.93:
            person.receive()
        elif kind < 0.96:
            person.lose()
            person.connect(resync=chance.random() < 0.4)
        elif kind < 0.97:
            server.forget()
        elif kind < 0.98:
            server.write_whole("".join(chance.choices(_ALPHABET, k=5)))
    rest(people)
    for person in people:
        assert person.document.text == person.shown == server.text, (seed, person.name)
        assert not person.document.pending, (seed, person.name)


@pytest.mark.timeout(900)
def test_three_clients_converge() -> None:
    """CLOUDSYNC_TEXT_RUNS=10000 for as many runs: about two minutes."""
    for seed in range(_RUNS):
        run(seed)


def rest(people: list[Person]) -> None:
    """Everything that is under way arrives."""
    for _ in range(4):
        for person in people:
            person.settle()


@pytest.mark.timeout(900)
def test_nothing_is_lost_or_repeated_by_processes_that_die(tmp_path: Path) -> None:
    """Insertions alone, no character twice: every one is in the text once, whatever broke in between."""
    for seed in range(_RUNS // 10):
        chance = random.Random(seed)
        server = Server("")
        people = [Person(server, name, tmp_path / f"{seed}{name}") for name in ("ann", "bob")]
        characters = map(chr, range(0x4E00, 0x9FFF))
        written: set[str] = set()
        doubtful: set[str] = set()
        for _ in range(60):
            person = chance.choice(people)
            if chance.random() < 0.1:
                person.dies_in = chance.randint(0, 5)
            new = next(characters)
            try:
                if _something(person, chance, new):
                    written.add(new)
            except Killed:
                doubtful.add(new)
                person.die()
        for person in people:
            person.dies_in = None
        rest(people)
        assert len(server.text) == len(set(server.text)), seed
        assert written <= set(server.text) <= written | doubtful, seed
        for person in people:
            assert person.document.text == person.shown == server.text, seed
            person.lose()
            person.die()  # nothing is left in the store that would be sent again
            assert not person.document.pending
            person.settle()
            assert person.document.text == server.text
            assert person.store is not None
            person.store.close()


def _something(person: Person, chance: random.Random, new: str) -> bool:
    """What happens at one client; whether it has written the character."""
    kind = chance.random()
    if kind < 0.35:
        person.document.insert(chance.randint(0, len(person.document.text)), new)
        return True
    if kind < 0.55:
        person.serve()
    elif kind < 0.7:
        person.hear()
    elif kind < 0.85:
        person.receive()
    elif kind < 0.9:
        person.session.save()
    elif kind < 0.95:
        person.lose()
        person.connect(resync=chance.random() < 0.4)
    else:
        person.session.save()
        before = person.document.text
        person.die()
        assert person.document.text == before
    return False
