"""JSON of rows: exact, and the same live and at rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudsync.capture.tracking import SESSION_SETTINGS, load_tracked
from integration.capture.logged import Database

# column type, SQL value, another SQL value, JSON of the first
VALUES: list[tuple[str, str, str, Any]] = [
    ("smallint", "-32768", "1", -32768),
    ("int", "2147483647", "1", 2147483647),
    ("bigint", "9223372036854775807", "9223372036854775806", "9223372036854775807"),
    ("numeric", "12345678901234567890.123456789012345678", "12345678901234567890.123456789012345679",
     "12345678901234567890.123456789012345678"),
    ("numeric", "1.0", "1.00", "1.0"),
    ("numeric", "'NaN'", "0", "NaN"),
    ("numeric(10,2)", "1.5", "2", "1.50"),
    ("real", "0.1", "0.2", 0.1),
    ("double precision", "0.1::float8 + 0.2", "0.3", 0.30000000000000004),
    ("double precision", "'-Infinity'", "'NaN'", "-Infinity"),
    ("boolean", "true", "false", True),
    ("text", "E'a\\n\"\\u00e9\\U0001F600'", "''", 'a\n"é😀'),
    ("varchar(10)", "'x '", "'x'", "x "),
    ("char(4)", "'x'", "'y'", "x   "),
    ("bpchar", "'x'", "'x '", "x"),
    ("bpchar(4)[]", "'{x}'", "'{y}'", ["x   "]),
    ("double precision[]", "'{0.1,-0}'", "'{0.1,NaN}'", [0.1, 0]),
    ("double precision", "0.1", "'NaN'", 0.1),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "gen_random_uuid()",
     "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("bytea", "decode(repeat('00ff', 60), 'hex')", "'\\x'", "AP8A/wD/" * 20),
    ("bytea", "'\\x'", "'\\x00'", ""),
    ("bytea[]", "ARRAY['\\x00ff'::bytea, NULL, '\\x']", "'{}'", ["AP8=", None, ""]),
    ("bytea[]", "'{}'", "NULL", []),
    ("date", "'2026-02-03'", "'infinity'", "2026-02-03"),
    ("time", "'03:04:05.678'", "'03:04:06'", "03:04:05.678"),
    ("timestamp", "'2026-02-03 04:05:06.789'", "'infinity'", "2026-02-03T04:05:06.789"),
    ("timestamptz", "'2026-02-03 04:05:06+05'", "'2026-02-03 04:05:07+05'", "2026-02-02T23:05:06+00:00"),
    ("timestamptz[]", "ARRAY['2026-02-03 04:05:06+05'::timestamptz]", "'{}'", ["2026-02-02T23:05:06+00:00"]),
    ("tstzrange", "'[2026-02-03 04:05:06+05,)'", "'empty'", '["2026-02-02 23:05:06+00",)'),
    ("interval", "'1 day 2 hours'", "'26 hours'", "P1DT2H"),
    ("money", "12.34::money", "12.35::money", "12.34"),
    ("oid", "42", "43", "42"),
    ("regclass", "'pg_class'", "'pg_proc'", "1259"),
    ("json", "'{\"b\": 1.10, \"a\": [null]}'", "'{\"b\": 1.1, \"a\": [null]}'", {"b": 1.1, "a": [None]}),
    ("jsonb", "'{\"b\": 1.10, \"a\": [null]}'", "'{\"b\": 1.1, \"a\": [null]}'", {"b": 1.1, "a": [None]}),
    ("int[]", "'{{1,2},{3,NULL}}'", "'{1}'", [[1, 2], [3, None]]),
    ("bigint[]", "'{9007199254740993,NULL}'", "'{}'", ["9007199254740993", None]),
    ("numeric[]", "'{{1.10},{2}}'", "'{{1.1},{2}}'", [["1.10"], ["2"]]),
    ("text[]", "ARRAY['a,b', 'NULL', NULL, '']", "'{}'", ["a,b", "NULL", None, ""]),
    ("int4range", "'[1,5)'", "'empty'", "[1,5)"),
    ("inet", "'10.0.0.1/8'", "'10.0.0.1'", "10.0.0.1/8"),
    ("bit(3)", "B'101'", "B'100'", "101"),
    ("point", "'(1,2)'", "'(1,3)'", "(1,2)"),
    ("tsvector", "'a b'", "'a'", "'a' 'b'"),
    ("app.mood", "'happy'", "'so so'", "happy"),
    ("app.mood[]", "'{happy}'", "'{\"so so\"}'", ["happy"]),
    ("app.big", "9007199254740993", "1", "9007199254740993"),
    ("app.amounts", "'{1.10}'", "'{1.1}'", ["1.10"]),
    ("app.code", "'a'", "'b'", "a  "),
    ("app.pair", "ROW(1, 'x')", "ROW(1, 'y')", {"a": 1, "b": "x"}),
]  # fmt: skip


@pytest.fixture
def typed(db: Database) -> Database:
    db.run(
        "CREATE SCHEMA app",
        "CREATE TYPE app.mood AS ENUM ('happy', 'so so')",
        "CREATE DOMAIN app.small_big AS bigint",
        "CREATE DOMAIN app.big AS app.small_big CHECK (VALUE > 0)",
        "CREATE DOMAIN app.amounts AS numeric[]",
        "CREATE DOMAIN app.code AS char(3)",
        "CREATE TYPE app.pair AS (a int, b text)",
    )
    return db


def test_every_type_live_and_at_rest(typed: Database) -> None:
    columns = ", ".join(f"c{i} {each[0]}" for i, each in enumerate(VALUES))
    typed.run(f"CREATE TABLE t (id bigint PRIMARY KEY, tenant_id text, {columns})")
    typed.track("t")
    firsts = ", ".join(each[1] for each in VALUES)
    with typed.connect() as writer:
        # A writer's settings must not show.
        for name, value in {
            "TimeZone": "America/New_York", "DateStyle": "German", "IntervalStyle": "sql_standard",
            "extra_float_digits": "-3", "bytea_output": "escape",
        }.items():  # fmt: skip
            writer.execute("SELECT set_config(%s, %s, false)", (name, value))
        writer.execute(f"INSERT INTO t VALUES (1, 'a', {firsts})".encode())
    (created,) = typed.events()
    captured = typed.one('SELECT "row"::text FROM cloudsync.change_log')
    for i, (kind, value, _, expected) in enumerate(VALUES):
        assert created.row[f"c{i}"] == expected, (kind, value)

    # The recorded expression gives the same text.
    (table,) = load_tracked(typed.connection)
    with typed.connect() as reader:
        for name, value in SESSION_SETTINGS.items():
            reader.execute("SELECT set_config(%s, %s, false)", (name, value))
        expression = table.row_expression.replace("{row}", "c1")  # an alias that is also a column
        found = reader.execute(f"SELECT ({expression})::text FROM t AS c1".encode()).fetchone()
        assert found == (captured,)
        condition = table.key_condition.replace("{row}", "t").replace("{key}", '\'{"id": "1"}\'::jsonb')
        assert reader.execute(f"SELECT count(*) FROM t WHERE {condition}".encode()).fetchone() == (1,)

    # Each column alone: only it is in `old`, with its old value; setting it again logs nothing.
    for i, (kind, first, second, _) in enumerate(VALUES):
        typed.run(f"UPDATE t SET c{i} = {second}")
        (event,) = typed.events()
        assert set(event.old) == {f"c{i}"}, (kind, second)
        assert event.old[f"c{i}"] == created.row[f"c{i}"], kind
        typed.run(f"UPDATE t SET c{i} = {first}")
        assert [set(event.old) for event in typed.events()] == [{f"c{i}"}]
        typed.run(f"UPDATE t SET c{i} = c{i}")
        assert typed.events() == [], kind
        typed.run(f"UPDATE t SET c{i} = NULL", f"UPDATE t SET c{i} = {first}")
        assert len(typed.events()) == 2


def test_writers_in_different_time_zones_give_the_same_json(db: Database) -> None:
    db.run("CREATE TABLE t (id int PRIMARY KEY, tenant_id text, at timestamptz, d interval)")
    db.track("t")
    for number, zone in enumerate(["Asia/Tokyo", "America/Los_Angeles", "UTC"]):
        db.run(
            f"SET TimeZone = '{zone}'",
            f"INSERT INTO t VALUES ({number}, 'a', '2026-07-01 12:00+00', '90 min')",
        )
    assert {event.row["at"] for event in db.events()} == {"2026-07-01T12:00:00+00:00"}


def test_the_settings_of_the_writer_are_as_they_were(db: Database) -> None:
    db.run("CREATE TABLE t (id int PRIMARY KEY, tenant_id text, at timestamptz)")
    db.track("t")
    db.run(
        "SET TimeZone = 'Asia/Tokyo'",
        "SET search_path = pg_temp",
        "INSERT INTO public.t VALUES (1, 'a', now())",
    )
    assert db.one("SELECT current_setting('TimeZone'), current_setting('search_path')") == (
        "Asia/Tokyo",
        "pg_temp",
    )


def test_only_the_settings_that_the_columns_need_are_pinned(db: Database) -> None:
    db.run(
        "CREATE TABLE a (id int PRIMARY KEY, tenant_id text, n numeric, j jsonb, d date)",
        "CREATE TABLE b (id int PRIMARY KEY, tenant_id text, at timestamptz)",
    )
    plain, timed = db.track("a"), db.track("b")
    config = (
        "SELECT proconfig FROM pg_proc WHERE oid = format('cloudsync.capture_%%s()', %s::int)::regprocedure"
    )
    assert db.one(config, plain) == ["search_path=pg_catalog, pg_temp"]
    assert sorted(db.one(config, timed)) == ["TimeZone=UTC", "search_path=pg_catalog, pg_temp"]


def test_stored_generated_columns(db: Database) -> None:
    db.run(
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id text, n int, twice int GENERATED ALWAYS AS (n * 2)"
        " STORED)"
    )
    db.track("t")
    db.run("INSERT INTO t VALUES (1, 'a', 2)", "UPDATE t SET n = 3")
    created, updated = db.events()
    assert created.row["twice"] == 4
    assert updated.row["twice"] == 6
    assert updated.old == {"n": 2, "twice": 4}


def test_more_patched_columns_than_a_function_has_arguments(db: Database) -> None:
    columns = ", ".join(f"c{i} bigint" for i in range(130))
    db.run(f"CREATE TABLE t (id int PRIMARY KEY, tenant_id text, {columns})")
    db.track("t")
    db.run(f"INSERT INTO t VALUES (1, 'a', {', '.join(str(i) for i in range(130))})", "UPDATE t SET c129 = 7")
    created, updated = db.events()
    assert all(created.row[f"c{i}"] == str(i) for i in range(130))
    assert updated.old == {"c129": "129"}


def test_unequal_text_that_a_collation_calls_equal_is_a_change(db: Database) -> None:
    db.run("CREATE EXTENSION citext", "CREATE TABLE t (id int PRIMARY KEY, tenant_id text, c citext)")
    db.track("t")
    db.run("INSERT INTO t VALUES (1, 'a', 'x')", "UPDATE t SET c = 'X'")
    assert db.events()[1].old == {"c": "x"}


def test_a_typical_row_is_small(db: Database) -> None:
    """Twenty columns of everyday data: about 2 KB at most, the delta far less."""
    db.run(
        """CREATE TABLE orders (id bigint PRIMARY KEY, tenant_id uuid, customer_id bigint, number text,
           status text,
            currency char(3), subtotal numeric(12,2), tax numeric(12,2), total numeric(12,2), email text,
            phone text,
            street text, city text, zip text, country text, note text, tags text[], created_at timestamptz,
            updated_at timestamptz, paid boolean)"""
    )
    db.track("orders")
    db.run(
        """INSERT INTO orders SELECT 1, gen_random_uuid(), 1234567890123, 'ORD-2026-0000123', 'processing',
           'EUR', 1234.50, 234.56,
            1469.06, 'someone.with.a.name@example.com', '+49 30 1234567', 'Musterstraße 123, Hinterhaus',
            'Berlin', '10115', 'DE',
            repeat('A note of some length. ', 20), ARRAY['new', 'express', 'gift'], now(), now(), true""",
        "UPDATE orders SET status = 'shipped', updated_at = clock_timestamp()",
        "DELETE FROM orders",
    )
    sizes = db.rows(
        'SELECT op::text, octet_length("row"::text), octet_length(old::text) FROM cloudsync.change_log'
        " ORDER BY version"
    )
    (_, created, _), (_, updated, delta), (_, _, deleted) = sizes
    assert max(created, updated, deleted) <= 2048
    assert delta <= 128
    json.dumps(sizes)
