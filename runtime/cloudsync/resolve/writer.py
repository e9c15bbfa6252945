"""One client's change: one transaction under the user's own rights, applied once whatever happens.

The table's row is locked before `row_state` is read: capture takes them in this order, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline, errors, sql

from cloudsync.clock import Timestamp
from cloudsync.protocol.messages import ChangeRequest, Outcome
from cloudsync.resolve.lww import (
    NEVER,
    ROW,
    Decision,
    History,
    Stamp,
    Write,
    bounded,
    decide,
    stamps_of,
)
from cloudsync.resolve.refusals import ChangeRefused, refusal_of
from cloudsync.resolve.turn import Answer, Applied, Moved, Turn, Work, carry_out
from cloudsync.resolve.values import Values, checked, json_object, record
from cloudsync.rows import RowValues, columns_of
from cloudsync.sync.catalog import Catalog, CatalogTable
from cloudsync.sync.snapshot import expression
from cloudsync.tokens import Principal

_BECOME_CLIENT: Final = """
SELECT set_config('role', 'cloudsync_client', true), set_config('app.tenant_id', %(tenant)s, true),
       set_config('app.user_id', %(user)s, true), set_config('cloudsync.user_id', %(user)s, true),
       set_config('cloudsync.client_id', %(client)s, true),
       set_config('cloudsync.mutation_id', %(number)s, true), set_config('cloudsync.at', %(at)s, true)
"""
BECOME_SERVICE: Final = "SET LOCAL ROLE NONE"
_HISTORY: Final = """
SELECT s.version, s.fields, s.deleted_at IS NOT NULL, s.audience, s.image::text
  FROM cloudsync.row_state s WHERE s.table_id = %s AND s.key = current_setting('cloudsync.key')
"""
_RECORD: Final = sql.SQL("json_to_record(%s::json)")
_NOTE: Final = "SELECT cloudsync.note_fields(%s, %s, %s, %s::jsonb, %s::jsonb)"
_NOTE_CONFLICT: Final = """
SELECT cloudsync.note_conflict(%s, %s::jsonb, p_mine => %s::jsonb, p_base_version => %s)::text
"""

_json: Final = msgspec.json.Encoder().encode
_UNREADABLE: Final = (psycopg.ProgrammingError, psycopg.NotSupportedError)
"""What values of some types raise when they are read: a name of nothing, a syntax of their own."""


class _Row(msgspec.Struct, frozen=True):
    """The row of a change as it was found; `image` and `audience` of one that is deleted."""

    key_text: str
    history: History
    audience: list[str] | None = None
    image: Values | None = None


async def write(
    connection: AsyncConnection[Any],
    catalog: Catalog,
    principal: Principal,
    client_id: str,
    change: ChangeRequest,
) -> Answer:
    """Apply a change and answer once it is durable; a repeat is answered and not applied.

    Raises ClientRefused if the client was revoked, TryAgain if the change was neither applied nor refused.
    """

    def begin(pipeline: AsyncPipeline) -> Work:
        return RowChange(connection, pipeline, catalog.find(change.table), principal, client_id, change)

    async def explain(error: psycopg.Error) -> ChangeRefused | None:
        found = refusal_of(error, catalog.find(change.table).name)
        if found is not None and found.code == "forbidden":
            return _explained(catalog.find(change.table), principal, change, found)
        if found is not None and found.code != "bad_value":
            return found
        if found is None and not isinstance(error, _UNREADABLE):
            return None
        return await _misfit(connection, catalog, change) or found

    return await carry_out(connection, Turn(principal, client_id, change.id), begin, explain)


async def become_client(
    connection: AsyncConnection[Any], principal: Principal, client_id: str, number: int, at: str
) -> None:
    """From here on the transaction has the user's rights, and capture knows who writes."""
    await connection.execute(
        _BECOME_CLIENT,
        {
            "tenant": principal.tenant,
            "user": principal.user,
            "client": client_id,
            "number": str(number or ""),
            "at": at,
        },
    )


async def _misfit(
    connection: AsyncConnection[Any], catalog: Catalog, change: ChangeRequest
) -> ChangeRefused | None:
    """The refusal that names the column whose value does not fit, if it is one alone."""
    table = catalog.find(change.table)
    for name, value in {**change.key, **change.values}.items():
        try:
            async with connection.transaction(force_rollback=True):
                await connection.execute("SET LOCAL ROLE cloudsync_client")
                await connection.execute(
                    sql.SQL("SELECT {} FROM {} AS {}").format(
                        sql.Identifier(name), _RECORD, _typed("n", table, (name,))
                    ),
                    (record(table, {name: value}),),
                )
        except (psycopg.DataError, *_UNREADABLE):
            column = table.columns[name]
            return ChangeRefused("bad_value", f"{table.name}.{name} takes a value of type {column.type}.")
    return None


def _explained(
    table: CatalogTable, principal: Principal, change: ChangeRequest, refused: ChangeRefused
) -> ChangeRefused:
    """The same refusal, naming what of the written tenant and owner are not the writer's own."""
    wanted = ((table.tenant_column, principal.tenant), (table.owner_column, principal.user))
    rules = {name: own for name, own in wanted if name is not None}
    written = RowValues({**change.key, **change.values})
    wrong = [name for name, own in rules.items() if name in written and str(written[name]) != own]
    if not wrong and change.op == "create":
        wrong = [name for name in rules if name not in written]
    if not wrong:
        return refused
    musts = " and ".join(f"{name} must be {rules[name]!r}" for name in wrong)
    return ChangeRefused(refused.code, f"{refused} {musts}.")


class RowChange:
    """One change in its transaction."""

    def __init__(
        self,
        connection: AsyncConnection[Any],
        pipeline: AsyncPipeline,
        table: CatalogTable,
        principal: Principal,
        client_id: str,
        change: ChangeRequest,
        *,
        decided: bool = False,
    ) -> None:
        """`decided`: a person has, knowing the row as it is."""
        self._decided = decided
        self._connection = connection
        self._pipeline = pipeline
        self._table = table
        self._principal = principal
        self._client_id = client_id
        self._change = change
        self._values = checked(table, change)
        self._is_settled = False
        self._row: _Row | None = None

    async def apply(self, now_ms: int, *, settled: bool) -> Applied:
        """Raises RequestError if the change is refused, psycopg errors, Moved."""
        table = self._table
        self._is_settled = settled
        row = self._row or await self._find(settled=settled)
        fields = tuple(self._values)
        at = _time_of(self._change, self._client_id, now_ms)
        if self._decided:
            write = Write(self._change.op, at, fields, row.history.version)
        else:
            manual = frozenset(name for name in fields if table.policy(name) == "manual")
            write = Write(self._change.op, at, fields, self._change.base_version, manual)
        decision = decide(row.history, write)
        mine = await self._contested(row, decision.contested) if decision.contested else None
        applied = await self._carry_out(row, decision)
        return await self._contest(mine, applied) if mine else applied

    def take(self, values: Values) -> None:
        """Have other values, known only after `find`. Raises UnknownColumn or ChangeRefused."""
        self._change = msgspec.structs.replace(self._change, values=dict(values))
        self._values = checked(self._table, self._change)

    async def find(self, *, settled: bool) -> History:
        """What is known of the row, before `apply`, whose errors it raises."""
        self._row = await self._find(settled=settled)
        return self._row.history

    async def _carry_out(self, row: _Row, decision: Decision) -> Applied:
        table = self._table
        match decision.step:
            case "insert":
                return await self._insert(row, decision)
            case "update" | "delete":
                return await self._update(row, decision)
            case "revive":
                return await self._revive(row, decision)
            case "remember":
                return await self._remember(row, decision)
            case "nothing":
                lost = [name for name in decision.lost if name != ROW]
                outcome: Outcome = "superseded" if decision.lost else "applied"
                return Applied(outcome, row.history.version, lost or None)
            case "exists":
                raise ChangeRefused("row_exists", f"{table.name} has a row with this key already.")
            case "missing":
                raise self._missing()

    async def look(self) -> None:
        """Lock the row, if it is there for this user, and ask what is known of it."""
        table, key = self._table, self._change.key
        await self._become_client("")
        self._named = await self._connection.execute(
            sql.SQL("SELECT set_config('cloudsync.key', {}, true) FROM {} AS {}").format(
                expression(table.key_text_expression), _RECORD, _typed("t", table, table.key)
            ),
            (record(table, key),),
        )
        lock = "FOR UPDATE" if self._change.op == "delete" else "FOR NO KEY UPDATE"
        self._found = await self._connection.execute(
            sql.SQL(
                "SELECT set_config('cloudsync.key', {key_text}, true)"
                " FROM (SELECT %s::jsonb AS key) AS k JOIN {table} AS t ON {same} {lock} OF t"
            ).format(
                key_text=expression(table.key_text_expression),
                table=_identifier(table),
                same=expression(table.key_condition, key="k.key"),
                lock=sql.SQL(lock),
            ),
            (json_object(key),),
        )
        self._known = await self._ask_history()

    async def _find(self, *, settled: bool) -> _Row:
        """The row as `look` found it."""
        found = await self._found.fetchone()
        exists = found is not None
        found = found or await self._named.fetchone()
        assert found is not None  # noqa: S101 - a record has one row
        state = await self._known.fetchone()
        if state is None:
            return _Row(found[0], History(exists))
        version, stamps, deleted, audience, image = state
        if exists == deleted:
            # What is known is not of the row that was found: somebody came between, or it is hidden.
            if not settled:
                raise Moved
            return _Row(found[0], History(exists, version))
        history = History(exists, version, stamps_of(stamps))
        if exists:
            return _Row(found[0], history)
        row = _Row(found[0], history, audience, columns_of(image.encode()) if image else None)
        if self._change.op != "create" and not self._could_see(row):
            raise self._missing()
        return row

    async def _contested(self, row: _Row, names: Iterable[str]) -> Values:
        """What this write has for fields about which a person decides, in the form that a row has.

        Without those that hold the same already: there is nothing to decide.
        """
        table, form = self._table, expression(self._table.row_expression)
        await self._become_client("")
        wanted = await self._connection.execute(
            sql.SQL("SELECT ({})::text FROM {} AS {}").format(
                form, _RECORD, _typed("t", table, table.columns)
            ),
            (record(table, self._values, names),),
        )
        held = await self._connection.execute(
            sql.SQL("SELECT ({})::text FROM (SELECT %s::jsonb AS key) AS k JOIN {} AS t ON {}").format(
                form, _identifier(table), expression(table.key_condition, key="k.key")
            ),
            (json_object(self._change.key),),
        )
        await self._connection.execute(BECOME_SERVICE)
        found, known = await wanted.fetchone(), await held.fetchone()
        assert found is not None  # noqa: S101 - a record has one row
        mine, theirs = columns_of(found[0].encode()), columns_of(known[0].encode()) if known else {}
        return {name: mine[name] for name in names if name not in theirs or mine[name] != theirs[name]}

    async def _contest(self, mine: Values, applied: Applied) -> Applied:
        """Keep what was not applied for a person to decide."""
        cursor = await self._connection.execute(
            _NOTE_CONFLICT,
            (
                self._table.table_id,
                json_object(self._change.key),
                json_object(mine),
                self._change.base_version,
            ),
        )
        noted = await cursor.fetchone()
        fields = [*mine, *(applied.lost or ())]
        if noted is None or noted[0] is None:  # it went with the rest of this change
            return Applied(applied.outcome, applied.version, fields)
        return Applied("conflict", applied.version, fields, noted[0])

    def _could_see(self, row: _Row) -> bool:
        """Whether the user could see the row that was deleted."""
        if row.image is None or (row.audience is not None and self._principal.user not in row.audience):
            return False
        table = self._table
        if table.tenant_column is None:
            return table.tenant_constant == self._principal.tenant
        tenant = row.image.get(table.tenant_column)
        return tenant is not None and str(msgspec.json.decode(tenant)) == self._principal.tenant

    def _missing(self) -> ChangeRefused:
        return ChangeRefused("unknown_row", f"{self._table.name} has no such row, or you may not change it.")

    async def _insert(self, row: _Row, decision: Decision) -> Applied:
        values = {**self._change.key, **self._values}
        version = await self._create(row, values, decision.at)
        return Applied("applied", version)

    async def _update(self, row: _Row, decision: Decision) -> Applied:
        table = self._table
        await self._become_client(str(decision.at))
        same = expression(table.key_condition, key="k.key")
        statement = sql.SQL("DELETE FROM {} AS t USING (SELECT %s::jsonb AS key) AS k WHERE {}").format(
            _identifier(table), same
        )
        parameters = [json_object(self._change.key)]
        if decision.step == "update":
            statement = sql.SQL(
                "UPDATE {} AS t SET {} FROM (SELECT %s::jsonb AS key) AS k, {} AS {} WHERE {}"
            ).format(
                _identifier(table),
                sql.SQL(", ").join(
                    sql.SQL("{0} = n.{0}").format(sql.Identifier(name)) for name in decision.fields
                ),
                _RECORD,
                _typed("n", table, decision.fields),
                same,
            )
            parameters.append(record(table, self._values, decision.fields))
        cursor = await self._connection.execute(statement, parameters)
        version, stamps = await self._written(row)
        if cursor.rowcount != 1:
            raise ChangeRefused("refused", f"A trigger of {table.name} refused the change.")
        missing = {
            name: Stamp(version, decision.at)
            for name in decision.fields
            if name not in stamps or stamps[name].at != decision.at
        }
        if missing:
            await self._note(row, version, missing)
        base = self._change.base_version
        alone = not decision.lost and (base is None or base >= row.history.version)
        return Applied("applied" if alone else "merged", version, list(decision.lost) or None)

    async def _revive(self, row: _Row, decision: Decision) -> Applied:
        assert row.image is not None  # noqa: S101 - `_could_see`
        edits = {name: self._values[name] for name in decision.fields}
        known = {name: value for name, value in row.image.items() if name in self._table.columns}
        try:
            version = await self._create(row, {**known, **edits}, decision.at, whole=True)
        except errors.InsufficientPrivilege:
            raise self._missing() from None
        stamps = {name: row.history.stamps.get(name, Stamp(0, NEVER)) for name in known}
        stamps.update({name: Stamp(version, decision.at) for name in edits})
        await self._note(row, version, stamps)
        return Applied("merged", version, list(decision.lost) or None)

    async def _remember(self, row: _Row, decision: Decision) -> Applied:
        """The row stays deleted; what was newer than what it held comes back with it, if it ever does."""
        stamps = {name: Stamp(row.history.version, decision.at) for name in decision.fields}
        image = {name: self._values[name] for name in decision.fields if name != ROW}
        await self._note(row, row.history.version, stamps, image)
        outcome: Outcome = "merged" if self._change.op == "delete" else "superseded"
        lost = [name for name in decision.lost if name != ROW]
        return Applied(outcome, row.history.version, lost or None)

    async def _create(self, row: _Row, values: Values, at: Timestamp, *, whole: bool = False) -> int:
        """Insert a row. Raises Moved if somebody else did, or has done and undone it."""
        table = self._table
        names = [name for name in values if not table.columns[name].generated]
        await self._become_client(str(at))
        cursor = await self._connection.execute(
            sql.SQL(
                "INSERT INTO {table} ({names}) {overriding} SELECT {names} FROM {record} AS {typed}"
                " ON CONFLICT ({key}) DO NOTHING"
            ).format(
                table=_identifier(table),
                names=sql.SQL(", ").join(map(sql.Identifier, names)),
                overriding=sql.SQL("OVERRIDING SYSTEM VALUE" if whole else ""),
                record=_RECORD,
                typed=_typed("n", table, names),
                key=sql.SQL(", ").join(map(sql.Identifier, table.key)),
            ),
            (record(table, values, names),),
        )
        version, _ = await self._written(row)
        if cursor.rowcount != 1:
            if self._is_settled:
                raise ChangeRefused("row_exists", f"{table.name} has a row with this key already.")
            raise Moved
        if row.history.version and version != row.history.version + 1:
            raise Moved
        return version

    async def _written(self, row: _Row) -> tuple[int, Mapping[str, Stamp]]:
        """The row's version and stamps after a statement, with every deferred rule checked."""
        await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor = await self._ask_history()
        await self._pipeline.sync()
        state = await cursor.fetchone()
        return (state[0], stamps_of(state[1])) if state is not None else (row.history.version, {})

    async def _ask_history(self) -> AsyncCursor[Any]:
        await self._connection.execute(BECOME_SERVICE)
        return await self._connection.execute(_HISTORY, (self._table.table_id,))

    async def _note(
        self, row: _Row, version: int, stamps: Mapping[str, Stamp], image: Values | None = None
    ) -> None:
        fields = {name: {"v": stamp.version, "at": str(stamp.at)} for name, stamp in stamps.items()}
        cursor = await self._connection.execute(
            _NOTE,
            (
                self._table.table_id,
                row.key_text,
                version,
                _json(fields).decode(),
                json_object(image or {}),
            ),
        )
        noted = await cursor.fetchone()
        if noted is None or not noted[0]:
            raise Moved

    async def _become_client(self, at: str) -> None:
        await become_client(self._connection, self._principal, self._client_id, self._change.id, at)


def _time_of(change: ChangeRequest, client_id: str, now_ms: int) -> Timestamp:
    """The client's time with its own id, as it counts here; the server's if it names none."""
    if not change.at:
        return Timestamp(now_ms, 0, client_id)
    try:
        at = Timestamp.parse(change.at[:100])
    except ValueError:
        raise ChangeRefused("bad_value", "`at` is not a hybrid logical timestamp.") from None
    return bounded(at._replace(client=client_id), now_ms)


def _typed(alias: str, table: CatalogTable, names: Iterable[str]) -> sql.Composable:
    """What `json_to_record` makes: these columns in their types, which format_type() wrote."""
    columns = [
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(table.columns[name].type)) for name in names
    ]
    return sql.SQL("{}({})").format(sql.Identifier(alias), sql.SQL(", ").join(columns))


def _identifier(table: CatalogTable) -> sql.Identifier:
    return sql.Identifier(table.schema_name, table.table_name)
