"""What a client is told of rows that were read for it, and of a request that failed."""

from __future__ import annotations

import psycopg
from psycopg_pool import PoolTimeout
from redis.exceptions import RedisError

from cloudsync import logs
from cloudsync.errors import CloudSyncError
from cloudsync.gateway.hub import Subscription
from cloudsync.protocol.frames import Verdict, project_text, snapshot_text
from cloudsync.protocol.messages import Error
from cloudsync.sync.snapshot import SnapshotRow

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
    if isinstance(error, psycopg.Error):  # its message may quote values
        _log.warning("request failed", reason=type(error).__name__, sqlstate=error.sqlstate)
    else:
        _log.warning("request failed", reason=type(error).__name__, exc_info=error)
    if isinstance(error, (psycopg.OperationalError, PoolTimeout, RedisError, OSError)):
        return Error("unavailable", "The server cannot do this right now; try again.", ref)
    return Error("internal", "The server met an error of its own.", ref)
