"""What a client's write does to a row that others have changed meanwhile: the later one wins, field by field.

Pure. Every field of a row has a stamp: the version and the hybrid logical time of its last change. A write
has seen a change if its `base_version` is not below it, or if the same client made both; whatever it has not
seen is concurrent, and the times decide, ties by client id. A deletion is a change of the row as a whole: it
loses against a later edit that it has not seen, and such an edit brings the row back. What is too old to be
seen is remembered with the deleted row, so that the order of arrival does not matter: per field this is a
last-writer-wins register (Shapiro et al., "Conflict-free Replicated Data Types", 2011).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from cloudsync.clock import Timestamp

SKEW_MS: Final = 5000
"""A clock that is further ahead of the server's counts as the server's."""
ROW: Final = ""
"""In place of a field's name: the row's creation or deletion, and every field without a stamp of its own."""
NEVER: Final = Timestamp(0, 0, "")
_MAX_COUNTER: Final = 1 << 31

Operation = Literal["create", "update", "delete"]
Step = Literal["insert", "update", "delete", "revive", "remember", "nothing", "exists", "missing"]


class Stamp(NamedTuple):
    """When a field changed last: in which version of the row, and at which hybrid logical time."""

    version: int
    at: Timestamp


class History(msgspec.Struct, frozen=True):
    """What is known of a row's changes. Version 0: none since its table is tracked."""

    exists: bool
    version: int = 0
    stamps: Mapping[str, Stamp] = {}

    @property
    def deletion(self) -> Stamp | None:
        """Of a row that is gone and still remembered."""
        return None if self.exists else self.stamps.get(ROW)


class Write(msgspec.Struct, frozen=True):
    """A client's write; `fields` without the key, `manual` those of them that a person decides about."""

    op: Operation
    at: Timestamp
    fields: tuple[str, ...] = ()
    base_version: int | None = None
    manual: frozenset[str] = frozenset()


class Decision(msgspec.Struct, frozen=True):
    """What is to be done.

    `insert`, `update`, `delete` as asked, with `fields`; `revive` the deleted row with them; `remember` them
    with the deleted row; `nothing`; or refuse it because the row `exists` or is `missing`. `lost` were
    changed later by others, `contested` need a person. `at` is what the change is stamped with.
    """

    step: Step
    at: Timestamp
    fields: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    contested: tuple[str, ...] = ()


def bounded(at: Timestamp, now_ms: int) -> Timestamp:
    """A client's time as it counts here."""
    if at.ms > now_ms + SKEW_MS or at.counter > _MAX_COUNTER:
        return Timestamp(now_ms, 0, at.client)
    return at


def stamps_of(fields: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Stamp]:
    """`row_state.fields` as stamps."""
    return {name: Stamp(stamp["v"], _clock(stamp["at"])) for name, stamp in (fields or {}).items()}


def _clock(at: str | float) -> Timestamp:
    """A stamp's time: the server's, in seconds, or the writer's own; what is none counts as the oldest."""
    if not isinstance(at, str):
        return Timestamp(int(at * 1000), 0, "sql")
    try:
        return Timestamp.parse(at)
    except ValueError:
        return NEVER


def decide(history: History, write: Write) -> Decision:
    """What a write does to a row with this history."""
    if write.op == "create":
        if history.exists:
            return Decision("exists", write.at)
        return Decision("insert", _after(write, history.stamps.values()), write.fields)
    if history.exists:
        return _edit(history, write) if write.op == "update" else _delete(history, write)
    deletion = history.deletion
    if deletion is None or (write.op == "update" and _has_seen(write, deletion)):
        return Decision("missing", write.at)
    return _edit_deleted(history, write, deletion)


def _edit(history: History, write: Write) -> Decision:
    current = {name: history.stamps.get(name) or history.stamps.get(ROW) for name in write.fields}
    contested = _contested(write, current)
    wins = tuple(
        name
        for name, stamp in current.items()
        if name not in contested and (stamp is None or _has_seen(write, stamp) or write.at > stamp.at)
    )
    lost = tuple(name for name in write.fields if name not in wins and name not in contested)
    seen = [stamp for name in wins if (stamp := current[name]) is not None]
    return Decision("update" if wins else "nothing", _after(write, seen), wins, lost, contested)


def _delete(history: History, write: Write) -> Decision:
    unseen = [stamp for stamp in history.stamps.values() if not _has_seen(write, stamp)]
    if any(stamp.at > write.at for stamp in unseen):
        return Decision("nothing", write.at, lost=(ROW,))
    return Decision("delete", _after(write, history.stamps.values()))


def _edit_deleted(history: History, write: Write, deletion: Stamp) -> Decision:
    if write.op == "delete":
        # Gone anyway; but which edits come too late depends on the latest deletion.
        step: Step = "remember" if write.at > deletion.at else "nothing"
        return Decision(step, write.at, (ROW,) if step == "remember" else (), (ROW,))
    # A field without a stamp is as the row was created, and whoever edited it had seen that.
    stamps = {name: history.stamps.get(name) for name in write.fields}
    contested = _contested(write, stamps)
    wins = tuple(
        name
        for name, stamp in stamps.items()
        if name not in contested and (stamp is None or write.at > stamp.at)
    )
    lost = tuple(name for name in write.fields if name not in wins and name not in contested)
    if write.at > deletion.at:
        return Decision("revive", write.at, wins, lost, contested)
    return Decision("remember" if wins else "nothing", write.at, wins, write.fields)


def _contested(write: Write, stamps: Mapping[str, Stamp | None]) -> tuple[str, ...]:
    """What others changed unseen, of the fields that a person decides about."""
    return tuple(
        name
        for name, stamp in stamps.items()
        if name in write.manual and stamp is not None and not _has_seen(write, stamp)
    )


def _has_seen(write: Write, stamp: Stamp) -> bool:
    known = write.base_version is not None and stamp.version <= write.base_version
    return known or stamp.at.client == write.at.client


def _after(write: Write, stamps: Any) -> Timestamp:
    """The write's time, but later than what it replaces: not every client keeps a hybrid logical clock."""
    latest = max((stamp.at for stamp in stamps), default=NEVER)
    return write.at if write.at > latest else Timestamp(latest.ms, latest.counter + 1, write.at.client)
