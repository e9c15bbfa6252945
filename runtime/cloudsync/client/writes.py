"""This client's changes that wait for their outcome: numbered, in order, sent again until they are answered.

Numbers go out in their order. Of one row, one change at a time is under way, so that each can name the
version which the one before it made. A change whose outcome is unknown is sent again under its number; the
server applies a number once.
"""

from __future__ import annotations

from typing import Final

from cloudsync.client.change import Change, Confirmation, Operation
from cloudsync.client.conflicts import Conflict, Resolution
from cloudsync.client.failures import backoff_s
from cloudsync.client.replica import Row
from cloudsync.clock import HybridClock, wall_clock_ms
from cloudsync.protocol.messages import Choice
from cloudsync.sharding import key_text

IN_FLIGHT: Final = 16
CHANGES_PER_S: Final = 50
CHANGES_BURST: Final = 100
INTERNAL_TRIES: Final = 5
"""A change that makes the server fail this often is given up, so that it does not hold up the others."""

Place = tuple[str, str]


class WriteQueue:
    """`next_number` 0: it is not known which numbers this client has used."""

    def __init__(
        self, *, next_number: int = 0, clock: HybridClock | None = None, changes: list[Change] | None = None
    ) -> None:
        self.next_number = next_number
        self.clock = clock or HybridClock(wall_ms=wall_clock_ms)
        self.changes: dict[int, Change] = {}
        self._rows: dict[Place, list[Change]] = {}
        for change in changes or ():
            self.append(change)
        self.settled: list[int] = []
        """Numbers that the store may forget."""
        self.rebased: list[Change] = []
        """Changes that are now upon another version than the store says."""
        self._in_flight: dict[int, Place] = {}
        self._sent_upto = 0
        self._last_mutation = 0
        self._tries = 0
        self._internal: dict[int, int] = {}
        self._paused_until_s: float | None = None
        self._rate_per_s = CHANGES_PER_S
        self._burst = CHANGES_BURST
        self._allowance = float(CHANGES_BURST)
        self._allowance_at_s = 0.0
        self.due_s: float | None = None
        """When `next_to_send` may have something that it does not have now, without any answer."""

    def number(
        self,
        client_id: str,
        op: Operation,
        table: str,
        key: Row,
        values: Row,
        *,
        base_version: int | None,
        base: Row | None,
    ) -> Change:
        """A change with the next number and time, not queued yet: first it must be durable."""
        change = Change(
            self.next_number,
            op,
            table,
            key,
            values,
            base_version=base_version,
            base=base,
            at=str(self.clock.tick(client_id)),
        )
        self.next_number += 1
        return change

    def take_number(self) -> int:
        """The next number, for a change that carries no time."""
        self.next_number += 1
        return self.next_number - 1

    def renumber(self, change: Change) -> None:
        """Give a change that was never sent the next number: those behind it have gone ahead."""
        self.changes.pop(change.number, None)
        self.settled.append(change.number)
        change.number = self.take_number()
        self.changes[change.number] = change
        self.rebased.append(change)

    def postpone(self, change: Change) -> None:
        """The server has used a change's number up without it: it goes again, later, under another."""
        self._in_flight.pop(change.number, None)
        self.renumber(change)

    def bring_back(self, changes: list[Change]) -> None:
        """Put changes from a store among the others, by their numbers."""
        for change in changes:
            self.append(change)
        self.changes = dict(sorted(self.changes.items()))

    def is_passed(self, change: Change) -> bool:
        """Whether a later number has gone out, so that this one cannot any more."""
        return change.number <= max(self._sent_upto, self._last_mutation)

    def decide(self, client_id: str, conflict: Conflict, choice: Choice, values: Row) -> Resolution:
        """A decision about a conflict as it is known, with the next number; not queued yet."""
        resolution = Resolution(
            self.next_number,
            conflict_id=conflict.id,
            choice=choice,
            table=conflict.table,
            key=conflict.key,
            values=values,
            base_version=conflict.version,
            base=conflict.theirs,
            at=str(self.clock.tick(client_id)),
        )
        self.next_number += 1
        return resolution

    def append(self, change: Change) -> None:
        self.changes[change.number] = change
        self._rows.setdefault(place_of(change), []).append(change)

    def welcomed(self, limits: dict[str, int], last_mutation: int | None, now_s: float) -> None:
        """A connection stands: whatever waits goes out on it, from the first on."""
        if last_mutation is not None:
            self.next_number = max(self.next_number, last_mutation + 1)
            self._last_mutation = last_mutation
        self._rate_per_s = max(1, limits.get("changes_per_s", CHANGES_PER_S))
        self._burst = max(1, limits.get("changes_burst", CHANGES_BURST))
        self._allowance, self._allowance_at_s = float(self._burst), now_s
        self._in_flight.clear()
        self._sent_upto = 0
        self._tries = 0
        self._paused_until_s = None

    def lost(self) -> None:
        """Nothing can be sent; what was under way counts as waiting."""
        self._in_flight.clear()
        self.due_s = None

    def next_to_send(self, now_s: float) -> list[Change]:
        """Changes to send now, in order; each is named once a connection, unless it has to be repeated."""
        self.due_s = None
        if self._paused_until_s is not None:
            if now_s < self._paused_until_s:
                self.due_s = self._paused_until_s
                return []
            self._paused_until_s = None
        self._allowance += (now_s - self._allowance_at_s) * self._rate_per_s
        self._allowance = min(self._allowance, float(self._burst))
        self._allowance_at_s = now_s
        found = []
        for number, change in self.changes.items():
            if number <= self._sent_upto:
                continue
            if change.waits:
                continue
            if len(self._in_flight) >= IN_FLIGHT:
                break
            place = place_of(change)
            if place in self._in_flight.values():
                break
            if self._allowance < 1:
                self.due_s = now_s + (1 - self._allowance) / self._rate_per_s
                break
            self._allowance -= 1
            self._in_flight[number] = place
            self._sent_upto = number
            found.append(change)
        return found

    def confirm(self, number: int, confirmation: Confirmation) -> Change | None:
        """The change that is confirmed; None if it was before."""
        change = self._settle(number)
        if change is None:
            return None
        self._rebase(change, confirmation)
        change.confirm(confirmation)
        return change

    def reject(self, number: int, error: Exception) -> Change | None:
        """The change that is rejected; None if its outcome is known."""
        change = self._settle(number)
        if change is not None:
            change.fail(error)
        return change

    def refused(self, number: int, *, internal: bool, now_s: float) -> bool:
        """The server could not judge a change: go on from it later. False if it is to be given up."""
        if internal:
            self._internal[number] = self._internal.get(number, 0) + 1
            if self._internal[number] >= INTERNAL_TRIES:
                return False
        if number in self.changes:
            # Whatever went out behind it is answered, or repeated with it.
            self._paused_until_s = self.due_s = now_s + backoff_s(self._tries)
            self._tries += 1
            self._sent_upto = min(self._sent_upto, number - 1)
            self._in_flight = {n: place for n, place in self._in_flight.items() if n < number}
        return True

    def fail(self, error: Exception) -> None:
        """The client has stopped."""
        for change in self.changes.values():
            change.fail(error)

    def _settle(self, number: int) -> Change | None:
        self._in_flight.pop(number, None)
        self._internal.pop(number, None)
        change = self.changes.pop(number, None)
        if change is None:
            return None
        self._tries = 0
        if not change.kept:
            self.settled.append(number)
        place = place_of(change)
        self._rows[place].remove(change)
        if not self._rows[place]:
            del self._rows[place]
        return change

    def _rebase(self, change: Change, confirmation: Confirmation) -> None:
        """Later changes of the row were made upon this one: if nobody came between, upon its version."""
        version = confirmation.version
        if confirmation.outcome != "applied" or version is None:
            return
        if change.op != "create" and (change.base_version is None or version != change.base_version + 1):
            return
        for later in self._rows.get(place_of(change), ()):
            if later.base_version == change.base_version:
                later.base_version = version
                self.rebased.append(later)


def place_of(change: Change) -> Place:
    """Which row a change is of."""
    return change.table, key_text([change.key[name] for name in sorted(change.key)])
