"""PostgreSQL and Redis as servers: versions, settings, encryption, clocks. Nothing of CloudSync's own yet."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import redis
from psycopg import Connection

from cloudsync.capture.migrations import MINIMUM_VERSION
from cloudsync.doctor.findings import Finding, failure, ok, warning

REDIS_LEAST: Final = 7
_SKEW_WARNING_S: Final = 0.5
_SKEW_FAILURE_S: Final = 5.0  # beyond it the server does not believe a client's clock, either
_SLOT_WAL_ADVICE: Final = (
    "Set max_slot_wal_keep_size (twice that must fit on the disk), or a slot that nobody reads fills it."
)


def check_postgres(conn: Connection[Any], host: str) -> Iterator[Finding]:
    """The server that the connection leads to. `conn` is in autocommit; raises psycopg errors."""
    shown: dict[str, str] = dict(
        conn.execute(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)",
            (
                [
                    "server_version_num",
                    "server_version",
                    "wal_level",
                    "max_slot_wal_keep_size",
                    "idle_in_transaction_session_timeout",
                    "transaction_timeout",
                    "wal_sender_timeout",
                ],
            ),
        ).fetchall()
    )
    version = shown["server_version"]
    if int(shown["server_version_num"]) < MINIMUM_VERSION:
        yield failure(
            "postgres.version",
            f"PostgreSQL {version}.",
            "Upgrade to 15 or newer: runbooks/major-version-upgrade.md.",
        )
    else:
        yield ok("postgres.version", f"PostgreSQL {version}.")
    if shown["wal_level"] != "logical":
        yield failure(
            "postgres.wal_level",
            f"wal_level is {shown['wal_level']}: nothing can be streamed.",
            "Set wal_level = logical (on RDS: rds.logical_replication = 1) and restart the server.",
        )
    else:
        yield ok("postgres.wal_level", "wal_level is logical.")
    if int(shown["max_slot_wal_keep_size"]) < 0:
        yield warning("postgres.slot_limit", "The WAL that a slot may hold has no limit.", _SLOT_WAL_ADVICE)
    else:
        yield ok("postgres.slot_limit", f"A slot may hold {shown['max_slot_wal_keep_size']} MB of WAL.")
    unbounded = [
        name
        for name in ("idle_in_transaction_session_timeout", "transaction_timeout")
        if shown.get(name, "0") == "0"
    ]
    if unbounded:
        yield warning(
            "postgres.timeouts",
            f"{' and '.join(unbounded)} not set: one open transaction pins the slot's WAL.",
            "Set them for the application's roles, or for the server.",
        )
    else:
        yield ok("postgres.timeouts", "Open transactions end by themselves.")
    encrypted = conn.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    yield _encryption("postgres.tls", "PostgreSQL", encrypted == (True,), host)
    before_s = time.time()
    (server_s,) = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone() or (0.0,)
    yield _clock("postgres.clock", "PostgreSQL's", server_s - (before_s + time.time()) / 2)


def check_redis(client: redis.Redis, subject: str, url: str) -> Iterator[Finding]:
    """A Redis server, `subject` being `redis.events` or `redis.broker`. Raises redis errors."""
    address = urlsplit(url)
    info: Any = client.info()
    version = str(info["redis_version"])
    if int(version.split(".")[0]) < REDIS_LEAST:
        yield failure(f"{subject}.version", f"Redis {version}.", f"Upgrade to {REDIS_LEAST} or newer.")
    else:
        yield ok(f"{subject}.version", f"Redis {version}.")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield failure(
            f"{subject}.policy",
            f"maxmemory-policy is {policy}: feeds, leases and queues may be evicted.",
            "Set it to noeviction (on ElastiCache: in the parameter group).",
        )
    else:
        yield ok(f"{subject}.policy", "Nothing is evicted.")
    used, limit = int(info["used_memory"]), int(info.get("maxmemory", 0))
    if limit and used > limit * 0.8:
        yield failure(
            f"{subject}.memory",
            f"{used * 100 // limit} % of its memory is used, and nothing is evicted.",
            "See runbooks/redis-unavailable.md; take a larger node, or lower CLOUDSYNC_FEED_BUDGET_BYTES.",
        )
    else:
        yield ok(f"{subject}.memory", f"{used / 2**20:.0f} MiB used.")
    yield _encryption(f"{subject}.tls", "Redis", address.scheme == "rediss", address.hostname or "")
    before_s = time.time()
    seconds, microseconds = client.time()
    server_s = seconds + microseconds / 1e6
    yield _clock(f"{subject}.clock", "Redis's", server_s - (before_s + time.time()) / 2)


def _encryption(subject: str, what: str, encrypted: bool, host: str) -> Finding:
    if encrypted:
        return ok(subject, "The connection is encrypted.")
    if _is_here(host):
        return ok(subject, "The connection does not leave this machine.")
    return failure(
        subject,
        f"The connection to {what} at {host} is not encrypted.",
        "Use sslmode=verify-full, or rediss://.",
    )


def _is_here(host: str) -> bool:
    if host in ("", "localhost") or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _clock(subject: str, whose: str, skew_s: float) -> Finding:
    text = f"{whose} clock is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's."
    advice = "See that both machines keep time (chrony, or the Amazon Time Sync Service)."
    if abs(skew_s) > _SKEW_FAILURE_S:
        return failure(subject, text, advice)
    if abs(skew_s) > _SKEW_WARNING_S:
        return warning(subject, text, advice)
    return ok(subject, f"{whose} clock agrees with this machine's.")
