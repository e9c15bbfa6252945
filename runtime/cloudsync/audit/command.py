"""What `cloudsync audit verify` and `cloudsync audit export` do: for those who may read the log."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime

import psycopg

from cloudsync.audit.chain import Head, chain_key
from cloudsync.audit.export import export
from cloudsync.audit.verification import Verification, oldest_day, parse_head
from cloudsync.errors import ConfigurationError
from cloudsync.keyring import Keyring


def verify(url: str, keyring: Keyring, *, since: str | None, expect: list[str]) -> int:
    """Print the first row that is wrong in each chain; 1 if there is one. Raises psycopg.Error."""
    today = datetime.now(UTC).date()
    first = _day(since) if since is not None else oldest_day(today)
    heads = [_head(text) for text in expect]
    with psycopg.connect(url, connect_timeout=10) as connection:
        report = Verification(connection, chain_key(keyring)).run(first, today, heads)
    for fault in report.faults:
        sys.stdout.write(f"{fault}\n")
    verdict = f"{len(report.faults)} are not as they were written" if report.faults else "all as written"
    sys.stdout.write(
        f"{report.rows} rows in {report.chains} chains since {first.isoformat()}, {report.gaps} recorded gaps"
        f": {verdict}.\n"
    )
    return 1 if report.faults else 0


def export_lines(url: str, *, tenant: str | None, since: str | None, until: str | None) -> None:
    """Print the log as JSON lines. Raises psycopg.Error."""
    first, last = _moment(since), _moment(until)
    with psycopg.connect(url, connect_timeout=10) as connection:
        for line in export(connection, tenant=tenant, since=first, until=last):
            sys.stdout.buffer.write(line + b"\n")
    sys.stdout.flush()


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is not a date such as 2026-11-22.") from None


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is not a time such as 2026-11-22T10:00:00+00:00.") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _head(text: str) -> Head:
    try:
        return parse_head(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is not a head: writer/day/sequence/digest.") from None
