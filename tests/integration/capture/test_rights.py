"""Row-level security: clients see exactly their rows, everybody else what they always saw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from integration.capture.logged import Database


@contextmanager
def _client(db: Database, tenant: str | None, user: str | None = None) -> Iterator[psycopg.Connection[Any]]:
    """As the gateway works: cloudsync_service, SET LOCAL ROLE cloudsync_client, tenant and user set for
    the transaction."""
    url = db.url.replace("postgres@", "cloudsync_service@")
    with psycopg.connect(url) as connection:
        connection.execute("SET LOCAL ROLE cloudsync_client")
        for name, value in (("app.tenant_id", tenant), ("app.user_id", user)):
            if value is not None:
                connection.execute("SELECT set_config(%s, %s, true)", (name, value))
        yield connection


def _visible(
    db: Database, table: str, tenant: str | None, user: str | None = None, column: str = "id"
) -> list[Any]:
    with _client(db, tenant, user) as connection:
        return [
            row[0]
            for row in connection.execute(f"SELECT {column} FROM {table} ORDER BY 1".encode()).fetchall()
        ]


@pytest.mark.parametrize(
    ("kind", "mine", "other", "never"),
    [
        ("text", "a", "b", ["", "A", "a "]),
        ("varchar(20)", "a", "b", ["", "a "]),
        ("char(3)", "a", "b", ["", "a  "]),
        ("int", "7", "-8", ["", "07", " 7", "7.0", "99999999999", "x", "+7"]),
        ("bigint", "9007199254740993", "0", ["", "9007199254740992", "99999999999999999999", "-0"]),
        ("smallint", "-5", "5", ["", "-05", "32768"]),
        ("int", "2147483647", "-2147483648", ["2147483648", "-2147483649", "9" * 19, "9" * 40]),
        ("bigint", "9223372036854775807", "-9223372036854775808", ["9223372036854775808", "-" + "9" * 19]),
        ("smallint", "32767", "-32768", ["32768", "-32769", "9" * 19]),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000",
         ["", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc999c0b4ef8bb6d6bb9bd380a11", "x"]),
        ("numeric", "1.50", "1.5", ["", "1.500"]),
    ],
)  # fmt: skip
def test_a_tenant_sees_its_rows_and_no_others(
    db: Database, kind: str, mine: str, other: str, never: list[str]
) -> None:
    db.run(f"CREATE TABLE t (id int PRIMARY KEY, tenant_id {kind})")
    db.track("t")
    db.run(f"INSERT INTO t VALUES (1, '{mine}'), (2, '{other}'), (3, NULL)")
    assert _visible(db, "t", mine) == [1]
    assert _visible(db, "t", other) == [2]
    assert _visible(db, "t", None) == []
    for value in never:
        assert _visible(db, "t", value) == [], value
    assert [(event.tenant, event.key["id"]) for event in db.events()][:2] == [(mine, 1), (other, 2)]


def test_the_tenant_may_use_an_index(db: Database) -> None:
    db.run(
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id bigint NOT NULL)",
        "INSERT INTO t SELECT i, i %% 500 FROM generate_series(1, 20000) i".replace("%%", "%"),
        "CREATE INDEX t_tenant ON t (tenant_id)",
        "ANALYZE t",
    )
    db.track("t")
    with _client(db, "7") as connection:
        plan = "\n".join(row[0] for row in connection.execute("EXPLAIN SELECT * FROM t").fetchall())
    assert "t_tenant" in plan


def test_a_table_of_one_tenant(db: Database) -> None:
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.track("t", tenant="'acme'")
    db.run("INSERT INTO t VALUES (1)")
    assert _visible(db, "t", "acme") == [1]
    assert _visible(db, "t", "other") == _visible(db, "t", None) == []


def test_owners_see_their_own(db: Database) -> None:
    db.run("CREATE TABLE t (id int PRIMARY KEY, tenant_id text, who text)")
    db.track("t", owner_column="'who'")
    db.run(
        "INSERT INTO t VALUES (1, 'a', 'ann'), (2, 'a', 'bob'), (3, 'b', 'ann'), (4, 'a', NULL), (5, 'a', '')"
    )
    assert _visible(db, "t", "a", "ann") == [1]
    assert _visible(db, "t", "b", "ann") == [3]
    assert _visible(db, "t", "a") == _visible(db, "t", "a", "") == []


def test_audiences_see_what_the_function_says(db: Database) -> None:
    db.run(
        'CREATE TABLE "T x" (id int PRIMARY KEY, tenant_id text, who text, guests text[])',
        'CREATE FUNCTION guests(r "T x") RETURNS text[] LANGUAGE sql STABLE RETURN r.guests',
    )
    db.one("""SELECT cloudsync.track('"T x"', owner_column => 'who', audience => 'public.guests')""")
    db.run(
        """INSERT INTO "T x" VALUES (1, 'a', 'ann', '{bob}'), (2, 'a', 'ann', NULL), (3, 'a', NULL, '{}'),
           (4, 'b', 'bob', '{bob,NULL}'), (5, 'a', '', '{""}')"""
    )
    table = '"T x"'
    assert _visible(db, table, "a", "ann") == [1, 2]
    assert _visible(db, table, "a", "bob") == [1, 2]
    assert _visible(db, table, "a", "eve") == [2]
    assert _visible(db, table, "a") == _visible(db, table, "a", "") == [2]
    assert _visible(db, table, "b", "bob") == [4]
    # The same rule live and at rest.
    for event in db.events():
        for user in ("ann", "bob", "eve"):
            live = event.audience is None or user in event.audience
            assert (event.key["id"] in _visible(db, table, event.tenant, user)) == live


def test_clients_write_only_what_they_may_see(db: Database) -> None:
    db.run("CREATE TABLE t (id serial PRIMARY KEY, tenant_id text, who text, body text)")
    db.track("t", owner_column="'who'")
    db.run("INSERT INTO t VALUES (100, 'a', 'bob', 'x')")
    db.events()
    with _client(db, "a", "ann") as connection:
        connection.execute("INSERT INTO t (tenant_id, who, body) VALUES ('a', 'ann', 'x')")
        connection.execute("UPDATE t SET body = 'y'")
        assert connection.execute("DELETE FROM t WHERE id = 100").rowcount == 0
        for statement in (
            "INSERT INTO t (tenant_id, who) VALUES ('b', 'ann')",
            "INSERT INTO t (tenant_id, who) VALUES ('a', 'bob')",
            "UPDATE t SET who = 'bob'",
            "UPDATE t SET tenant_id = 'b'",
            "TRUNCATE t",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(statement.encode())
    assert [(event.op, event.key["id"]) for event in db.events()] == [("c", 1), ("u", 1)]


def test_clients_reach_nothing_else(db: Database) -> None:
    db.run("CREATE TABLE t (id int PRIMARY KEY, tenant_id"
           " text)", "CREATE TABLE other (id int)", "CREATE TABLE p (id int PRIMARY KEY, tenant_id text)"
                                                    " PARTITION BY RANGE (id)",
           "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)")  # fmt: skip
    db.track("t")
    db.track("p")
    db.run("INSERT INTO t VALUES (1, 'a')", "INSERT INTO p VALUES (1, 'b')")
    with _client(db, "a", "ann") as connection:
        assert connection.execute(
            "SELECT table_id, key, version FROM cloudsync.row_state WHERE key = '[1]'"
        ).fetchall()
        assert connection.execute("SELECT * FROM p").fetchall() == []
        for statement in (
            "SELECT audience FROM cloudsync.row_state",
            "SELECT image FROM cloudsync.row_state",
            "SELECT * FROM cloudsync.row_state",
            "SELECT * FROM cloudsync.change_log",
            "SELECT * FROM cloudsync.tracked_tables",
            "SELECT * FROM other",
            "SELECT * FROM p1",
            "UPDATE cloudsync.row_state SET version = 1",
            "SELECT cloudsync.maintain()",
            "SELECT cloudsync.emit_table(1, 'x', 't', NULL, 0)",
            "SELECT cloudsync.untrack('t')",
            "SELECT cloudsync.touch('t', '{\"id\": 1}')",
            "SELECT cloudsync.generate(1)",
            "SELECT cloudsync.forget_rows(1)",
            "SELECT cloudsync.unregister('t'::regclass, false)",
            "CREATE TABLE cloudsync.x (i int)",
        ):
            with pytest.raises(psycopg.Error) as refused, connection.transaction():
                connection.execute(statement.encode())
            assert refused.value.sqlstate in ("42501", "CS001"), statement


@pytest.fixture
def app(db: Database) -> Database:
    """An application whose role is neither owner nor superuser."""
    db.run(
        "CREATE ROLE app_user",
        "CREATE SCHEMA app",
        "GRANT USAGE ON SCHEMA app TO app_user",
        "CREATE TABLE app.t (id int PRIMARY KEY, tenant_id text, body text)",
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON app.t TO app_user",
        "INSERT INTO app.t VALUES (1, 'a', 'x'), (2, 'b', 'x')",
    )
    return db


def test_an_application_role_does_what_it_did(app: Database) -> None:
    app.track("app.t")
    with app.connect("app_user") as connection:
        assert len(connection.execute("SELECT * FROM app.t").fetchall()) == 2
        connection.execute("INSERT INTO app.t VALUES (3, 'c', 'x') RETURNING *")
        connection.execute("UPDATE app.t SET tenant_id = 'd', body = 'y' WHERE id = 2")
        connection.execute(
            "INSERT INTO app.t VALUES (1, 'a', 'x') ON CONFLICT (id) DO UPDATE SET body = 'upserted'"
        )
        with connection.cursor().copy("COPY app.t TO STDOUT") as copy:
            assert len(list(copy)) == 3
        connection.execute("DELETE FROM app.t WHERE id = 3")
        connection.execute("TRUNCATE app.t")
    assert app.ops() == "cdcudt"


def test_policies_of_the_application_stay_in_force(app: Database) -> None:
    app.run(
        "ALTER TABLE app.t ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON app.t TO app_user USING (tenant_id = 'a')",
    )
    app.track("app.t")
    with app.connect("app_user") as connection:
        assert connection.execute("SELECT id FROM app.t").fetchall() == [(1,)]
        assert connection.execute("UPDATE app.t SET body = 'y'").rowcount == 1
    assert _visible(app, "app.t", "b") == [2]
    assert [event.key["id"] for event in app.events()] == [1]
    assert app.one("SELECT cloudsync.touch('app.t', '{\"id\": 2}')") == 1
    app.run("SELECT cloudsync.untrack('app.t')")
    assert app.one("SELECT relrowsecurity FROM pg_class WHERE oid = 'app.t'::regclass")
    assert app.rows("SELECT polname::text FROM pg_policy WHERE polrelid = 'app.t'::regclass") == [("own",)]


def test_forced_security_of_the_owner(db: Database) -> None:
    """The trigger sees every row also where the table's owner does not."""
    db.run(
        "CREATE ROLE app_owner",
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id text)",
        "ALTER TABLE t OWNER TO app_owner",
        "GRANT ALL ON SCHEMA public TO app_owner",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE t FORCE ROW LEVEL SECURITY",
        "CREATE POLICY own ON t TO app_owner USING (tenant_id = 'a')",
    )
    with db.connect("app_owner") as owner:
        owner.execute("SELECT cloudsync.track('t')")
        owner.execute("INSERT INTO t VALUES (1, 'a')")
    assert db.ops() == "c"


def test_a_table_owner_without_any_other_right_tracks_its_table(db: Database) -> None:
    db.run(
        "CREATE ROLE app_owner LOGIN",
        "CREATE SCHEMA app AUTHORIZATION app_owner",
        "CREATE TABLE public.foreign_table (id int PRIMARY KEY, tenant_id text)",
    )
    url = db.url.replace("postgres@", "app_owner@")
    with psycopg.connect(url, autocommit=True) as owner:
        for statement in (
            "CREATE TABLE app.m (id int, user_id text)",
            "CREATE TABLE app.t (id int PRIMARY KEY, tenant_id text)",
            "CREATE FUNCTION app.f(r app.t) RETURNS text[] LANGUAGE sql STABLE SECURITY DEFINER SET"
            " search_path = app"
            " AS 'SELECT array_agg(user_id) FROM m WHERE m.id = r.id'",
            """SELECT cloudsync.track('app.t', audience => 'app.f', audience_depends_on => '{"app.m":
               {"id": "id"}}')""",
            "INSERT INTO app.t VALUES (1, 'a')",
            "INSERT INTO app.m VALUES (1, 'ann')",
            "ALTER TABLE app.t ADD COLUMN x int",
            "TRUNCATE app.t",
        ):
            owner.execute(statement.encode())
        assert db.ops() == "cust"
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            owner.execute("SELECT cloudsync.track('public.foreign_table')")
        with pytest.raises(psycopg.Error, match="only the owner"):
            owner.execute(
                "SELECT * FROM cloudsync.register('foreign_table'::regclass, 'tenant_id', NULL, NULL, '{}',"
                " NULL, 'lww', '{}', false)"
            )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            owner.execute("SELECT * FROM cloudsync.change_log")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):  # another table's rows cannot be faked
            owner.execute(
                "CREATE TRIGGER x AFTER INSERT ON app.m FOR EACH ROW EXECUTE FUNCTION"
                f" cloudsync.capture_{_foreign(db)}()".encode()
            )
        owner.execute("SELECT cloudsync.untrack('app.t')")
    db.run("SELECT cloudsync.untrack('public.foreign_table')")


def _foreign(db: Database) -> int:
    return db.track("public.foreign_table")


def test_capture_runs_no_cast_of_a_table_owner(db: Database) -> None:
    """A cast's function would run with the rights of cloudsync_owner."""
    db.run("CREATE ROLE app_owner LOGIN", "CREATE SCHEMA app AUTHORIZATION app_owner")
    with psycopg.connect(db.url.replace("postgres@", "app_owner@"), autocommit=True) as owner:
        for statement in (
            "CREATE TYPE app.colour AS ENUM ('red')",
            "CREATE TYPE app.pen AS (colours app.colour[])",
            "CREATE TABLE app.t (id int PRIMARY KEY, tenant_id text, pen app.pen)",
            "CREATE FUNCTION app.spy(c app.colour) RETURNS json LANGUAGE sql AS"
            " 'SELECT to_json(current_user::text)'",
            "SELECT cloudsync.track('app.t')",
        ):
            owner.execute(statement.encode())
        cast = b"CREATE CAST (app.colour AS json) WITH FUNCTION app.spy(app.colour)"
        with pytest.raises(psycopg.Error, match="casts to text or JSON of their own") as refused:
            owner.execute(cast)
        assert refused.value.sqlstate == "CS005"
        owner.execute("INSERT INTO app.t VALUES (1, 'a', ROW(ARRAY['red']::app.colour[]))")
        assert db.one("SELECT row -> 'pen' FROM cloudsync.change_log") == {"colours": ["red"]}

        owner.execute("SELECT cloudsync.untrack('app.t')")
        owner.execute(cast)
        with pytest.raises(psycopg.Error, match=r"app\.colour"):
            owner.execute("SELECT cloudsync.track('app.t')")

        owner.execute("CREATE TABLE app.u (id int PRIMARY KEY, tenant_id text)")
        owner.execute("SELECT cloudsync.track('app.u')")
        with pytest.raises(psycopg.Error, match=r"app\.colour"):
            owner.execute("ALTER TABLE app.u ADD COLUMN colour app.colour")
        owner.execute("CREATE TYPE app.plain AS (n int)")
        owner.execute("ALTER TABLE app.u ADD COLUMN plain app.plain")
        with pytest.raises(psycopg.Error, match=r"app\.colour"):
            owner.execute("ALTER TYPE app.plain ADD ATTRIBUTE c app.colour")


def test_roles(db: Database) -> None:
    roles = {name: rest for name, *rest in db.rows(
        "SELECT rolname, rolcanlogin, rolreplication, rolsuper, rolbypassrls, rolpassword FROM pg_authid"
        " WHERE rolname LIKE 'cloudsync%'"
    )}  # fmt: skip
    assert roles == {
        "cloudsync_owner": [False, False, False, False, None],
        "cloudsync_client": [False, False, False, False, None],
        "cloudsync_relay": [True, True, False, False, None],
        "cloudsync_service": [True, False, False, False, None],
        "cloudsync_analytics": [False, False, False, False, None],
        "cloudsync_auditor": [False, False, False, False, None],
    }
    with psycopg.connect(db.url.replace("postgres@", "cloudsync_relay@"), autocommit=True) as relay:
        for table in ("change_log", "tracked_tables", "relay_state", "pending_events", "retention"):
            relay.execute(f"SELECT * FROM cloudsync.{table}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            relay.execute("SELECT * FROM cloudsync.clients")
    with psycopg.connect(db.url.replace("postgres@", "cloudsync_service@"), autocommit=True) as service:
        service.execute("SELECT cloudsync.maintain()")
        service.execute("SELECT * FROM cloudsync.change_log")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute("DELETE FROM cloudsync.change_log")
        for query in (
            "SELECT * FROM cloudsync.audit_log",
            "DELETE FROM cloudsync.audit_log",
            "UPDATE cloudsync.audit_log SET kind = ''",
            "TRUNCATE cloudsync.audit_log",
            "DELETE FROM cloudsync.audit_heads",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                service.execute(query.encode())
    with db.connect("cloudsync_auditor") as auditor:
        auditor.execute("SELECT * FROM cloudsync.audit_log, cloudsync.audit_heads")
    with db.connect("cloudsync_analytics") as analytics:
        analytics.execute("SELECT * FROM cloudsync.change_log")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            analytics.execute("SELECT * FROM cloudsync.audit_log")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            analytics.execute("INSERT INTO cloudsync.tenants VALUES ('x', 'x')")
