"""Replay: what returning clients missed, from the feeds alone, a range read and matched once for all of them.

Whoever asks while a round is under way is served by the next one, so ten thousand clients that come back
together are a handful of rounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.events import CONFLICT_OPERATIONS, ONLY_LOSING, ROW_OPERATIONS, ChangeEvent, Position
from cloudsync.feeds.feed import EVERYONE, entry_tag
from cloudsync.feeds.history import Ends, FeedHistory, RangeGone, RangeTooLarge
from cloudsync.feeds.keys import Keys
from cloudsync.gateway.hub import Matched, Subscription
from cloudsync.keyring import Keyring
from cloudsync.protocol.frames import Body, Verdict, batches, event_text, for_everyone, told_as, verdict_for
from cloudsync.registry.matcher import Matcher, changed_columns, part_told
from cloudsync.registry.topics import HostedTopic, Topic
from cloudsync.sharding import SHARDS
from cloudsync.sync.cursor import Cursor

Resumed = Literal["replay", "differential", "resync"]

_ATTEMPTS: Final = 3
_ENDS_FOR_S: Final = 0.1
_SERVED_AT_ONCE: Final = 25
_KEEP_S: Final = 10.0
ENDING: Final = ',"last":true'
"""Ends the frames by which a view was brought up to date: what follows is live."""

_log = logs.get("gateway")


class Missed(msgspec.Struct):
    """What one topic missed: its events in order per shard, the whole table's, and how far was read."""

    matched: list[Matched]
    table_events: list[ChangeEvent]
    tails: list[Position]
    texts: Texts

    def table_event(self, since: Position) -> ChangeEvent | None:
        """The newest event of the whole table since then: what a view holds is void, no replay mends it."""
        found = [event for event in self.table_events if event.position > since]
        return found[-1] if found else None

    def covers(self, matched: Matched) -> bool:
        """Whether a live event was already in the range that was read."""
        event, bits = matched
        shard = event.old_shard if bits & ONLY_LOSING and event.old_shard is not None else event.shard
        return event.position <= self.tails[shard]

    def after(self, since: Position) -> list[Matched]:
        return [matched for matched in self.matched if matched[0].position > since]

    def bodies(self, subscription: Subscription, since: Position) -> list[Body]:
        """The frames for one subscription; `last` is set on the final one, which may be empty."""
        return self.texts.bodies(subscription, self.after(since), since)


class Texts:
    """Encodes a round's events once for all who are told the same."""

    def __init__(self, batch_bytes: int) -> None:
        self._batch_bytes = batch_bytes
        self._texts: dict[tuple[Position, Verdict, tuple[str, ...] | None], str] = {}
        self._shared: dict[tuple[str, tuple[str, ...] | None, Position], list[Body]] = {}

    def bodies(self, subscription: Subscription, matched: list[Matched], since: Position) -> list[Body]:
        columns, visibility = subscription.columns, subscription.visibility
        principal = subscription.connection.principal
        if principal is None:
            return []
        missed = [
            (e, b) for e, b in matched if e.op not in CONFLICT_OPERATIONS and not visibility.includes(e.xid)
        ]
        place = (subscription.topic.id, columns, since)
        shared = visibility.xmax == 0 and all(for_everyone(event) for event, _ in missed)
        if shared and place in self._shared:
            return self._shared[place]
        told = []
        for event, bits in missed:
            verdict = verdict_for(event, bits, principal.user)
            if verdict is not None:
                verdict = told_as(event, verdict, columns)
                told.append((verdict, self._text(event, verdict, columns)))
        bodies = list(batches(told, limit_bytes=self._batch_bytes, ending=ENDING))
        if shared:
            self._shared[place] = bodies
        return bodies

    def _text(self, event: ChangeEvent, verdict: Verdict, columns: tuple[str, ...] | None) -> str:
        place = (event.position, verdict, columns)
        text = self._texts.get(place)
        if text is None:
            text = self._texts[place] = event_text(event, verdict, columns)
        return text


class Ahead(RangeGone):
    """The cursor is from a future that the feeds do not know."""


class Interrupted(Exception):
    """This registration is over; its successor has to be asked."""


class _Returning:
    """One subscription's question, and who waits for the answer."""

    __slots__ = ("answer", "since", "topic")

    def __init__(self, topic: Topic, since: Cursor) -> None:
        self.topic = topic
        self.since = since
        self.answer: asyncio.Future[Missed] = asyncio.get_running_loop().create_future()

    def refuse(self, reason: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(reason)


class Replayer:
    """Answers what was missed, in rounds, for one registration of this gateway."""

    def __init__(
        self, redis: Redis, keys: Keys, keyring: Keyring, *, range_bytes: int, batch_bytes: int
    ) -> None:
        self.keys = keys
        self.history = FeedHistory(redis, keys, keyring, budget_bytes=range_bytes)
        self._keyring = keyring
        self._range_bytes = range_bytes
        self._batch_bytes = batch_bytes
        self._ends: Ends | None = None
        self._ends_at_s = 0.0
        self._reading_ends = asyncio.Lock()
        self._waiting: list[_Returning] = []
        self._rounds: asyncio.Task[None] | None = None
        self._forgetting: asyncio.TimerHandle | None = None

    def covers(self, cursor: Cursor) -> bool:
        """Whether the feeds read here are those that the cursor speaks of."""
        return (cursor.database_id, cursor.epoch) == (self.keys.database_id, self.keys.epoch)

    async def expect(self, cursor: Cursor) -> Resumed:
        """What a cursor of this platform will lead to; whether a differential reaches back is not known here.

        While Redis is away a replay is expected: it is decided when Redis is back.
        """
        if cursor.database_id != self.keys.database_id:
            return "resync"
        if not self.covers(cursor):
            return "differential"
        try:
            refusal = self._refusal(cursor, await self._recent_ends())
            if isinstance(refusal, Ahead):  # maybe only of what is a moment old
                refusal = self._refusal(cursor, await self.history.ends())
        except (RedisError, OSError):
            return "replay"
        except RangeGone:
            return "differential"
        return "replay" if refusal is None else "resync" if isinstance(refusal, Ahead) else "differential"

    async def missed(self, topic: Topic, since: Cursor) -> Missed:
        """What a topic, registered before this call, was told since.

        Raises RangeGone or SealBroken if a replay cannot say it, Interrupted or a redis error if not now.
        """
        returning = _Returning(topic, since)
        self._waiting.append(returning)
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.get_running_loop().create_task(self._serve())
        return await returning.answer

    def stop(self) -> None:
        """This registration is over: let nobody wait for it, and keep nothing."""
        if self._rounds is not None:
            self._rounds.cancel()
        for returning in self._waiting:  # a round that has not begun cannot tell them
            returning.refuse(Interrupted())
        if self._forgetting is not None:
            self._forgetting.cancel()
        self.history.forget()

    async def _serve(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                await self._round(waiting)
            except asyncio.CancelledError:
                for returning in (*waiting, *self._waiting):
                    returning.refuse(Interrupted())
                raise
            except Exception as error:  # noqa: BLE001 - each of them decides what it means
                for returning in waiting:
                    returning.refuse(error)
            self.history.shrink()
        self._forgetting = asyncio.get_running_loop().call_later(_KEEP_S, self.history.forget)

    async def _round(self, waiting: list[_Returning]) -> None:
        for _ in range(_ATTEMPTS):
            ends = await self.history.ends()
            waiting = [r for r in waiting if not r.answer.done() and self._admit(r, ends)]
            if not waiting:
                return
            low = min(r.since.position for r in waiting)
            try:
                await self.history.fetch(low, ends)
            except RangeTooLarge:
                raise
            except RangeGone:
                continue  # trimmed meanwhile: whoever is below the new floor is not admitted again
            await self._answer(waiting, low, ends)
            return
        raise RangeGone("trimmed faster than it can be read")

    def _admit(self, returning: _Returning, ends: Ends) -> bool:
        refusal = self._refusal(returning.since, ends)
        if refusal is not None:
            returning.refuse(refusal)
        return refusal is None

    def _refusal(self, since: Cursor, ends: Ends) -> RangeGone | None:
        """Why a cursor of this epoch cannot be replayed from."""
        if since.position > ends.newest:
            return Ahead("ahead of the feeds")
        if since.position < ends.floor:
            return RangeGone("below the floor")
        if ends.fed_bytes - since.fed_bytes > self._range_bytes:
            return RangeTooLarge("more was fed since than a replay may read")
        return None

    async def _recent_ends(self) -> Ends:
        """Where the feeds end, read once for all who come within a moment."""
        async with self._reading_ends:
            if self._ends is None or time.monotonic() - self._ends_at_s > _ENDS_FOR_S:
                self._ends, self._ends_at_s = await self.history.ends(), time.monotonic()
            return self._ends

    async def _answer(self, waiting: list[_Returning], low: Position, ends: Ends) -> None:
        by_topic, by_table = await self._match({r.topic.id: r.topic for r in waiting}.values(), low, ends)
        texts = Texts(self._batch_bytes)
        for number, returning in enumerate(waiting, 1):
            if not returning.answer.done():
                topic = returning.topic
                returning.answer.set_result(
                    Missed(by_topic.get(topic.id, []), by_table.get(topic.table, []), ends.tails, texts)
                )
            if number % _SERVED_AT_ONCE == 0:
                await asyncio.sleep(0)  # these send now; heartbeats and the live stream have their turn
        _log.info("replayed", subscriptions=len(waiting), topics=len(by_topic), since=str(low))

    async def _match(
        self, topics: Iterable[Topic], low: Position, ends: Ends
    ) -> tuple[dict[str, list[Matched]], dict[str, list[ChangeEvent]]]:
        """Per topic and per table what concerns them after `low`: as the routers would have told it."""
        by_tenant: dict[str, list[HostedTopic]] = {}
        for topic in topics:
            by_tenant.setdefault(topic.tenant, []).append(HostedTopic(topic, set()))
        matcher = Matcher()
        tags = {EVERYONE.encode()}
        for tenant, hosted in by_tenant.items():
            matcher.replace(tenant, hosted)
            tags.add(entry_tag(self._keyring, tenant).encode())
        by_topic: dict[str, list[Matched]] = {}
        by_table: dict[str, list[ChangeEvent]] = {}
        for shard in range(SHARDS):
            for entry in list(self.history.entries(shard, low, ends.tails[shard])):
                if tags.isdisjoint(entry.tags):
                    continue
                for event in self.history.open(shard, entry):
                    if event.position <= low:
                        continue
                    if event.op not in ROW_OPERATIONS:
                        by_table.setdefault(event.table, []).append(event)
                        continue
                    told: ChangeEvent | None = None
                    for found, bits in matcher.match(event):
                        if told is None:
                            told = msgspec.structs.replace(event, old=changed_columns(event))
                        matched = by_topic.setdefault(found.topic.id, [])
                        matched.append((told, bits | part_told(event, shard)))
                await asyncio.sleep(0)
        for matched in by_topic.values():
            matched.sort(key=_position)
        for events in by_table.values():
            events.sort(key=lambda event: event.position)
        return by_topic, by_table


def _position(matched: Matched) -> Position:
    return matched[0].position
