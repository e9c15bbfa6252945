"""The Celery tasks: routing, the sweep that makes sure of it, and upkeep of the database."""

from __future__ import annotations

import time
from functools import cache
from typing import Any, Final

import redis
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.feeds.backlog import read_backlog
from cloudsync.feeds.connection import connect, text_of
from cloudsync.feeds.keys import DATABASES, Keys, epoch_key
from cloudsync.keyring import Keyring
from cloudsync.registry.gateways import reap
from cloudsync.routing import database
from cloudsync.routing.application import MAINTAIN_EVERY_S, SWEEP_EVERY_S, application, stopping
from cloudsync.routing.pace import is_due, is_stale
from cloudsync.routing.router import Router
from cloudsync.routing.slice import Slice
from cloudsync.routing.subscriber import start_router
from cloudsync.settings import current
from cloudsync.sharding import SHARDS
from cloudsync.unlocking import open_keyring

_SHARE_BACKLOG_EVENTS: Final = 20_000

_log = logs.get("routing")
_maintain: Final = database.everywhere("maintain", "SELECT cloudsync.maintain()")


@cache
def _redis() -> redis.Redis:
    return connect(current().redis_events_url)


@cache
def _keyring() -> Keyring:
    return open_keyring(current())


def _router(keys: Keys) -> Router:
    return Router(_redis(), keys, _keyring(), current())


@application.task(name="cloudsync.route")
def route(database_id: str, epoch: str, since_ms: int) -> None:
    """Lease shards of a database and of the others that have clients, route, and linger for more."""
    if stopping.value:
        return
    keys = Keys(database_id, epoch)
    began = time.monotonic()
    try:
        if is_stale(_redis(), keys, since_ms):
            return
        part = Slice(_redis(), _router(keys), current(), make=_router)
        events = part.linger(lambda: bool(stopping.value))
        _log.debug("slice over", events=events, seconds=round(time.monotonic() - began, 3))
        # What arrived between the last read and the release found every shard still leased.
        for router in part.routers:
            if router.behind():
                start_router(_redis(), router.keys)
    except (RedisError, OperationalError) as error:
        # What was read and not marked as routed is routed again: the subscriber and the sweep see to it.
        _log.warning("Redis cannot be used", reason=type(error).__name__, detail=str(error)[:200])


@application.task(name="cloudsync.sweep")
def sweep() -> None:
    """Start routing where a feed is ahead of `done` and nobody is at it; reap dead gateways."""
    if not is_due(_redis(), "sweep", SWEEP_EVERY_S):
        return
    try:
        _sweep(_redis())
    except (RedisError, OperationalError) as error:
        _log.warning("Redis cannot be swept", reason=type(error).__name__, detail=str(error)[:200])


def _sweep(client: redis.Redis) -> None:
    members: Any = client.smembers(DATABASES)
    for member in members:
        database_id = member.decode()
        epoch = text_of(client.get(epoch_key(database_id)))
        if epoch is None:
            continue
        keys = Keys(database_id, epoch)
        for gateway_id in reap(client, keys):
            _log.warning("reaped a dead gateway", gateway=gateway_id)
        backlog = read_backlog(client, keys)
        routers: Any = client.zcard(keys.routers)
        if backlog.unserved or (backlog.events > _SHARE_BACKLOG_EVENTS and routers < SHARDS):
            start_router(client, keys)


@application.task(name="cloudsync.maintain")
def maintain() -> None:
    """Partitions ahead, old ones dropped."""
    if not is_due(_redis(), "maintain", MAINTAIN_EVERY_S):
        return
    _maintain()
