"""The platform's database on an embedded or a given server."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from cloudsync.dev.postgres import EmbeddedPostgres

DATABASE: Final = "cloudsync"
SERVICE: Final = "cloudsync_service"


def ensure_database(url: str, name: str = DATABASE) -> None:
    """Create the database if the server lacks it."""
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def tenant_database(slug: str) -> str:
    """The name of a dedicated tenant's database."""
    return f"{DATABASE}_{slug}"


def tenant_slot(slug: str) -> str:
    """The name of its relay's slot: on one server no two have the same."""
    return f"{DATABASE}_{slug.replace('-', '_')}"


def attach_tenants(
    server: EmbeddedPostgres, slugs: Collection[str], *, migrate: Callable[[str], object]
) -> list[str]:
    """Make the databases of dedicated tenants and attach them; sentences on what is worth knowing.

    Raises TenantRefused for one that has rows in the shared database.
    """
    from cloudsync.tenants import attachment, records

    references = {slug: server.url(SERVICE, tenant_database(slug)) for slug in slugs}
    with psycopg.connect(server.url(database=DATABASE), autocommit=True) as connection:
        for slug, reference in references.items():
            attachment.check(connection, slug, reference)  # or one that is refused leaves a database behind
        for slug, reference in references.items():
            ensure_database(server.url(), tenant_database(slug))
            migrate(server.url(database=tenant_database(slug)))
            attachment.attach(connection, slug, reference)
        return [
            f"No relay runs on the database of the tenant {tenant.id}: start with --dedicated {tenant.id}."
            for tenant in records.list_tenants(connection)
            if tenant.id not in slugs and (tenant.database or "").endswith(f"/{tenant_database(tenant.id)}")
        ]


def as_role(url: str, role: str) -> str:
    """The same database as a role without password; a URL stays a URL."""
    if "://" in url:
        parts = urlsplit(url)
        query = "&".join(
            pair for pair in parts.query.split("&") if not pair.lower().startswith(("user=", "password="))
        )
        place = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{quote(role, safe='')}@{place}", query=query))
    parameters = {**conninfo_to_dict(url), "user": role}
    parameters.pop("password", None)
    return make_conninfo("", **parameters)


def lets_in(url: str) -> bool:
    """Whether the server accepts a connection with this URL."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
