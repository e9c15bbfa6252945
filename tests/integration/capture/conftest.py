"""A database with capture installed."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from cloudsync.dev.postgres import EmbeddedPostgres
from integration.capture.logged import Database

_NAME = "capture"


@pytest.fixture(scope="module")
def shared_database(postgres: EmbeddedPostgres, migrated_template: str) -> Iterator[Database]:
    """One migrated database for a module's tests: making one for each costs more than the tests."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(_NAME), sql.Identifier(migrated_template)
            )
        )
    opened = Database(postgres.url(database=_NAME))
    yield opened
    opened.close()
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(_NAME)))


@pytest.fixture
def db(shared_database: Database) -> Iterator[Database]:
    """The module's database, as empty as it was made."""
    yield shared_database
    shared_database.clear()


@pytest.fixture
def notes(db: Database) -> Database:
    """The tracked table notes(id, tenant_id, body, n)."""
    db.run("CREATE TABLE notes (id int PRIMARY KEY, tenant_id text NOT NULL, body text, n int)")
    db.track("notes")
    return db
