"""Wakes routing when a feed grows: a bootstep of the Celery worker that listens on `db_changes`.

Pub/sub only wakes. A lost message delays until the sweep, it never loses; while a lingering router holds a
shard's lease there is nothing to do, so each shard is looked at four times a second at most.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

import redis
from celery import bootsteps
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.feeds.connection import connect, text_of
from cloudsync.feeds.keys import CHANGES_PATTERN, Keys, parse_changes_channel
from cloudsync.routing.holders import free_if_dead
from cloudsync.routing.pace import sent_ms
from cloudsync.settings import current

_LOOK_EVERY_S: Final = 0.25
_START_EXPIRES_MS: Final = 1000
_RETRY_S: Final = 0.5

_log = logs.get("routing")


def start_router(client: redis.Redis, keys: Keys) -> bool:
    """Send one routing task for the database, unless one was sent within the last second."""
    from cloudsync.routing.application import GENERAL, ROUTING, application

    if not client.set(keys.starting(0), 1, nx=True, px=_START_EXPIRES_MS):
        return False
    with application.producer_or_acquire() as producer:
        # Workers bind their queues once. A broker that lost its data takes messages for queues that are not
        # bound and drops them: nothing would be routed any more, and nothing would say so.
        for name in (ROUTING, GENERAL):
            Queue(name, Exchange(name), routing_key=name).bind(producer.channel).declare()
        application.send_task(
            "cloudsync.route",
            args=[keys.database_id, keys.epoch, sent_ms(client, keys)],
            producer=producer,
        )
    return True


class Subscriber(threading.Thread):
    """Listens for wake-ups and starts routing for shards that nobody serves."""

    def __init__(self, url: str) -> None:
        super().__init__(name="db_changes", daemon=True)
        self._url = url
        self._halt = threading.Event()
        self._lost = False
        self._due: dict[tuple[Keys, int], float] = {}
        self._looked: dict[tuple[Keys, int], float] = {}

    def stop(self) -> None:
        self._halt.set()

    def run(self) -> None:
        while not self._halt.is_set():
            try:
                self._listen()
            except (RedisError, OSError, OperationalError) as error:  # the last is the broker's
                if not self._lost:
                    _log.warning("not subscribed, trying again", reason=type(error).__name__)
                self._lost = True
                self._halt.wait(_RETRY_S)

    def _listen(self) -> None:
        client = connect(self._url)
        with client.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
            pubsub.psubscribe(CHANGES_PATTERN)
            if self._lost:
                self._lost = False
                _log.info("subscribed again")
            while not self._halt.is_set():
                wait_s = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else 0.5
                message: Any = pubsub.get_message(timeout=min(wait_s, 0.5))
                if message is not None:
                    self._note(message["channel"].decode())
                self._look(client)

    def _note(self, channel: str) -> None:
        parsed = parse_changes_channel(channel)
        if parsed is not None:
            self._due.setdefault(parsed, self._looked.get(parsed, 0.0) + _LOOK_EVERY_S)

    def _look(self, client: redis.Redis) -> None:
        now = time.monotonic()
        for place in [p for p, due in self._due.items() if due <= now]:
            keys, shard = place
            del self._due[place]
            self._looked[place] = now
            holder = text_of(client.get(keys.lock(shard)))
            if holder is None or free_if_dead(client, keys, holder):
                start_router(client, keys)
        if len(self._looked) > 10_000:
            self._looked.clear()


class SubscriberStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery is untyped
    """Runs the subscriber for as long as the worker consumes."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:
        self.subscriber: Subscriber | None = None

    def start(self, worker: Any) -> None:
        self.subscriber = Subscriber(current().redis_events_url)
        self.subscriber.start()

    def stop(self, worker: Any) -> None:
        if self.subscriber is not None:
            self.subscriber.stop()
