"""Errors that end in one sentence."""

from __future__ import annotations

import sys
from typing import Final

from cloudsync.errors import CloudSyncError, ConfigurationError

_UNREACHABLE: Final = (
    "08",
    "28",
    "3D",
    "57P",
)  # classes: connection, authorization, no such database, shutdown
_OF_AWS: Final = ("boto3", "botocore")


def registered(error: Exception) -> CloudSyncError | None:
    """The registered error that a driver's connection error or a missing extra means, if it is one."""
    psycopg, redis = sys.modules.get("psycopg"), sys.modules.get("redis")
    if isinstance(error, CloudSyncError):
        return error
    if psycopg is not None and isinstance(error, psycopg.OperationalError):
        state = error.sqlstate
        if state is None or state.startswith(_UNREACHABLE):
            from cloudsync.dev.checks import unreachable_postgres

            return unreachable_postgres(error)
    if psycopg is not None and isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        return ConfigurationError(f"The PostgreSQL URL is not usable: {str(error).strip()}.")
    if redis is not None and isinstance(error, redis.RedisError):
        from cloudsync.dev.checks import unusable_redis

        return unusable_redis(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _OF_AWS:
        return ConfigurationError(
            f"{error.name}, which speaks to AWS, is not installed.",
            hint="Install CloudSync with its extra aws: pip install 'cloudsync[aws]'.",
        )
    return None
