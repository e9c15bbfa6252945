"""Whether servers that we did not start can carry CloudSync. Each refusal is one sentence with a code."""

from __future__ import annotations

from urllib.parse import urlsplit

import psycopg
import redis
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError

from cloudsync.errors import (
    CloudSyncError,
    ConfigurationError,
    DatabaseUnreachable,
    DatabaseUnsuitable,
    RedisUnauthorized,
    RedisUnreachable,
    RedisUnsuitable,
)

_TIMEOUT_S = 5


def check_postgres(url: str) -> None:
    """Raises DatabaseUnreachable, DatabaseUnsuitable, ConfigurationError."""
    try:
        with psycopg.connect(url, connect_timeout=_TIMEOUT_S, autocommit=True) as connection:
            row = connection.execute(
                """
                SELECT current_setting('server_version_num')::int, current_setting('server_version'),
                       current_setting('wal_level'), current_user::text,
                       rolsuper OR rolreplication OR EXISTS (
                           SELECT FROM pg_roles granted
                           WHERE granted.rolname = 'rds_replication' AND pg_has_role(granted.oid, 'MEMBER')),
                       pg_is_in_recovery(),
                       current_setting('max_replication_slots')::int
                           - (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> 'cloudsync')
                FROM pg_roles WHERE rolname = current_user
                """
            ).fetchone()
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(f"--postgres-url is not a PostgreSQL URL: {error}".strip()) from None
    except psycopg.Error as error:
        raise unreachable_postgres(error) from None
    if row is None:
        raise DatabaseUnsuitable("The role of --postgres-url is unknown to the server.")
    number, version, wal_level, role, replicates, standby, free_slots = row
    if number < 150000:
        raise DatabaseUnsuitable(f"This is PostgreSQL {version}; CloudSync needs 15 or newer.")
    if standby:
        raise DatabaseUnsuitable("This PostgreSQL server is a standby.", hint="Use the primary's URL.")
    if wal_level != "logical":
        raise DatabaseUnsuitable(
            f"This PostgreSQL server runs with wal_level = {wal_level}; CloudSync needs logical.",
            hint="Set wal_level = logical (on RDS: rds.logical_replication = 1) and restart the server.",
        )
    if not replicates:
        raise DatabaseUnsuitable(
            f"The role {role} may not replicate.",
            hint=f"ALTER ROLE {role} REPLICATION (on RDS: GRANT rds_replication TO {role}).",
        )
    if free_slots < 1:
        raise DatabaseUnsuitable(
            "Every replication slot of this PostgreSQL server is in use.", hint="Raise max_replication_slots."
        )


def check_redis(url: str) -> list[str]:
    """Sentences worth showing about a usable server.

    Raises RedisUnreachable, RedisUnauthorized, RedisUnsuitable, ConfigurationError.
    """
    try:
        with redis.Redis.from_url(
            url, socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S
        ) as server:
            server.ping()
            version = str(server.info("server")["redis_version"])
            policy = server.info("memory").get("maxmemory_policy", "noeviction")
    except ValueError as error:
        raise ConfigurationError(f"--redis-url is not a Redis URL: {error}") from None
    except redis.RedisError as error:
        raise unusable_redis(error, url) from None
    if int(version.split(".")[0]) < 7:
        raise RedisUnsuitable(f"This is Redis {version}; CloudSync needs 7 or newer.")
    if policy != "noeviction":
        return [f"Redis evicts keys (maxmemory-policy {policy}); set it to noeviction, or feeds are lost."]
    return []


def unreachable_postgres(error: Exception) -> CloudSyncError:
    """What a connection error of psycopg means to the user."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0].removeprefix("connection failed: ") if lines else "no reason given"
    return DatabaseUnreachable(f"PostgreSQL cannot be reached: {reason.rstrip('.')}.")


def unusable_redis(error: Exception, url: str = "") -> CloudSyncError:
    """What a connection error of redis-py means to the user."""
    text = str(error).rstrip(".")
    refused = isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError)
    if refused or text.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
        if "required" in text.lower() or text.startswith("HELLO must be called"):
            return RedisUnauthorized(
                "Redis asks for a password.", hint="Put it in the URL: redis://:PASSWORD@HOST:PORT."
            )
        return RedisUnauthorized(f"Redis refused the password: {text}.")
    where = urlsplit(url)
    place = f" at {where.hostname}:{where.port or 6379}" if where.hostname else ""
    return RedisUnreachable(f"Redis cannot be reached{place}: {text}.")
