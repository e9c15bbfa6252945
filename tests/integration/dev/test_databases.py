"""Databases of dedicated tenants on the embedded server."""

from __future__ import annotations

import psycopg
import pytest

from cloudsync.dev import databases
from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.errors import TenantRefused


def test_a_tenant_that_is_refused_leaves_no_database(
    postgres: EmbeddedPostgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "DATABASE", database.rpartition("/")[2])
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE todos (id bigint PRIMARY KEY)")
        connection.execute("INSERT INTO todos VALUES (1)")
        connection.execute("SELECT cloudsync.track('todos', tenant => 'beta')")
        migrated: list[str] = []
        with pytest.raises(TenantRefused, match=r"beta has rows in public\.todos"):
            databases.attach_tenants(postgres, ["alpha", "beta"], migrate=migrated.append)
        assert migrated == []
        names = [databases.tenant_database(slug) for slug in ("alpha", "beta")]
        made = connection.execute("SELECT datname FROM pg_database WHERE datname = ANY(%s)", (names,))
        assert made.fetchall() == []
