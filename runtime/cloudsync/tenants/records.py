"""The table of tenants. A tenant without a row is an active one of the plan `shared`: its tokens name it."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
import psycopg
from psycopg import Connection
from psycopg.rows import class_row

from cloudsync.errors import TenantExists, UnknownTenant

Plan = Literal["shared", "partitioned", "dedicated"]
Status = Literal["active", "disabled"]
PLANS: Final[tuple[Plan, ...]] = ("shared", "partitioned", "dedicated")
_COLUMNS: Final = "id, name, plan, database, status"


class Tenant(msgspec.Struct, frozen=True):
    """A row of `cloudsync.tenants`; `database` is that of a dedicated tenant, None for others."""

    id: str
    name: str
    plan: Plan
    database: str | None
    status: Status


def create(conn: Connection[Any], tenant: Tenant) -> None:
    """Record a tenant. Raises TenantExists."""
    try:
        conn.execute(
            f"INSERT INTO cloudsync.tenants ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s)",  # noqa: S608 - constant
            (tenant.id, tenant.name, tenant.plan, tenant.database, tenant.status),
        )
    except psycopg.errors.UniqueViolation:
        raise TenantExists(f"There is a tenant {tenant.id} already.") from None


def find(conn: Connection[Any], tenant_id: str) -> Tenant:
    """A tenant that was recorded. Raises UnknownTenant."""
    with conn.cursor(row_factory=class_row(Tenant)) as cursor:
        found = cursor.execute(
            f"SELECT {_COLUMNS} FROM cloudsync.tenants WHERE id = %s",  # noqa: S608 - constant
            (tenant_id,),
        ).fetchone()
    if found is None:
        raise UnknownTenant(
            f"No tenant {tenant_id} was created.", hint="`cloudsync tenant list` shows those that were."
        )
    return found


def list_tenants(conn: Connection[Any]) -> list[Tenant]:
    """Every tenant that was recorded, by id."""
    with conn.cursor(row_factory=class_row(Tenant)) as cursor:
        return cursor.execute(
            f"SELECT {_COLUMNS} FROM cloudsync.tenants ORDER BY id"  # noqa: S608 - constant
        ).fetchall()


def set_plan(conn: Connection[Any], tenant_id: str, plan: Plan, *, database: str | None = None) -> None:
    """What the tenant has paid for, and where its rows are to be looked for."""
    conn.execute(
        "UPDATE cloudsync.tenants SET plan = %s, database = %s WHERE id = %s", (plan, database, tenant_id)
    )


def set_status(conn: Connection[Any], tenant_id: str, status: Status) -> None:
    """Whether the tenant's users are let in."""
    conn.execute("UPDATE cloudsync.tenants SET status = %s WHERE id = %s", (status, tenant_id))
