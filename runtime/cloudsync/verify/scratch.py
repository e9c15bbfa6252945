"""A scratch schema: made for one program, tracked, and dropped again."""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Any, Final, Self

import psycopg
from psycopg import sql

from cloudsync.capture import tracking
from cloudsync.capture.tracking import TrackedTable
from cloudsync.errors import ConfigurationError, NotTracked
from cloudsync.verify.program import KEYS, Shape
from cloudsync.verify.tables import Table, members_table, mood_type

PREFIX: Final = "cloudsync_verify_"
CLOCK: Final = "clock"


class RightMissing(ConfigurationError):
    """The role of the PostgreSQL URL lacks a right that verification needs."""

    code = "right_missing"


class Scratch:
    """Tables of a program in a schema of their own, while this is entered."""

    def __init__(
        self, url: str, shapes: tuple[Shape, ...], *, tenants: tuple[str, ...], keys: int = KEYS
    ) -> None:
        self.url = url
        self.schema = PREFIX + secrets.token_hex(4)
        self.tables = [
            Table(shape, schema=self.schema, number=number, tenants=tenants, keys=keys)
            for number, shape in enumerate(shapes)
        ]
        self.tracked: list[TrackedTable] = []

    def __enter__(self) -> Self:
        try:
            with psycopg.connect(self.url, connect_timeout=10) as connection:
                self._make(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            self.drop()
            raise RightMissing(
                f"The role of the PostgreSQL URL may not set up tables: {error.diag.message_primary}.",
                hint="Use a role that may create a schema, track its own tables and act as cloudsync_client.",
            ) from None
        except BaseException:
            self.drop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()

    def drop(self) -> None:
        """Remove every trace; safe to call again."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=10) as connection:
            drop_schema(connection, self.schema)

    def _make(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self.schema)))
        connection.execute(
            sql.SQL("COMMENT ON SCHEMA {} IS 'cloudsync verify: may be dropped'").format(
                sql.Identifier(self.schema)
            )
        )
        # What the oracle reads as a client, it reads through the schema.
        connection.execute(
            sql.SQL("GRANT USAGE ON SCHEMA {} TO cloudsync_client").format(sql.Identifier(self.schema))
        )
        connection.execute(sql.SQL("CREATE SEQUENCE {}").format(sql.Identifier(self.schema, CLOCK)))
        connection.execute(mood_type(self.schema))
        connection.execute(members_table(self.schema))
        for table in self.tables:
            for statement in table.create():
                connection.execute(statement)
            self.tracked.append(tracking.track(connection, table.name, **table.tracking()))


def drop_schema(connection: psycopg.Connection[Any], schema: str) -> None:
    """Untrack what is tracked in it, so that nothing of it stays in the platform's tables, and drop it."""
    names = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = 'cloudsync_capture' AND t.tgparentid = 0"
        " WHERE n.nspname = %s",
        (schema,),
    ).fetchall()
    for (name,) in names:
        try:
            tracking.untrack(connection, f"{schema}.{name}")
        except NotTracked:
            continue
    connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


def leftovers(connection: psycopg.Connection[Any]) -> list[str]:
    """Scratch schemas of runs that were killed (or are still running)."""
    rows = connection.execute(
        "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s) ORDER BY nspname", (PREFIX,)
    ).fetchall()
    return [name for (name,) in rows]
