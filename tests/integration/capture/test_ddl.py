"""Tracked tables that change while they are tracked."""

from __future__ import annotations

import psycopg
import pytest

from cloudsync.capture.tracking import load_tracked
from integration.capture.logged import Database


def _refused(db: Database, statement: str, state: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        db.run(statement)
    assert caught.value.sqlstate == state, caught.value
    assert caught.value.diag.message_hint
    return caught.value


def test_columns_added_dropped_renamed_retyped(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
    notes.events()

    notes.run("ALTER TABLE notes ADD COLUMN big bigint DEFAULT 7", "UPDATE notes SET big = 8")
    schema, updated = notes.events()
    assert (schema.op, schema.tenant, schema.key) == ("s", None, None)
    assert schema.row == {
        "schema_version": 2,
        "columns": {"id": "integer", "tenant_id": "text", "body": "text", "n": "integer", "big": "bigint"},
    }
    assert (updated.row["big"], updated.old) == ("8", {"big": "7"})

    notes.run("ALTER TABLE notes RENAME COLUMN body TO text", "UPDATE notes SET text = 'y'")
    schema, updated = notes.events()
    assert list(schema.row["columns"]) == sorted(schema.row["columns"], key=lambda name: (len(name), name))
    assert updated.old == {"text": "x"}

    notes.run("ALTER TABLE notes DROP COLUMN n", "UPDATE notes SET text = 'z'")
    schema, updated = notes.events()
    assert updated.row == {"id": 1, "tenant_id": "a", "text": "z", "big": "8"}

    notes.run("ALTER TABLE notes ALTER COLUMN big TYPE int", "UPDATE notes SET big = 9")
    schema, updated = notes.events()
    assert (schema.op, updated.row["big"], updated.old) == ("s", 9, {"big": 8})

    (table,) = load_tracked(notes.connection)
    assert [(column.name, column.type) for column in table.columns] == [
        ("id", "integer"), ("tenant_id", "text"), ("text", "text"), ("big", "integer")
    ]  # fmt: skip
    assert table.schema_version == 5
    assert [event.version for event in notes.events()] == []


def test_a_change_rolled_back_is_none(notes: Database) -> None:
    with notes.connect(autocommit=False) as other:
        other.execute("ALTER TABLE notes ADD COLUMN x int")
        other.execute("INSERT INTO notes VALUES (1, 'a', 'x', 1, 1)")
        other.rollback()
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
    (created,) = notes.events()
    assert set(created.row) == {"id", "tenant_id", "body", "n"}


def test_an_open_session_sees_the_new_columns_at_once(notes: Database) -> None:
    with notes.connect() as writer:
        for i in range(10):  # its plans are cached by now
            writer.execute("INSERT INTO notes VALUES (%s, 'a', 'x', 1)", (i,))
        notes.run("ALTER TABLE notes ADD COLUMN x int", "ALTER TABLE notes DROP COLUMN n")
        notes.events()
        writer.execute("UPDATE notes SET x = 5 WHERE id = 1")
    (updated,) = notes.events()
    assert updated.old == {"x": None}
    assert updated.row == {"id": 1, "tenant_id": "a", "body": "x", "x": 5}


def test_changes_that_change_no_column_are_not_announced(notes: Database) -> None:
    notes.run(
        "CREATE INDEX ON notes (n)",
        "ALTER TABLE notes SET (fillfactor = 80)",
        "ALTER TABLE notes ALTER COLUMN n SET DEFAULT 5",
        "ALTER TABLE notes ADD CHECK (n < 1000)",
        "CREATE TABLE other (id int)",
        "ALTER TABLE other ADD COLUMN x int",
        "DROP TABLE other",
        "CREATE TEMP TABLE passing (id int) ON COMMIT DROP",
        "CREATE TYPE kind AS ENUM ('a')",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql RETURN 1",
        "CREATE SCHEMA elsewhere",
        "ALTER SCHEMA elsewhere RENAME TO other",
    )
    assert notes.events() == []


def test_renamed_tables_and_schemas(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
    notes.events()
    notes.run("ALTER TABLE notes RENAME TO memos", "UPDATE memos SET n = 2")
    gone, updated = notes.events()
    assert (gone.op, gone.table) == ("x", "public.notes")
    assert (updated.table, updated.version) == ("public.memos", 2)
    notes.run("CREATE SCHEMA app", "ALTER TABLE memos SET SCHEMA app", "UPDATE app.memos SET n = 3")
    assert [(event.op, event.table) for event in notes.events()] == [
        ("x", "public.memos"),
        ("u", "app.memos"),
    ]
    notes.run("ALTER SCHEMA app RENAME TO application", "UPDATE application.memos SET n = 4")
    assert [(event.op, event.table) for event in notes.events()] == [
        ("x", "app.memos"),
        ("u", "application.memos"),
    ]
    assert load_tracked(notes.connection)[0].name == "application.memos"


def test_two_tables_may_exchange_their_names(db: Database) -> None:
    db.run(
        "CREATE TABLE a (id int PRIMARY KEY, tenant_id text)",
        "CREATE TABLE b (id int PRIMARY KEY, tenant_id text, x int)",
    )
    db.track("a")
    db.track("b")
    with db.connect(autocommit=False) as other:
        for statement in (
            "ALTER TABLE a RENAME TO c",
            "ALTER TABLE b RENAME TO a",
            "ALTER TABLE c RENAME TO b",
        ):
            other.execute(statement.encode())
    db.events()
    db.run("INSERT INTO a VALUES (1, 't', 5)", "INSERT INTO b VALUES (1, 't')")
    assert [(event.table, len(event.row)) for event in db.events()] == [("public.a", 3), ("public.b", 2)]


def test_renamed_rule_columns_and_policies(db: Database) -> None:
    db.run("CREATE TABLE t (id int PRIMARY KEY, tenant_id text, who text, body text)")
    db.track("t", owner_column="'who'", columns="""'{"body": "ot"}'""")
    db.run(
        "ALTER TABLE t RENAME COLUMN tenant_id TO org",
        "ALTER TABLE t RENAME COLUMN who TO owner",
        "ALTER TABLE t RENAME COLUMN body TO content",
        "ALTER TABLE t RENAME COLUMN id TO uid",
        "INSERT INTO t VALUES (1, 'a', 'u', 'x')",
    )
    (table,) = load_tracked(db.connection)
    assert (table.tenant_column, table.owner_column, table.column_policies) == (
        "org",
        "owner",
        {"content": "ot"},
    )
    assert table.key_columns == ["uid"]
    created = db.events()[-1]
    assert (created.key, created.tenant, created.audience) == ({"uid": 1}, "a", ["u"])


def test_another_primary_key_starts_over(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)", "UPDATE notes SET n = 2")
    notes.events()
    notes.run("ALTER TABLE notes DROP CONSTRAINT notes_pkey, ADD PRIMARY KEY (tenant_id, id)")
    assert notes.ops() == "t"
    notes.run("UPDATE notes SET n = 3")
    (updated,) = notes.events()
    assert (updated.key, updated.version) == ({"tenant_id": "a", "id": 1}, 3)
    notes.run("ALTER TABLE notes ALTER COLUMN id TYPE bigint")
    assert notes.ops() == "st"


def test_what_capture_needs_cannot_be_taken_away(db: Database) -> None:
    db.run(
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id text, who text)",
        "CREATE FUNCTION readers(r t) RETURNS text[] LANGUAGE sql STABLE RETURN ARRAY['u']",
    )
    db.track("t", owner_column="'who'", audience="'public.readers'")
    _refused(db, "ALTER TABLE t DROP CONSTRAINT t_pkey", "CS004")
    _refused(db, "ALTER TABLE t DISABLE ROW LEVEL SECURITY", "CS010")
    _refused(db, "DROP POLICY cloudsync_client ON t", "CS010")
    _refused(db, "DROP TRIGGER cloudsync_capture ON t", "CS010")
    _refused(db, "DROP FUNCTION readers(t)", "CS010")
    _refused(db, "CREATE POLICY mine ON t FOR SELECT USING (true)", "CS006")
    _refused(db, "ALTER TABLE t SET UNLOGGED", "CS003")
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        db.run("ALTER TABLE t DROP COLUMN tenant_id")
    _refused(db, "ALTER TABLE t DROP COLUMN tenant_id CASCADE", "CS010")
    if db.connection.info.server_version >= 180000:
        _refused(db, "ALTER TABLE t ADD COLUMN v int GENERATED ALWAYS AS (id + 1) VIRTUAL", "CS005")
    db.run("INSERT INTO t VALUES (1, 'a', 'u')")
    assert db.ops() == "c"
    db.run("DROP FUNCTION IF EXISTS nothing()", "DROP TABLE t CASCADE")
    assert db.ops() == "x"


def test_a_dropped_table_ends_its_subscriptions(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
    notes.events()
    notes.run("DROP TABLE notes")
    assert [(event.op, event.table) for event in notes.events()] == [("x", "public.notes")]
    assert notes.rows("SELECT FROM cloudsync.row_state UNION ALL SELECT FROM cloudsync.tracked_tables") == []
    assert notes.rows(r"SELECT proname FROM pg_proc WHERE proname ~ '^(capture|audience|depends)_\d'") == []


def test_a_dropped_schema_too(db: Database) -> None:
    db.run(
        "CREATE SCHEMA app",
        "CREATE TABLE app.t (id int PRIMARY KEY, tenant_id text)",
        "CREATE FUNCTION app.readers(r app.t) RETURNS text[] LANGUAGE sql STABLE RETURN NULL::text[]",
        "CREATE TABLE app.u (id int PRIMARY KEY, tenant_id text)",
    )
    db.track("app.t", audience="'app.readers'", audience_depends_on="""'{"app.u": {"id": "id"}}'""")
    db.track("app.u")
    _refused(db, "DROP TABLE app.u", "CS010")  # the audience of app.t depends on it
    db.run("DROP SCHEMA app CASCADE")
    assert sorted((event.op, event.table) for event in db.events()) == [("x", "app.t"), ("x", "app.u")]


def test_a_renamed_type_of_a_key(db: Database) -> None:
    db.run("CREATE TYPE kind AS ENUM ('a', 'b')", "CREATE TABLE t (k kind PRIMARY KEY, tenant_id text)")
    db.track("t")
    db.run(
        "INSERT INTO t VALUES ('a', 'x')",
        "ALTER TYPE kind RENAME TO sort",
        "ALTER TYPE sort ADD VALUE 'c'",
        "INSERT INTO t VALUES ('c', 'x')",
    )
    assert db.ops() == "csc"
    assert db.one("SELECT cloudsync.touch('t', '{\"k\": \"c\"}')") == 2


def test_an_audience_function_may_change_but_not_its_rights(db: Database) -> None:
    db.run(
        "CREATE ROLE app_owner",
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id text)",
        "CREATE FUNCTION readers(r t) RETURNS text[] LANGUAGE sql STABLE SECURITY DEFINER SET search_path ="
        " pg_catalog RETURN ARRAY['u']",
        "ALTER FUNCTION readers(t) OWNER TO app_owner",
    )
    db.track("t", audience="'public.readers'")
    db.run(
        "CREATE OR REPLACE FUNCTION readers(r t) RETURNS text[] LANGUAGE sql STABLE SECURITY DEFINER RETURN"
        " ARRAY['v']"
    )
    db.run("INSERT INTO t VALUES (1, 'a')")
    assert db.events()[0].audience == ["v"]
    _refused(db, "ALTER FUNCTION readers(t) SECURITY INVOKER", "CS008")
    db.run("ALTER FUNCTION readers(t) RENAME TO watchers", "INSERT INTO t VALUES (2, 'a')")
    assert db.events()[0].audience == ["v"]


def test_a_new_owner_of_the_table_may_attach_partitions(db: Database) -> None:
    db.run(
        "CREATE ROLE app_owner",
        "GRANT CREATE ON SCHEMA public TO app_owner",
        "CREATE TABLE t (id int, tenant_id text, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
    )
    db.track("t")
    db.run("ALTER TABLE t OWNER TO app_owner")
    with db.connect("app_owner") as owner:
        owner.execute("CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)")
        owner.execute("INSERT INTO t VALUES (1, 'a')")
        owner.execute("TRUNCATE t1")
        owner.execute("ALTER TABLE t ADD COLUMN x int")
        owner.execute("DROP TABLE t")
    assert db.ops() == "ctsx"


def test_capture_itself_can_be_dropped(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP SCHEMA cloudsync CASCADE")
        connection.execute("CREATE TABLE t (id int)")
        connection.execute("DROP TABLE t")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("text", "ALTER TABLE t ALTER COLUMN x TYPE text USING upper(x)"),
        ("text", "ALTER TABLE t ALTER COLUMN id TYPE int USING id + 100"),
        ("mood", "ALTER TYPE mood RENAME VALUE 'a' TO 'z'"),
        ("mood[]", "ALTER TYPE mood RENAME VALUE 'a' TO 'z'"),
        ("pair", "ALTER TYPE pair RENAME ATTRIBUTE p TO r"),
        ("pair", "ALTER TYPE pair ADD ATTRIBUTE r int"),
        ("pair", "ALTER TYPE mood RENAME VALUE 'a' TO 'z'"),
        ("book", "ALTER TABLE book RENAME p TO r"),
    ],
)
def test_values_that_change_past_the_triggers_start_over(db: Database, kind: str, change: str) -> None:
    """No row has a new version, so whoever holds them has to read them again."""
    db.run(
        "CREATE TYPE mood AS ENUM ('a', 'b')",
        "CREATE TYPE pair AS (p mood, q int)",
        "CREATE TABLE book (p text)",
        f"CREATE TABLE t (id int PRIMARY KEY, tenant_id text, x {kind})",
    )
    db.track("t")
    db.run("INSERT INTO t VALUES (1, 'acme')")
    assert db.ops() == "c"
    db.run("ALTER TYPE mood ADD VALUE 'c'", "ALTER TABLE t ALTER x SET STATISTICS 10")
    assert db.ops() == ""
    db.run(change)
    assert db.ops() == "t"
    with db.connection.transaction(force_rollback=True):
        db.run("ALTER TABLE t ALTER COLUMN id TYPE int USING id + 1")
    db.run("INSERT INTO t VALUES (2, 'acme')")
    assert db.ops() == "c"


def test_a_generated_column_that_is_computed_otherwise(db: Database) -> None:
    if db.connection.info.server_version < 170000:
        pytest.skip("before PostgreSQL 17 an expression stays")
    db.run(
        "CREATE TABLE t (id int, tenant_id text, n int GENERATED ALWAYS AS (id * 2) STORED,"
        " PRIMARY KEY (id, tenant_id)) PARTITION BY LIST (tenant_id)",
        "CREATE TABLE t_rest PARTITION OF t DEFAULT",
    )
    db.track("t")
    db.run("INSERT INTO t VALUES (1, 'acme')", "ALTER TABLE t ALTER COLUMN n SET EXPRESSION AS (id * 3)")
    assert db.ops() == "ct"


def test_who_may_see_a_row_is_recorded_again_when_it_is_computed(db: Database) -> None:
    db.run(
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id text, who text)",
        "CREATE FUNCTION readers(r t) RETURNS text[] LANGUAGE sql STABLE AS 'SELECT ARRAY[r.who]'",
    )
    db.track("t", audience="'public.readers'")
    db.run("INSERT INTO t VALUES (1, 'acme', 'ann')", "ALTER TABLE t ALTER who TYPE text USING upper(who)")
    assert db.one("SELECT audience FROM cloudsync.row_state") == ["ANN"]


def test_a_table_that_inherits_from_a_tracked_one_is_refused(notes: Database) -> None:
    _refused(notes, "CREATE TABLE child () INHERITS (notes)", "CS003")
    notes.run("CREATE TABLE child (LIKE notes INCLUDING ALL)")
    _refused(notes, "ALTER TABLE child INHERIT notes", "CS003")
    assert notes.events() == []


@pytest.mark.parametrize("named", ["ALL", "USER", "cloudsync_capture"])
def test_capture_goes_on_when_triggers_are_switched_off(db: Database, named: str) -> None:
    """As pg_restore --disable-triggers does; the application's own triggers are silent all the same."""
    db.run(
        "CREATE TABLE t (id int, tenant_id text, PRIMARY KEY (id, tenant_id)) PARTITION BY LIST (tenant_id)",
        "CREATE TABLE t_rest PARTITION OF t DEFAULT",
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''stop''; END'",
        "CREATE TRIGGER stop BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION stop()",
    )
    db.track("t")
    for table in ("t", "t_rest"):
        db.run(f"ALTER TABLE {table} DISABLE TRIGGER {named}")
        if named == "cloudsync_capture":
            db.run(f"ALTER TABLE {table} DISABLE TRIGGER stop")
        db.run(f"INSERT INTO t VALUES (1, '{table}')", "TRUNCATE t")
        assert db.ops() == "ct"
        db.run(f"ALTER TABLE {table} ENABLE TRIGGER {named}")
        with db.connection.transaction():
            db.run("SET LOCAL session_replication_role = replica", f"INSERT INTO t VALUES (1, '{table}')")
        db.run("DELETE FROM t")
        assert db.ops() == "cd"


def test_what_an_audience_depends_on_stays_watched(db: Database) -> None:
    db.run(
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id text)",
        "CREATE TABLE members (id int, who text)",
        "CREATE FUNCTION readers(r t) RETURNS text[] LANGUAGE sql STABLE"
        " AS 'SELECT array_agg(who) FROM public.members m WHERE m.id = r.id'",
    )
    db.track("t", audience="'public.readers'", audience_depends_on="""'{"public.members": {"id": "id"}}'""")
    db.run("INSERT INTO t VALUES (1, 'acme')", "ALTER TABLE members DISABLE TRIGGER USER")
    db.run("INSERT INTO members VALUES (1, 'ann')")
    assert db.ops() == "cu"
