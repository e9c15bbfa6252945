"""Generated tables as SQL: columns, the statements that make them, the expressions of their JSON."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, Final

import msgspec
from psycopg import sql

from cloudsync.verify.kinds import KINDS, MOODS, Kind
from cloudsync.verify.program import KEYS, ROOMS, TENANTS, USERS, Shape

_NAMES: Final = ("c1", 'Odd "name', "order", "ü", "c5", "c6", "c7", "c8")
MARK: Final = "mark"
FILLED: Final = 1000
"""Keys that `fill` makes begin with this number."""


class Column(msgspec.Struct, frozen=True):
    name: str
    kind: Kind

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.name)


class Table:
    """One generated table in the scratch schema; `mark` is a text that every write sets to its own."""

    def __init__(
        self, shape: Shape, *, schema: str, number: int, tenants: tuple[str, ...], keys: int = KEYS
    ) -> None:
        self.shape = shape
        self.keys = keys
        self.schema = schema
        self.number = number
        self.tenants = tenants
        self.bare_name = f"table {number}" if number == 1 else f"t{number}"
        self.name = f"{schema}.{self.bare_name}"
        self.identifier = sql.Identifier(schema, self.bare_name)
        self.key = [Column(f"k{n}", KINDS[kind]) for n, kind in enumerate(shape.key, 1)]
        self.payload = [
            Column(_NAMES[n % len(_NAMES)], KINDS[kind])
            for n, kind in enumerate(shape.columns[: len(_NAMES)])
        ]
        text = KINDS["text"]
        self.tenant = Column("tenant_id", text)
        self.owner = Column("owner", KINDS[shape.owner])
        self.room = Column("room", KINDS["integer"])
        self.mark = Column(MARK, text)
        self.full_key = [*([self.tenant] if shape.tenant_keyed else []), *self.key]
        self.columns = [*self.key, self.tenant, self.owner, self.room, *self.payload, self.mark]

    def json_key(self) -> sql.Composable:
        """A row's key as a JSON array, in key order."""
        parts = sql.SQL(", ").join(c.kind.json_of(c.identifier) for c in self.full_key)
        return sql.SQL("jsonb_build_array({})").format(parts)

    def json_row(self) -> sql.Composable:
        """A row as JSON, the way clients receive it."""
        pairs = sql.SQL(", ").join(
            sql.SQL("{}, {}").format(sql.Literal(c.name), c.kind.json_of(c.identifier)) for c in self.columns
        )
        return sql.SQL("jsonb_build_object({})").format(pairs)

    def key_literals(self, number: int) -> list[str]:
        """The literals of key `number`; different numbers have different keys."""
        number %= self.keys
        if len(self.key) == 1:
            return [distinct(self.key[0].kind, number)]
        first, second = self.key[0].kind, self.key[1].kind
        return [distinct(first, number % 3), distinct(second, number // 3)]

    def tenant_literal(self, number: int) -> str:
        """Of the tenants; always the first where the table has one tenant for all rows."""
        return self.tenants[number % TENANTS]

    def owner_literal(self, number: int) -> str | None:
        users = sorted({user for _, user in USERS})
        return (*users, None)[number % (len(users) + 1)]

    def room_literal(self, number: int) -> int | None:
        room = number % (ROOMS + 1)
        return room if room < ROOMS else None

    def value(self, column: Column, number: int) -> Any:
        """The value number `number` of a column that is no key."""
        if column.name == "tenant_id":
            return self.tenant_literal(number)
        if column.name == "owner":
            return self.owner_literal(number)
        if column.name == "room":
            return self.room_literal(number)
        return column.kind.value(number)

    @property
    def settable(self) -> list[Column]:
        return [self.tenant, self.owner, self.room, *self.payload]

    def create(self) -> list[sql.Composed]:
        """What makes the table and has it tracked."""
        columns = [
            sql.SQL("{} {}{}").format(
                column.identifier,
                column.kind.declared_in(self.schema),
                sql.SQL(" NOT NULL" if column.name in (MARK, "tenant_id") else ""),
            )
            for column in self.columns
        ]
        statements: list[sql.Composed] = [
            sql.SQL("CREATE TABLE {table} ({columns}, PRIMARY KEY ({key})){partitions}").format(
                table=self.identifier,
                columns=sql.SQL(", ").join(columns),
                key=sql.SQL(", ").join(c.identifier for c in self.full_key),
                partitions=sql.SQL(" PARTITION BY LIST (tenant_id)" if self.partitioned else ""),
            )
        ]
        if self.partitioned:
            first = sql.Identifier(self.schema, f"{self.bare_name} first")
            rest = sql.Identifier(self.schema, f"{self.bare_name} rest")
            statements += [
                sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES IN ({})").format(
                    first, self.identifier, sql.Literal(self.tenants[0])
                ),
                sql.SQL("CREATE TABLE {} PARTITION OF {} DEFAULT").format(rest, self.identifier),
            ]
        if self.shape.by_members:
            statements.append(
                sql.SQL(
                    "CREATE FUNCTION {function}(r {table}) RETURNS text[] LANGUAGE sql STABLE"
                    " SECURITY DEFINER SET search_path = pg_catalog, pg_temp"
                    " RETURN CASE WHEN (r).room IS NOT NULL THEN"
                    " (SELECT coalesce(array_agg(m.person), '{{}}') FROM {members} m"
                    " WHERE m.room = (r).room) END"
                ).format(
                    function=sql.Identifier(self.schema, f"readers_{self.number}"),
                    table=self.identifier,
                    members=sql.Identifier(self.schema, "members"),
                )
            )
        return statements

    @property
    def partitioned(self) -> bool:
        return self.shape.partitioned and self.shape.tenant_column

    def tracking(self) -> dict[str, Any]:
        """Arguments of `tracking.track`."""
        options: dict[str, Any] = {}
        if not self.shape.tenant_column:
            options["tenant"] = self.tenants[0]
        if self.shape.by_owner:
            options["owner_column"] = "owner"
        if self.shape.by_members:
            options["audience"] = f"{self.schema}.readers_{self.number}"
            options["audience_depends_on"] = {f"{self.schema}.members": {"room": "room"}}
        return options


def members_table(schema: str) -> sql.Composed:
    return sql.SQL(
        "CREATE TABLE {} (room integer NOT NULL, person text NOT NULL, PRIMARY KEY (room, person))"
    ).format(sql.Identifier(schema, "members"))


def mood_type(schema: str) -> sql.Composed:
    return sql.SQL("CREATE TYPE {} AS ENUM ({})").format(
        sql.Identifier(schema, "mood"), sql.SQL(", ").join(map(sql.Literal, MOODS))
    )


def distinct(kind: Kind, number: int) -> str:
    """Literal `number` of a kind, with as many different ones as a key needs."""
    if number < len(kind.literals):
        return kind.literals[number]
    return {
        "uuid": f"00000000-0000-0000-0000-{number:012}",
        "date": (date(2024, 1, 1) + timedelta(number)).isoformat(),
        "timestamptz": f"2024-01-01 {number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}+00",
        "bytea": f"\\x{number % 256:02x}{number // 256:02x}aa",
        "enum": kind.literal(number),
        "text": f"key {number}",
        "varchar": f"key {number}",
    }.get(kind.name, str(100 + number))
