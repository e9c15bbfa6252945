"""A database under capture, and what its change log says."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row


class Event(NamedTuple):
    """A row of the change log, without what differs from run to run."""

    op: str
    key: Any
    version: int
    row: Any
    old: Any
    tenant: str | None
    audience: list[str] | None
    old_audience: list[str] | None
    shard: int
    old_shard: int | None
    table: str
    actor: Any
    xid: str


class Database:
    """A superuser's connection, in autocommit, and the change log since one last looked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)
        self._seen: set[int] = set()

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.connection.execute(statement.encode())

    def one(self, query: str, *arguments: Any) -> Any:
        row = self.connection.execute(query.encode(), arguments or None).fetchone()
        assert row is not None
        return row[0] if len(row) == 1 else row

    def rows(self, query: str, *arguments: Any) -> list[Any]:
        return self.connection.execute(query.encode(), arguments or None).fetchall()

    def connect(self, role: str | None = None, **options: Any) -> psycopg.Connection[Any]:
        connection = psycopg.connect(self.url, **({"autocommit": True} | options))
        if role is not None:
            connection.execute(f'SET ROLE "{role}"'.encode())
        return connection

    def events(self) -> list[Event]:
        """What has been logged since the last call. In commit order only for a single writer."""
        with self.connection.cursor(row_factory=namedtuple_row) as cursor:
            rows = cursor.execute(
                'SELECT id, op::text, key, version, "row", old, tenant_id, audience, old_audience, shard,'
                " old_shard, table_name,"
                " actor, xid::text FROM cloudsync.change_log WHERE NOT id = ANY(%s) ORDER BY captured_at, id",
                (list(self._seen),),
            ).fetchall()
        self._seen.update(row.id for row in rows)
        return [Event(*row[1:]) for row in rows]

    def ops(self) -> str:
        return "".join(event.op for event in self.events())

    def track(self, table: str, **options: str) -> int:
        arguments = "".join(f", {name} => {value}" for name, value in options.items())
        table_id: int = self.one(f"SELECT cloudsync.track('{table}'{arguments})")
        self.events()
        return table_id

    def clear(self) -> None:
        """Drop whatever a test has made, of the application's and of ours."""
        self.connection.close()
        self.connection = psycopg.connect(self.url, autocommit=True)
        schemas = self.rows(
            "SELECT nspname FROM pg_namespace WHERE nspname NOT IN ('pg_catalog', 'information_schema',"
            " 'pg_toast', 'cloudsync')"
            " AND nspname NOT LIKE 'pg\\_temp%' AND nspname NOT LIKE 'pg\\_toast\\_temp%'"
        )
        for (schema,) in schemas:
            self.connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
        self.run(
            "CREATE SCHEMA public",
            "GRANT USAGE ON SCHEMA public TO PUBLIC",
            "DELETE FROM cloudsync.version_floors",
            "TRUNCATE cloudsync.change_log",
        )
        assert (
            self.rows("SELECT FROM cloudsync.tracked_tables UNION ALL SELECT FROM cloudsync.row_state") == []
        )
        self._seen.clear()
        for (role,) in self.rows("SELECT rolname FROM pg_roles WHERE rolname LIKE 'app\\_%'"):
            self.connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            self.connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))

    def close(self) -> None:
        self.connection.close()
