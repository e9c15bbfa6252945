"""What of a session has to reach its store: the differences since the last commit, as one batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from cloudsync.client.change import Change
from cloudsync.client.conflicts import Inbox, restored
from cloudsync.client.errors import StoreRefused
from cloudsync.client.frames import ConflictDetected, float_or_decimal
from cloudsync.client.replica import Replica
from cloudsync.client.store import Batch, Store, StoredRow, StoredSubscription
from cloudsync.client.subscription import Subscription
from cloudsync.client.writes import WriteQueue
from cloudsync.clock import HybridClock
from cloudsync.protocol.messages import TableSchema, Where

# Sorted names, so that equal requests are equal texts; Decimal only stands for numbers beyond floats.
encode: Final = msgspec.json.Encoder(decimal_format="number", order="deterministic").encode
decode: Final = msgspec.json.Decoder(float_hook=float_or_decimal).decode
_conflict: Final = msgspec.json.Decoder(ConflictDetected, float_hook=float_or_decimal).decode


class _Request(msgspec.Struct):
    table: str
    where: Where | None
    columns: list[str] | None


class Journal:
    """Follows a session's subscriptions and cursor; `save` makes the store equal to them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.cursor = store.cursor
        self._saved: dict[str, StoredSubscription] = {}
        self._counters = (0, 0, 0)
        self._schemas: dict[str, tuple[TableSchema, str]] = {}
        self._numbers: set[int] = set()
        self._last_number = store.last_replica()
        self.texts: list[tuple[int, Any]] = []
        """Numbers and contents of the edits that the store holds, once `load_writes` has read them."""

    def load(self) -> list[Subscription]:
        """The subscriptions that the store holds, with their rows."""
        try:
            return [self._restore(stored) for stored in self.store.subscriptions()]
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise self._unreadable(error) from error

    def load_writes(self) -> WriteQueue:
        """The changes that wait for their outcome, the numbers and the clock."""
        next_number, clock_ms, clock_counter = self._counters = self.store.counters
        clock = HybridClock(clock_ms, clock_counter)
        try:
            contents = [(number, decode(content)) for number, content in self.store.changes()]
            changes = [restored(number, content) for number, content in contents if "text_of" not in content]
            self.texts = [(number, content) for number, content in contents if "text_of" in content]
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise self._unreadable(error) from error
        return WriteQueue(next_number=next_number, clock=clock, changes=changes)

    def load_conflicts(self) -> list[ConflictDetected]:
        """The open conflicts, as they were heard of last."""
        try:
            return [_conflict(content) for content in self.store.conflicts()]
        except msgspec.MsgspecError as error:
            raise self._unreadable(error) from error

    def track(self, replica: Replica) -> None:
        """From now on keep account of what changes in a replica."""
        if replica.touched is None:
            self._last_number += 1
            replica.number = self._last_number
            replica.touched = set(replica.rows)

    def save(
        self,
        subscriptions: Iterable[Subscription],
        cursor: str | None,
        writes: WriteQueue,
        inbox: Inbox,
        added: Change | None = None,
    ) -> None:
        """Commit every difference, and the change that is added. If it raises, nothing counts as saved."""
        batch = Batch()
        for id_ in inbox.touched:
            conflict = inbox.open.get(id_)
            if conflict is None:
                batch.conflicts_gone.append(id_)
            else:
                batch.conflicts.append((id_, _text(conflict.frame)))
        saved: dict[str, StoredSubscription] = {}
        replicas: list[Replica] = []
        for subscription in subscriptions:
            kept = [
                r
                for r in (subscription.replica, subscription.staging)
                if r is not None and r.touched is not None
            ]
            replicas += kept
            for replica in kept:
                self._rows(replica, batch)
            record = saved[subscription.id] = self._record(subscription)
            if self._saved.get(subscription.id) != record:
                batch.subscriptions.append(record)
        numbers = {replica.number for replica in replicas}
        batch.replicas_gone += self._numbers - numbers
        batch.subscriptions_gone += self._saved.keys() - saved.keys()
        batch.cursor = cursor if cursor != self.cursor else None
        changed = writes.rebased if added is None else [*writes.rebased, added]
        batch.changes = [(change.number, _text(change.content())) for change in changed]
        batch.changes_gone = writes.settled.copy()
        counters = (writes.next_number, writes.clock.ms, writes.clock.counter)
        batch.counters = counters if counters != self._counters else None
        if not batch:
            return
        # A change and its number must survive a power cut, too: the number is never to be used again.
        self.store.commit(batch, durable=added is not None)
        writes.rebased.clear()
        writes.settled.clear()
        inbox.touched.clear()
        self._counters = counters
        self.cursor = cursor
        self._saved, self._numbers = saved, numbers
        for replica in replicas:
            if replica.touched:
                replica.touched.clear()

    def _rows(self, replica: Replica, batch: Batch) -> None:
        for key in replica.touched or ():
            version, row, wanted = replica.state(key)
            text = _text(replica.wire_key(key))
            if version < 0 and wanted is None:
                batch.rows_gone.append((replica.number, text))
            else:
                row_text = None if row is None else _text(row)
                batch.rows.append(StoredRow(replica.number, text, version, row_text, wanted))

    def _record(self, subscription: Subscription) -> StoredSubscription:
        known = self._saved.get(subscription.id)
        schema = subscription.schema
        return StoredSubscription(
            subscription.id,
            request_text(subscription.table, subscription.where, subscription.columns)
            if known is None
            else known.request,
            None if schema is None else self._schema_text(subscription.id, schema),
            subscription.mode,
            subscription.replica.number or None,
            subscription.complete,
            subscription.covered,
            subscription.used_at,
        )

    def _schema_text(self, subscription_id: str, schema: TableSchema) -> str:
        known = self._schemas.get(subscription_id)
        if known is None or known[0] is not schema:
            known = self._schemas[subscription_id] = (schema, _text(schema))
        return known[1]

    def _restore(self, stored: StoredSubscription) -> Subscription:
        request = msgspec.json.decode(stored.request, type=_Request)
        mode: Any = stored.mode
        subscription = Subscription(stored.id, request.table, request.where, request.columns, mode)
        subscription.claimed = False
        subscription.used_at = stored.used_at
        self._saved[stored.id] = stored
        if not stored.complete or stored.schema is None or stored.replica is None:
            return subscription
        subscription.schema = msgspec.json.decode(stored.schema, type=TableSchema)
        replica = subscription.replica
        replica.replace(Replica(subscription.schema.key))
        for row in self.store.rows(stored.replica):
            key = dict(zip(subscription.schema.key, decode(row.key), strict=True))
            replica.restore(key, row.version, None if row.row is None else decode(row.row), row.wanted)
        replica.number, replica.touched = stored.replica, set()
        self._numbers.add(stored.replica)
        subscription.complete = True
        subscription.state = "held" if stored.covered else "new"
        return subscription

    def _unreadable(self, error: Exception) -> StoreRefused:
        return StoreRefused(
            f"The store {self.store.path} holds something that cannot be read: {error}.",
            hint="Delete the file: what the server has confirmed comes again.",
        )


def request_text(table: str, where: Where | None, columns: list[str] | None) -> str:
    """What a subscription asks for; equal for equal requests."""
    return _text(_Request(table, where, columns))


def _text(value: Any) -> str:
    return encode(value).decode()
