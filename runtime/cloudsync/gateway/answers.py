"""What a client is told of rows that were read for it, and of a request that failed."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg_pool import PoolTimeout
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.errors import CloudSyncError
from cloudsync.gateway.hub import Subscription
from cloudsync.protocol.frames import Verdict, project_text, snapshot_text
from cloudsync.protocol.messages import Error
from cloudsync.resolve.refusals import TryAgain
from cloudsync.sync.snapshot import SnapshotRow

_PASSING: Final = (TryAgain, psycopg.OperationalError, PoolTimeout, RedisError, OSError)
_log = logs.get("gateway")


def row_texts(subscription: Subscription, rows: list[SnapshotRow]) -> list[tuple[Verdict, str]]:
    """Rows of a subscription's table, as the creations that its client takes them for."""
    name, columns, texts = subscription.table.name, subscription.columns, subscription.texts
    return [
        ("create", snapshot_text(name, row.key, row.version, project_text(row.row, columns), texts))
        for row in rows
    ]


def failure(error: Exception, ref: str) -> Error:
    """The error frame for a request; what its client may not see goes to the log."""
    if isinstance(error, CloudSyncError):
        return Error(error.code, str(error), ref)
    return unforeseen(error, ref, "request failed")


def unforeseen(error: Exception, ref: str, event: str, **about: Any) -> Error:
    """The error frame for what failed through no fault of the client's: it may pass, or be ours. Logged."""
    if isinstance(error, TryAgain):
        _log.info(event, **about, **loggable(error))
    elif isinstance(error, _PASSING):
        _log.warning(event, **about, **loggable(error))
    elif isinstance(error, psycopg.Error):
        _log.error(event, **about, **loggable(error))
    else:
        _log.error(event, **about, **loggable(error), exc_info=error)
    if isinstance(error, _PASSING):
        return Error("unavailable", "The server cannot do this right now; try again.", ref)
    return Error("internal", "The server met an error of its own.", ref)


def loggable(error: Exception) -> dict[str, Any]:
    """What a log may say of an error: no message of a driver's, which may quote values, names or hosts."""
    if isinstance(error, TryAgain):
        return {"reason": str(error)}  # a sentence of our own
    if isinstance(error, psycopg.Error):
        return {"reason": type(error).__name__, "sqlstate": error.sqlstate}
    return {"reason": type(error).__name__}
