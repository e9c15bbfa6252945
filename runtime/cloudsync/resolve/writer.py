"""One client's change: one transaction under the user's own rights, applied once whatever happens.

The client's row in `cloudsync.clients` is locked first, so that its changes are applied one after the other
on whichever gateway they arrive; its number is noted in the same transaction. The table's row is locked
before `row_state` is read: capture takes them in this order, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline, errors, sql

from cloudsync.clock import Timestamp
from cloudsync.errors import ClientRefused, RequestError
from cloudsync.protocol.messages import (
    ChangeConfirmed,
    ChangeRejected,
    ChangeRequest,
    Outcome,
    TextRequest,
)
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
from cloudsync.resolve.refusals import ChangeRefused, TryAgain, refusal_of
from cloudsync.resolve.values import Values, checked, json_object, record
from cloudsync.sync.catalog import Catalog, CatalogTable
from cloudsync.sync.snapshot import expression
from cloudsync.tokens import Principal

Answer = ChangeConfirmed | ChangeRejected

_TRIES: Final = 6
_HIDDEN_AFTER: Final = 2
"""A row that is there and cannot be seen so many times in a row is hidden, not just being changed."""
_AGAIN: Final = (errors.SerializationFailure, errors.DeadlockDetected)

_TURN: Final = """
SELECT c.last_mutation, (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM cloudsync.clients c
 WHERE c.client_id = %s AND c.tenant_id = %s AND c.user_id = %s AND c.revoked_at IS NULL
   FOR NO KEY UPDATE
"""
_STORED: Final = "SELECT result FROM cloudsync.mutations WHERE client_id = %s AND mutation_id = %s"
_DONE: Final = """
WITH noted AS (INSERT INTO cloudsync.mutations (client_id, mutation_id, result) VALUES (%(client)s, %(number)s, %(result)s))
UPDATE cloudsync.clients SET last_mutation = %(number)s WHERE client_id = %(client)s
"""  # noqa: E501
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

_image: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_json: Final = msgspec.json.Encoder().encode


class Moved(Exception):
    """The row was created or deleted by somebody else between two statements."""


class _Row(msgspec.Struct, frozen=True):
    """The row of a change as it was found; `image` and `audience` of one that is deleted."""

    key_text: str
    history: History
    audience: list[str] | None = None
    image: Values | None = None


class Applied(msgspec.Struct, frozen=True):
    outcome: Outcome
    version: int | None
    lost: list[str] | None = None
    revision: int | None = None


class Work(Protocol):
    """What is to be done in a request's transaction."""

    async def look(self) -> None:
        """Ask for what has to be known, without waiting for the answers."""

    async def apply(self, now_ms: int, *, settled: bool) -> Applied:
        """Do it. Raises RequestError if it is refused, psycopg errors, Moved."""


Begin = Callable[[AsyncConnection[Any], AsyncPipeline, CatalogTable, Principal, str, Any], Work]


async def write(
    connection: AsyncConnection[Any],
    catalog: Catalog,
    principal: Principal,
    client_id: str,
    change: ChangeRequest | TextRequest,
    begin: Begin | None = None,
) -> Answer:
    """Apply a change and answer once it is durable; a repeat is answered and not applied.

    Raises ClientRefused if the client was revoked, TryAgain if the change was neither applied nor refused.
    """
    refused: RequestError | None = None
    for tries in range(_TRIES):
        try:
            return await _attempt(
                connection, catalog, principal, client_id, change, refused, tries, begin or _Change
            )
        except (ChangeRefused, RequestError) as refusal:
            # The number is used up all the same: with a transaction of its own, the one before is void.
            refused = refusal
        except Moved:
            continue
        except _AGAIN:
            continue
        except psycopg.Error as error:
            found = refusal_of(error, catalog.find(change.table).name)
            if found is None:
                raise TryAgain(type(error).__name__) from error
            refused = found
            if isinstance(change, ChangeRequest):
                refused = await _named(connection, catalog, principal, change, found)
    raise TryAgain("the row is being changed by others")


async def _attempt(
    connection: AsyncConnection[Any],
    catalog: Catalog,
    principal: Principal,
    client_id: str,
    change: ChangeRequest | TextRequest,
    refused: RequestError | None,
    tries: int,
    begin: Begin,
) -> Answer:
    # Statements go in groups, without waiting for each one's answer.
    async with connection.pipeline() as pipeline, connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '2s'")
        asked = await connection.execute(_TURN, (client_id, principal.tenant, principal.user))
        work: Work | None = None
        if refused is None:
            work = begin(connection, pipeline, catalog.find(change.table), principal, client_id, change)
            await work.look()
        await pipeline.sync()
        turn = await asked.fetchone()
        if turn is None:
            raise ClientRefused
        last_mutation, now_ms = turn
        if change.id <= last_mutation:
            return await _repeated(connection, client_id, change.id)
        if work is None:
            assert refused is not None  # noqa: S101 - else there is work
            answer: Answer = ChangeRejected(change.id, refused.code, str(refused))
            result: dict[str, Any] = {"code": refused.code, "message": str(refused)}
        else:
            applied = await work.apply(now_ms, settled=tries >= _HIDDEN_AFTER)
            answer = ChangeConfirmed(
                change.id, applied.outcome, applied.version, applied.lost, applied.revision
            )
            result = {"outcome": applied.outcome, "version": applied.version, "fields": applied.lost}
            if applied.revision is not None:
                result["revision"] = applied.revision
        await connection.execute(
            _DONE, {"client": client_id, "number": change.id, "result": _json(result).decode()}
        )
    return answer


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
            "number": str(number),
            "at": at,
        },
    )


async def _repeated(connection: AsyncConnection[Any], client_id: str, number: int) -> Answer:
    cursor = await connection.execute(_STORED, (client_id, number))
    row = await cursor.fetchone()
    if row is None:
        return ChangeConfirmed(number, "already_applied")
    result = row[0]
    if "code" in result:
        return ChangeRejected(number, result["code"], result["message"])
    return ChangeConfirmed(
        number, "already_applied", result["version"], result["fields"], result.get("revision")
    )


async def _named(
    connection: AsyncConnection[Any],
    catalog: Catalog,
    principal: Principal,
    change: ChangeRequest,
    refused: ChangeRefused,
) -> ChangeRefused:
    """The same refusal, naming the column whose value does not fit, if it is one alone."""
    if refused.code != "bad_value":
        return refused
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
        except psycopg.DataError:
            column = table.columns[name]
            return ChangeRefused("bad_value", f"{table.name}.{name} takes a value of type {column.type}.")
    return refused


class _Change:
    """One change in its transaction."""

    def __init__(
        self,
        connection: AsyncConnection[Any],
        pipeline: AsyncPipeline,
        table: CatalogTable,
        principal: Principal,
        client_id: str,
        change: ChangeRequest,
    ) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._table = table
        self._principal = principal
        self._client_id = client_id
        self._change = change
        self._values = checked(table, change)
        self._is_settled = False

    async def apply(self, now_ms: int, *, settled: bool) -> Applied:
        """Raises RequestError if the change is refused, psycopg errors, Moved."""
        table = self._table
        self._is_settled = settled
        row = await self._find(settled=settled)
        fields = tuple(self._values)
        manual = frozenset(name for name in fields if table.policy(name) == "manual")
        at = _time_of(self._change, self._client_id, now_ms)
        write = Write(self._change.op, at, fields, self._change.base_version, manual)
        decision = decide(row.history, write)
        if decision.contested:
            raise ChangeRefused(
                "not_supported",
                f"{', '.join(decision.contested)} was changed by others meanwhile, and a person is to decide:"
                " this server does not take such conflicts yet.",
            )
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
        row = _Row(found[0], history, audience, _image(image) if image else None)
        if self._change.op != "create" and not self._could_see(row):
            raise self._missing()
        return row

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
