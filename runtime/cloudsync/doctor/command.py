"""Runs every check that can be run, whatever is broken, and prints what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import psycopg
import redis
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.table import Table
from rich.text import Text

import cloudsync
from cloudsync.dev.checks import unreachable_postgres, unusable_redis
from cloudsync.doctor import database, processes, servers, tenants
from cloudsync.doctor.findings import Finding, State, failure, warning

_TIMEOUT_S = 5
_STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def examine(
    *, postgres_url: str, redis_url: str, broker_url: str = "", api_url: str = "", slot: str
) -> Iterator[Finding]:
    """Every finding, good and bad. Raises nothing for what is only broken."""
    conn, client = None, None
    try:
        conn = psycopg.connect(postgres_url, connect_timeout=_TIMEOUT_S, autocommit=True)
        conn.execute("SET statement_timeout = '10s'")
    except psycopg.Error as error:
        yield failure(
            "postgres.reach",
            str(unreachable_postgres(error)),
            "See its address, password and security group.",
        )
    try:
        if conn is not None:
            yield from _database(conn, _host(postgres_url), slot)
        roles = {"redis.events": redis_url}
        if broker_url and broker_url != redis_url:
            roles["redis.broker"] = broker_url
        for subject, url in roles.items():
            opened = _open_redis(url)
            if isinstance(opened, Finding):
                yield Finding(f"{subject}.reach", opened.state, opened.text, opened.advice)
                continue
            yield from _kept(subject, partial(servers.check_redis, opened, subject, url))
            if subject == "redis.events":
                client = opened
        if conn is not None and client is not None and database.is_migrated(conn):
            yield from _kept("queue", lambda: processes.check_queue(conn, client))
    finally:
        if conn is not None:
            conn.close()
    if api_url:
        yield from processes.check_api(api_url, cloudsync.__version__)


def _database(conn: psycopg.Connection[Any], host: str, slot: str) -> Iterator[Finding]:
    yield from _kept("postgres", lambda: servers.check_postgres(conn, host))
    yield from _kept("database.schema", lambda: database.check_schema(conn))
    yield from _kept("database.roles", lambda: database.check_roles(conn))
    if not database.is_migrated(conn):
        return
    for name, check in (
        ("database.capture", database.check_capture),
        ("database.row_security", database.check_row_security),
        ("database.upkeep", database.check_upkeep),
    ):
        yield from _kept(name, partial(check, conn))
    yield from _kept("relay", lambda: processes.check_relay(conn, slot))
    yield from _kept("tenants", lambda: tenants.check_tenants(conn, slot))


def _kept(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that breaks off says so and stops no other."""
    try:
        yield from check()
    except psycopg.errors.InsufficientPrivilege as error:
        text = f"Not looked at: {error.diag.message_primary}."
        yield warning(subject, text, "Connect as the role that migrates.")
    except (psycopg.Error, redis.RedisError) as error:
        yield failure(subject, f"The check broke off: {str(error).splitlines()[0]}.", "Repeat it.")


def _open_redis(url: str) -> Any:
    client = None
    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S)
        client.ping()
    except redis.RedisError as error:
        return failure("", str(unusable_redis(error, url)), "See runbooks/redis-unavailable.md.")
    return client


def _host(url: str) -> str:
    return str(conninfo_to_dict(url).get("host") or "")


def report(findings: list[Finding], console: Console, *, as_json: bool, all_of_them: bool) -> int:
    """Print; the status to exit with: 1 if anything is a failure."""
    if as_json:
        console.print(msgspec.json.encode(findings).decode(), soft_wrap=True, highlight=False, markup=False)
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in findings:
            if all_of_them or finding.state != "ok":
                text = Text(finding.text)
                if finding.advice:
                    text.append(f"\n→ {finding.advice}")
                table.add_row(Text(finding.state, style=_STYLES[finding.state]), finding.subject, text)
        if table.row_count:
            console.print(table)
        counts = {state: sum(each.state == state for each in findings) for state in _STYLES}
        console.print(
            f"{counts['ok']} in order, {counts['warning']} to be looked at, {counts['failure']} broken.",
            highlight=False,
        )
    return int(any(finding.state == "failure" for finding in findings))
