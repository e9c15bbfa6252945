"""`cloudsync tenant`: what an operator does with tenants, as text on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from psycopg import Connection
from rich.console import Console
from rich.table import Table

from cloudsync.errors import ConfigurationError, TenantRefused
from cloudsync.tenants import attachment, partitions, records
from cloudsync.tenants.records import Plan, Tenant

_LENGTH: Final = 200


def create(conn: Connection[Any], tenant_id: str, *, name: str | None, plan: Plan) -> Iterator[str]:
    """Record a tenant and give its rows the place of its plan. Raises TenantExists, TenantRefused."""
    _refuse_malformed(tenant_id)
    _refuse_dedicated(plan)
    records.create(conn, Tenant(tenant_id, name or tenant_id, "shared", None, "active"))
    yield f"Created the tenant {tenant_id}."
    if plan != "shared":
        yield from move(conn, tenant_id, plan=plan)


def move(conn: Connection[Any], tenant_id: str, *, plan: Plan) -> Iterator[str]:
    """Put the tenant's rows where another plan has them; a repeat takes up what was left or came since."""
    if records.find(conn, tenant_id).database is not None:
        raise TenantRefused(
            f"The tenant {tenant_id} has a database of its own.",
            hint="`cloudsync tenant detach` gives it back to the shared one first.",
        )
    _refuse_dedicated(plan)
    act = partitions.separate if plan == "partitioned" else partitions.unite
    for moved in act(conn, tenant_id):
        yield f"{moved.table}: {moved.partition or 'default partition'}, {moved.rows} rows moved."
    records.set_plan(conn, tenant_id, plan)
    yield f"The tenant {tenant_id} is {plan}."


def attach(
    conn: Connection[Any], tenant_id: str, reference: str, *, within_s: float
) -> tuple[str, list[str]]:
    """Have a tenant served from a database of its own: what was done, and what is to be warned of.

    Raises TenantRefused, ConfigurationError.
    """
    _refuse_malformed(tenant_id)
    done, unseen = attachment.attach(conn, tenant_id, reference)
    warnings = [f"Whether {table} has rows of the tenant cannot be seen by this role." for table in unseen]
    doubt = attachment.doubt(reference)
    if doubt is not None:
        warnings.append(doubt)
    if done == "as it was":
        return f"The tenant {tenant_id} is attached to this database already.", warnings
    which = "a" if done == "attached" else "another"
    said = f"The tenant {tenant_id} is served from {which} database of its own within about {within_s:.0f} s."
    return said, warnings


def detach(conn: Connection[Any], tenant_id: str, *, within_s: float) -> str:
    """Have a tenant served from the shared database again. Raises UnknownTenant."""
    if not attachment.detach(conn, tenant_id):
        return f"The tenant {tenant_id} is in the shared database already."
    return f"The tenant {tenant_id} is served from the shared database within about {within_s:.0f} s."


def disable(conn: Connection[Any], tenant_id: str, *, within_s: float) -> str:
    """Close the tenant's connections and let no new ones in. Raises UnknownTenant."""
    records.find(conn, tenant_id)
    records.set_status(conn, tenant_id, "disabled")
    return f"The tenant {tenant_id} is disabled; its connections close within about {within_s:.0f} s."


def enable(conn: Connection[Any], tenant_id: str) -> str:
    """Let the tenant's users in again. Raises UnknownTenant."""
    records.find(conn, tenant_id)
    records.set_status(conn, tenant_id, "active")
    return f"The tenant {tenant_id} is active."


def show_all(conn: Connection[Any], console: Console) -> None:
    """Every tenant that was created; those that only tokens name are none of them."""
    table = Table("tenant", "name", "plan", "status", box=None)
    for tenant in records.list_tenants(conn):
        table.add_row(tenant.id, tenant.name, tenant.plan, tenant.status)
    console.print(table)


def show(conn: Connection[Any], tenant_id: str) -> Iterator[str]:
    """One tenant, and where its rows are. Raises UnknownTenant."""
    tenant = records.find(conn, tenant_id)
    yield f"{tenant.id}  {tenant.name}  {tenant.plan}  {tenant.status}"
    if tenant.database is not None:
        yield f"database  {tenant.database}"
        return
    for table, partition in partitions.places(conn, tenant_id):
        yield f"{table}  {partition or 'default partition'}"


def _refuse_malformed(tenant_id: str) -> None:
    if not tenant_id or len(tenant_id) > _LENGTH or tenant_id != tenant_id.strip() or "\0" in tenant_id:
        raise ConfigurationError(
            f"A tenant's id is text of at most {_LENGTH} characters, as its tokens have it."
        )


def _refuse_dedicated(plan: Plan) -> None:
    if plan == "dedicated":
        raise TenantRefused(
            "A dedicated tenant has a database of its own, which this command does not make.",
            hint="`cloudsync tenant attach` records it: runbooks/add-a-tenant.md.",
        )
