"""migrate: each file once, in order, nothing half done, nothing changed behind its back."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from cloudsync.capture import migrations
from cloudsync.capture.migrations import Migration, migrate
from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.errors import DatabaseUnreachable, DatabaseUnsuitable, MigrationRefused


@pytest.fixture
def empty(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of a database without anything."""
    yield from _fresh(postgres, "migrations_empty")


def _fresh(postgres: EmbeddedPostgres, name: str) -> Iterator[str]:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield postgres.url(database=name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _more(*sources: tuple[str, str]) -> list[Migration]:
    """The real migrations and further ones."""
    extra = [
        Migration(name, "post" if "_post_" in name else "pre", f"digest of {source}", source)
        for name, source in sources
    ]
    return [*migrations.load(), *extra]


def _definition(url: str) -> str:
    dump = subprocess.run(
        [EmbeddedPostgres.binary("pg_dump"), "--schema-only", "--no-comments", "--dbname", url],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return re.sub(r"^\\(un)?restrict .*$", "", dump, flags=re.M)


def test_schema_and_migrations_give_the_same_database(postgres: EmbeddedPostgres, empty: str) -> None:
    migrate(empty)
    for other in _fresh(postgres, "migrations_schema"):
        with psycopg.connect(other) as connection:
            connection.execute((migrations.sql_folder() / "schema.sql").read_bytes())
            connection.execute("SELECT cloudsync.maintain()")
        migrated, whole = _definition(empty), _definition(other)
        assert migrated == whole
        assert "CREATE FUNCTION cloudsync.track" in whole


def test_twice_does_nothing_more(empty: str) -> None:
    first = migrate(empty)
    assert [record.name for record in first] == [migration.name for migration in migrations.load()]
    assert all(record.applied_at for record in first)
    assert migrate(empty) == []
    with psycopg.connect(empty) as connection:
        assert migrations.applied(connection) == first
        row = connection.execute(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'cloudsync.change_log'::regclass"
        ).fetchone()
        assert row == (5,)  # today, three days ahead, the default


def test_a_plan_changes_nothing(empty: str) -> None:
    planned = migrate(empty, plan_only=True)
    assert [(record.name, record.applied_at) for record in planned] == [
        (m.name, None) for m in migrations.load()
    ]
    with psycopg.connect(empty) as connection:
        assert connection.execute("SELECT to_regnamespace('cloudsync')").fetchone() == (None,)


def test_phases(empty: str) -> None:
    files = _more(
        ("0900_post_x", "CREATE TABLE cloudsync.x (i int)"),
        ("0901_pre_y", "CREATE TABLE cloudsync.y (i int)"),
    )
    with pytest.raises(MigrationRefused, match="phase pre has not been applied"):
        migrate(empty, phase="post", migrations=files)
    assert "0900_post_x" not in [record.name for record in migrate(empty, phase="pre", migrations=files)]
    assert [record.name for record in migrate(empty, phase="post", migrations=files)] == ["0900_post_x"]
    assert migrate(empty, migrations=files) == []


def test_a_failing_migration_leaves_nothing_of_itself(empty: str) -> None:
    migrate(empty)
    files = _more(("0900_pre_x", "CREATE TABLE cloudsync.x (i int); SELECT 1/0"))
    with pytest.raises(MigrationRefused, match="0900_pre_x failed: division by zero"):
        migrate(empty, migrations=files)
    with psycopg.connect(empty) as connection:
        assert connection.execute("SELECT to_regclass('cloudsync.x')").fetchone() == (None,)
    assert [record.name for record in migrate(empty, migrations=_more(("0900_pre_x", "SELECT 1")))] == [
        "0900_pre_x"
    ]


def test_history_must_fit_the_files(empty: str) -> None:
    migrate(empty, migrations=_more(("0900_pre_x", "SELECT 1")))
    with pytest.raises(MigrationRefused, match="0900_pre_x was changed after") as refused:
        migrate(empty, migrations=_more(("0900_pre_x", "SELECT 2")))
    assert "Restore the file" in str(refused.value)
    with pytest.raises(MigrationRefused, match="0900_pre_x, which is not among the files"):
        migrate(empty)
    with pytest.raises(MigrationRefused, match="not among the files"):
        migrate(empty, plan_only=True)


def test_one_at_a_time(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (migrations._LOCK,))
        with pytest.raises(MigrationRefused, match=r"running for 0\.2 s"):
            migrate(empty, wait_s=0.2)
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(migrate, [empty] * 3))
    assert sorted(len(records) for records in done) == [0, 0, len(migrations.load())]


def test_databases_of_one_cluster_migrate_at_the_same_time(postgres: EmbeddedPostgres) -> None:
    """Roles belong to the cluster; here they exist already, so their creation is tried in a cluster of its
    own below."""
    databases = [_fresh(postgres, f"migrations_{number}") for number in range(3)]
    urls = [next(database) for database in databases]
    with ThreadPoolExecutor(3) as pool:
        assert [len(records) for records in pool.map(migrate, urls)] == [len(migrations.load())] * 3
    for database in databases:
        next(database, None)


def test_locks_are_not_waited_for_long(empty: str) -> None:
    migrate(empty)
    with psycopg.connect(empty) as other:
        other.execute("LOCK TABLE cloudsync.clients")
        files = _more(("0900_pre_x", "ALTER TABLE cloudsync.clients ADD COLUMN x int"))
        with pytest.raises(MigrationRefused, match="could not get its locks"):
            migrate(empty, migrations=files, lock_timeout_ms=100)


def test_rights_are_needed(empty: str) -> None:
    with pytest.raises(MigrationRefused, match="not permitted") as refused:
        migrate(empty.replace("postgres@", "cloudsync_relay@"))
    assert "rds_superuser" in str(refused.value)


def test_unsuitable_servers(tmp_path: Path, postgres: EmbeddedPostgres) -> None:
    with pytest.raises(DatabaseUnreachable):
        migrate("postgresql://postgres@127.0.0.1:1/x")
    with EmbeddedPostgres(tmp_path / "replica", durable=False, settings={"wal_level": "replica"}) as server:
        with pytest.raises(DatabaseUnsuitable, match="wal_level = replica") as refused:
            migrate(server.url())
        assert "rds.logical_replication" in str(refused.value)
        # Where it is allowed: databases of a cluster without our roles, migrated at the same time.
        with psycopg.connect(server.url(), autocommit=True) as connection:
            for number in range(3):
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(f"d{number}")))
        with ThreadPoolExecutor(3) as pool:
            urls = [server.url(database=f"d{number}") for number in range(3)]
            done = list(pool.map(lambda url: migrate(url, require_logical=False), urls))
        assert [len(records) for records in done] == [len(migrations.load())] * 3
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(
                "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0 LOCALE_PROVIDER libc"
            )
        with pytest.raises(DatabaseUnsuitable, match="LATIN1"):
            migrate(server.url(database="latin"), require_logical=False)
