"""Brings a database to the current schema: numbered SQL files, each once, in a transaction of its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec
import psycopg
from psycopg import Connection
from psycopg import errors as pg_errors

from cloudsync.errors import DatabaseUnreachable, DatabaseUnsuitable, MigrationRefused

Phase = Literal["pre", "post"]

MINIMUM_VERSION: Final = 150000
_LOCK: Final = 0x436C_6F75_6453_796E  # one migration at a time in a database
_NAME: Final = re.compile(r"(?P<number>\d{4})_(?P<phase>pre|post)_[a-z0-9_]+")


class Migration(msgspec.Struct, frozen=True):
    """A file of `sql/migrations`: `pre` runs before new code, `post` after the old code is gone."""

    name: str
    phase: Phase
    digest: str
    sql: str


class AppliedMigration(msgspec.Struct, frozen=True):
    """A migration that was applied; `applied_at` is None where it would only be applied (a plan)."""

    name: str
    phase: Phase
    digest: str
    applied_at: datetime | None


def sql_folder() -> Path:
    """The folder `sql/`: in the installed package, or at the root of a checkout. Raises MigrationRefused."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "sql", package.parent.parent / "sql"):
        if (folder / "migrations").is_dir():
            return folder
    raise MigrationRefused(
        f"The SQL files are missing beside {package}.", hint="Reinstall the package cloudsync."
    )


def load(folder: Path | None = None) -> list[Migration]:
    """The migrations on disk, in order. Raises MigrationRefused for a name without order or phase."""
    found: list[Migration] = []
    for path in sorted(((folder or sql_folder()) / "migrations").glob("*.sql")):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            raise MigrationRefused(
                f"The migration {path.name} has no valid name.",
                hint="Name it NNNN_pre_what.sql or NNNN_post_what.sql.",
            )
        if found and found[-1].name[:4] == match["number"]:
            raise MigrationRefused(
                f"The migrations {found[-1].name} and {path.stem} have the same number.",
                hint="Renumber the newer one.",
            )
        content = path.read_bytes()
        found.append(
            Migration(
                path.stem, cast(Phase, match["phase"]), hashlib.sha256(content).hexdigest(), content.decode()
            )
        )
    return found


def applied(conn: Connection[Any]) -> list[AppliedMigration]:
    """What has been applied to this database, in order."""
    row = conn.execute("SELECT to_regclass('cloudsync.migrations') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return []
    rows = conn.execute(
        "SELECT name, phase, digest, applied_at FROM cloudsync.migrations ORDER BY name"
    ).fetchall()
    return [AppliedMigration(*values) for values in rows]


def plan(
    conn: Connection[Any],
    phase: Phase | Literal["all"] = "all",
    *,
    migrations: Sequence[Migration] | None = None,
) -> list[Migration]:
    """The migrations that `migrate` would apply. Raises MigrationRefused if history and files disagree."""
    on_disk = load() if migrations is None else list(migrations)
    by_name = {migration.name: migration for migration in on_disk}
    done = applied(conn)
    for record in done:
        migration = by_name.get(record.name)
        if migration is None:
            raise MigrationRefused(
                f"The database has the migration {record.name}, which is not among the files.",
                hint="This installation is older than the database: install the release that brought it, or"
                " a newer one.",
            )
        if migration.digest != record.digest:
            raise MigrationRefused(
                f"The migration {record.name} was changed after it had been applied on"
                f" {record.applied_at:%Y-%m-%d}.",
                hint="Restore the file as it was and put the change into a new migration.",
            )
    names = {record.name for record in done}
    pending = [migration for migration in on_disk if migration.name not in names]
    if phase == "post" and (first := next((m for m in pending if m.phase == "pre"), None)):
        raise MigrationRefused(
            f"The migration {first.name} of phase pre has not been applied yet.",
            hint="Run cloudsync migrate --phase pre and deploy the new code first.",
        )
    return [migration for migration in pending if phase in ("all", migration.phase)]


def check_server(conn: Connection[Any], *, require_logical: bool = True) -> None:
    """Raise DatabaseUnsuitable, saying what to change, if this server cannot carry CloudSync."""
    version = conn.info.server_version
    if version < MINIMUM_VERSION:
        raise DatabaseUnsuitable(
            f"This is PostgreSQL {version // 10000}; CloudSync needs {MINIMUM_VERSION // 10000} or newer.",
            hint="Upgrade the server.",
        )
    row = conn.execute(
        "SELECT current_setting('wal_level'), current_setting('server_encoding'), pg_is_in_recovery()"
    ).fetchone()
    level, encoding, standby = row if row is not None else ("", "", False)
    if standby:
        raise DatabaseUnsuitable("This server is a standby.", hint="Connect to the primary.")
    if encoding != "UTF8":
        raise DatabaseUnsuitable(
            f"This database's encoding is {encoding}.", hint="Create it with ENCODING 'UTF8'."
        )
    if require_logical and level != "logical":
        raise DatabaseUnsuitable(
            f"The server runs with wal_level = {level}; the relay needs logical.",
            hint="Set wal_level = logical (on RDS: rds.logical_replication = 1) and restart it.",
        )


def migrate(
    dsn: str,
    *,
    phase: Phase | Literal["all"] = "all",
    plan_only: bool = False,
    require_logical: bool = True,
    migrations: Sequence[Migration] | None = None,
    wait_s: float = 60.0,
    lock_timeout_ms: int = 5000,
) -> list[AppliedMigration]:
    """Apply what is pending, one transaction each, and return it; with `plan_only` only say what it would be.

    Waits up to `wait_s` for another migration of this database; a statement of one waits up to
    `lock_timeout_ms` for locks.
    Raises DatabaseUnreachable, DatabaseUnsuitable, MigrationRefused.
    """
    try:
        conn = psycopg.connect(dsn, autocommit=True, application_name="cloudsync-migrate")
    except psycopg.OperationalError as error:
        raise DatabaseUnreachable(f"PostgreSQL cannot be reached: {str(error).strip()}") from error
    with conn:
        check_server(conn, require_logical=require_logical)
        if plan_only:
            return [
                AppliedMigration(m.name, m.phase, m.digest, None)
                for m in plan(conn, phase, migrations=migrations)
            ]
        _set_lock_timeout(conn, round(wait_s * 1000))
        try:
            conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        except pg_errors.LockNotAvailable:
            raise MigrationRefused(
                f"Another migration of this database has been running for {wait_s:g} s.",
                hint="Try again when it is done.",
            ) from None
        _set_lock_timeout(conn, lock_timeout_ms)
        done = [_apply(conn, migration) for migration in plan(conn, phase, migrations=migrations)]
        if applied(conn):
            conn.execute("SELECT cloudsync.maintain()")
        return done


def _set_lock_timeout(conn: Connection[Any], timeout_ms: int) -> None:
    conn.execute("SELECT set_config('lock_timeout', %s, false)", (f"{timeout_ms}ms",))


def _apply(conn: Connection[Any], migration: Migration) -> AppliedMigration:
    try:
        with conn.transaction():
            conn.execute(migration.sql.encode())
            row = conn.execute(
                "INSERT INTO cloudsync.migrations (name, phase, digest) VALUES (%s, %s, %s) RETURNING"
                " applied_at",
                (migration.name, migration.phase, migration.digest),
            ).fetchone()
    except pg_errors.InsufficientPrivilege as error:
        raise MigrationRefused(
            f"The migration {migration.name} is not permitted: {error.diag.message_primary}.",
            hint="Connect as a superuser or, on RDS, as a member of rds_superuser.",
        ) from error
    except pg_errors.LockNotAvailable as error:
        raise MigrationRefused(
            f"The migration {migration.name} could not get its locks: {error.diag.message_primary}.",
            hint="End long transactions and run it again; nothing of it was applied.",
        ) from error
    except psycopg.Error as error:
        raise MigrationRefused(
            f"The migration {migration.name} failed: {error.diag.message_primary or error}.",
            hint="Nothing of it was applied.",
        ) from error
    if row is None:
        raise MigrationRefused(f"The migration {migration.name} was not recorded.")
    return AppliedMigration(migration.name, migration.phase, migration.digest, row[0])
