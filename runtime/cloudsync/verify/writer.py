"""Carries out transactions, and tells the ledger about every image of a row before anybody can be sent it."""

from __future__ import annotations

import itertools
import json
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, IsolationLevel, sql

from cloudsync.verify.ledger import Image, Ledger, membership_key
from cloudsync.verify.program import (
    ROOMS,
    USERS,
    Fill,
    Join,
    Leave,
    Operations,
    Put,
    Rekey,
    Remove,
    Savepoint,
    Set,
    Transaction,
)
from cloudsync.verify.scratch import CLOCK, Scratch
from cloudsync.verify.tables import FILLED, Column, Table, distinct

LOCK_TIMEOUT_MS: Final = 100
"""Sessions of one program wait for each other; whoever waits longer rolls back."""

_EXPECTED: Final = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)
_marks = itertools.count(1)


class Writer:
    """One session of the database; a transaction may stay open between two steps."""

    def __init__(self, scratch: Scratch, ledger: Ledger) -> None:
        self._scratch = scratch
        self._ledger = ledger
        self._connection: AsyncConnection[Any] | None = None
        self._images: list[Image] = []
        self._failed = False
        self.open = False
        self.exclusive = False
        """Whether the open transaction keeps readers of a table waiting."""
        self.refused = 0
        """Transactions that PostgreSQL rolled back: a key that was taken, a lock, a conflict."""

    @property
    def exclusive_now(self) -> bool:
        return self.open and self.exclusive

    async def close(self) -> None:
        if self.open:
            await self._end(commit=False)
        if self._connection is not None:
            await self._connection.close()

    async def carry_out(self, transaction: Transaction) -> None:
        """Go on with the open transaction, or begin one."""
        connection = await self._session()
        if not self.open:
            self.open, self.exclusive, self._failed, self._images = True, False, False, []
            level = IsolationLevel.REPEATABLE_READ if transaction.repeatable_read else None
            await connection.set_isolation_level(level)
            await connection.execute("SELECT 1")  # begins it, before a savepoint would begin and end it
        for operation in transaction.operations:
            if self._failed:
                break
            try:
                self._images += await self._do(operation)
            except _EXPECTED:
                self._failed = True
                await connection.rollback()
        if transaction.end != "open":
            await self._end(commit=transaction.end == "commit")

    async def _end(self, *, commit: bool) -> None:
        assert self._connection is not None  # noqa: S101 - open
        images, self._images, self.open = self._images, [], False
        if self._failed or not commit:
            self.refused += self._failed
            self._ledger.roll_back(images)
            await self._connection.rollback()
            return
        try:
            await self._connection.commit()
        except _EXPECTED:
            self.refused += 1
            self._ledger.roll_back(images)
            await self._connection.rollback()
            return
        self._ledger.commit(images)

    async def _session(self) -> AsyncConnection[Any]:
        if self._connection is None:
            self._connection = await AsyncConnection.connect(
                self._scratch.url,
                options=f"-c lock_timeout={LOCK_TIMEOUT_MS} -c deadlock_timeout=50ms -c TimeZone=UTC"
                " -c idle_in_transaction_session_timeout=0",
            )
        return self._connection

    async def _do(self, operation: Operations) -> list[Image]:
        if isinstance(operation, Savepoint):
            return await self._savepoint(operation)
        if isinstance(operation, Join):
            return await self._join(operation)
        if isinstance(operation, Leave):
            return await self._leave(operation)
        table = self._scratch.tables[operation.table % len(self._scratch.tables)]
        if isinstance(operation, Put):
            return await self._put(table, operation)
        if isinstance(operation, Fill):
            return await self._fill(table, operation)
        if isinstance(operation, Set):
            return await self._set(table, operation)
        if isinstance(operation, Rekey):
            values = dict(zip(table.key, table.key_literals(operation.to), strict=True))
            return await self._update(table, values, _key_condition(table, operation.key))
        if isinstance(operation, Remove):
            condition = _key_condition(table, operation.key)
            return await self._changed(
                table, sql.SQL("DELETE FROM {} WHERE {}").format(table.identifier, condition), present=False
            )
        return await self._truncate(table)

    async def _savepoint(self, operation: Savepoint) -> list[Image]:
        connection = await self._session()
        images: list[Image] = []
        kept = False
        try:
            async with connection.transaction() as savepoint:
                for inner in operation.operations:
                    images += await self._do(inner)
                if not operation.keep:
                    raise psycopg.Rollback(savepoint)
                kept = True
        except (psycopg.errors.UniqueViolation, psycopg.errors.LockNotAvailable):
            kept = False
        if not kept:
            self._ledger.roll_back(images)
            return []
        return images

    async def _put(self, table: Table, operation: Put) -> list[Image]:
        values: dict[Column, Any] = dict(zip(table.key, table.key_literals(operation.key), strict=True))
        values |= {
            table.tenant: table.tenant_literal(operation.tenant),
            table.owner: table.owner_literal(operation.owner),
            table.room: table.room_literal(operation.room),
        }
        for number, column in enumerate(table.payload):
            chosen = operation.values[number] if number < len(operation.values) else 0
            values[column] = column.kind.value(chosen)
        return await self._insert(table, [values])

    async def _fill(self, table: Table, operation: Fill) -> list[Image]:
        if table.key[0].kind.name == "enum":
            return []  # it has no values beyond its own
        rows = []
        for number in range(FILLED, FILLED + operation.count):
            values: dict[Column, Any] = {column: distinct(column.kind, number) for column in table.key}
            values |= {
                table.tenant: table.tenant_literal(operation.tenant),
                table.owner: table.owner_literal(operation.owner + number),
                table.room: table.room_literal(operation.room),
            }
            values |= {column: column.kind.value(number) for column in table.payload}
            rows.append(values)
        return await self._insert(table, rows)

    async def _insert(self, table: Table, rows: list[dict[Column, Any]]) -> list[Image]:
        columns = [*rows[0], table.mark]
        mark = f"m{next(_marks)}"
        casts = sql.SQL("({})").format(
            sql.SQL(", ").join(sql.SQL("%s::{}").format(c.kind.declared_in(table.schema)) for c in columns)
        )
        key = {column.name for column in table.full_key}
        query = sql.SQL(
            "INSERT INTO {table} ({columns}) VALUES {rows} ON CONFLICT ({key}) DO UPDATE SET {assignments}"
        ).format(
            table=table.identifier,
            columns=sql.SQL(", ").join(c.identifier for c in columns),
            rows=sql.SQL(", ").join([casts] * len(rows)),
            key=sql.SQL(", ").join(c.identifier for c in table.full_key),
            assignments=sql.SQL(", ").join(
                sql.SQL("{0} = excluded.{0}").format(c.identifier) for c in columns if c.name not in key
            ),
        )
        return await self._changed(table, query, [v for row in rows for v in (*row.values(), mark)], mark)

    async def _set(self, table: Table, operation: Set) -> list[Image]:
        column = table.settable[operation.column % len(table.settable)]
        value = table.value(column, operation.value)
        return await self._update(table, {column: value}, _key_condition(table, operation.key))

    async def _update(
        self, table: Table, values: dict[Column, Any], condition: sql.Composable
    ) -> list[Image]:
        mark = f"m{next(_marks)}"
        values = {**values, table.mark: mark}
        found = await self._rows(
            sql.SQL("SELECT {}::text FROM {} WHERE {} ORDER BY 1 FOR UPDATE").format(
                table.json_key(), table.identifier, condition
            )
        )
        images = await self._changed(
            table,
            sql.SQL("UPDATE {} SET {} WHERE {}").format(
                table.identifier,
                sql.SQL(", ").join(
                    sql.SQL("{} = %s::{}").format(c.identifier, c.kind.declared_in(table.schema))
                    for c in values
                ),
                condition,
            ),
            list(values.values()),
            mark,
        )
        kept = {image.key for image in images}
        for key in {canonical_key(text) for (text,) in found} - kept:
            images.append(await self._gone(table.name, key))
        return images

    async def _truncate(self, table: Table) -> list[Image]:
        await self._lock(table.identifier)
        found = await self._rows(
            sql.SQL("SELECT {}::text FROM {}").format(table.json_key(), table.identifier)
        )
        await self._run(sql.SQL("TRUNCATE {}").format(table.identifier))
        return [await self._gone(table.name, canonical_key(text)) for (text,) in found]

    async def _join(self, operation: Join) -> list[Image]:
        room, user = operation.room % ROOMS, USERS[operation.user % len(USERS)][1]
        image = self._open_image("", membership_key(room, user))
        rows = await self._rows(
            sql.SQL("INSERT INTO {} VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING nextval({})").format(
                sql.Identifier(self._scratch.schema, "members"), self._clock()
            ),
            [room, user],
        )
        return self._noted(image, rows)

    async def _leave(self, operation: Leave) -> list[Image]:
        members = sql.Identifier(self._scratch.schema, "members")
        if operation.room is None:
            await self._lock(members)
            everyone = await self._rows(
                sql.SQL("SELECT room, person, nextval({}) FROM {}").format(self._clock(), members)
            )
            await self._run(sql.SQL("TRUNCATE {}").format(members))
        else:
            user = USERS[operation.user % len(USERS)][1] if operation.user is not None else None
            everyone = await self._rows(
                sql.SQL(
                    "DELETE FROM {} WHERE room = %s AND (person = %s OR %s::text IS NULL)"
                    " RETURNING room, person, nextval({})"
                ).format(members, self._clock()),
                [operation.room % ROOMS, user, user],
            )
        return [
            Image(table="", key=membership_key(room, person), order=order, present=False)
            for room, person, order in everyone
        ]

    def _open_image(self, table: str, key: str) -> Image:
        return Image(table=table, key=key, order=0, from_s=self._ledger.clock_s())

    def _noted(self, image: Image, rows: list[Any]) -> list[Image]:
        if not rows:
            return []
        image.order = rows[0][0]
        return [image]

    async def _gone(self, table: str, key: str) -> Image:
        rows = await self._rows(sql.SQL("SELECT nextval({})").format(self._clock()))
        return Image(table=table, key=key, order=rows[0][0], present=False)

    async def _changed(
        self,
        table: Table,
        query: sql.Composed,
        parameters: list[Any] | None = None,
        mark: str = "",
        *,
        present: bool = True,
    ) -> list[Image]:
        """Run a statement; the images of the rows that it touched."""
        began_s = self._ledger.clock_s()
        returning = sql.SQL(" RETURNING {}::text, tenant_id, owner::text, room, nextval({})").format(
            table.json_key(), self._clock()
        )
        images = []
        for key, tenant, owner, room, order in await self._rows(query + returning, parameters):
            image = Image(
                table=table.name,
                key=canonical_key(key),
                order=order,
                mark=mark,
                present=present,
                tenant=tenant if table.shape.tenant_column else table.tenants[0],
                owner=owner,
                room=room,
                from_s=began_s,
            )
            self._ledger.write(image)
            images.append(image)
        return images

    async def _lock(self, table: sql.Identifier) -> None:
        self.exclusive = True
        await self._run(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))

    def _clock(self) -> sql.Composable:
        clock = sql.Identifier(self._scratch.schema, CLOCK).as_string(None)
        return sql.SQL("{}::regclass").format(sql.Literal(clock))

    async def _run(self, query: sql.Composed) -> None:
        await (await self._session()).execute(query)

    async def _rows(self, query: sql.Composed, parameters: list[Any] | None = None) -> list[Any]:
        cursor = await (await self._session()).execute(query, parameters)
        rows: list[Any] = await cursor.fetchall()
        return rows


def _key_condition(table: Table, key: int | None) -> sql.Composable:
    """The rows of a key: of every tenant, where the tenant is part of it. All rows for None."""
    if key is None:
        return sql.SQL("true")
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}::{}").format(c.identifier, sql.Literal(literal), c.kind.declared_in(table.schema))
        for c, literal in zip(table.key, table.key_literals(key), strict=True)
    )


def canonical_key(text: str) -> str:
    """A key as JSON text, in the form that the ledger goes by."""
    return json.dumps(json.loads(text), ensure_ascii=False)
