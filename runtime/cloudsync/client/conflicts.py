"""Conflicts that wait for a person, as a client knows them, and the decision that this client sends.

Frames may repeat and come in any order: of a conflict the highest revision counts. A list of what is open
puts right what was missed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, get_args

import msgspec

from cloudsync.client.change import Change
from cloudsync.client.frames import ConflictDetected, ConflictPage, ConflictResolved
from cloudsync.client.replica import Row
from cloudsync.errors import RequestError
from cloudsync.protocol import messages
from cloudsync.protocol.messages import Choice, Conflicts
from cloudsync.sharding import key_text

_REMEMBERED: Final = 1000
"""Conflicts that are over, so that what is heard of them late does not open them again."""


class Resolution(Change):
    """A decision about a conflict on its way to the server: numbered, kept and shown as a change."""

    __slots__ = ("choice", "conflict_id")

    def __init__(self, number: int, *, conflict_id: str, choice: Choice, **content: Any) -> None:
        super().__init__(number, "resolve", **content)
        self.conflict_id = conflict_id
        self.choice = choice

    def frame(self) -> messages.Resolve:
        values = self.values if self.choice == "merged" else None
        return messages.Resolve(self.number, self.conflict_id, self.choice, values, self.base_version)

    def content(self) -> dict[str, Any]:
        return {**super().content(), "conflict_id": self.conflict_id, "choice": self.choice}


def restored(number: int, content: dict[str, Any]) -> Change:
    """A change, or a decision, as `content` told of it."""
    if content["op"] != "resolve":
        return Change(number, **content)
    del content["op"]
    return Resolution(number, **content)


class Conflict:
    """Fields of a row that two people changed without knowing of each other; nothing was overwritten.

    `theirs` is what the row holds, `mine` what `by` (a user and a client) has written, `base` what both
    began from: None if the server does not know it any more or this user could not read it. The object
    stays the same while what it tells changes.
    """

    def __init__(self, frame: ConflictDetected, decide: Callable[[Conflict, Choice, Row | None], Resolution]):
        self._decide = decide
        self.id = frame.conflict_id
        self.choice: Choice | None = None
        """What was chosen, once it is over; None if that is not known, or the row has gone."""
        self.status: Literal["open", "resolved"] = "open"
        self.resolution: Resolution | None = None
        """This client's decision, while it waits for the server's answer."""
        self.heard(frame)

    def __repr__(self) -> str:
        return f"<Conflict {self.id}: {', '.join(self.fields)} of {self.table}, {self.status}>"

    def heard(self, frame: ConflictDetected) -> None:
        """For the inbox: take over what the server says of it."""
        self.frame = frame
        self.revision = frame.revision
        self.table = frame.table
        self.key = frame.key
        self.fields = frame.fields
        self.version = frame.version
        self.base, self.theirs, self.mine = frame.base, frame.theirs, frame.mine
        self.by, self.theirs_by = frame.by, frame.theirs_by

    def resolve(self, choice: Choice, values: Row | None = None) -> Resolution:
        """Decide it: `mine`, `theirs`, or `merged` with values for some or all of its fields.

        Shown at once and sent when there is a connection, as a change; `await ….confirmed()` waits for the
        server. It is rejected (`conflict_changed`) if the row has changed since: then the conflict is open
        still, with the new `theirs`; or if somebody else was faster (`conflict_resolved`). Raises
        RequestError if it is over or being decided already, or as `client.update`.
        """
        return self._decide(self, choice, values)


class Inbox:
    """The open conflicts that this client knows of."""

    def __init__(self, decide: Callable[[Conflict, Choice, Row | None], Resolution]) -> None:
        self._decide = decide
        self.open: dict[str, Conflict] = {}
        self.touched: dict[str, None] = {}
        """Ids of which a store does not know the latest."""
        self._over: OrderedDict[str, int] = OrderedDict()
        self._lists = 0
        self._listing: str | None = None
        self._stale = False
        self._heard: set[str] = set()
        """What was heard of since the list under way was asked for."""

    def restore(self, frames: Iterable[ConflictDetected]) -> None:
        """Take back what a store has kept."""
        for frame in frames:
            self.open[frame.conflict_id] = Conflict(frame, self._decide)

    def of_row(self, table: str, key: Row) -> list[Conflict]:
        place = _place(table, key)
        return [conflict for conflict in self.open.values() if _place(conflict.table, conflict.key) == place]

    # What the server says

    def detected(self, frame: ConflictDetected) -> Conflict | None:
        """A conflict that is new or has changed; None if that was known."""
        id_ = frame.conflict_id
        self._heard.add(id_)
        if self._over.get(id_, -1) >= frame.revision:
            return None
        conflict = self.open.get(id_)
        if conflict is None:
            conflict = self.open[id_] = Conflict(frame, self._decide)
        elif frame.revision < conflict.revision:
            return None
        else:
            if frame.revision == conflict.revision:  # told once more, maybe by a view with other columns
                frame = _together(conflict.frame, frame)
            known = conflict.frame
            if frame == known:
                return None
            conflict.heard(frame)
            if msgspec.structs.replace(frame, version=0) == msgspec.structs.replace(known, version=0):
                conflict = None  # other fields of the row have changed: nothing to tell anybody
        self.touched[id_] = None
        return conflict

    def resolved(self, frame: ConflictResolved) -> Conflict | None:
        """The conflict that is over; None if it was not open here."""
        return self.close(frame.conflict_id, frame.choice, frame.revision)

    def close(self, id_: str, choice: Choice | None, revision: int | None = None) -> Conflict | None:
        """It is over, by somebody's choice (None: it is not known which)."""
        conflict = self.open.pop(id_, None)
        known = conflict.revision if conflict is not None else 0
        self._over[id_] = max(self._over.pop(id_, 0), known, revision or 0)
        while len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)
        if conflict is None:
            return None
        conflict.status, conflict.choice = "resolved", choice
        self.touched[id_] = None
        return conflict

    def gone(self, id_: str) -> Conflict | None:
        """Nothing is to be decided here any more; should it come back, it is new."""
        conflict = self.open.pop(id_, None)
        if conflict is not None:
            conflict.status = "resolved"
            self.touched[id_] = None
        return conflict

    # Listing

    def ask(self) -> Conflicts | None:
        """Ask what is open; None if an answer is on its way: then it is asked once more behind it."""
        if self._listing is not None:
            self._stale = True
            return None
        self._lists += 1
        self._listing = f"c{self._lists}"
        self._heard.clear()
        self._stale = False
        return Conflicts(self._listing)

    def page(self, frame: ConflictPage) -> tuple[list[Conflict], Conflicts | None]:
        """Take a page in: what is new, changed or over by it, and what to ask next."""
        if frame.id != self._listing:
            return [], None
        found = [conflict for told in frame.conflicts if (conflict := self.detected(told)) is not None]
        if frame.next is not None:
            return found, Conflicts(self._listing, after=frame.next)
        self._listing = None
        unheard = [id_ for id_ in self.open if id_ not in self._heard]
        found += [conflict for id_ in unheard if (conflict := self.gone(id_)) is not None]
        return found, self.ask() if self._stale else None

    def failed(self, ref: str) -> bool:
        """Whether an error is about the list: it is to be asked for again, later."""
        if ref != self._listing:
            return False
        self._listing, self._stale = None, True
        return True

    def lost(self) -> None:
        """The connection is gone."""
        if self._listing is not None:
            self._listing, self._stale = None, True

    @property
    def unlisted(self) -> bool:
        """Whether a list is due that nobody has asked for."""
        return self._stale and self._listing is None


def decided_values(conflict: Conflict, choice: Choice, values: Row | None) -> Row:
    """What the row is to hold. Raises RequestError."""
    if conflict.status != "open":
        raise RequestError("The conflict is resolved already.")
    if conflict.resolution is not None:
        raise RequestError("The conflict is being decided already.", hint="Wait for the answer.")
    if choice not in get_args(Choice):
        raise RequestError(f"A conflict is decided by one of {', '.join(get_args(Choice))}.")
    if (choice == "merged") != bool(values):
        raise RequestError("Values go with the choice `merged`, and with it alone.")
    if choice == "merged":
        assert values is not None  # noqa: S101 - as above
        if values.keys() - set(conflict.fields):
            raise RequestError(f"The values are of {', '.join(conflict.fields)}, and of nothing else.")
        return values
    return conflict.mine if choice == "mine" else {}


def _together(known: ConflictDetected, frame: ConflictDetected) -> ConflictDetected:
    """All that two frames tell of one revision."""
    first, other = (known, frame) if known.version <= frame.version else (frame, known)
    base = None if first.base is None or other.base is None else {**first.base, **other.base}
    return msgspec.structs.replace(
        other,
        fields=sorted({*first.fields, *other.fields}),
        base=base,
        theirs={**first.theirs, **other.theirs},
        mine={**first.mine, **other.mine},
    )


def _place(table: str, key: Row) -> tuple[str, str]:
    return table, key_text([key[name] for name in sorted(key)])
