"""One client's text operation: brought up to the text as it is now, and applied there, once.

The revision of a text is the version of its row: an operation made from a row in version r is made from
revision r, whichever column was changed last. What has happened to the text since is in `cloudsync.text_ops`;
the operation is transformed against each of these in turn, as the `left` one (transforming does not commute
with composing). The row stays locked meanwhile, so the revision cannot move on.

The text itself stays in PostgreSQL: the statement that writes it applies the operation there, and the capture
trigger, which is told the operation, records it (`cloudsync.text_change`).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline, sql

from cloudsync.clock import Timestamp
from cloudsync.protocol.messages import TextRequest
from cloudsync.resolve import text as ot
from cloudsync.resolve import writer
from cloudsync.resolve.refusals import ChangeRefused, refusal_of
from cloudsync.resolve.turn import Answer, Applied, Moved, Turn, Work, carry_out
from cloudsync.resolve.values import check_key, json_object
from cloudsync.sync.catalog import Catalog, CatalogTable
from cloudsync.sync.snapshot import expression
from cloudsync.tokens import Principal

HISTORY: Final = 2000
"""An operation that is further behind is refused; `cloudsync.maintain()` keeps so many for each text."""
COMPONENTS: Final = 10_000
"""An operation may have no more."""
_WORK: Final = 200_000
"""Components that may be gone over to bring one operation up to date: about a tenth of a second."""
_AT_ONCE: Final = 10_000
_HISTORY_BYTES: Final = 4 * 1024 * 1024
"""Operations, as JSON, that may be read for it."""

_KNOWN: Final = """
SELECT s.version, coalesce(s.fields -> %(column)s ->> 'v', s.fields -> '' ->> 'v', '0')::bigint
  FROM cloudsync.row_state s WHERE s.table_id = %(table)s AND s.key = current_setting('cloudsync.key', true)
"""
_SINCE: Final = """
SELECT s.revision, s.previous, s.op
  FROM (SELECT o.revision, o.previous, o.op, sum(o.size_bytes) OVER (ORDER BY o.revision) AS read_bytes
          FROM cloudsync.text_ops o
         WHERE o.table_id = %(table)s AND o.key = current_setting('cloudsync.key', true)
           AND o.column_name = %(column)s AND o.revision > %(revision)s
         ORDER BY o.revision LIMIT %(limit)s) s
 WHERE s.read_bytes <= %(bytes)s
 ORDER BY s.revision
"""
_encode: Final = msgspec.json.Encoder().encode


async def edit(
    connection: AsyncConnection[Any],
    catalog: Catalog,
    principal: Principal,
    client_id: str,
    request: TextRequest,
    *,
    limit_bytes: int,
) -> Answer:
    """As `writer.write`, for a text operation; a text may not grow beyond `limit_bytes`."""

    def begin(pipeline: AsyncPipeline) -> Work:
        table = catalog.find(request.table)
        return _Edit(connection, pipeline, table, principal, client_id, request, limit_bytes=limit_bytes)

    async def explain(error: psycopg.Error) -> ChangeRefused | None:
        return refusal_of(error, catalog.find(request.table).name)

    return await carry_out(connection, Turn(principal, client_id, request.id), begin, explain)


class _Edit:
    """One operation in its transaction."""

    def __init__(
        self,
        connection: AsyncConnection[Any],
        pipeline: AsyncPipeline,
        table: CatalogTable,
        principal: Principal,
        client_id: str,
        request: TextRequest,
        *,
        limit_bytes: int,
    ) -> None:
        if table.policy(request.column) != "ot" or request.column not in table.columns:
            name = f"{table.name}.{request.column[:100]}"
            raise ChangeRefused("not_a_text", f"{name} is not edited with `text` frames.")
        check_key(table, request.key)
        if len(request.op) > COMPONENTS:
            raise ChangeRefused("too_large", f"A text operation may have {COMPONENTS} components.")
        self._operation = ot.counted(ot.check(request.op))
        self._connection = connection
        self._pipeline = pipeline
        self._table = table
        self._principal = principal
        self._client_id = client_id
        self._request = request
        self._limit_bytes = limit_bytes
        self._place = {"table": table.table_id, "column": request.column}

    async def look(self) -> None:
        """Lock the row, if it is there for this user, and ask for what has happened to its text."""
        table, key = self._table, self._request.key
        await self._become_client("", "")
        self._found = await self._connection.execute(
            sql.SQL(
                "SELECT set_config('cloudsync.key', {key_text}, true)"
                " FROM (SELECT %s::jsonb AS key) AS k JOIN {table} AS t ON {same}"
                " FOR NO KEY UPDATE OF t"
            ).format(
                key_text=expression(table.key_text_expression),
                table=sql.Identifier(table.schema_name, table.table_name),
                same=expression(table.key_condition, key="k.key"),
            ),
            (json_object(key),),
        )
        self._known = await self._ask_known()
        self._since = await self._connection.execute(
            _SINCE,
            {
                **self._place,
                "revision": self._request.revision,
                "limit": HISTORY + 1,
                "bytes": _HISTORY_BYTES,
            },
        )

    async def apply(self, now_ms: int, *, settled: bool) -> Applied:
        if await self._found.fetchone() is None:
            raise ChangeRefused("unknown_row", f"{self._table.name} has no such row, or you may not edit it.")
        known = await self._known.fetchone()
        version, revision = known if known is not None else (0, 0)
        history = await self._since.fetchall()
        self._check_history(version, revision, history)
        operation = await self._brought_up(history)
        outcome: Any = "merged" if history else "applied"
        if not operation:
            return Applied(outcome, version, revision=version)
        await self._become_client(str(Timestamp(now_ms, 0, self._client_id)), _encode(operation).decode())
        cursor = await self._write(operation)
        await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        made = await self._ask_known()
        await self._pipeline.sync()
        if cursor.rowcount != 1:
            raise ChangeRefused("refused", f"A trigger of {self._table.name} refused the change.")
        now_known = await made.fetchone()
        if now_known is None:
            raise Moved  # the table is not tracked any more
        return Applied(outcome, now_known[0], revision=now_known[0])

    def _check_history(self, version: int, revision: int, history: list[Any]) -> None:
        """Whether everything since the operation's base is known: each follows the one before."""
        base = self._request.revision
        at = base
        for number, (made, previous, _) in enumerate(history):
            if previous > at or (number and previous < at):
                break
            at = made
        else:
            if at >= revision and base <= version and len(history) <= HISTORY:
                return
        raise self._stale()

    async def _brought_up(self, history: list[Any]) -> ot.Operation:
        """The operation as it is to be applied now: each one that came between may have made it longer."""
        operation = self._operation
        work = rested = 0
        for _, _, other in history:
            work += len(operation) + len(other)
            if work > _WORK:
                raise self._stale()
            if work - rested > _AT_ONCE:
                rested = work
                await asyncio.sleep(0)  # everybody else of this gateway has a turn
            operation = ot.transform(operation, other, "left")
        return operation

    def _stale(self) -> ChangeRefused:
        return ChangeRefused(
            "stale_revision",
            f"What has happened to the text since revision {self._request.revision} is not known any more,"
            " or too much.",
        )

    async def _write(self, operation: ot.Operation) -> AsyncCursor[Any]:
        table, key = self._table, self._request.key
        return await self._connection.execute(
            sql.SQL(
                "UPDATE {table} AS t SET {column} = cloudsync.edit_text(t.{column}, %s::jsonb, %s)"
                " FROM (SELECT %s::jsonb AS key) AS k WHERE {same}"
            ).format(
                table=sql.Identifier(table.schema_name, table.table_name),
                column=sql.Identifier(self._request.column),
                same=expression(table.key_condition, key="k.key"),
            ),
            (_encode(operation).decode(), self._limit_bytes, json_object(key)),
        )

    async def _ask_known(self) -> AsyncCursor[Any]:
        await self._connection.execute(writer.BECOME_SERVICE)
        return await self._connection.execute(_KNOWN, self._place)

    async def _become_client(self, at: str, operation: str) -> None:
        await writer.become_client(self._connection, self._principal, self._client_id, self._request.id, at)
        await self._connection.execute("SELECT set_config('cloudsync.text_op', %s, true)", (operation,))
