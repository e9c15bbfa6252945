"""Filters mean what SQL means: the predicate on a row's JSON agrees with the condition in PostgreSQL."""

# ruff: noqa: E501 - tables of values

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection, sql

from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.errors import BadFilter, CloudSyncError, UnknownColumn
from cloudsync.keyring import Keyring
from cloudsync.registry import topics
from cloudsync.registry.filters import OPERATORS, OPERATORS_BY_KIND, Condition, compile_filter
from cloudsync.registry.topics import make_topic
from cloudsync.sync.catalog import Catalog, CatalogTable
from cloudsync.sync.snapshot import SESSION_OPTIONS
from cloudsync.sync.where import canonical_where, where_sql

KEYRING = Keyring.generate()
ROWS = 250

INTEGERS = ["0", "1", "-1", "5", "7", "32767", "-32768"]
TEXTS = [
    "", " ", "a", "A", "b", "Z", "z", "aa", "a b", "a ", " a", "é", "e\u0301", "ß", "ss", "Ä", "ä", "中", "\uffff",
    "💥", "\U0010ffff", "\ue000", "\x01", "a\tb", "a\nb", 'q"q', "back\\slash", "%", "_", "'", "null", "0", "00",
    "\u200b", "I", "ı", "i",
]  # fmt: skip
TIMESTAMPS = [
    "infinity", "-infinity", "2020-01-01 00:00:00", "2020-01-01 00:00:00.5", "2020-01-01 00:00:00.45",
    "2020-01-01 00:00:00.000001", "2020-01-01 00:00:01", "0001-01-01 00:00:00", "0001-12-31 00:00:00 BC",
    "0044-03-15 12:00:00 BC", "0044-03-15 12:00:00.25 BC", "4713-01-01 00:00:00 BC", "9999-12-31 23:59:59.999999",
    "10000-01-01 00:00:00", "294276-12-31 00:00:00", "1999-12-31 23:59:59", "1582-10-10 00:00:00",
]  # fmt: skip

# Column → type, values as PostgreSQL reads them
COLUMNS: dict[str, tuple[str, list[str]]] = {
    "i2": ("smallint", INTEGERS),
    "i4": ("integer", [*INTEGERS, "2147483647", "-2147483648"]),
    "i8": ("bigint", [*INTEGERS, "9007199254740992", "9007199254740993", "9223372036854775807",
                      "-9223372036854775808"]),
    "oi": ("oid", ["0", "1", "4294967295"]),
    "num": ("numeric", ["0", "0.0", "-0", "1", "1.0", "1.10", "1.1", "1.1000000000000000000001", "-5", "1e30",
                        "1e-30", "NaN", "Infinity", "-Infinity", "9007199254740993", "9007199254740992",
                        "1" + "0" * 400, "0." + "0" * 400 + "1", "0.1", "0.30000000000000004"]),
    "num2": ("numeric(10,2)", ["0", "1.1", "1.10", "1.11", "NaN", "-5"]),
    "numneg": ("numeric(8,-2)", ["0", "100", "12300"]),
    "f4": ("real", ["0", "-0", "0.1", "1", "1.1", "16777217", "1e38", "1e-45", "NaN", "Infinity", "-Infinity",
                    "0.3", "100000", "1e15", "1e6"]),
    "f8": ("double precision", ["0", "-0", "0.1", "0.3", "0.30000000000000004", "1", "1e15", "1e16", "1e22",
                                "9007199254740993", "1e300", "1.7976931348623157e308", "5e-324", "1e-300", "NaN",
                                "Infinity", "-Infinity", "-1e300", "123456789012345680"]),
    "txt": ("text", TEXTS),
    "uni": ('text COLLATE "pg_c_utf8"', TEXTS),
    "vc": ("varchar(40)", TEXTS),
    "ch": ("char(12)", [t for t in TEXTS if "\x01" not in t]),
    "nm": ("name", TEXTS),
    "b": ("boolean", ["true", "false"]),
    "u": ("uuid", ["00000000-0000-0000-0000-000000000000", "f47ac10b-58cc-4372-a567-0e02b2c3d479",
                   "F47AC10B-58CC-4372-A567-0E02B2C3D478", "ffffffff-ffff-ffff-ffff-ffffffffffff",
                   "{0a000000-0000-0000-0000-000000000000}"]),
    "d": ("date", ["infinity", "-infinity", "2020-01-01", "2020-01-02", "0001-01-01", "0001-12-31 BC",
                   "0044-03-15 BC", "0044-03-16 BC", "9999-12-31", "10000-01-01", "99999-01-01", "1999-12-31"]),
    "ts": ("timestamp", TIMESTAMPS),
    "ts0": ("timestamp(0)", TIMESTAMPS),
    "tz": ("timestamptz", [*TIMESTAMPS, "2020-01-01 01:00:00+01", "2019-12-31 22:00:00-02"]),
    "tm": ("time", ["00:00:00", "24:00:00", "12:00:00", "12:00:00.5", "12:00:00.45", "23:59:59.999999"]),
    "byt": ("bytea", ["\\x", "\\x00", "\\xff", "\\x" + "ab" * 100, "\\x616263"]),
    "en": ("mood", ["low", "high", "so so", "ünï", '"', ""]),
    "dint": ("small_number", INTEGERS),
    "dtext": ("short_name", ["", "a", "A", "ä", "💥", "zz"]),
    "dmood": ("main_mood", ["low", "high"]),
}  # fmt: skip
OPAQUE = {
    "js": ("jsonb", ['{"a": 1}', "null", "[]"]),
    "arr": ("integer[]", ["{}", "{1,2}"]),
    "iv": ("interval", ["1 day", "24:00:00"]),
    "ip": ("inet", ["10.0.0.1"]),
    "ttz": ("timetz", ["12:00:00+01"]),
}


class Sample:
    """A tracked table, its rows as JSON by id, and a connection like the gateway's."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.connection: AsyncConnection[Any] = self.runner.run(
            AsyncConnection.connect(url, autocommit=True, options=SESSION_OPTIONS)
        )
        catalog = Catalog()
        self.runner.run(catalog.load(self.connection))
        self.table: CatalogTable = catalog.find("public.sample")
        self.rows: dict[int, dict[str, Any]] = {}
        self.captured: dict[int, str] = {}
        self.here: dict[int, str] = {}

    def canonical(self, where: dict[str, Any]) -> Any:
        return self.runner.run(canonical_where(self.connection, self.table, where))

    def matching(self, wheres: list[Any]) -> list[set[int]]:
        """Ids that match each canonical filter in SQL, all in one query."""
        parts, parameters = [], []
        for number, where in enumerate(wheres):
            condition, values = where_sql(self.table, where)
            parts.append(
                sql.SQL("SELECT {}, array(SELECT t.id FROM sample t WHERE {})").format(
                    sql.Literal(number), condition
                )
            )
            parameters += values

        async def ask() -> list[Any]:
            cursor = await self.connection.execute(sql.SQL(" UNION ALL ").join(parts), parameters)
            return await cursor.fetchall()

        found = dict(self.runner.run(ask()))
        return [set(found[number]) for number in range(len(wheres))]

    def close(self) -> None:
        self.runner.run(self.connection.close())
        self.runner.close()


@pytest.fixture(scope="module")
def sample(postgres: EmbeddedPostgres, migrated_template: str) -> Iterator[Sample]:
    everything = {**COLUMNS, **OPAQUE}
    chance = random.Random(7)
    with psycopg.connect(postgres.url(), autocommit=True) as server:
        server.execute(f"CREATE DATABASE filters TEMPLATE {migrated_template}")
        url = postgres.url(database="filters")
        with psycopg.connect(url) as connection:
            connection.execute(
                """CREATE TYPE mood AS ENUM ('low', 'high', 'so so', 'ünï', '"', '');
                CREATE DOMAIN small_number AS smallint;
                CREATE DOMAIN any_name AS varchar(20); CREATE DOMAIN short_name AS any_name;
                CREATE DOMAIN main_mood AS mood"""
            )
            columns = ", ".join(f"{name} {type_}" for name, (type_, _) in everything.items())
            connection.execute(f"CREATE TABLE sample (id integer PRIMARY KEY, {columns})")
            connection.execute("SELECT cloudsync.track('sample', tenant => 'acme', tenant_column => NULL)")
            places = ", ".join(["%s"] * (len(everything) + 1))
            with connection.cursor() as cursor:
                cursor.executemany(
                    f"INSERT INTO sample VALUES ({places})",
                    [
                        (n, *(chance.choice([None, *values]) for _, values in everything.values()))
                        for n in range(ROWS)
                    ],
                )
        made = Sample(url)
        try:
            with psycopg.connect(url, options=SESSION_OPTIONS) as connection:
                expression = made.table.row_expression.replace("{row}", "t").replace("%", "%%")
                here = dict(connection.execute(f"SELECT t.id, ({expression})::text FROM sample t").fetchall())
                captured = connection.execute(
                    "SELECT (key ->> 'id')::integer, \"row\"::text FROM cloudsync.change_log"
                ).fetchall()
            made.captured, made.here = dict(captured), here
            decode = msgspec.json.Decoder(dict[str, Any]).decode
            made.rows = {n: decode(row) for n, row in here.items()}
            assert len(made.rows) == ROWS
            yield made
        finally:
            made.close()
            server.execute("DROP DATABASE filters WITH (FORCE)")


def operand(column: str) -> st.SearchStrategy[Any]:
    type_, values = COLUMNS[column]
    if type_ == "boolean":
        return st.booleans()
    if type_ == "bytea":
        return st.sampled_from([base64.b64encode(bytes.fromhex(v[2:])).decode() for v in values])
    pool: st.SearchStrategy[Any] = st.sampled_from(values)
    if type_ in ("smallint", "integer", "bigint", "small_number", "oid"):
        return pool | st.sampled_from(values).map(int) | st.integers(-40000, 40000)
    if type_ in ("real", "double precision") or type_.startswith("numeric"):
        numbers = st.sampled_from(
            [0, -0.0, 0.1, 1, 1.1, 1e300, -1e300, 1e22, 5e-324, 1e15, 100, 2**53 + 1, 10**25]
        )
        return pool | numbers | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-1000, 1000)
    if type_.split(" ")[0].split("(")[0] in ("text", "varchar", "char", "name"):
        return pool | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=3)
    return pool


@st.composite
def wheres(draw: st.DrawFn) -> dict[str, Any]:
    where: dict[str, Any] = {}
    for column in draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=2, unique=True)):
        conditions: dict[str, Any] = {}
        for operator in draw(
            st.lists(st.sampled_from(sorted(OPERATORS)), min_size=1, max_size=2, unique=True)
        ):
            if operator == "is_null":
                conditions[operator] = draw(st.booleans())
            elif operator == "in":
                conditions[operator] = draw(st.lists(operand(column) | st.none(), max_size=4))
            else:
                conditions[operator] = draw(operand(column))
        where[column] = conditions
    return where


def through_the_registry(where: Any) -> Any:
    """A canonical filter as a router gets it."""
    topic = make_topic(KEYRING, tenant="acme", table="public.sample", where=where)
    decoded = topics._decode(topics._encode(topic))
    assert make_topic(KEYRING, tenant="acme", table="public.sample", where=decoded.where).id == topic.id
    return decoded.where


def agree(sample: Sample, canonical: list[Any]) -> None:
    """Hold each canonical filter against SQL, on every row."""
    for form, expected in zip(canonical, sample.matching(canonical), strict=True):
        holds = compile_filter(through_the_registry(form))
        actual = {n for n, row in sample.rows.items() if holds(row)}
        if actual != expected:
            wrong = min(actual ^ expected)
            values = {c.column: sample.rows[wrong].get(c.column) for c in form}
            raise AssertionError(f"{form}: SQL says {wrong in expected} for {values}")


def check(sample: Sample, asked: list[dict[str, Any]]) -> None:
    canonical = []
    for where in asked:
        with contextlib.suppress(BadFilter):  # out of range, or an operator that the type does not take
            canonical.append(sample.canonical(json.loads(json.dumps(where))))
    if canonical:
        agree(sample, canonical)


@pytest.mark.parametrize("column", [*COLUMNS, *OPAQUE])
def test_a_snapshots_value_is_the_triggers(sample: Sample, column: str) -> None:
    decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    differing = {
        (bytes(decode(here)[column]), bytes(decode(sample.captured[n])[column]))
        for n, here in sample.here.items()
        if bytes(decode(here)[column]) != bytes(decode(sample.captured[n])[column])
    }
    assert not differing


@pytest.mark.parametrize("column", COLUMNS)
def test_each_value_against_each_value_of_its_type(sample: Sample, column: str) -> None:
    """Not random: every operator with every listed operand of the column."""
    type_, values = COLUMNS[column]
    kind = sample.table.columns[column].kind
    forms = [sample.canonical({column: asked}) for asked in ({"in": []}, None, {"is_null": False})]
    for value in values:
        typed: Any = value
        if type_ == "boolean":
            typed = value == "true"
        if type_ == "bytea":
            typed = base64.b64encode(bytes.fromhex(value[2:])).decode()
        try:
            ((_, _, operand, _),) = map(msgspec.structs.astuple, sample.canonical({column: typed}))
        except BadFilter:
            continue
        for operator in OPERATORS_BY_KIND[kind] - {"is_null"}:
            forms.append((Condition(column, operator, [operand] if operator == "in" else operand, kind),))
    agree(sample, forms)


@settings(max_examples=15)
@given(st.lists(wheres(), min_size=8, max_size=16))
def test_the_predicate_agrees_with_sql(sample: Sample, asked: list[dict[str, Any]]) -> None:
    check(sample, asked)


def test_equal_filters_have_one_canonical_form(sample: Sample) -> None:
    same = [
        ({"num": "1.10"}, {"num": {"eq": 1.1}}),
        ({"i4": "05"}, {"i4": 5}),
        ({"u": "{0A000000-0000-0000-0000-000000000000}"}, {"u": "0a000000-0000-0000-0000-000000000000"}),
        ({"tz": "2020-01-01 01:00+01"}, {"tz": "2020-01-01T00:00:00Z"}),
        ({"i4": {"in": [2, 1, "1", None]}}, {"i4": {"in": [1, 2]}}),
        ({"i4": 1, "txt": "a"}, {"txt": "a", "i4": 1}),
        ({"txt": None}, {"txt": {"is_null": True}}),
    ]
    for a, b in same:
        assert sample.canonical(a) == sample.canonical(b)


@pytest.mark.parametrize("column", OPAQUE)
@pytest.mark.parametrize("operator", sorted(OPERATORS - {"is_null"}))
def test_opaque_types_are_compared_with_null_only(sample: Sample, column: str, operator: str) -> None:
    value: Any = ["x"] if operator == "in" else "x"
    with pytest.raises(BadFilter, match="cannot compare here"):
        sample.canonical({column: {operator: value}})
    check(sample, [])
    assert sample.matching([sample.canonical({column: {"is_null": False}})])[0]


@pytest.mark.parametrize("column", ["ch", "b", "byt", "en", "dmood"])
def test_order_is_refused_where_it_would_not_be_sqls(sample: Sample, column: str) -> None:
    assert "lt" not in OPERATORS_BY_KIND[sample.table.columns[column].kind]
    with pytest.raises(BadFilter):
        sample.canonical({column: {"lt": "a"}})


@pytest.mark.parametrize(
    "where",
    [
        {"i4": "x"}, {"i4": 1.5}, {"i4": True}, {"i4": []}, {"i4": {"eq": None}}, {"i4": {"in": 5}},
        {"i4": {"in": [[1]]}}, {"i4": {"in": ["x"]}}, {"i4": {"in": [1] * 1001}}, {"i4": {"is_null": 1}},
        {"i4": {}}, {"i4": {"like": "x"}}, {"i4": {"eq": {"a": 1}}}, {"i2": 100_000}, {"i4": 2**31}, {"i8": 2**63},
        {"num": "x"}, {"num": True}, {"f8": "1e400"}, {"txt": 5}, {"txt": True}, {"txt": {"eq": ["a"]}},
        {"txt": "a\0b"}, {"txt": "x" * 10_001}, {"txt": {"eq": "\ud800"}}, {"u": "x"}, {"u": 5}, {"d": "2020-02-30"},
        {"d": "x"}, {"tz": 5}, {"b": "true"}, {"b": 1}, {"byt": "!!!"}, {"byt": "abc"}, {"byt": 5}, {"en": "absent"},
        {"en": 5}, {"ch": 5}, {"dint": 40_000}, {"i4": int("9" * 300)},
        {"num": "1e1000"}, {"num": {"in": [1, "-1.5E+00130000"]}}, {"num": {"gt": "1e-1000"}}, {"num": "1e1_000"},
        {"txt": {"in": [f"{n:01000}" for n in range(101)]}}, {"num": {"in": [f"{n}e999" for n in range(1, 200)]}},
        {"i4": "'; DROP TABLE sample; --"}, {"d": "now() --"},
    ],
    ids=lambda where: str(where)[:40],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(sample: Sample, where: dict[str, Any]) -> None:
    with pytest.raises(BadFilter) as caught:
        sample.canonical(where)
    assert len(str(caught.value)) < 300
    assert sample.canonical({"i4": 1})  # the connection is still good


@pytest.mark.parametrize("name", ["nothing", "I4", 'i4" = 1 --', "ctid", "xmin", "tableoid", "", "x" * 5000])
def test_unknown_columns(sample: Sample, name: str) -> None:
    with pytest.raises(UnknownColumn) as caught:
        sample.canonical({name: 1})
    assert len(str(caught.value)) < 200


def test_a_where_clause_has_a_limit(sample: Sample) -> None:
    many = {column: {"is_null": True, "eq": None} for column in COLUMNS}
    with pytest.raises(CloudSyncError):
        sample.canonical(many)
    with pytest.raises(BadFilter, match="32 conditions"):
        sample.canonical(
            {
                c: {"lt": 1, "gt": 2, "lte": 3, "gte": 4, "ne": 5}
                for c in ("i2", "i4", "i8", "dint", "num", "f4", "f8")
            }
        )
