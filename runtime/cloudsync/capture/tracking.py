"""Which tables are captured: typed calls of `cloudsync.track`, `untrack`, `touch`, and what they record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NoReturn, Self

import msgspec
import psycopg
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from cloudsync.errors import CaptureError, NotTracked, TrackRefused

SESSION_SETTINGS: Final[Mapping[str, str]] = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
}
"""Settings under which `row_expression` gives the very JSON that the trigger captures."""

_NOT_TRACKED: Final = "CS002"
_REFUSALS: Final = "CS"


class Column(msgspec.Struct, frozen=True):
    """A column: its type as declared, and with domains resolved; `number` stays when it is renamed."""

    name: str
    type: str
    base_type: str
    not_null: bool
    generated: bool
    number: int


class Rules(NamedTuple):
    """Who sees the rows of a table, and what becomes of conflicts; as text, in words for people."""

    tenant_column: str | None
    tenant: str | None
    owner_column: str | None
    audience: str | None
    audience_depends_on: Mapping[str, Mapping[str, str]]
    conflict: str
    columns: Mapping[str, str]
    checked: bool

    @classmethod
    def of(
        cls, *, tenant_column: str | None, tenant: str | None, conflict: str, columns: Mapping[str, str],
        **others: Any,
    ) -> Self:  # fmt: skip
        """Without what says nothing: a column beside a constant, a policy that is the table's."""
        return cls(
            tenant_column=tenant_column if tenant is None else None,
            tenant=tenant,
            conflict=conflict,
            columns={name: policy for name, policy in columns.items() if policy != conflict},
            **others,
        )

    def __str__(self) -> str:
        depends_on = ", ".join(self.audience_depends_on)
        policies = ", ".join(f"{name} {policy}" for name, policy in sorted(self.columns.items()))
        parts = (
            self.tenant_column and f"tenant column {self.tenant_column}",
            self.tenant and f"tenant {self.tenant}",
            self.owner_column and f"owner column {self.owner_column}",
            self.audience and f"audience {self.audience}",
            depends_on and f"which depends on {depends_on}",
            self.conflict != "lww" and f"conflicts {self.conflict}",
            policies and f"conflicts of {policies}",
            self.checked and "checked",
        )
        return ", ".join(part for part in parts if part)


class TrackedTable(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `cloudsync.tracked_tables`.

    Expressions hold `{row}` for a row's alias, `key_condition` also `{key}`: a jsonb as `key_expression`
    makes it. They are to be evaluated under `SESSION_SETTINGS`.
    """

    table_id: int
    relid: int
    schema_name: str
    table_name: str
    key_columns: list[str]
    tenant_column: str | None
    tenant_constant: str | None
    owner_column: str | None
    audience_function: str | None
    audience_depends_on: dict[str, dict[str, str]]
    conflict: str
    column_policies: dict[str, str]
    checked: bool
    columns: list[Column]
    row_expression: str
    key_expression: str
    key_text_expression: str
    key_condition: str
    version_floor: int
    schema_version: int
    rls_enabled_here: bool

    @property
    def name(self) -> str:
        """As `change_log.table_name` and the wire have it: schema.table, unquoted."""
        return f"{self.schema_name}.{self.table_name}"

    @property
    def rules(self) -> Rules:
        return Rules.of(
            tenant_column=self.tenant_column,
            tenant=self.tenant_constant,
            owner_column=self.owner_column,
            audience=self.audience_function,
            audience_depends_on=self.audience_depends_on,
            conflict=self.conflict,
            columns=self.column_policies,
            checked=self.checked,
        )

    def policy(self, column: str) -> str:
        """The conflict policy of a column: its own, else the table's."""
        return self.column_policies.get(column, self.conflict)


_QUERY: Final = """
SELECT table_id, relid::bigint AS relid, schema_name, table_name, key_columns,
       tenant_column, tenant_constant, owner_column, audience_function::text AS audience_function,
       audience_depends_on, conflict, column_policies, checked, columns,
       row_expression, key_expression, key_text_expression, key_condition,
       version_floor, schema_version, rls_enabled_here
  FROM cloudsync.tracked_tables
"""


def load_tracked(conn: Connection[Any]) -> list[TrackedTable]:
    """Every tracked table, by name."""
    return _load(conn, _QUERY + " ORDER BY schema_name, table_name", ())


def track(
    conn: Connection[Any],
    table: str,
    *,
    tenant_column: str = "tenant_id",
    tenant: str | None = None,
    owner_column: str | None = None,
    audience: str | None = None,
    audience_depends_on: Mapping[str, Mapping[str, str]] | None = None,
    conflict: str = "lww",
    columns: Mapping[str, str] | None = None,
    checked: bool = False,
    replace: bool = True,
) -> TrackedTable:
    """Start capturing a table, or change how it is captured; the same call twice changes nothing.

    `tenant` gives the whole table to one tenant, instead of a column. `audience` names a function from a
    row to the ids of the users who may see it. Raises TrackRefused, with the database's sentence and hint;
    without `replace` also for a table that is tracked with other rules.
    """
    relid = _resolve(conn, table)
    if not replace:
        wanted = Rules.of(
            tenant_column=tenant_column,
            tenant=tenant,
            owner_column=owner_column,
            audience=audience and _function(conn, relid, audience),
            audience_depends_on=audience_depends_on or {},
            conflict=conflict,
            columns=columns or {},
            checked=checked,
        )
        _keep_rules(conn, relid, wanted)
    try:
        with conn.transaction():
            conn.execute(
                "SELECT cloudsync.track(%s::oid::regclass, tenant_column => %s, owner_column => %s,"
                " audience => %s,"
                " audience_depends_on => %s, tenant => %s, conflict => %s, columns => %s, checked => %s)",
                (
                    relid,
                    tenant_column,
                    owner_column,
                    audience,
                    Jsonb(audience_depends_on or {}),
                    tenant,
                    conflict,
                    Jsonb(columns or {}),
                    checked,
                ),
            )
    except psycopg.Error as error:
        _refuse(error, table)
    return _load(conn, _QUERY + " WHERE relid = %s", (relid,))[0]


def _keep_rules(conn: Connection[Any], relid: int, wanted: Rules) -> None:
    """Raise TrackRefused if the table is tracked with others: what a call leaves out would be taken away."""
    for known in _load(conn, _QUERY + " WHERE relid = %s", (relid,)):
        if known.rules != wanted:
            raise TrackRefused(
                f"{known.name} is tracked with {known.rules}; this call would make that {wanted}.",
                hint="Give all rules that are to stay; --replace takes away what is not given.",
            )


def _function(conn: Connection[Any], relid: int, written: str) -> str:
    """The audience function that is meant, as the record has it; as it was written if there is none."""
    row = conn.execute(
        "SELECT p.oid::regprocedure::text FROM pg_class c JOIN pg_namespace h ON h.oid = c.relnamespace"
        " CROSS JOIN LATERAL cloudsync.name_parts(split_part(%s, '(', 1), h.nspname) AS parts"
        " JOIN pg_namespace n ON n.nspname = parts[1] JOIN pg_proc p ON p.pronamespace = n.oid"
        " AND p.proname = parts[2] AND p.pronargs = 1 AND p.proargtypes[0] = c.reltype WHERE c.oid = %s",
        (written, relid),
    ).fetchone()
    return written if row is None else str(row[0])


def untrack(conn: Connection[Any], table: str) -> None:
    """Stop capturing a table and remove what `track` made. Raises NotTracked, TrackRefused."""
    relid = _resolve(conn, table)
    try:
        with conn.transaction():
            conn.execute("SELECT cloudsync.untrack(%s::oid::regclass)", (relid,))
    except psycopg.Error as error:
        _refuse(error, table)


def touch(conn: Connection[Any], table: str, key: Mapping[str, Any]) -> int:
    """Send a row to its readers once more; returns its new version. Raises NotTracked, TrackRefused."""
    relid = _resolve(conn, table)
    try:
        with conn.transaction():
            _check_key(conn, relid, table, key)
            row = conn.execute(
                "SELECT cloudsync.touch(%s::oid::regclass, %s)", (relid, Jsonb(dict(key)))
            ).fetchone()
    except psycopg.DataError as error:
        raise TrackRefused(
            f"{table} cannot have a row with this key: {error.diag.message_primary}."
        ) from error
    except psycopg.Error as error:
        _refuse(error, table)
    if row is None or row[0] is None:
        raise TrackRefused(f"{table} has no row with this key.")
    version: int = row[0]
    return version


def _check_key(conn: Connection[Any], relid: int, table: str, key: Mapping[str, Any]) -> None:
    """Another column than the key's is a mistake, and no row that is missing. Raises TrackRefused."""
    columns = [
        name
        for (name,) in conn.execute(
            "SELECT a.attname FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k (number, n)"
            " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number"
            " WHERE i.indrelid = %s AND i.indisprimary AND k.n <= i.indnkeyatts ORDER BY k.n",
            (relid,),
        )
    ]
    if columns and set(columns) != set(key):  # without a key it is not tracked, which the database says
        given = ", ".join(key) or "no column"
        raise TrackRefused(f"The key of {table} is {', '.join(columns)}; this one names {given}.")


def _resolve(conn: Connection[Any], table: str) -> int:
    """The table's oid: by exact name, `public` if it has no schema, else as SQL would read it."""
    schema, dot, name = table.partition(".")
    try:
        with conn.transaction():
            row = conn.execute(
                "SELECT coalesce((SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE (n.nspname, c.relname) = (%s, %s)), to_regclass(%s))::bigint",
                (schema if dot else "public", name if dot else schema, table),
            ).fetchone()
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.SyntaxError, psycopg.errors.InvalidName):
        row = None  # what cannot be read as a name, or is one of another database, is none of a table here
    if row is None or row[0] is None:
        raise TrackRefused(f"There is no table {table}.", hint="Write it as schema.table.")
    oid: int = row[0]
    return oid


def _refuse(error: psycopg.Error, table: str) -> NoReturn:
    """The database's refusals as errors of ours; what is no refusal is raised as it is."""
    state = error.sqlstate or ""
    sentence = _sentence(error.diag.message_primary or str(error), table)
    hint = error.diag.message_hint
    if state == _NOT_TRACKED:
        raise NotTracked(sentence, hint=hint) from error
    if state.startswith(_REFUSALS):
        raise TrackRefused(sentence, hint=hint) from error
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        raise TrackRefused(sentence, hint=f"Connect as the owner of {table}.") from error
    if isinstance(error, psycopg.errors.UndefinedFunction | psycopg.errors.InvalidSchemaName):
        raise CaptureError(
            "This database has no CloudSync schema.", hint="Run cloudsync migrate first."
        ) from error
    raise error


def _sentence(text: str, table: str) -> str:
    """A message of PostgreSQL as a sentence; a name at its beginning stays as it is written."""
    first = text.partition(" ")[0]
    if first.isalpha() and first != table:  # names come with their schema, but for a temporary table's
        text = f"{text[:1].upper()}{text[1:]}"
    return f"{text}{'' if text.endswith('.') else '.'}"


def _load(conn: Connection[Any], query: str, arguments: tuple[Any, ...]) -> list[TrackedTable]:
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query.encode(), arguments).fetchall()
    return msgspec.convert(rows, list[TrackedTable])
