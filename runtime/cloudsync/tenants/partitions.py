"""A tenant's rows in partitions of their own, and back: nothing has changed for anybody who reads them.

A table takes part if it is tracked and partitioned by list on its tenant column. Its rows move in one
transaction that holds the table alone; triggers are silent meanwhile, so rows keep their versions, no event
is emitted, and no foreign key notices that they were away.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
from psycopg import Connection, sql
from psycopg.rows import class_row

from cloudsync.errors import TenantRefused

_LOCK_TIMEOUT: Final = "10s"
_NAME_BYTES: Final = 63


class Moved(NamedTuple):
    """What became of one table: `partition` is the tenant's own, None if its rows are in the default one."""

    table: str
    partition: str | None
    rows: int


class _Table(NamedTuple):
    relid: int
    schema: str
    name: str
    owner: str
    column: str
    type: str
    default_partition: int | None
    referenced: bool

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)


class _Partition(NamedTuple):
    relid: int
    schema: str
    name: str
    bound: str


def separate(conn: Connection[Any], tenant: str) -> Iterator[Moved]:
    """Give the tenant its own partition of every table that can have one. `conn` commits by itself.

    What is done already stays as it is, so a run that broke off is repeated. Raises TenantRefused.
    """
    for table in _tables(conn, tenant):
        yield _separate(conn, table, tenant)


def unite(conn: Connection[Any], tenant: str) -> Iterator[Moved]:
    """Put the tenant's rows back into the default partitions, and drop its own. As `separate`."""
    for table in _tables(conn, tenant):
        yield _unite(conn, table, tenant)


def places(conn: Connection[Any], tenant: str) -> Iterator[tuple[str, str | None]]:
    """Table and the partition that the tenant's rows are in, None for the default one."""
    for table in _tables(conn, tenant):
        holder = _holder(conn, table, _value(table, tenant))
        yield table.name, holder.name if holder else None


def partition_name(table: str, tenant: str) -> str:
    """A name for the tenant's partition, readable where the tenant's id is, and no other tenant's."""
    readable = re.sub(r"[^a-z0-9_]+", "_", tenant.lower())
    name = f"{table}_{readable}"
    if readable == tenant and len(name.encode()) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(f"{table}\x1f{tenant}".encode()).hexdigest()[:8]
    return f"{name.encode()[: _NAME_BYTES - 9].decode(errors='ignore')}_{digest}"


def _separate(conn: Connection[Any], table: _Table, tenant: str) -> Moved:
    name = partition_name(table.name, tenant)
    own = sql.Identifier(table.schema, name)
    value = _value(table, tenant)
    with _alone(conn, table):
        holder = _holder(conn, table, value)
        if holder is not None:
            if not _holds_nobody_else(holder, tenant):
                raise TenantRefused(
                    f"The partition {holder.name} of {table.name} holds {tenant} together with others.",
                    hint="Split it first: only a partition of the tenant alone can come and go with it.",
                )
            return Moved(table.name, holder.name, 0)
        _refuse_taken(conn, table, name)
        # Indexes and checks are made here, so that attaching finds them; identity is the table's own.
        _run(
            conn,
            "CREATE TABLE {own} (LIKE {table} INCLUDING ALL EXCLUDING IDENTITY)",
            own=own,
            table=table.identifier,
        )
        rows = 0
        if table.default_partition is not None:
            with _silent(conn, table.default_partition):
                source = _identifier(conn, table.default_partition)
                rows = _copy(conn, table, source, own, value)
                _run(
                    conn, "DELETE FROM {source} WHERE {column} = {value}",
                    source=source, column=sql.Identifier(table.column), value=value,
                )  # fmt: skip
        _run(
            conn, "ALTER TABLE {table} ATTACH PARTITION {own} FOR VALUES IN ({value})",
            table=table.identifier, own=own, value=sql.Literal(tenant),
        )  # fmt: skip
    _run(conn, "ANALYZE {own}", own=own)
    return Moved(table.name, name, rows)


def _unite(conn: Connection[Any], table: _Table, tenant: str) -> Moved:
    value = _value(table, tenant)
    with _alone(conn, table):
        holder = _holder(conn, table, value)
        if holder is None or not _holds_nobody_else(holder, tenant):
            return Moved(table.name, None, 0)
        if table.default_partition is None:
            raise TenantRefused(
                f"The table {table.name} has no default partition that could take the tenant's rows.",
                hint=f"Add one: CREATE TABLE … PARTITION OF {table.schema}.{table.name} DEFAULT.",
            )
        if table.referenced:
            raise TenantRefused(
                f"Foreign keys refer to {table.name}: PostgreSQL detaches no partition that they refer to.",
                hint="Leave the tenant on its plan, or drop the foreign keys first.",
            )
        own = sql.Identifier(holder.schema, holder.name)
        _run(conn, "ALTER TABLE {table} DETACH PARTITION {own}", table=table.identifier, own=own)
        with _silent(conn, table.default_partition):
            rows = _copy(conn, table, own, _identifier(conn, table.default_partition), value)
        _run(conn, "DROP TABLE {own}", own=own)
    return Moved(table.name, None, rows)


def _tables(conn: Connection[Any], tenant: str) -> Iterator[_Table]:
    """Tables that can hold the tenant in a partition of its own, in the order of their names."""
    with conn.cursor(row_factory=class_row(_Table)) as cursor:
        tables = cursor.execute(
            """
            SELECT t.relid::bigint AS relid, t.schema_name AS schema, t.table_name AS name,
                   pg_get_userbyid(c.relowner) AS owner, t.tenant_column AS column,
                   format_type(a.atttypid, a.atttypmod) AS type,
                   nullif(p.partdefid, 0)::bigint AS default_partition,
                   EXISTS (SELECT FROM pg_constraint f WHERE f.contype = 'f' AND f.confrelid = t.relid)
                       AS referenced
            FROM cloudsync.tracked_tables t
            JOIN pg_partitioned_table p ON p.partrelid = t.relid
            JOIN pg_class c ON c.oid = t.relid
            JOIN pg_attribute a ON a.attrelid = t.relid AND a.attnum = t.tenant_number
            WHERE p.partstrat = 'l' AND p.partnatts = 1 AND p.partattrs[0] = t.tenant_number
            ORDER BY t.schema_name, t.table_name
            """
        ).fetchall()
    for table in tables:
        try:
            with conn.transaction():
                canonical = conn.execute(sql.SQL("SELECT {}::text").format(_value(table, tenant))).fetchone()
        except psycopg.errors.DataError:
            continue  # of another type: no row there can be this tenant's
        if canonical == (tenant,):
            yield table


@contextmanager
def _alone(conn: Connection[Any], table: _Table) -> Iterator[None]:
    """A transaction as the table's owner that nobody else reads or writes the table beside."""
    try:
        with conn.transaction():
            _run(conn, "SET LOCAL lock_timeout = {value}", value=sql.Literal(_LOCK_TIMEOUT))
            conn.execute("SET LOCAL cloudsync.partition_quietly = on")
            (may_silence,) = conn.execute(
                "SELECT has_parameter_privilege('session_replication_role', 'SET')"
            ).fetchone() or (False,)
            if may_silence:
                conn.execute("SET LOCAL session_replication_role = replica")
            elif table.referenced:
                raise TenantRefused(
                    f"Foreign keys refer to {table.name} and would notice that rows move.",
                    hint="Connect as a role that may set session_replication_role: a superuser, on RDS a"
                    " member of rds_superuser.",
                )
            # An error if a policy hides rows from the owner: they would be left in what is dropped.
            conn.execute("SET LOCAL row_security = off")
            _run(conn, "SET LOCAL ROLE {owner}", owner=sql.Identifier(table.owner))
            _run(conn, "LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE", table=table.identifier)
            yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise TenantRefused(
            f"Partitions of {table.name} are its owner's matter: {error.diag.message_primary}.",
            hint=f"Connect as a member of {table.owner}.",
        ) from None
    except psycopg.errors.LockNotAvailable:
        raise TenantRefused(
            f"The table {table.name} was in use for {_LOCK_TIMEOUT}.",
            hint="Repeat the command when no long transaction is open; what is done stays done.",
        ) from None


@contextmanager
def _silent(conn: Connection[Any], relid: int) -> Iterator[None]:
    """No trigger fires on the partition or on partitions of it, those that fire always included."""
    triggers = conn.execute(
        """
        SELECT n.nspname, c.relname, t.tgname, t.tgenabled::text
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE t.tgrelid IN (SELECT relid FROM pg_partition_tree(%s::oid::regclass)) AND NOT t.tgisinternal
          AND t.tgenabled <> 'D'
        """,
        (relid,),
    ).fetchall()
    enable: dict[str, LiteralString] = {"O": "", "A": "ALWAYS", "R": "REPLICA"}
    conn.execute("SET LOCAL cloudsync.tracking = on")  # or capture would keep its triggers enabled
    for schema, name, trigger, _ in triggers:
        _run(
            conn, "ALTER TABLE ONLY {table} DISABLE TRIGGER {trigger}",
            table=sql.Identifier(schema, name), trigger=sql.Identifier(trigger),
        )  # fmt: skip
    conn.execute("SET LOCAL cloudsync.tracking = ''")
    yield
    conn.execute("SET LOCAL cloudsync.tracking = on")
    for schema, name, trigger, state in triggers:
        _run(
            conn, "ALTER TABLE ONLY {table} ENABLE {how} TRIGGER {trigger}",
            table=sql.Identifier(schema, name), how=sql.SQL(enable[state]), trigger=sql.Identifier(trigger),
        )  # fmt: skip
    conn.execute("SET LOCAL cloudsync.tracking = ''")


def _holder(conn: Connection[Any], table: _Table, value: sql.Composable) -> _Partition | None:
    """The partition, other than the default one, that a row of the tenant goes to."""
    with conn.cursor(row_factory=class_row(_Partition)) as cursor:
        partitions = cursor.execute(
            """
            SELECT c.oid::bigint AS relid, n.nspname AS schema, c.relname AS name,
                   pg_get_expr(c.relpartbound, c.oid) AS bound
            FROM pg_inherits i
            JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE i.inhparent = %s AND c.oid <> coalesce(%s, 0)::oid
            """,
            (table.relid, table.default_partition),
        ).fetchall()
    for partition in partitions:
        (condition,) = conn.execute(
            "SELECT pg_get_partition_constraintdef(%s)", (partition.relid,)
        ).fetchone() or ("false",)
        query = sql.SQL("SELECT {condition} FROM (SELECT {value} AS {column}) AS r").format(
            condition=sql.SQL(condition), value=value, column=sql.Identifier(table.column)
        )
        if conn.execute(query).fetchone() == (True,):
            return partition
    return None


def _holds_nobody_else(partition: _Partition, tenant: str) -> bool:
    quoted = tenant.replace("'", "''")  # PostgreSQL shows bounds so, backslashes as they are
    return partition.bound in (f"FOR VALUES IN ('{quoted}')", f"FOR VALUES IN ({tenant})")


def _refuse_taken(conn: Connection[Any], table: _Table, name: str) -> None:
    taken = conn.execute(
        "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        (table.schema, name),
    ).fetchone()
    if taken is not None:
        raise TenantRefused(
            f"A relation {table.schema}.{name} exists, but is not the tenant's partition of {table.name}.",
            hint="Rename or drop it.",
        )


def _copy(
    conn: Connection[Any],
    table: _Table,
    source: sql.Identifier,
    target: sql.Identifier,
    value: sql.Composable,
) -> int:
    columns = conn.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped"
        " AND attgenerated = '' ORDER BY attnum",
        (table.relid,),
    ).fetchall()
    return _run(
        conn,
        "INSERT INTO {target} ({columns}) OVERRIDING SYSTEM VALUE"
        " SELECT {columns} FROM {source} WHERE {column} = {value}",
        target=target,
        source=source,
        columns=sql.SQL(", ").join(sql.Identifier(name) for (name,) in columns),
        column=sql.Identifier(table.column),
        value=value,
    )


def _value(table: _Table, tenant: str) -> sql.Composable:
    return sql.SQL("{}::{}").format(sql.Literal(tenant), sql.SQL(table.type))


def _identifier(conn: Connection[Any], relid: int) -> sql.Identifier:
    row = conn.execute(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.oid = %s",
        (relid,),
    ).fetchone()
    assert row is not None  # noqa: S101 - it is locked
    return sql.Identifier(*row)


def _run(conn: Connection[Any], statement: LiteralString, **parts: sql.Composable) -> int:
    return conn.execute(sql.SQL(statement).format(**parts)).rowcount
