"""From topics to connections: who on this gateway is told of an event, in frames encoded once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from cloudsync.audit.receipts import Receipts
from cloudsync.events import CONFLICT_OPERATIONS, MATCHED_BEFORE, MATCHES_NOW, ChangeEvent
from cloudsync.gateway.connection import Connection
from cloudsync.gateway.news import News
from cloudsync.gateway.pending import GatheredEvents, LatestRows
from cloudsync.protocol.codes import Close
from cloudsync.protocol.conflicts import conflict_frame
from cloudsync.protocol.frames import Verdict, for_everyone, shared_verdict, verdict_for
from cloudsync.protocol.messages import Error, Mode
from cloudsync.registry.topics import Topic
from cloudsync.sync.catalog import CatalogTable
from cloudsync.sync.cursor import Cursor
from cloudsync.sync.snapshot import Visibility

Matched = tuple[ChangeEvent, int]
"""An event and its `MATCHED_BEFORE`/`MATCHES_NOW` bits for a topic."""

_EVERYTHING_VISIBLE: Final = Visibility(0, frozenset())


class Subscription:
    """One subscription of one connection."""

    __slots__ = (
        "behind",
        "checksum",
        "columns",
        "connection",
        "held",
        "held_bytes",
        "id",
        "mode",
        "pending",
        "queued",
        "queued_since_s",
        "sent_up_to",
        "since",
        "sub",
        "table",
        "task",
        "told",
        "topic",
        "visibility",
        "whole",
    )

    def __init__(
        self, connection: Connection, subscription_id: str, topic: Topic, table: CatalogTable,
        columns: tuple[str, ...] | None, mode: Mode,
    ) -> None:  # fmt: skip
        self.connection = connection
        self.id = subscription_id
        self.sub = msgspec.json.encode(subscription_id).decode()
        self.topic = topic
        self.table = table
        self.columns = columns
        self.mode: Mode = mode
        """What the client asked for. It is in `latest` mode, too, while its window is full."""
        self.held: list[Matched] | None = []
        """What was routed while the snapshot is on its way; None once the subscription is live."""
        self.held_bytes = 0
        self.visibility = _EVERYTHING_VISIBLE
        """What the snapshot contained: events of those transactions are not sent again."""
        self.whole = True
        """Whether its client asked for a snapshot: what it holds is then all that the view shows."""
        self.since: Cursor | None = None
        """Where its view was when it came back; None once a watermark says that it has gone on from there."""
        self.task: asyncio.Task[None] | None = None
        self.told: list[tuple[ChangeEvent, Verdict]] | None = None
        """What it is told while its checksum is being read; None: nobody asks, or the view was rebuilt."""
        self.checksum: str | None = None
        """The one that was sent last, until the client has said that its own is another."""
        self.pending: LatestRows | GatheredEvents | None = None
        """What waits to be sent, unless each event is sent as it comes."""
        self.queued = 0
        """Frames of it that wait in the connection's queue, and since when the first of them does."""
        self.queued_since_s = 0.0
        self.start_over()

    def start_over(self) -> None:
        """Back to the mode that was asked for, with nothing waiting."""
        if isinstance(self.pending, GatheredEvents):
            self.pending.take()
        self.pending = (
            LatestRows() if self.mode == "latest" else GatheredEvents() if self.mode == "batch" else None
        )
        self.behind = 0
        """Waiting rows go when the connection has sent so many queued items, which came before them."""
        self.sent_up_to = 0
        """The delivery in which waiting rows were sent last."""

    @property
    def settled(self) -> bool:
        """Whether the gateway's watermark holds for it."""
        return self.held is None and self.since is None

    @property
    def texts(self) -> list[str]:
        """Columns that it shows and that `text` frames edit."""
        return [name for name in self.table.texts if self.columns is None or name in self.columns]

    def begin_hold(self) -> None:
        """Keep what is routed from here on, anew."""
        self.told = None
        self.held, self.held_bytes = [], 0

    def release(self) -> list[Matched]:
        """What was held; from here on the subscription is live."""
        held, self.held, self.held_bytes = self.held or [], None, 0
        return held

    def hold(self, events: Iterable[Matched]) -> int:
        """Keep events for later, but for those that a snapshot has shown; returns the bytes held."""
        assert self.held is not None  # noqa: S101 - callers look first
        for event, bits in events:
            if event.op in CONFLICT_OPERATIONS or not self.visibility.includes(event.xid):
                self.held.append((event, bits))  # no snapshot shows conflicts
                self.held_bytes += 300 + len(event.row or b"") + len(event.old or b"")
        return self.held_bytes

    def show(self, visibility: Visibility) -> None:
        """A snapshot is open: what it contains need not be held. A bulk load just before it may be large."""
        self.visibility = visibility
        held, self.held, self.held_bytes = self.held or [], [], 0
        self.hold(held)


class HostedTopic:
    """A topic that this gateway hosts and the subscriptions to it, grouped by the columns they ask for."""

    __slots__ = ("groups", "lock", "registered", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.groups: dict[tuple[str, ...] | None, dict[Subscription, None]] = {}
        self.lock = asyncio.Lock()
        self.registered = False

    def add(self, subscription: Subscription) -> None:
        self.groups.setdefault(subscription.columns, {})[subscription] = None

    def remove(self, subscription: Subscription) -> None:
        group = self.groups.get(subscription.columns)
        if group is not None:
            group.pop(subscription, None)
            if not group:
                del self.groups[subscription.columns]

    @property
    def count(self) -> int:
        return sum(map(len, self.groups.values()))

    def subscriptions(self) -> list[Subscription]:
        return [s for group in self.groups.values() for s in group]


class Hub:
    """All topics of this gateway."""

    def __init__(
        self, *, realtime_limit: int, batch_bytes: int, hold_bytes: int, receipts: Receipts | None = None
    ) -> None:
        self._realtime_limit = realtime_limit
        self._batch_bytes = batch_bytes
        self._hold_bytes = hold_bytes
        self._receipts = receipts
        self.topics: dict[str, HostedTopic] = {}
        self.listeners: dict[str, Callable[[list[Matched]], None]] = {}
        """The gateway's own topics: who takes their events in place of connections."""
        self.departed: Callable[[Subscription], None] | None = None
        """Told when a row leaves a view, in tables whose rows have readers of their own."""

    def topic(self, topic: Topic) -> HostedTopic:
        hosted = self.topics.get(topic.id)
        if hosted is None:
            hosted = self.topics[topic.id] = HostedTopic(topic)
        return hosted

    def on_table(self, table: str) -> list[Subscription]:
        """Every subscription to a table, whatever its filter."""
        return [s for t in self.topics.values() if t.topic.table == table for s in t.subscriptions()]

    def dispatch(self, topic_id: str, matched: list[Matched]) -> None:
        """Hand a topic's events, in order, to its subscriptions."""
        hosted = self.topics.get(topic_id)
        if hosted is None:
            listener = self.listeners.get(topic_id)
            if listener is not None:
                listener(matched)
            return
        shared = all(for_everyone(e) and e.op not in CONFLICT_OPERATIONS for e, _ in matched)
        oldest_xid = min(event.xid for event, _ in matched)
        for columns, group in hosted.groups.items():
            news: News | None = None
            told = 0
            for subscription in list(group):
                if subscription.held is not None:
                    self._tell_receipts(matched, subscription)
                    if subscription.hold(matched) > self._hold_bytes:
                        subscription.connection.close(
                            Close.SLOW,
                            Error(
                                "limit_reached", "More changed during the snapshot than may be kept for it."
                            ),
                        )
                    continue
                if shared and oldest_xid >= subscription.visibility.xmax:
                    told += 1
                    if news is None:
                        news = self._news(_for_all(matched), columns)
                    if news.events:
                        self._offer(subscription, news)
                        self._tell_departed(subscription, news)
                else:
                    self._tell_receipts(matched, subscription)
                    self.deliver(subscription, matched)
            if told and self._receipts is not None:
                for event, bits in matched:
                    if _shared(bits) is not None:
                        self._receipts.told(event, bits, told)

    def deliver(self, subscription: Subscription, matched: Iterable[Matched]) -> None:
        """Send one subscription the events that concern its user and were not in its snapshot."""
        principal = subscription.connection.principal
        if principal is None:
            return
        own: list[tuple[ChangeEvent, Verdict]] = []
        conflicts: list[Matched] = []
        for event, bits in matched:
            if event.op in CONFLICT_OPERATIONS:
                conflicts.append((event, bits))
                continue
            verdict = verdict_for(event, bits, principal.user)
            if verdict is not None and not subscription.visibility.includes(event.xid):
                own.append((event, verdict))
        if own:
            news = self._news(own, subscription.columns)
            self._offer(subscription, news)
            self._tell_departed(subscription, news)
        self.tell_conflicts(subscription, conflicts)

    def tell_conflicts(self, subscription: Subscription, matched: Iterable[Matched]) -> None:
        """Of events, send what those tell of conflicts of rows that the subscription's user sees."""
        connection = subscription.connection
        principal = connection.principal
        for event, bits in matched:
            if event.op not in CONFLICT_OPERATIONS or principal is None:
                continue
            if verdict_for(event, bits, principal.user) == "update":
                frame = conflict_frame(event, principal.user, subscription.columns)
                if frame is not None:
                    connection.control(frame)

    def _offer(self, subscription: Subscription, news: News) -> None:
        if subscription.told is not None:
            subscription.told += news.events
        subscription.connection.offer(subscription, news)

    def _tell_departed(self, subscription: Subscription, news: News) -> None:
        restricted = subscription.table.restricted
        if restricted and self.departed is not None and any(v == "delete" for _, v in news.events):
            self.departed(subscription)

    def _tell_receipts(self, matched: list[Matched], subscription: Subscription) -> None:
        """Of events whose readers differ. What a snapshot shows or is about to show counts as told by it."""
        principal = subscription.connection.principal
        if self._receipts is None or principal is None:
            return
        for event, bits in matched:
            if verdict_for(event, bits, principal.user) is not None:
                self._receipts.told(event, bits, 1)

    def _news(self, events: list[tuple[ChangeEvent, Verdict]], columns: tuple[str, ...] | None) -> News:
        return News(events, columns, realtime_limit=self._realtime_limit, batch_bytes=self._batch_bytes)


def _for_all(matched: list[Matched]) -> list[tuple[ChangeEvent, Verdict]]:
    events = []
    for event, bits in matched:
        verdict = _shared(bits)
        if verdict is not None:
            events.append((event, verdict))
    return events


def _shared(bits: int) -> Verdict | None:
    return shared_verdict(bool(bits & MATCHED_BEFORE), bool(bits & MATCHES_NOW), bits)
