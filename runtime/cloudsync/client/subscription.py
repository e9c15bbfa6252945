"""One subscription as the client holds it: its rows, the snapshot that is arriving, the events it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from cloudsync.client.change import Change
from cloudsync.client.errors import FrameUnreadable
from cloudsync.client.filters import as_shown, column_types
from cloudsync.client.frames import Data, Times
from cloudsync.client.overlay import Overlay, Rows
from cloudsync.client.presence import Presence
from cloudsync.client.replica import Applied, Key, Operation, Replica, Row, difference
from cloudsync.protocol.messages import Mode, TableSchema, Where


class ChangeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One change of one row in a view. Clocks are microseconds since 1970.

    `row` is the row after the change (None for a delete), `changes` the new values of an update. `resync`
    marks a difference found when the view was rebuilt from a new snapshot: it has no times of its own.
    `local` marks what this client changed itself, or takes back, before the server has confirmed anything.
    """

    op: Operation
    key: Key
    row: Row | None
    changes: Row
    version: int
    table: str
    by: dict[str, Any] | None = None
    at: str | None = None
    id: str | None = None
    tx: str | None = None
    times: Times | None = None
    sent_us: int = 0
    received_us: int = 0
    resync: bool = False
    local: bool = False

    @property
    def latency_ms(self) -> float | None:
        """From the commit to this client, across two clocks; None where the commit's time is not known."""
        if self.times is None or not self.times.commit or not self.received_us:
            return None
        return (self.received_us - self.times.commit) / 1000


Listener = Callable[[Data | None], None]


class Subscription:
    """One subscription and the rows it has brought; `observed` while somebody wants its events.

    States: `new` (to be asked for), `asked`, `snapshot` (it is arriving), `live`, `held` (the connection was
    lost while live), `returning` (what was missed is arriving), `ended`.
    """

    __slots__ = (
        "_listening",
        "claimed",
        "columns",
        "complete",
        "count",
        "id",
        "mode",
        "observed",
        "overlay",
        "presence",
        "replica",
        "rows",
        "schema",
        "staging",
        "state",
        "table",
        "used_at",
        "where",
    )

    def __init__(
        self, id_: str, table: str, where: Where | None, columns: list[str] | None, mode: Mode
    ) -> None:
        self.id = id_
        self.table = table
        self.where = where
        self.columns = columns
        self.mode: Mode = mode
        self.schema: TableSchema | None = None
        self.count: int | None = None
        self.replica = Replica()
        self.overlay = Overlay()
        self.presence = Presence()
        self.rows = Rows(self.replica.rows, self.overlay.patches)
        """What the application sees."""
        self.staging: Replica | None = None
        self.state: Literal["new", "asked", "snapshot", "live", "held", "returning", "ended"] = "new"
        self.complete = False
        self.observed = False
        self.claimed = True
        """Whether the application has asked for it; one from a store waits for that."""
        self.used_at = 0
        """When the application last asked for it, seconds since 1970."""
        self._listening: dict[Key, list[Listener]] = {}

    @property
    def covered(self) -> bool:
        """Whether the rows hold everything up to the client's cursor, so that it may come back with it."""
        return self.complete and self.state in ("live", "held", "returning")

    def listen(self, key: Key, listener: Listener) -> None:
        """Tell of every event of a row that was taken in, and (None) when the row was replaced as it is."""
        self._listening.setdefault(key, []).append(listener)

    def begin_snapshot(self, schema: TableSchema) -> None:
        """A snapshot follows: beside the rows held, if there are any, so that readers see no hole."""
        self.state = "snapshot"
        self.schema = schema
        if self.complete or self.replica.rows:
            self.staging = Replica(schema.key)
        else:
            self.replica.replace(Replica(schema.key))

    def apply(self, events: Iterable[Data], *, sent_us: int, received_us: int) -> list[ChangeEvent] | None:
        """Take events in, in order. None if what readers see is as before."""
        target = self.staging or self.replica
        observed = self.observed and self.complete and self.staging is None
        changed = False
        found: list[ChangeEvent] = []
        try:
            for event in events:
                applied = self._beneath(event) if target is self.replica else target.apply(event)
                if self._listening and target is self.replica:
                    for listener in self._listening.get(target.key_of(event.key), ()):
                        listener(event)
                if applied is None:
                    continue
                changed = True
                if observed:
                    found.append(self._event(applied, event, sent_us or event.sent, received_us))
        except KeyError as missing:
            raise FrameUnreadable(
                f"An event of {self.table} comes without its key column {missing}."
            ) from None
        return found if changed and self.staging is None else None

    def finish_snapshot(self, *, received_us: int) -> list[ChangeEvent]:
        """Show the snapshot that has arrived; its differences from the rows that were held."""
        events: list[ChangeEvent] = []
        if self.staging is not None:
            shown = {key: self.rows.get(key) for key in self.overlay.keys_covered()}
            differences = self.replica.replace(self.staging)
            repainted = [self._repaint(key, row) for key, row in shown.items()]
            if self.complete and self.observed:
                found = [applied for applied in differences if applied.key not in shown]
                found += filter(None, repainted)
                events = [self._event(applied, None, 0, received_us) for applied in found]
        self.staging = None
        self.state = "live"
        self.complete = True
        for listeners in self._listening.values():
            for listener in listeners:
                listener(None)
        return events

    def change_schema(self, schema: TableSchema) -> None:
        """Columns came or went: those that went leave the rows, too."""
        self.schema = schema
        names = {column.name for column in schema.columns}
        self.replica.keep_columns(names)
        if self.staging is not None:
            self.staging.keep_columns(names)
        for key in self.overlay.keys_covered():
            self._repaint(key, None)

    # Changes of this client that are not confirmed yet

    def key_of(self, table: str, key: Row) -> Key | None:
        """The place of a row by its key as the application wrote it; None: not in this view's table."""
        schema = self.schema
        if schema is None or not self.complete or schema.table != table or key.keys() != set(schema.key):
            return None
        types = column_types(schema)
        return self.replica.key_of({name: as_shown(key[name], types.get(name)) for name in schema.key})

    def show(self, change: Change) -> list[ChangeEvent] | None:
        """Put a change on top of the rows. None if what readers see is as before."""
        key = self.key_of(change.table, change.key)
        if key is None:
            return None
        before = self.rows.get(key)
        self.overlay.add(key, change)
        return self._local(self._repaint(key, before))

    def hide(self, change: Change, *, once_seen: int | None = None) -> list[ChangeEvent] | None:
        """Take a change off the rows; with `once_seen`, only when the row is held in that version."""
        key = self.key_of(change.table, change.key)
        if key is None or key not in self.overlay:
            return None
        before = self.rows.get(key)
        if once_seen is None:
            self.overlay.remove(key, change)
        else:
            self.overlay.keep_until(change, once_seen)
        return self._local(self._repaint(key, before))

    def _beneath(self, event: Data) -> Applied | None:
        """Take an event in that may concern a row with a change of this client on top."""
        replica = self.replica
        if not self.overlay.patches:
            return replica.apply(event)
        key = replica.key_of(event.key)
        if key not in self.overlay:
            return replica.apply(event)
        before = self.rows.get(key)
        replica.apply(event)
        return self._repaint(key, before)

    def _repaint(self, key: Key, before: Row | None) -> Applied | None:
        """Show what a key's row is now, under the changes that are left; the difference from `before`."""
        assert self.schema is not None  # noqa: S101  complete
        self.overlay.seen(key, self.replica.known(key))
        self.overlay.paint(key, self.replica.rows.get(key), self.schema, self.where)
        return difference(key, before, self.rows.get(key), max(0, self.replica.known(key)))

    def _local(self, applied: Applied | None) -> list[ChangeEvent] | None:
        if applied is None:
            return None
        return [self._event(applied, None, 0, 0, local=True)] if self.observed else []

    def _event(
        self,
        applied: Applied,
        cause: Data | None,
        sent_us: int,
        received_us: int,
        *,
        local: bool = False,
    ) -> ChangeEvent:
        return ChangeEvent(
            op=applied.op,
            key=applied.key,
            row=applied.row,
            changes=applied.changes,
            version=applied.version,
            table=self.schema.table if self.schema else self.table,
            by=cause.by if cause else None,
            at=cause.at if cause else None,
            id=cause.id if cause else None,
            tx=cause.tx if cause else None,
            times=cause.times if cause else None,
            sent_us=sent_us,
            received_us=received_us,
            resync=cause is None and not local,
            local=local,
        )
