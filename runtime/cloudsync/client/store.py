"""What a client keeps on disk: one SQLite file for one client id.

Rows and the cursor that covers them are committed together, so the cursor is never ahead of the rows. The
file is held exclusively while it is open and readable by its owner alone.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from cloudsync.client.errors import StoreFailed, StoreInUse, StoreRefused

SCHEMA_VERSION: Final = 1
UNUSED_KEPT_S: Final = 7 * 86400
"""A subscription that the application has not asked for this long is forgotten."""

_APPLICATION_ID: Final = 0x434C5359  # "CLSY", in the file's header
_SCHEMA: Final = """
CREATE TABLE identity (
    only_row integer PRIMARY KEY CHECK (only_row = 1),
    url text NOT NULL,
    user text,
    client_id text,
    cursor text,
    next_mutation integer NOT NULL DEFAULT 0,
    clock_ms integer NOT NULL DEFAULT 0,
    clock_counter integer NOT NULL DEFAULT 0
);
CREATE TABLE subscriptions (
    id text PRIMARY KEY,
    request text NOT NULL,
    schema text,
    mode text NOT NULL,
    replica integer,
    complete integer NOT NULL,
    covered integer NOT NULL,
    used_at integer NOT NULL
);
CREATE TABLE rows (
    replica integer NOT NULL,
    key text NOT NULL,
    version integer NOT NULL,
    row text,
    wanted integer,
    PRIMARY KEY (replica, key)
);
CREATE TABLE changes (
    number integer PRIMARY KEY,
    content text NOT NULL
);
CREATE TABLE conflicts (
    id text PRIMARY KEY,
    content text NOT NULL
);
"""


class StoredRow(NamedTuple):
    """A row of a replica by the JSON of its key; `row` None: deleted; `wanted`: the version to be fetched."""

    replica: int
    key: str
    version: int
    row: str | None
    wanted: int | None


class StoredSubscription(NamedTuple):
    """`covered`: its rows hold everything up to the store's cursor; `request` and `schema` are JSON."""

    id: str
    request: str
    schema: str | None
    mode: str
    replica: int | None
    complete: bool
    covered: bool
    used_at: int


class Batch:
    """What one transaction changes; None or empty: stays as it is."""

    def __init__(self) -> None:
        self.rows: list[StoredRow] = []
        self.rows_gone: list[tuple[int, str]] = []
        self.replicas_gone: list[int] = []
        self.subscriptions: list[StoredSubscription] = []
        self.subscriptions_gone: list[str] = []
        self.cursor: str | None = None
        self.changes: list[tuple[int, str]] = []
        self.changes_gone: list[int] = []
        self.conflicts: list[tuple[str, str]] = []
        self.conflicts_gone: list[str] = []
        self.counters: tuple[int, int, int] | None = None
        """The next mutation number; the clock's milliseconds and counter."""

    def __bool__(self) -> bool:
        return any(vars(self).values())


class Store:
    """An open file. Raises StoreInUse, StoreRefused or StoreFailed, here and in every method."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._durable: bool | None = None
        with self._failing():
            # SQLite gives its journal the mode of the file. A file that exists is not opened here: closing
            # it would take away the lock that another store of this process holds on it.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            self.path.chmod(0o600)
            self._database = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        try:
            with self._failing():
                self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._database.execute("PRAGMA journal_mode = WAL")
                self._prepare()
                self._forget_unused()
        except BaseException:
            self._database.close()
            raise

    @property
    def url(self) -> str | None:
        return self._identity("url")

    @property
    def user(self) -> str | None:
        return self._identity("user")

    @property
    def client_id(self) -> str | None:
        return self._identity("client_id")

    @property
    def cursor(self) -> str | None:
        return self._identity("cursor")

    @property
    def counters(self) -> tuple[int, int, int]:
        """The next mutation number (0: it is not known); the clock's milliseconds and counter."""
        with self._failing():
            found = self._database.execute(
                "SELECT next_mutation, clock_ms, clock_counter FROM identity"
            ).fetchone()
        return found or (0, 0, 0)

    def belong(self, *, url: str, client_id: str | None = None) -> None:
        """Take the file for this platform and client id, or refuse another's."""
        if self.url is not None and self.url != url:
            raise StoreRefused(
                f"The store {self.path} belongs to {self.url}, not to {url}.",
                hint="Open it with its own URL, or name another file.",
            )
        if client_id and self.client_id not in (None, client_id):
            raise StoreRefused(
                f"The store {self.path} belongs to another client id.",
                hint="Leave `client_id` out, or name another file.",
            )
        with self._transaction(durable=True):
            self._database.execute(
                "INSERT INTO identity (only_row, url, client_id) VALUES (1, ?, ?)"
                " ON CONFLICT DO UPDATE SET client_id = coalesce(client_id, excluded.client_id)",
                (url, client_id or None),
            )

    def belong_to_user(self, user: str) -> None:
        """Take the file for this user, or refuse another's."""
        if self.user is None:
            with self._transaction(durable=True):
                self._database.execute("UPDATE identity SET user = ?", (user,))
        elif self.user != user:
            raise StoreRefused(
                f"The store {self.path} belongs to another user than the token.",
                hint="Sign in as that user, or name another file.",
            )

    def register(self, client_id: str) -> None:
        """Keep the client id that was issued: it has used no number yet."""
        with self._transaction(durable=True):
            self._database.execute("UPDATE identity SET client_id = ?, next_mutation = 1", (client_id,))

    def subscriptions(self) -> list[StoredSubscription]:
        return [
            StoredSubscription(id_, request, schema, mode, replica, bool(complete), bool(covered), used_at)
            for id_, request, schema, mode, replica, complete, covered, used_at in self._all(
                "SELECT * FROM subscriptions ORDER BY rowid"
            )
        ]

    def rows(self, replica: int) -> list[StoredRow]:
        """A replica's rows in the order in which their keys were first seen."""
        found = self._all("SELECT * FROM rows WHERE replica = ? ORDER BY rowid", (replica,))
        return [StoredRow(*row) for row in found]

    def changes(self) -> list[tuple[int, str]]:
        """Changes that wait for their outcome, by number."""
        return self._all("SELECT number, content FROM changes ORDER BY number")

    def conflicts(self) -> list[str]:
        """Open conflicts, in the order in which they were heard of."""
        return [content for (content,) in self._all("SELECT content FROM conflicts ORDER BY rowid")]

    def last_replica(self) -> int:
        """The highest number that a replica has."""
        ((number,),) = self._all("SELECT coalesce(max(replica), 0) FROM rows")
        ((other,),) = self._all("SELECT coalesce(max(replica), 0) FROM subscriptions")
        return max(int(number), int(other))

    def commit(self, batch: Batch, *, durable: bool = False) -> None:
        """Write a batch in one transaction; it survives the process, and with `durable` a power cut, too.

        Losing the last of the others to a power cut is harmless: the cursor goes back with the rows.
        """
        database = self._database
        with self._transaction(durable=durable):
            if batch.replicas_gone:
                database.executemany(
                    "DELETE FROM rows WHERE replica = ?", [(number,) for number in batch.replicas_gone]
                )
            if batch.rows_gone:
                database.executemany("DELETE FROM rows WHERE replica = ? AND key = ?", batch.rows_gone)
            if batch.rows:
                database.executemany(
                    "INSERT INTO rows VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                    " version = excluded.version, row = excluded.row, wanted = excluded.wanted",
                    batch.rows,
                )
            for subscription_id in batch.subscriptions_gone:
                database.execute("DELETE FROM subscriptions WHERE id = ?", (subscription_id,))
            for subscription in batch.subscriptions:
                database.execute(
                    "INSERT OR REPLACE INTO subscriptions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", subscription
                )
            if batch.cursor is not None:
                database.execute("UPDATE identity SET cursor = ?", (batch.cursor,))
            if batch.changes:
                database.executemany("INSERT OR REPLACE INTO changes VALUES (?, ?)", batch.changes)
            for number in batch.changes_gone:
                database.execute("DELETE FROM changes WHERE number = ?", (number,))
            if batch.conflicts:
                database.executemany(
                    "INSERT INTO conflicts VALUES (?, ?)"
                    " ON CONFLICT DO UPDATE SET content = excluded.content",
                    batch.conflicts,
                )
            for id_ in batch.conflicts_gone:
                database.execute("DELETE FROM conflicts WHERE id = ?", (id_,))
            if batch.counters is not None:
                database.execute(
                    "UPDATE identity SET next_mutation = ?, clock_ms = ?, clock_counter = ?", batch.counters
                )

    def close(self) -> None:
        self._database.close()

    def _prepare(self) -> None:
        database = self._database
        # With the exclusive locking mode this lock is kept until the file is closed.
        database.execute("BEGIN EXCLUSIVE")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not (application or version or tables):
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        elif application != _APPLICATION_ID:
            raise StoreRefused(f"{self.path} is a database, but not a client's store.")
        elif version != SCHEMA_VERSION:
            raise StoreRefused(
                f"The store {self.path} has schema {version}, this version reads {SCHEMA_VERSION}.",
                hint="Use the version of the SDK that wrote it, or name another file.",
            )
        database.execute("COMMIT")

    def _forget_unused(self) -> None:
        with self._transaction(durable=False):
            self._database.execute(
                "DELETE FROM subscriptions WHERE used_at < ? AND id NOT IN"
                " (SELECT json_extract(content, '$.view') FROM changes"
                "   WHERE json_extract(content, '$.view') IS NOT NULL)",
                (int(time.time()) - UNUSED_KEPT_S,),
            )
            self._database.execute(
                "DELETE FROM rows WHERE replica NOT IN"
                " (SELECT replica FROM subscriptions WHERE complete AND replica IS NOT NULL)"
            )

    def _identity(self, column: str) -> str | None:
        found = self._all(f"SELECT {column} FROM identity")  # noqa: S608  a name from above
        return found[0][0] if found else None

    def _all(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._failing():
            return self._database.execute(statement, parameters).fetchall()

    @contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[None]:
        with self._failing():
            if durable is not self._durable:
                self._database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """SQLite's and the system's errors as sentences."""
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StoreInUse(f"The store {self.path} is open in another client or process.") from None
            if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
                raise StoreRefused(f"{self.path} is not a client's store.") from None
            raise StoreFailed(f"The store {self.path} failed: {error}.") from error
        except OSError as error:
            reason = error.strerror or error
            raise StoreFailed(f"The store {self.path} cannot be used: {reason}.") from error
