"""A table's server as a client sees it, without I/O: its history, one connection at a time, clients' changes.

It speaks protocol version 1 in frames as dictionaries and judges clients' changes as the real one is
to: by number, once, in the order of each row. What it finds wrong with a client fails an assertion.
"""

from __future__ import annotations

from collections import deque
from typing import Any

SCHEMA: dict[str, Any] = {
    "table": "public.t",
    "key": ["id"],
    "columns": [{"name": "id", "type": "integer"}, {"name": "a", "type": "integer"}],
}
ALWAYS = 0
"""A row that is there from the beginning and never deleted."""
UNLUCKY = 13
"""A value that no row may have."""


class SyncServer:
    """Frames for the client wait in `outbox`; whoever carries them says `greet` and `hear`."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.rows: dict[int, int] = {}
        self.versions: dict[int, int] = {}
        self.outbox: deque[dict[str, Any]] = deque()
        self.live: set[str] = set()
        self.n = 0
        self._beats = 0
        self.answers: dict[int, dict[str, Any]] = {}
        self.contents: dict[int, Any] = {}
        self.applied: list[tuple[int, int]] = []
        """(key, number) of clients' changes, as they were applied."""
        self.row_first = True
        """Whether a change's row goes out before its confirmation."""
        self.busy = 0
        """So many changes are answered with `unavailable`."""
        self.change(ALWAYS, 1)

    def change(self, key: int, value: int | None, **origin: Any) -> None:
        """Set a row's value; None deletes it."""
        if value is None and (key == ALWAYS or key not in self.rows):
            return
        before = self.versions.get(key, 0)
        event: dict[str, Any] = {"table": "public.t", "key": {"id": key}, "version": before + 1, **origin}
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
        last = max(self.answers, default=0)
        self.outbox.append(
            {**welcome, "cursor": self.cursor, "limits": {}, "server_time": "", "last_mutation": last}
        )
        if manner == "replay" and held:
            for event in self.history[cursor:]:
                self._deliver(held, event)
            self._batch(held, [], last=True)
        if manner == "differential" and held:
            touched = {event["key"]["id"] for event in self.history[cursor:]}
            for key in sorted(touched):
                self._batch(held, [self.state(key)])
            self._batch(held, [], last=True)
        if manner in ("replay", "differential"):
            self.live |= set(held)

    def hear(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "subscribe":
                self.outbox.append({"type": "subscribed", "id": frame["id"], "schema": SCHEMA})
                self._snapshot(frame["id"])
            case "refetch":
                self._deliver([frame["sub"]], self.state(frame["key"]["id"]))
            case "unsubscribe":
                self.live.discard(frame["id"])
            case "change":
                self._judge(frame)

    def reset(self) -> None:
        """As after a TRUNCATE or a partition that moved: every view starts over."""
        for sub in sorted(self.live):
            self.outbox.append({"type": "subscription.reset", "sub": sub, "reason": "test"})
            self._snapshot(sub)

    @property
    def cursor(self) -> str:
        return str(len(self.history))

    def beat(self) -> None:
        """A heartbeat; each has another cursor, as sealed ones have, also where nothing has happened."""
        self._beats += 1
        cursor = self.cursor.zfill(self._beats)
        self.outbox.append({"type": "heartbeat", "cursor": cursor, "lag_ms": 0, "token_expires_in": 999})

    def deleted(self, event: dict[str, Any]) -> bool:
        """Whether the event's row was deleted then or later."""
        return any(
            later["type"] == "data.delete" and later["key"] == event["key"]
            for later in self.history
            if later["version"] >= event["version"]
        )

    def state(self, key: int) -> dict[str, Any]:
        head = {"table": "public.t", "key": {"id": key}, "version": self.versions.get(key, 0)}
        if key not in self.rows:
            return {"type": "data.delete", **head}
        return {"type": "data.create", **head, "row": {"id": key, "a": self.rows[key]}}

    def _judge(self, frame: dict[str, Any]) -> None:
        number = frame["id"]
        content = {name: frame.get(name) for name in ("op", "table", "key", "values", "at")}
        assert self.contents.setdefault(number, content) == content, "a number was used twice"
        answer = self.answers.get(number)
        if answer is not None:
            if answer["type"] == "change.confirmed":
                answer = {**answer, "outcome": "already_applied"}
            self.outbox.append(answer)
            return
        if self.busy:
            self.busy -= 1
            self.outbox.append(
                {"type": "error", "code": "unavailable", "message": "Later.", "ref": str(number)}
            )
            return
        key, op, value = frame["key"]["id"], frame["op"], frame.get("values", {}).get("a", 0)
        why = None
        if value == UNLUCKY:
            why = ("check_violation", f"No row may have {UNLUCKY}.")
        elif op == "create" and key in self.rows:
            why = ("unique_violation", "The row exists.")
        elif op != "create" and key not in self.rows:
            why = ("not_found", "There is no such row.")
        elif op == "delete" and key == ALWAYS:
            why = ("forbidden", "It stays.")
        if why is not None:
            answer = {"type": "change.rejected", "id": number, "code": why[0], "message": why[1]}
            self.outbox.append(answer)
        else:
            before = [n for k, n in self.applied if k == key]
            assert not before or before[-1] < number, "changes of a row out of order"
            self.applied.append((key, number))
            answer = {"type": "change.confirmed", "id": number, "outcome": "applied"}
            answer["version"] = self.versions.get(key, 0) + 1
            if not self.row_first:
                self.outbox.append(answer)
            self.change(key, None if op == "delete" else value, at=frame["at"], by={"client": "c_1"})
            if self.row_first:
                self.outbox.append(answer)
        self.answers[number] = answer

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
