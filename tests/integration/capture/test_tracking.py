"""track, untrack, touch: their typed side, idempotence, refusals, and that nothing is left behind."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from cloudsync.capture import tracking
from cloudsync.errors import CaptureError, NotTracked, TrackRefused
from integration.capture.logged import Database


def _catalog(db: Database) -> list[Any]:
    """What track() could leave behind, outside its own tables."""
    return [
        db.rows("SELECT relname, relrowsecurity, relforcerowsecurity, relacl::text FROM pg_class WHERE"
                " relnamespace = 'public'::regnamespace ORDER BY 1"),
        db.rows("SELECT nspname, nspacl::text FROM pg_namespace WHERE nspname IN ('public', 'app') ORDER BY"
                " 1"),
        db.rows("SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1,"
                " 2"),
        db.rows("SELECT polrelid::regclass::text, polname FROM pg_policy ORDER BY 1, 2"),
        db.rows("SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'cloudsync'::regnamespace"
                " ORDER BY 1"),
        db.rows("SELECT count(*) FROM pg_attribute WHERE attrelid = 'public.t'::regclass AND attnum > 0"),
        db.rows("SELECT FROM cloudsync.tracked_tables UNION ALL SELECT FROM cloudsync.row_state UNION ALL"
                " SELECT FROM cloudsync.audience_locks UNION ALL SELECT FROM cloudsync.unsettled_views"),
    ]  # fmt: skip


@pytest.fixture
def shared(db: Database) -> Database:
    db.run(
        "CREATE SCHEMA app",
        "CREATE TABLE app.m (doc int, user_id text)",
        "CREATE TABLE t (id serial, tenant_id text, who text, body text, PRIMARY KEY (id)) PARTITION BY"
        " RANGE (id)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
        "CREATE FUNCTION app.readers(r t) RETURNS text[] LANGUAGE sql STABLE RETURN ARRAY(SELECT user_id"
        " FROM app.m WHERE doc = r.id)",
    )
    return db


SHARED: dict[str, Any] = {
    "owner_column": "who",
    "audience": "app.readers",
    "audience_depends_on": {"app.m": {"doc": "id"}},
    "columns": {"body": "ot", "who": "manual"},
}


def test_what_is_recorded(shared: Database) -> None:
    table = tracking.track(shared.connection, "t", **SHARED)
    assert table.name == "public.t"
    assert (table.schema_name, table.table_name, table.key_columns) == ("public", "t", ["id"])
    assert (table.tenant_column, table.tenant_constant, table.owner_column) == ("tenant_id", None, "who")
    assert (table.audience_function, table.audience_depends_on) == (
        "app.readers(t)",
        {"app.m": {"doc": "id"}},
    )
    assert (table.conflict, table.checked, table.schema_version) == ("lww", False, 1)
    assert [table.policy(name) for name in ("body", "who", "id")] == ["ot", "manual", "lww"]
    assert table.columns[0] == tracking.Column(
        name="id", type="integer", base_type="integer", not_null=True, generated=False, number=1
    )
    assert tracking.load_tracked(shared.connection) == [table]
    assert tracking.track(shared.connection, "public.t", **SHARED) == table


def test_twice_the_same_changes_nothing(shared: Database) -> None:
    tracking.track(shared.connection, "t", **SHARED)
    versions = (
        "SELECT array_agg(xmin::text ORDER BY oid) FROM pg_proc"
        " WHERE pronamespace = 'cloudsync'::regnamespace"
    )
    before = (
        _catalog(shared),
        shared.one(versions),
        shared.rows("SELECT xmin::text, * FROM pg_trigger ORDER BY oid"),
    )
    shared.events()
    tracking.track(shared.connection, "t", **SHARED)
    after = (
        _catalog(shared),
        shared.one(versions),
        shared.rows("SELECT xmin::text, * FROM pg_trigger ORDER BY oid"),
    )
    assert after == before
    assert shared.events() == []


def test_other_arguments_change_what_is_there(shared: Database) -> None:
    tracking.track(shared.connection, "t", **SHARED)
    shared.run("INSERT INTO t VALUES (1, 'a', 'ann', 'x')")
    shared.events()
    tracking.track(shared.connection, "t", columns={"body": "manual"})
    assert shared.ops() == "st"  # body is no text any more; others may see the rows now
    assert shared.rows("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'cloudsync_depends%'") == []
    shared.run("UPDATE t SET body = 'y'")
    (updated,) = shared.events()
    assert (updated.version, updated.audience, updated.old_audience) == (2, None, None)
    tracking.track(shared.connection, "t", columns={"body": "lww"})
    assert shared.ops() == ""  # a conflict policy is nobody's view
    tracking.track(shared.connection, "t", tenant="acme")
    assert shared.ops() == "t"
    shared.run("UPDATE t SET body = 'z'")
    assert shared.events()[0].tenant == "acme"


def test_a_call_that_lets_others_see_the_rows_warns(shared: Database) -> None:
    warnings: list[str] = []
    shared.connection.add_notice_handler(
        lambda said: warnings.append(f"{said.severity}: {said.message_primary} ({said.message_hint})")
    )
    tracking.track(shared.connection, "t", **SHARED)
    tracking.track(shared.connection, "t", **SHARED)
    tracking.track(shared.connection, "t", **{**SHARED, "columns": {"body": "manual"}})
    assert warnings == []
    tracking.track(shared.connection, "t", columns={"body": "manual"})
    assert warnings.pop() == (
        "WARNING: who sees rows of public.t is now decided by tenant column tenant_id, and no longer by"
        " tenant column tenant_id, owner column who, audience app.readers(public.t), which depends on"
        ' {"app.m": {"doc": "id"}} (A call of cloudsync.track() gives all rules: what it leaves out is taken'
        " away.)"
    )
    tracking.track(shared.connection, "t", tenant="acme")
    tracking.track(shared.connection, "t", tenant="globex")
    assert [" by tenant globex, and no longer by tenant acme (" in said for said in warnings] == [False, True]


def test_untrack_leaves_nothing_behind(shared: Database) -> None:
    shared.run("INSERT INTO t VALUES (1, 'a', 'ann', 'x')")
    before = _catalog(shared)
    tracking.track(shared.connection, "t", **SHARED)
    shared.run("UPDATE t SET body = 'y'", "UPDATE t SET body = 'z'")
    shared.events()
    tracking.untrack(shared.connection, "t")
    assert [(event.op, event.table) for event in shared.events()] == [("x", "public.t")]
    shared.run("UPDATE t SET body = 'unseen'", "TRUNCATE t", "INSERT INTO app.m VALUES (1, 'ann')")
    assert shared.events() == []
    after = _catalog(shared)

    def acl(text: str | None) -> set[str]:  # an untouched ACL is null, a restored one is written out
        return {entry for entry in (text or "").strip("{}").split(",") if "cloudsync" in entry}

    assert [row[:-1] for row in after[0]] == [row[:-1] for row in before[0]]
    assert [acl(row[-1]) for row in after[0] + after[1]] == [set()] * len(after[0] + after[1])
    assert after[2:] == before[2:]
    # Tracked again, its versions go on above all that were given before.
    tracking.track(shared.connection, "t")
    shared.run("INSERT INTO t VALUES (1, 'a', 'ann', 'x')")
    assert [event.version for event in shared.events()] == [3]


def test_two_tables_share_a_schema(db: Database) -> None:
    db.run(
        "CREATE SCHEMA app",
        "CREATE TABLE app.a (id int PRIMARY KEY, tenant_id text)",
        "CREATE TABLE app.b (id int PRIMARY KEY, tenant_id text)",
    )
    tracking.track(db.connection, "app.a")
    tracking.track(db.connection, "app.b")
    tracking.untrack(db.connection, "app.a")
    assert db.one("SELECT has_schema_privilege('cloudsync_client', 'app', 'USAGE')")
    tracking.untrack(db.connection, "app.b")
    assert not db.one("SELECT has_schema_privilege('cloudsync_client', 'app', 'USAGE')")


def test_touch(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
    assert tracking.touch(notes.connection, "notes", {"id": 1}) == 2
    with pytest.raises(TrackRefused, match="no row with this key"):
        tracking.touch(notes.connection, "notes", {"id": 9})


def test_touch_waits_for_a_writer_of_the_row(notes: Database, eventually) -> None:  # type: ignore[no-untyped-def]
    from concurrent.futures import ThreadPoolExecutor

    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
    notes.events()
    with notes.connect(autocommit=False) as writer, notes.connect() as toucher, ThreadPoolExecutor(1) as pool:
        writer.execute("UPDATE notes SET body = 'y'")
        touched = pool.submit(tracking.touch, toucher, "notes", {"id": 1})
        eventually(
            lambda: notes.one("SELECT cardinality(pg_blocking_pids(%s)) > 0", toucher.info.backend_pid)
        )
        writer.commit()
        assert touched.result(timeout=10) == 3
    assert [(event.version, event.row["body"]) for event in notes.events()] == [(2, "y"), (3, "y")]


_PLAIN = "CREATE TABLE t (id int PRIMARY KEY, tenant_id text)"
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("CREATE TABLE t (id int, tenant_id text)", {}, "CS004", "no primary key"),
    ("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, tenant_id text)", {}, "CS004", "deferrable"),
    ("CREATE TABLE t (id float8 PRIMARY KEY, tenant_id text)", {}, "CS004", "no single text form"),
    ("CREATE TABLE t (id jsonb PRIMARY KEY, tenant_id text)", {}, "CS004", "no single text form"),
    ("CREATE TABLE t (id bpchar PRIMARY KEY, tenant_id text)", {}, "CS004", "no single text form"),
    ("CREATE TABLE t (id int[] PRIMARY KEY, tenant_id text)", {}, "CS004", "no single text form"),
    ("CREATE TABLE t (id int PRIMARY KEY, org text)", {}, "CS007", 'no column "tenant_id"'),
    (_PLAIN, {"owner_column": "who"}, "CS007", 'no column "who"'),
    (_PLAIN, {"columns": {"x": "ot"}}, "CS007", 'no column "x"'),
    (_PLAIN, {"columns": {"id": "ot"}}, "CS009", "not text"),
    (_PLAIN, {"columns": {"id": "best"}}, "CS009", "no conflict policy"),
    (_PLAIN, {"conflict": "best"}, "CS009", "no conflict policy"),
    (_PLAIN, {"checked": True}, "CS009", "not supported yet"),
    (_PLAIN, {"tenant": ""}, "CS007", "empty"),
    (_PLAIN, {"audience": "public.nothing"}, "CS008", "no audience function"),
    (_PLAIN, {"audience": "!"}, "CS008", "no audience function"),
    (_PLAIN, {"audience_depends_on": {"public.m": {"a": "id"}}}, "CS008", "without an audience"),
    ("CREATE UNLOGGED TABLE t (id int PRIMARY KEY, tenant_id text)", {}, "CS003", "unlogged"),
    ("CREATE VIEW t AS SELECT 1 AS id, 'a' AS tenant_id", {}, "CS003", "view"),
    ("CREATE MATERIALIZED VIEW t AS SELECT 1 AS id, 'a' AS tenant_id", {}, "CS003", "materialized view"),
    (
        "CREATE TABLE p (id int PRIMARY KEY, tenant_id text) PARTITION BY RANGE (id);"
        " CREATE TABLE t PARTITION OF p FOR VALUES FROM (0) TO (9)",
        {},
        "CS003",
        "is a partition",
    ),
    (
        "CREATE TABLE p (id int PRIMARY KEY, tenant_id text); CREATE TABLE t (PRIMARY KEY (id)) INHERITS (p)",
        {},
        "CS003",
        "inheritance",
    ),
    (f"{_PLAIN}; CREATE TABLE p () INHERITS (t)", {}, "CS003", "inheritance"),
    (
        f"{_PLAIN}; ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON t USING (true)",
        {},
        "CS006",
        "mine",
    ),
    (
        f"{_PLAIN}; ALTER TABLE t ENABLE ROW LEVEL SECURITY;"
        " CREATE POLICY mine ON t FOR SELECT TO cloudsync_client USING (true)",
        {},
        "CS006",
        "mine",
    ),
    (f"{_PLAIN}; CREATE POLICY mine ON t TO cloudsync_analytics USING (true)", {}, "CS006", "switched off"),
    (f"{_PLAIN}; GRANT SELECT (id) ON t TO cloudsync_client", {}, "CS006", "column privileges"),
    ('CREATE TABLE t (id int PRIMARY KEY, tenant_id text, "{row}" int)', {}, "CS005", "braces"),
    (
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id text, v int GENERATED ALWAYS AS (id + 1) VIRTUAL)",
        {},
        "CS005",
        "virtual generated",
    ),
]


@pytest.mark.parametrize(("definition", "arguments", "state", "words"), REFUSED)
def test_refusals_say_why_and_what_to_do(
    db: Database, definition: str, arguments: dict[str, Any], state: str, words: str
) -> None:
    if "VIRTUAL" in definition and db.connection.info.server_version < 180000:
        pytest.skip("this PostgreSQL has no virtual generated columns")
    for statement in definition.split("; "):
        db.run(statement)
    with pytest.raises(TrackRefused, match=words) as refused:
        tracking.track(db.connection, "t", **arguments)
    cause = refused.value.__cause__
    assert isinstance(cause, psycopg.Error)
    assert cause.sqlstate == state
    assert refused.value.hint
    assert db.rows("SELECT FROM cloudsync.tracked_tables") == []
    assert db.one("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'cloudsync%'") == 0
    if "VIEW" in definition:  # a view has no place among tables to be dropped by `clear`
        db.run(f"DROP {'MATERIALIZED ' if 'MATERIALIZED' in definition else ''}VIEW t")


def test_more_refusals(db: Database) -> None:
    connection = db.connection
    with pytest.raises(TrackRefused, match="no table nothing"):
        tracking.track(connection, "nothing")
    with pytest.raises(TrackRefused, match="belongs to the system"):
        tracking.track(connection, "pg_catalog.pg_class")
    with pytest.raises(TrackRefused, match="belongs to the system"):
        tracking.track(connection, "cloudsync.clients")
    db.run("CREATE TEMP TABLE passing (id int PRIMARY KEY, tenant_id text)")
    with pytest.raises(TrackRefused, match="temporary"):
        tracking.track(connection, "passing")
    db.run("CREATE TABLE t (id int PRIMARY KEY, tenant_id text)")
    with pytest.raises(NotTracked, match="not tracked"):
        tracking.untrack(connection, "t")
    with pytest.raises(NotTracked, match="not tracked"):
        tracking.touch(connection, "t", {"id": 1})
    db.run(
        "CREATE FUNCTION number(r t) RETURNS int LANGUAGE sql RETURN 1",
        "CREATE FUNCTION broken(r t) RETURNS text[] LANGUAGE plpgsql AS 'BEGIN RETURN nothing(r); END'",
        "CREATE FUNCTION fine(r t) RETURNS text[] LANGUAGE sql RETURN ARRAY['a']",
        "CREATE ROLE app_someone",
        "CREATE FUNCTION theirs(r t) RETURNS text[] LANGUAGE sql RETURN ARRAY['a']",
        "ALTER FUNCTION theirs(t) OWNER TO app_someone",
        "CREATE VIEW v AS SELECT 1 AS id",
    )
    for audience, words in {
        "public.number": "does not return text",
        "public.broken": "fails: function nothing",
        "public.theirs": "not SECURITY DEFINER",
    }.items():
        with pytest.raises(TrackRefused, match=words):
            tracking.track(connection, "t", audience=audience)
    for depends, words in {
        "public.nothing": "does not exist",
        "public.v": "not an ordinary table",
        "!": "does not exist",
    }.items():
        with pytest.raises(TrackRefused, match=words):
            tracking.track(
                connection, "t", audience="public.fine", audience_depends_on={depends: {"id": "id"}}
            )
    with pytest.raises(TrackRefused, match="no column"):
        tracking.track(
            connection, "t", audience="public.fine", audience_depends_on={"public.t": {"nothing": "id"}}
        )
    with pytest.raises(TrackRefused, match="does not say which column"):
        tracking.track(connection, "t", audience="public.fine", audience_depends_on={"public.t": {}})
    assert db.rows("SELECT FROM cloudsync.tracked_tables") == []


def test_names_as_people_write_them(db: Database) -> None:
    db.run(
        'CREATE TABLE "Mixed.Case" (id int PRIMARY KEY, tenant_id text)',
        "CREATE TABLE plain (id int PRIMARY KEY, tenant_id text)",
    )
    assert tracking.track(db.connection, 'public."Mixed.Case"').name == "public.Mixed.Case"
    assert tracking.track(db.connection, "public.Mixed.Case").name == "public.Mixed.Case"
    assert tracking.track(db.connection, "PLAIN").name == "public.plain"


def test_a_database_without_capture_says_so(postgres: Any) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bare (id int PRIMARY KEY)")
        with pytest.raises(CaptureError, match="no CloudSync schema") as refused:
            tracking.track(connection, "bare")
        assert "migrate" in (refused.value.hint or "")
        connection.execute("DROP TABLE bare")
