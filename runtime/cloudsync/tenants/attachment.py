"""Giving a tenant a database of its own, and back: one row of the shared database that processes follow.

Nothing is moved: the rows are where they are. So a tenant that has rows in the shared database is refused:
nobody would find them any more.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final, Literal, NamedTuple

import psycopg
from psycopg import Connection, sql

from cloudsync.errors import TenantRefused, UnknownTenant
from cloudsync.tenants import records
from cloudsync.tenants.login import Login
from cloudsync.tenants.records import Tenant
from cloudsync.tenants.reference import DatabaseReference, parse

_LOOK_S: Final = 3


class Attached(NamedTuple):
    """What `attach` did, and the tables that this role may not read: there may be rows in them."""

    done: Literal["attached", "moved", "as it was"]
    unseen: list[str]


def attach(conn: Connection[Any], tenant_id: str, text: str) -> Attached:
    """Record a tenant as dedicated, with the reference of its database. `conn` commits by itself.

    A repeat changes nothing. Neither does the tenant's status change: one that is disabled stays so. Raises
    TenantRefused.
    """
    with conn.transaction():
        conn.execute("LOCK TABLE cloudsync.tenants IN SHARE ROW EXCLUSIVE MODE")  # of two at once one waits
        unseen = check(conn, tenant_id, text)
        if unseen is None:
            return Attached("as it was", [])
        known = _known(conn, tenant_id)
        if known is None:
            records.create(conn, Tenant(tenant_id, tenant_id, "dedicated", text, "active"))
            return Attached("attached", unseen)
        records.set_plan(conn, tenant_id, "dedicated", database=text)
        return Attached("attached" if known.database is None else "moved", unseen)


def check(conn: Connection[Any], tenant_id: str, text: str) -> list[str] | None:
    """What `attach` would refuse, before its database is made: raises TenantRefused.

    Returns the tables that this role may not read; None if the tenant is attached there already.
    """
    reference = parse(text)
    known = _known(conn, tenant_id)
    if known is not None and known.database == text:
        return None
    _refuse_taken(conn, tenant_id, reference)
    holding, unseen = tables_with_rows(conn, tenant_id)
    if holding:
        raise TenantRefused(
            f"The tenant {tenant_id} has rows in {', '.join(holding)} of the shared database.",
            hint="Move them first: runbooks/move-a-tenant.md.",
        )
    return unseen


def detach(conn: Connection[Any], tenant_id: str) -> bool:
    """Give a tenant back to the shared database; False if it is there. Raises UnknownTenant."""
    with conn.transaction():
        if records.find(conn, tenant_id).database is None:
            return False
        records.set_plan(conn, tenant_id, "shared")
        return True


def tables_with_rows(conn: Connection[Any], tenant_id: str) -> tuple[list[str], list[str]]:
    """Tracked tables of this database that hold rows of a tenant, and those that this role may not read."""
    tables = conn.execute(
        """
        SELECT t.schema_name, t.table_name, t.tenant_column FROM cloudsync.tracked_tables t
        JOIN pg_class c ON c.oid = t.relid
        WHERE t.tenant_constant IS NULL OR t.tenant_constant = %s ORDER BY 1, 2
        """,
        (tenant_id,),
    ).fetchall()
    holding: list[str] = []
    unseen: list[str] = []
    for schema, name, column in tables:
        of_tenant: sql.Composable = sql.SQL("true")
        if column is not None:
            of_tenant = sql.SQL("{} = {}").format(sql.Identifier(column), sql.Literal(tenant_id))
        query = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})")
        try:
            with conn.transaction():
                found = conn.execute(query.format(sql.Identifier(schema, name), of_tenant)).fetchone()
        except psycopg.errors.DataError:
            continue  # the column is of another type: no row there can be this tenant's
        except psycopg.errors.InsufficientPrivilege:
            unseen.append(f"{schema}.{name}")
            continue
        if found == (True,):
            holding.append(f"{schema}.{name}")
    return holding, unseen


def doubt(text: str) -> str | None:
    """A sentence if it can be told from here that no database of CloudSync is at a reference.

    None also where it cannot be told: who attaches a tenant need not have a way to its database.
    """
    reference = parse(text)
    host, port, _ = reference.place
    if not host.startswith("/") and "," not in host:
        try:
            socket.create_connection((host, int(port)), timeout=_LOOK_S).close()
        except socket.gaierror:
            return f"There is no host {host}, as seen from here."
        except ConnectionRefusedError:
            return f"Nobody listens at {host}:{port}, as seen from here."
        except OSError:
            return None
    with contextlib.suppress(psycopg.Error):
        with Login.of(reference).connect(connect_timeout=_LOOK_S, autocommit=True) as conn:
            migrated = conn.execute("SELECT to_regclass('cloudsync.relay_state') IS NOT NULL").fetchone()
            begun = migrated == (True,) and conn.execute("SELECT FROM cloudsync.relay_state").fetchone()
        if migrated != (True,):
            return "The database has not been migrated: `cloudsync migrate` with its URL."
        if begun is None:
            return "No relay has begun on the database: until then nobody of the tenant can connect."
    return None


def _known(conn: Connection[Any], tenant_id: str) -> Tenant | None:
    try:
        return records.find(conn, tenant_id)
    except UnknownTenant:
        return None


def _refuse_taken(conn: Connection[Any], tenant_id: str, reference: DatabaseReference) -> None:
    if reference.place == (conn.info.host.lower(), str(conn.info.port), conn.info.dbname):
        raise TenantRefused(
            "The reference is that of the shared database.", hint="Give the tenant one of its own."
        )
    for other in records.list_tenants(conn):
        if other.id != tenant_id and _place(other.database) == reference.place:
            raise TenantRefused(f"The database is that of the tenant {other.id}.")


def _place(text: str | None) -> tuple[str, str, str] | None:
    """Where a reference leads; None if there is none, or it was written by hand and is not usable."""
    with contextlib.suppress(TenantRefused):
        return None if text is None else parse(text).place
    return None
