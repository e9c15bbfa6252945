"""Who is here: ephemeral state of those who look at the same topic, through Redis pub/sub and nowhere else.

A subscription takes part with its first `presence` frame, and then hears of the others; a state of null only
listens. Topics belong to one tenant, so nobody hears of another one's users. Where rows have readers of their
own, taking part is for who sees the row: the filter names one by its key, and when it leaves the view
the subscription takes part no longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.errors import LimitReached, RequestError, SealBroken
from cloudsync.feeds.connection import connect_async
from cloudsync.feeds.keys import Keys
from cloudsync.gateway.connection import Connection
from cloudsync.gateway.hub import Subscription
from cloudsync.gateway.subscriptions import UnknownSubscription
from cloudsync.keyring import Keyring
from cloudsync.lifetime import until_one_fails
from cloudsync.protocol.messages import Error, PresenceRequest
from cloudsync.registry.rooms import REFRESH_S, Member, News, Room, Said
from cloudsync.settings import Settings
from cloudsync.sync.snapshot import open_snapshot

STATE_BYTES: Final = 1024
STATES_PER_S: Final = 10
_TELL_EVERY_S: Final = 0.05
_ROOM_BYTES_PER_S: Final = 2_000_000
"""What one topic's members may cost: with many watchers of many members, changes gather for longer."""
_TURNS: Final = 10
"""Looking after all topics takes so many turns of telling, which is about a second."""
_AT_ONCE: Final = 100
"""After so many topics everybody else on this gateway has a turn."""
_LOOK_EVERY_S: Final = 0.2
_RETRY_S: Final = 0.5
_POOL_WAIT_S: Final = 5.0

_SAME: Final = msgspec.Raw(b"")
_log = logs.get("gateway")
_json: Final = msgspec.json.Encoder().encode
_said: Final = msgspec.json.Decoder(Said).decode


class StateTooLarge(RequestError):
    """A state may have 1,024 bytes at most."""

    code = "too_large"


class NotForYou(RequestError):
    """Presence in this table is for views of one row by its key, and for who sees that row."""

    code = "forbidden"


class _Watcher:
    """A subscription that takes part."""

    __slots__ = ("member_id", "since_ms", "told")

    def __init__(self) -> None:
        self.member_id = secrets.token_urlsafe(9)
        self.since_ms = time.time_ns() // 1_000_000
        self.told = False
        """Whether it knows everybody, so that changes are enough."""


class _Topic:
    """A topic in which somebody takes part here."""

    __slots__ = ("channel", "heard", "id", "room", "tell_due_s", "watchers")

    def __init__(self, topic_id: str, room: Room) -> None:
        self.id = topic_id
        self.room = room
        self.watchers: dict[Subscription, _Watcher] = {}
        self.channel: str | None = None
        """Where it is listened to; None: nowhere yet."""
        self.heard = False
        self.tell_due_s = 0.0


class Presences:
    """The presence of this gateway's subscriptions."""

    def __init__(
        self,
        settings: Settings,
        keyring: Keyring,
        pool: AsyncConnectionPool[AsyncConnection[Any]],
        keys: Callable[[], Keys | None],
    ) -> None:
        self._settings = settings
        self._keyring = keyring
        self._sealer = keyring.sealer()
        self._pool = pool
        self._keys = keys
        self._instance = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._topics: dict[str, _Topic] = {}
        self._dirty: set[str] = set()
        """Topics of which there may be something to tell."""
        self._turn: list[str] = []
        """Topics that have not been looked after yet in this round."""
        self._moved: set[str] = set()
        """Topics that were made or given up since the channels were followed last."""
        self._followed: Keys | None = None
        """The keys by which channels are followed; None: none is."""
        self._redis: Redis | None = None
        self._by_channel: dict[str, str] = {}
        self._listening: set[str] = set()
        self._allowances: dict[Connection, tuple[float, float]] = {}
        self._checks: dict[Subscription, asyncio.Task[None]] = {}
        self._awaiting: dict[Subscription, msgspec.Raw] = {}
        """The states of those that are being checked; empty: no other than before."""
        self._wake = asyncio.Event()

    def take(self, connection: Connection, request: PresenceRequest) -> None:
        """A state of a connection's subscription. What is wrong with it is answered, as of `presence:SUB`."""
        try:
            self._take(connection, request)
        except RequestError as error:
            connection.control(Error(error.code, str(error), reference(request.sub)))

    def left(self, subscription: Subscription) -> None:
        """The subscription has ended, or may not take part any more."""
        check = self._checks.pop(subscription, None)
        if check is not None and check is not asyncio.current_task():
            check.cancel()
        self._awaiting.pop(subscription, None)
        topic = self._topics.get(subscription.topic.id)
        watcher = topic.watchers.pop(subscription, None) if topic is not None else None
        if topic is not None and watcher is not None:
            topic.room.leave(watcher.member_id)
            self._changed(topic)

    def forget(self, connection: Connection) -> None:
        """The connection has ended."""
        self._allowances.pop(connection, None)

    def departed(self, subscription: Subscription) -> None:
        """A row left the view of a subscription, or may have without a word while it was rebuilt."""
        if not subscription.table.restricted:
            return
        if self._takes_part(subscription) or subscription in self._checks:
            self._check(subscription, self._awaiting.get(subscription, _SAME))

    async def run(self) -> None:
        """Listen and tell until cancelled; what Redis misses, the next refresh puts right."""
        try:
            await until_one_fails(self._keep_listening(), self._keep_telling())
        finally:
            for check in self._checks.values():
                check.cancel()
            await asyncio.gather(*self._checks.values(), return_exceptions=True)

    # Members

    def _take(self, connection: Connection, request: PresenceRequest) -> None:
        subscription = connection.subscriptions.get(request.sub)
        if subscription is None:
            raise UnknownSubscription(f"There is no subscription {request.sub[:100]!r} on this connection.")
        self._spend(connection)
        if len(request.state) > STATE_BYTES:
            raise StateTooLarge
        state = msgspec.Raw(bytes(request.state))  # a copy: the frame's whole text is not kept for it
        if subscription.table.restricted and not self._takes_part(subscription):
            if not _names_one_row(subscription):
                raise NotForYou
            self._check(subscription, state)
            return
        self._enter(subscription, state)

    def _spend(self, connection: Connection) -> None:
        now_s = time.monotonic()
        allowance, at_s = self._allowances.get(connection, (float(STATES_PER_S), now_s))
        allowance = min(float(STATES_PER_S), allowance + (now_s - at_s) * STATES_PER_S)
        self._allowances[connection] = (max(0.0, allowance - 1), now_s)
        if allowance < 1:
            raise LimitReached(f"A connection may send {STATES_PER_S} states a second.")

    def _takes_part(self, subscription: Subscription) -> bool:
        topic = self._topics.get(subscription.topic.id)
        return topic is not None and subscription in topic.watchers

    def _enter(self, subscription: Subscription, state: msgspec.Raw) -> None:
        connection = subscription.connection
        if connection.principal is None or connection.client_id is None:
            return
        topic = self._topics.get(subscription.topic.id)
        if topic is None:
            topic = self._open(subscription.topic.id)
        watcher = topic.watchers.get(subscription)
        if watcher is None:
            watcher = topic.watchers[subscription] = _Watcher()
        if bytes(state) == b"null":
            topic.room.leave(watcher.member_id)
        else:
            user, client = connection.principal.user, connection.client_id
            topic.room.enter(Member(watcher.member_id, user, client, watcher.since_ms, state))
        self._changed(topic)

    def _open(self, topic_id: str) -> _Topic:
        phase_s = hash(topic_id) % 1000 / 1000 * REFRESH_S
        topic = self._topics[topic_id] = _Topic(topic_id, Room(self._instance, self._numbers, phase_s))
        self._moved.add(topic_id)
        return topic

    def _exclude(self, subscription: Subscription) -> None:
        self.left(subscription)
        error = NotForYou()
        subscription.connection.control(Error(error.code, str(error), reference(subscription.id)))

    def _check(self, subscription: Subscription, state: msgspec.Raw) -> None:
        """Let a subscription take part, or go on to, if its user sees the row; the newest state counts."""
        check = self._checks.pop(subscription, None)
        if check is not None:
            check.cancel()
        self._awaiting[subscription] = state
        self._checks[subscription] = asyncio.get_running_loop().create_task(self._look(subscription))

    async def _look(self, subscription: Subscription) -> None:
        connection = subscription.connection
        try:
            # Named one row: views took part before their table was given readers, too.
            seen = _names_one_row(subscription) and await self._sees(subscription)
        except (psycopg.Error, PoolTimeout):
            self.left(subscription)
            message = "Whether you may take part cannot be judged right now; try again."
            connection.control(Error("unavailable", message, reference(subscription.id)))
            return
        self._checks.pop(subscription, None)
        state = self._awaiting.pop(subscription, _SAME)
        if connection.subscriptions.get(subscription.id) is not subscription:
            return
        if not seen:
            self._exclude(subscription)
        elif state:
            self._enter(subscription, state)

    async def _sees(self, subscription: Subscription) -> bool:
        principal = subscription.connection.principal
        if principal is None:
            return False
        async with (
            self._pool.connection(timeout=_POOL_WAIT_S) as database,
            open_snapshot(database, principal, subscription.table, subscription.topic.where) as snapshot,
        ):
            async for _ in snapshot.pages:
                return True
        return False

    # Telling

    def _changed(self, topic: _Topic) -> None:
        self._dirty.add(topic.id)
        self._wake.set()

    async def _keep_telling(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TELL_EVERY_S if self._topics else None):
                    await self._wake.wait()
            self._wake.clear()
            now_s = time.monotonic()
            self._look_after_some(now_s)
            due, self._dirty = self._dirty, set()  # what changes from here on is told in the next turn
            reached = True
            for number, topic_id in enumerate(due, 1):
                topic = self._topics.get(topic_id)
                if topic is not None:
                    reached = reached and await self._publish(topic, now_s)
                    self._tell_or_close(topic, now_s)
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(_TELL_EVERY_S)

    def _look_after_some(self, now_s: float) -> None:
        """Forget who is dead, and tell all where that is due: a share of the topics, by turns."""
        if not self._turn:
            self._turn = list(self._topics)
        share = max(1, -(-len(self._topics) // _TURNS))
        for topic_id in self._turn[-share:]:
            topic = self._topics.get(topic_id)
            if topic is not None:
                topic.room.forget(now_s)
                self._dirty.add(topic_id)
        del self._turn[-share:]

    async def _publish(self, topic: _Topic, now_s: float) -> bool:
        """Tell the other gateways what has changed; False if Redis cannot be reached."""
        redis = self._redis
        if redis is None or topic.channel is None:
            return True
        said = topic.room.say(now_s, asks=not topic.heard)
        topic.heard = True
        if said is not None:
            try:
                await redis.publish(topic.channel, self._sealer.seal(_json(said), topic.channel.encode()))
            except (RedisError, OSError) as error:
                _log.info("presence not told", reason=type(error).__name__)
                return False
        return True

    def _tell_or_close(self, topic: _Topic, now_s: float) -> None:
        if now_s < topic.tell_due_s:
            self._changed(topic)
            return
        self._tell(topic, now_s)
        if topic.watchers:
            return
        if topic.room.silent:
            del self._topics[topic.id]
            self._moved.add(topic.id)
        else:  # who was the last is to be told of yet
            self._changed(topic)

    def _tell(self, topic: _Topic, now_s: float) -> None:
        """Tell this gateway's watchers what has changed; who is behind is told all of it later."""
        news = topic.room.news()
        change = _text(news) if news is not None and topic.watchers else None
        whole: str | None = None
        told_bytes = 0
        for subscription, watcher in topic.watchers.items():
            connection = subscription.connection
            if watcher.told and change is None:
                continue
            if connection.busy:
                watcher.told = False
                self._dirty.add(topic.id)
                continue
            if watcher.told and change is not None:
                text = f'{{"type":"presence","sub":{subscription.sub},{change}}}'
            else:
                if whole is None:
                    whole = _text(News(topic.room.here(), [], topic.room.count))
                me = f'"you":"{watcher.member_id}"'
                text = f'{{"type":"presence","sub":{subscription.sub},"whole":true,{me},{whole}}}'
            watcher.told = True
            connection.tell(text)
            told_bytes += len(text)
        topic.tell_due_s = now_s + told_bytes / _ROOM_BYTES_PER_S

    # Listening

    async def _keep_listening(self) -> None:
        while True:
            client = connect_async(self._settings.redis_events_url)
            try:
                async with client.pubsub() as pubsub:
                    await self._listen(client, pubsub)
            except (RedisError, OSError) as error:
                _log.info("presence interrupted", reason=type(error).__name__)
                await asyncio.sleep(_RETRY_S)
            finally:
                self._redis = None
                self._followed, self._by_channel = None, {}
                self._listening.clear()
                for topic in self._topics.values():
                    topic.channel, topic.heard = None, False
                with contextlib.suppress(RedisError, OSError):
                    await client.aclose()

    async def _listen(self, client: Redis, pubsub: PubSub) -> None:
        await pubsub.subscribe(f"cs:presence:{self._instance}")  # or there would be nothing to wait for
        self._redis = client
        while True:
            await self._follow(pubsub)
            message: Any = await pubsub.get_message(timeout=_LOOK_EVERY_S)
            if message is None:
                continue
            channel = message["channel"].decode()
            topic = self._topics.get(self._by_channel.get(channel, ""))
            if topic is None:
                continue
            if message["type"] == "subscribe":  # also again, when the driver has connected by itself
                self._listening.add(channel)
                self._begin(topic, channel)
            elif message["type"] == "message":
                self._hear(topic, channel, message["data"])

    def _begin(self, topic: _Topic, channel: str) -> None:
        topic.channel, topic.heard = channel, False
        self._changed(topic)

    async def _follow(self, pubsub: PubSub) -> None:
        """Listen to the channels of the topics that somebody takes part in, and to no others."""
        keys = self._keys()
        if keys is None:
            return
        moved, self._moved = self._moved, set()
        old: set[str] = set()
        if keys != self._followed:  # all channels have other names
            old, moved = set(self._by_channel), set(self._topics)
            self._followed, self._by_channel = keys, {}
        new: set[str] = set()
        for topic_id in moved:
            channel, topic = keys.presence(topic_id), self._topics.get(topic_id)
            if topic is None:
                if self._by_channel.pop(channel, None) is not None:
                    old.add(channel)
            elif channel not in self._by_channel:
                self._by_channel[channel] = topic_id
                new.add(channel)
            elif topic.channel is None and channel in self._listening:  # left and entered anew meanwhile
                self._begin(topic, channel)
        if old:
            self._listening -= old
            await pubsub.unsubscribe(*old)
        if new:
            await pubsub.subscribe(*new)

    def _hear(self, topic: _Topic, channel: str, sealed: bytes) -> None:
        try:
            said = _said(self._keyring.open(sealed, channel.encode()))
        except (SealBroken, msgspec.MsgspecError):
            _log.warning("presence that cannot be read")
            return
        topic.room.hear(said, time.monotonic())
        self._changed(topic)


def reference(subscription_id: str) -> str:
    """What errors about a presence refer to: the subscription itself is as it was."""
    return f"presence:{subscription_id[:100]}"


def _names_one_row(subscription: Subscription) -> bool:
    named = {c.column for c in subscription.topic.where if c.operator == "eq"}
    return named.issuperset(subscription.table.key)


def _text(news: News) -> str:
    members = [
        {"id": member.id, "user": member.user, "client": member.client, "state": member.state}
        for member in news.here
    ]
    return f'"members":{_json(members).decode()},"left":{_json(news.gone).decode()},"count":{news.count}'
