"""Conflicts that a person decides: which of them a user may see, and what their decision does.

A conflict is kept by `cloudsync.note_conflict()` when a change meets fields with the policy `manual` that
others have changed meanwhile. It belongs to its row: whoever may see the row may see it, whoever may write
the row may decide it, once. The decision is an edit of somebody who has seen the row in a certain version: if
its fields have changed again since then nothing is applied, and the conflict stays open with fresh `theirs`.
Locks are taken in the order of a change: client, row, conflict.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncPipeline, sql

from cloudsync.errors import RequestError
from cloudsync.protocol.conflicts import readable_base
from cloudsync.protocol.messages import NULL, ChangeRequest, ConflictDetected, ResolveRequest
from cloudsync.resolve.lww import ROW, History
from cloudsync.resolve.refusals import ChangeRefused, refusal_of
from cloudsync.resolve.turn import Answer, Applied, Moved, Turn, Work, carry_out
from cloudsync.resolve.values import Values
from cloudsync.resolve.writer import RowChange
from cloudsync.rows import columns_of
from cloudsync.sync.catalog import Catalog, CatalogTable
from cloudsync.sync.snapshot import assume, expression
from cloudsync.tokens import Principal

PAGE: Final = 50
_PAGE_BYTES: Final = 1 << 20
"""A page ends behind the conflict with which it has as much."""
_PLACE: Final = re.compile(r"(\d{1,18})\.([0-9a-f-]{36})\Z")
_UNCOUNTED_CLIENT: Final = "api"
"""In the stamp of a decision that came without a client id."""

_TABLES: Final = """
SELECT DISTINCT t.schema_name || '.' || t.table_name
  FROM cloudsync.conflicts c JOIN cloudsync.tracked_tables t USING (table_id)
 WHERE c.tenant_id = %s AND c.status = 'open'
"""
_OF_TABLE: Final = sql.SQL("""
(SELECT c.id, c.created_at,
        (SELECT coalesce(jsonb_object_agg(f.name, whole.row -> f.name), '{{}}')::text
           FROM (SELECT {row} AS row OFFSET 0) AS whole, unnest(c.fields) AS f (name)) AS theirs,
        coalesce((SELECT s.version FROM cloudsync.row_state AS s
                   WHERE s.table_id = {table_id} AND s.key = {key_text}), 0) AS version
  FROM cloudsync.conflicts AS c JOIN {table} AS t ON {same}
 WHERE c.tenant_id = %(tenant)s AND c.status = 'open' AND c.table_id = {table_id} AND {wanted}
 ORDER BY c.created_at, c.id LIMIT %(limit)s)
""")
_FOUND: Final = sql.SQL("""
SELECT id, theirs, version, octet_length(theirs), of_all FROM (
    SELECT *, sum(octet_length(theirs)) OVER (ORDER BY created_at, id) - octet_length(theirs) AS bytes_before,
           count(*) OVER () AS of_all
      FROM (SELECT * FROM ({}) AS of_tables ORDER BY created_at, id LIMIT %(limit)s) AS found) AS sized
 WHERE bytes_before < %(page_bytes)s ORDER BY created_at, id
""")
_BEHIND: Final = sql.SQL(
    "(c.created_at, c.id) > (timestamptz 'epoch' + %(at_us)s * interval '1 microsecond', %(id)s::uuid)"
)
_DETAILS: Final = """
SELECT c.id, c.revision, t.schema_name || '.' || t.table_name, c.key::text, c.fields, c.base::text,
       c.base_audience, c.mine::text, c.mine_actor::text, c.theirs_actor::text,
       (extract(epoch FROM c.created_at) * 1000000)::bigint
  FROM (SELECT *, sum(bytes) OVER (ORDER BY created_at, id) - bytes AS bytes_before
          FROM (SELECT o.*, w.theirs_bytes + octet_length(concat(o.base, o.mine)) AS bytes
                  FROM unnest(%s::uuid[], %s::integer[]) AS w (id, theirs_bytes)
                  JOIN cloudsync.conflicts o USING (id)) AS sized) AS c
  JOIN cloudsync.tracked_tables t USING (table_id)
 WHERE bytes_before < %s ORDER BY c.created_at, c.id
"""
_FIND: Final = """
SELECT c.table_id, t.schema_name || '.' || t.table_name, c.key::text, c.fields, c.mine::text,
       c.theirs_version, c.revision
  FROM cloudsync.conflicts c JOIN cloudsync.tracked_tables t USING (table_id)
 WHERE c.id = %s AND c.tenant_id = %s
"""
_LOCK: Final = "SELECT c.status, c.revision FROM cloudsync.conflicts c WHERE c.id = %s FOR UPDATE"
_NOTE: Final = """
SELECT cloudsync.note_conflict(%s, %s::jsonb, p_id => %s, p_choice => %s)
"""


class Page(NamedTuple):
    """Open conflicts in the order in which they came; `next` is where the following page begins."""

    conflicts: list[ConflictDetected]
    next: str | None


async def open_conflicts(
    connection: AsyncConnection[Any],
    catalog: Catalog,
    principal: Principal,
    *,
    table: str | None = None,
    after: str | None = None,
    only: str | None = None,
    limit: int = PAGE,
) -> Page:
    """Conflicts of rows that the user sees, with `theirs` as the row is now; of one table, or `only` one.

    Raises RequestError if `after` is no place, UnknownTable.
    """
    wanted = sql.SQL("true")
    parameters = {"tenant": principal.tenant, "limit": limit + 1, "page_bytes": _PAGE_BYTES}
    if only is not None:
        wanted, parameters["id"] = sql.SQL("c.id = %(id)s::uuid"), only
    elif after is not None:
        wanted, (parameters["at_us"], parameters["id"]) = _BEHIND, _place(after)
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor = await connection.execute(_TABLES, (principal.tenant,))
        names = [row[0] for row in await cursor.fetchall()]
        if not all(map(catalog.knows, names if table is None else [*names, table])):
            await catalog.load(connection)
        if table is not None:
            wanted_name = catalog.find(table).name
            names = [name for name in names if name == wanted_name]
        queries = [_of_table(catalog.find(name), wanted) for name in names]
        if not queries:
            return Page([], None)
        await assume(connection, principal)
        cursor = await connection.execute(_FOUND.format(sql.SQL(" UNION ALL ").join(queries)), parameters)
        rows = (await cursor.fetchall())[:limit]
        await connection.execute("SET LOCAL ROLE NONE")
        ids, sizes = [row[0] for row in rows], [row[3] for row in rows]
        cursor = await connection.execute(_DETAILS, (ids, sizes, _PAGE_BYTES))
        details = await cursor.fetchall()
    if not details:
        return Page([], None)
    theirs = {id_: (_raw(fields), version) for id_, fields, version, *_ in rows}
    last, of_all = details[-1], rows[0][-1]
    return Page(
        [_detected(detail, *theirs[detail[0]], principal) for detail in details],
        f"{last[-1]}.{last[0]}" if len(details) < of_all else None,
    )


async def resolve(
    connection: AsyncConnection[Any],
    catalog: Catalog,
    principal: Principal,
    client_id: str | None,
    request: ResolveRequest,
) -> Answer:
    """Carry out a person's decision; with a client id once under its number, as a change.

    Raises ClientRefused, TryAgain; without a client id RequestError if the decision is refused.
    """
    work: _Resolution | None = None

    def begin(pipeline: AsyncPipeline) -> Work:
        nonlocal work
        work = _Resolution(connection, pipeline, catalog, principal, client_id, request)
        return work

    async def explain(error: psycopg.Error) -> ChangeRefused | None:
        if work is None or work.table is None:
            return refusal_of(error, "it")
        found = refusal_of(error, work.table.name)
        return found if found is None or work.seen else _unknown()

    if not catalog.knows(await _table_of(connection, principal, request.conflict_id)):
        await catalog.load(connection)
    return await carry_out(connection, Turn(principal, client_id, request.id), begin, explain)


class _Resolution:
    """A decision in its transaction."""

    def __init__(
        self,
        connection: AsyncConnection[Any],
        pipeline: AsyncPipeline,
        catalog: Catalog,
        principal: Principal,
        client_id: str | None,
        request: ResolveRequest,
    ) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._catalog = catalog
        self._principal = principal
        self._client_id = client_id or _UNCOUNTED_CLIENT
        self._request = request
        self.table: CatalogTable | None = None
        self.seen = False
        """Whether the user is known to see the row: nothing is told of the conflict before."""

    async def look(self) -> None:
        request = self._request
        cursor = await self._connection.execute(_FIND, (_id(request.conflict_id), self._principal.tenant))
        found = await cursor.fetchone()
        if found is None:
            raise _unknown()
        self._table_id, name, self._key, self._fields, self._mine, self._version, self._revision = found
        try:
            self.table = self._catalog.find(name)
            self._change = RowChange(
                self._connection,
                self._pipeline,
                self.table,
                self._principal,
                self._client_id,
                ChangeRequest(request.id, "update", name, _raw(self._key)),
                decided=True,
            )
        except RequestError:  # the row of another key, of another table
            raise _unknown() from None
        await self._change.look()

    async def apply(self, now_ms: int, *, settled: bool) -> Applied:
        history = await self._find(settled=settled)
        self.seen = True
        self._change.take(self._values())
        cursor = await self._connection.execute(_LOCK, (_id(self._request.conflict_id),))
        locked = await cursor.fetchone()
        if locked is None:
            raise _unknown()
        status, revision = locked
        if status != "open":
            raise ChangeRefused("conflict_resolved")
        if revision != self._revision:
            raise Moved
        seen = self._version if self._request.base_version is None else self._request.base_version
        changed = self._changed_in(history)
        if changed > seen:
            if changed > self._version:
                await self._note(None)
            fields = ", ".join(self._fields)
            message = f"{fields} changed again: look at the conflict anew, and decide."
            refused = ChangeRefused("conflict_changed", message)
            return Applied("conflict", history.version, self._fields, refused=refused)
        version = history.version
        if self._request.choice != "theirs":
            version = (await self._change.apply(now_ms, settled=settled)).version or version
        await self._note(self._request.choice)
        return Applied("applied", version)

    async def _find(self, *, settled: bool) -> History:
        try:
            history = await self._change.find(settled=settled)
        except ChangeRefused:
            raise _unknown() from None
        if not history.exists:
            raise _unknown()
        return history

    def _values(self) -> Values:
        """What is to be written. Raises ChangeRefused."""
        if self._request.choice == "theirs":
            return {}
        if self._request.choice == "mine":
            return _raw(self._mine)
        values = self._request.values or {}
        if not values or values.keys() - set(self._fields):
            fields = ", ".join(self._fields)
            raise ChangeRefused("bad_value", f"The values are of {fields}, and of nothing else.")
        return values

    def _changed_in(self, history: History) -> int:
        """The version in which the conflict's fields changed last."""
        stamps = [history.stamps.get(name) or history.stamps.get(ROW) for name in self._fields]
        return max((stamp.version for stamp in stamps if stamp is not None), default=0)

    async def _note(self, choice: str | None) -> None:
        cursor = await self._connection.execute(
            _NOTE, (self._table_id, self._key, _id(self._request.conflict_id), choice)
        )
        noted = await cursor.fetchone()
        if noted is None or noted[0] is None:  # a trigger has taken the row away
            raise ChangeRefused("refused", "The table's own rules do not leave the row there.")


async def _table_of(connection: AsyncConnection[Any], principal: Principal, conflict_id: str) -> str:
    try:
        cursor = await connection.execute(_FIND, (_id(conflict_id), principal.tenant))
    except RequestError:
        return ""
    found = await cursor.fetchone()
    return "" if found is None else str(found[1])


def _of_table(table: CatalogTable, wanted: sql.SQL) -> sql.Composable:
    return _OF_TABLE.format(
        row=expression(table.row_expression),
        key_text=expression(table.key_text_expression),
        table=sql.Identifier(table.schema_name, table.table_name),
        table_id=sql.Literal(table.table_id),
        same=expression(table.key_condition, key="c.key"),
        wanted=wanted,
    )


def _detected(detail: Any, theirs: Values, version: int, principal: Principal) -> ConflictDetected:
    id_, revision, table, key, fields, base, audience, mine, by, theirs_by, _ = detail
    return ConflictDetected(
        conflict_id=str(id_),
        revision=revision,
        table=table,
        key=msgspec.Raw(key.encode()),
        fields=fields,
        version=version,
        base=readable_base(None if base is None else _raw(base), audience, principal.user),
        theirs={name: theirs.get(name, NULL) for name in fields},
        mine=_raw(mine),
        by=NULL if by is None else msgspec.Raw(by.encode()),
        theirs_by=NULL if theirs_by is None else msgspec.Raw(theirs_by.encode()),
    )


def _raw(text: str) -> dict[str, msgspec.Raw]:
    return columns_of(text.encode())


def _place(text: str) -> tuple[int, str]:
    found = _PLACE.match(text)
    try:
        if found is not None:
            return int(found[1]), str(UUID(found[2]))
    except ValueError:
        pass
    raise RequestError("`after` is not what a page named as its `next`.")


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise _unknown() from None


def _unknown() -> ChangeRefused:
    return ChangeRefused("unknown_conflict", "There is no such conflict, or you may not resolve it.")
