"""Dedicated tenants: whether each database can be reached, is migrated, relayed, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

import psycopg
from psycopg import Connection

from cloudsync.dev.checks import unreachable_postgres
from cloudsync.doctor import database, processes
from cloudsync.doctor.findings import Finding, failure, ok, warning
from cloudsync.errors import TenantRefused
from cloudsync.tenants import attachment, records
from cloudsync.tenants.login import Login, PasswordUnavailable
from cloudsync.tenants.reference import parse

_TIMEOUT_S: Final = 5
_RELAY: Final = "SELECT database_id, slot_name FROM cloudsync.relay_state"


def check_tenants(conn: Connection[Any], slot: str) -> Iterator[Finding]:
    """Every tenant that the shared database, which `conn` leads to, lists with one of its own.

    `slot` is what a relay's slot is called by default. Raises psycopg errors of the shared database.
    """
    row = conn.execute(_RELAY).fetchone()
    known: dict[str, str] = {row[0]: "the shared database"} if row else {}
    for tenant in records.list_tenants(conn):
        if tenant.database is None:
            continue
        for found in _check(tenant.id, tenant.database, slot, known):
            yield Finding(f"tenants.{found.subject}", found.state, f"{tenant.id}: {found.text}", found.advice)
        yield _rows(conn, tenant.id)


def _check(tenant: str, text: str, slot: str, known: dict[str, str]) -> Iterator[Finding]:
    """`known` has the databases that were looked at, by id, and gets this one."""
    try:
        opened = Login.of(parse(text)).connect(connect_timeout=_TIMEOUT_S, autocommit=True)
    except TenantRefused as error:
        yield failure("reach", str(error), "Attach the tenant again: `cloudsync tenant attach`.")
        return
    except PasswordUnavailable as error:
        yield failure("reach", str(error), "See the secret, and the right to read it.")
        return
    except psycopg.OperationalError as error:
        advice = "See its address, password and security group; until then none of its users can connect."
        yield failure("reach", str(unreachable_postgres(error)), advice)
        return
    with closing(opened):
        try:
            opened.execute("SET statement_timeout = '10s'")
            yield ok("reach", "Its database can be reached.")
            if not database.is_migrated(opened):
                yield failure("schema", "Its database was not migrated.", "`cloudsync migrate` with its URL.")
                return
            yield from database.check_schema(opened)
            row = opened.execute(_RELAY).fetchone()
            yield from processes.check_relay(opened, row[1] if row else slot)
        except psycopg.errors.InsufficientPrivilege as error:
            yield warning("schema", f"Not looked at: {error.diag.message_primary}.", "See its grants.")
            return
        except psycopg.Error as error:
            yield failure("reach", f"The check broke off: {str(error).splitlines()[0]}.", "Repeat it.")
            return
    if row is not None and row[0] in known:
        advice = "Nobody is served from it: attach the tenant to a database of its own."
        yield failure("identity", f"Its database is that of {known[row[0]]}.", advice)
    elif row is not None:
        known[row[0]] = f"the tenant {tenant}"
        yield ok("identity", "Its database is nobody else's.")


def _rows(conn: Connection[Any], tenant: str) -> Finding:
    holding, unseen = attachment.tables_with_rows(conn, tenant)
    if holding:
        return failure(
            "tenants.rows",
            f"{tenant}: has rows in {', '.join(holding)} of the shared database, where nobody finds them.",
            "Move them: runbooks/move-a-tenant.md.",
        )
    if unseen:
        text = f"{tenant}: not looked for its rows in {', '.join(unseen)} of the shared database."
        return warning("tenants.rows", text, "Connect as the role that tracked these tables.")
    return ok("tenants.rows", f"{tenant}: has no rows in the shared database.")
