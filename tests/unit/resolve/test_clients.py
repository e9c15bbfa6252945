"""Three real sessions and one row: whatever is lost, repeated or late, all end with what the server has.

Many more runs than in the suite: `CLOUDSYNC_CONVERGENCE_RUNS=10000 make test ARGS=tests/unit/resolve`.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

from cloudsync.client.session import Session
from cloudsync.clock import HybridClock, Timestamp
from cloudsync.resolve.lww import Write
from unit.resolve.test_lww import CLIENTS, FIELDS, Edit, Table

RUNS = int(os.environ.get("CLOUDSYNC_CONVERGENCE_RUNS", "100"))
SCHEMA = {
    "table": "public.t",
    "key": ["id"],
    "columns": [{"name": name, "type": "text"} for name in ("id", *FIELDS)],
}


class Server:
    """One row, changed by each client's numbers once, and everything that ever happened to it as events."""

    def __init__(self) -> None:
        self.table = Table()
        self.answers: dict[str, dict[int, dict[str, Any]]] = {client: {} for client in CLIENTS}
        self.events: list[dict[str, Any]] = []

    def take(self, client: str, frame: dict[str, Any]) -> dict[str, Any]:
        answers = self.answers[client]
        if frame["id"] not in answers:
            assert frame["id"] == len(answers) + 1, "a number was skipped"
            answers[frame["id"]] = self._apply(client, frame)
            return answers[frame["id"]]
        answer = answers[frame["id"]]
        return answer if "code" in answer else {**answer, "outcome": "already_applied"}

    def _apply(self, client: str, frame: dict[str, Any]) -> dict[str, Any]:
        table = self.table
        before, version = table.row and dict(table.row), table.version
        at = Timestamp.parse(frame["at"])._replace(client=client)
        values = frame.get("values", {})
        write = Write(frame["op"], at, tuple(values), frame.get("base_version"))
        # Each field has a value of its own: they are set one by one behind the decision about all of them.
        decision = table.apply(Edit(write, ""))
        for name in decision.fields:
            if name in values:
                (table.row if table.row is not None else table.image)[name] = values[name]
        if decision.step == "missing":
            return {"type": "change.rejected", "id": frame["id"], "code": "unknown_row", "message": "Gone."}
        if table.version != version:
            self.events.append(self._event(before))
        outcome = "applied" if not decision.lost else "merged" if decision.fields else "superseded"
        return {"type": "change.confirmed", "id": frame["id"], "outcome": outcome, "version": table.version}

    def _event(self, before: dict[str, str] | None) -> dict[str, Any]:
        table = self.table
        newest = max((stamp for stamp in table.stamps.values()), key=lambda stamp: stamp.version)
        head = {"table": "public.t", "key": {"id": "1"}, "version": table.version, "at": str(newest.at)}
        if table.row is None:
            return {"type": "data.delete", **head}
        if before is None:
            return {"type": "data.create", **head, "row": {"id": "1", **table.row}}
        changes = {name: value for name, value in table.row.items() if before.get(name) != value}
        return {"type": "data.update", **head, "prev_version": table.version - 1, "changes": changes}

    def snapshot(self) -> list[dict[str, Any]]:
        if self.table.row is None:
            return []
        row = {"id": "1", **self.table.row}
        return [
            {
                "type": "data.create",
                "table": "public.t",
                "key": {"id": "1"},
                "version": self.table.version,
                "row": row,
            }
        ]


class Client:
    """A session with a connection that takes its time, and breaks."""

    def __init__(self, name: str, server: Server, chance: random.Random) -> None:
        self.name, self.server, self.chance = name, server, chance
        self.session = Session()
        self.session.issued(name)
        offset_ms = chance.randint(-3, 3)
        self.session.outbox.writes.clock = HybridClock(wall_ms=lambda: 2000 + offset_ms)
        self.view = self.session.subscribe("t", None, None)
        self.now_s = 0.0
        self.connected = False
        self.received = 0
        """How many events have reached the session."""
        self.connect()

    def connect(self) -> None:
        self.connected, self.n = True, 0
        self.read: int | None = None  # nothing comes before the view is subscribed
        self.up: list[dict[str, Any]] = []
        self.down: list[tuple[dict[str, Any], int]] = []
        self.session.opened()
        self.session.outgoing.clear()
        resumed = "replay" if self.view.complete and self.chance.random() < 0.5 else None
        self.say(
            type="welcome", session="x", resumed=resumed, cursor="k", heartbeat_s=20, server_time="",
            limits={"changes_per_s": 10_000, "changes_burst": 10_000},
        )  # fmt: skip
        if resumed is not None:
            self.read = self.chance.randint(0, self.received)  # what comes once more does no harm
            self.deliver_news(last=True)

    def lose(self) -> None:
        self.connected = False
        self.session.lost()

    def say(self, **frame: Any) -> None:
        self.down.append((frame, self.received if self.read is None else self.read))

    def deliver_news(self, **more: Any) -> None:
        assert self.read is not None
        news, self.read = self.server.events[self.read :], len(self.server.events)
        self.deliver(news, **more)

    def deliver(self, events: list[dict[str, Any]], **more: Any) -> None:
        self.n += 1
        self.say(type="sync.batch", n=self.n, sub=[self.view.id], events=events, **more)

    def write(self, number: int) -> None:
        chance = self.chance
        if ("1",) not in self.view.rows:
            return
        if chance.random() < 0.1:
            self.session.write("delete", "t", {"id": "1"}, {}, now_s=self.now_s)
            return
        fields = chance.sample(FIELDS, chance.randint(1, 3))
        values = {name: f"{self.name}/{number}/{name}" for name in fields}
        self.session.write("update", "t", {"id": "1"}, values, now_s=self.now_s)

    def pump(self, frames: int) -> bool:
        """Let so many frames travel each way; whether there were any."""
        if not self.connected:
            return False
        moved = False
        for _ in range(frames):
            self.up += [json.loads(frame) for frame in self.session.outgoing]
            self.session.outgoing.clear()
            if self.up:
                moved = True
                frame = self.up.pop(0)
                if frame["type"] == "change":
                    self.say(**self.server.take(self.name, frame))
                elif frame["type"] == "subscribe":
                    self.say(type="subscribed", id=self.view.id, schema=SCHEMA)
                    self.read = len(self.server.events)
                    self.deliver(self.server.snapshot(), last=True)
                elif frame["type"] == "refetch":
                    self.deliver(self.server.snapshot() or [self.gone()])
            if self.behind and self.chance.random() < 0.7:
                self.deliver_news()
            if self.down:
                moved = True
                self.now_s += 0.01
                frame, self.received = self.down.pop(0)
                self.session.receive(json.dumps(frame).encode(), now_s=self.now_s)
        return moved or self.behind or bool(self.session.outgoing)

    @property
    def behind(self) -> bool:
        return self.read is not None and self.read < len(self.server.events)

    def gone(self) -> dict[str, Any]:
        return {"type": "data.delete", "table": "public.t", "key": {"id": "1"}, "version": 0}


def run(seed: int) -> None:
    chance = random.Random(seed)
    server = Server()
    clients = [Client(name, server, chance) for name in CLIENTS]
    for client in clients:
        client.pump(5)
    for number in range(chance.randint(5, 30)):
        client = chance.choice(clients)
        step = chance.random()
        if step < 0.5:
            client.write(number)
        elif step < 0.8:
            client.pump(chance.randint(1, 4))
        elif client.connected:
            client.lose()
        else:
            client.connect()
    for client in clients:
        if not client.connected:
            client.connect()
    quiet = 0
    while quiet < 2:
        moved = [client.pump(3) for client in clients]  # each of them, whatever the first says
        quiet = 0 if any(moved) else quiet + 1
    for client in clients:
        client.say(type="heartbeat", cursor="k2", lag_ms=0, token_expires_in=99)
        client.say(type="heartbeat", cursor="k3", lag_ms=0, token_expires_in=99)
        while client.pump(3):
            pass
        row = client.view.rows.get(("1",))
        expected = None if server.table.row is None else {"id": "1", **server.table.row}
        assert row == expected, (seed, client.name, row, expected)
        assert not client.session.outbox.writes.changes, (seed, client.name)
        numbers = len(server.answers[client.name])
        assert client.session.outbox.writes.next_number == numbers + 1, "a change was lost or made twice"


def test_three_clients_end_with_the_servers_row() -> None:
    for seed in range(RUNS):
        run(seed)


def test_the_runs_meet_what_they_are_for() -> None:
    """Writes that lose, merge and bring rows back, and repeats, or the runs above would prove little."""
    seen: set[str] = set()
    for seed in range(60):
        chance = random.Random(seed)
        server = Server()
        clients = [Client(name, server, chance) for name in CLIENTS]
        for client in clients:
            client.pump(5)
            client.lose()
            client.write(seed)
        for client in clients:
            client.connect()
            client.pump(9)
        for answers in server.answers.values():
            seen |= {answer.get("outcome", answer.get("code", "")) for answer in answers.values()}
        seen |= {event["type"] for event in server.events}
    assert {"applied", "merged", "superseded", "data.update", "data.delete", "data.create"} <= seen
