"""Who may see a row: recorded with each event, and told to those whose view changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from integration.capture.logged import Database


@pytest.fixture
def projects(db: Database) -> Database:
    """projects(id, tenant_id, name), seen by the members(project_id, user_id) of each; project 1 has ann
    and bob."""
    db.run(
        "CREATE TABLE members (project_id bigint, user_id text, role text, PRIMARY KEY (project_id,"
        " user_id))",
        "CREATE TABLE projects (id bigint PRIMARY KEY, tenant_id text, name text)",
        """CREATE FUNCTION readers(p projects) RETURNS text[] LANGUAGE sql STABLE
           BEGIN ATOMIC SELECT array_agg(m.user_id ORDER BY m.user_id DESC) FROM members m WHERE
           m.project_id = p.id; END""",
        """CREATE FUNCTION members_of(p projects) RETURNS text[] LANGUAGE sql STABLE
           BEGIN ATOMIC SELECT coalesce(readers(p), '{}'); END""",
        "INSERT INTO members VALUES (1, 'ann'), (1, 'bob'), (2, 'cyd')",
        "INSERT INTO projects VALUES (1, 'a', 'one'), (2, 'a', 'two'), (3, 'a', 'three')",
    )
    db.track(
        "projects",
        audience="'public.members_of'",
        audience_depends_on="""'{"public.members": {"project_id": "id"}}'""",
    )
    return db


def _changes(db: Database) -> list[tuple[str, str, list[str] | None, list[str] | None]]:
    return [(event.op, event.key["id"], event.old_audience, event.audience) for event in db.events()]


def test_no_rule_is_the_whole_tenant(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)", "UPDATE notes SET n = 2", "DELETE FROM notes")
    assert [(event.old_audience, event.audience) for event in notes.events()] == [
        ([], None),
        (None, None),
        (None, None),
    ]


def test_an_owner_alone(db: Database) -> None:
    db.run("CREATE TABLE t (id int PRIMARY KEY, tenant_id text, who int)")
    db.track("t", owner_column="'who'")
    db.run(
        "INSERT INTO t VALUES (1, 'a', 5)", "UPDATE t SET who = 6", "UPDATE t SET who = NULL", "DELETE FROM t"
    )
    assert [(event.old_audience, event.audience) for event in db.events()] == [
        ([], ["5"]), (["5"], ["6"]), (["6"], []), ([], [])
    ]  # fmt: skip


def test_an_empty_owner_is_nobody(db: Database) -> None:
    db.run("CREATE TABLE t (id int PRIMARY KEY, tenant_id text, who text)")
    db.track("t", owner_column="'who'")
    db.run("INSERT INTO t VALUES (1, 'a', '')")
    assert db.events()[0].audience == []


def test_a_function_with_and_without_owner(db: Database) -> None:
    db.run(
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id text, who text, guests text[])",
        "CREATE FUNCTION guests(r t) RETURNS text[] LANGUAGE sql STABLE RETURN r.guests",
    )
    db.track("t", audience="'public.guests'")
    db.run(
        "INSERT INTO t VALUES (1, 'a', 'zoe', '{bob,ann,bob,NULL,\"\"}'), (2, 'a', 'zoe', NULL), (3, 'a',"
        " 'zoe', '{}')"
    )
    assert [event.audience for event in db.events()] == [["ann", "bob"], None, []]
    db.track("t", audience="'public.guests'", owner_column="'who'")
    db.run("UPDATE t SET guests = guests || 'eve'::text WHERE id <> 2", "UPDATE t SET who = NULL")
    by_row = sorted(db.events(), key=lambda event: (event.key["id"], event.version))
    assert [(event.key["id"], event.audience) for event in by_row] == [
        (1, ["ann", "bob", "eve", "zoe"]),
        (1, ["ann", "bob", "eve"]),
        (2, None),
        (3, ["eve", "zoe"]),
        (3, ["eve"]),
    ]


def test_members_come_and_go(projects: Database) -> None:
    projects.run("INSERT INTO members VALUES (1, 'dan')")
    (event,) = projects.events()
    assert (event.op, event.key, event.old) == ("u", {"id": "1"}, {})
    assert (event.old_audience, event.audience) == (["ann", "bob"], ["ann", "bob", "dan"])
    assert event.row == {"id": "1", "tenant_id": "a", "name": "one"}
    projects.run("DELETE FROM members WHERE user_id = 'ann'")
    assert _changes(projects) == [("u", "1", ["ann", "bob", "dan"], ["bob", "dan"])]
    projects.run("UPDATE members SET project_id = 3 WHERE user_id = 'bob'")
    assert sorted(_changes(projects)) == [("u", "1", ["bob", "dan"], ["dan"]), ("u", "3", [], ["bob"])]
    projects.run("UPDATE members SET role = 'admin'")
    assert projects.events() == []
    projects.run("INSERT INTO members SELECT 2, 'u' || i FROM generate_series(1, 200) i")
    assert len(projects.events()) == 1
    projects.run("TRUNCATE members")
    assert {change[3] == [] for change in _changes(projects)} == {True}


def test_versions_and_deletes_tell_the_recorded_audience(projects: Database) -> None:
    projects.run("INSERT INTO members VALUES (1, 'dan')", "DELETE FROM projects WHERE id = 1")
    touched, deleted = projects.events()
    assert (touched.version, deleted.version) == (1, 2)
    assert deleted.audience == deleted.old_audience == ["ann", "bob", "dan"]
    projects.run("INSERT INTO members VALUES (1, 'eve')")
    assert projects.events() == []  # it is gone: nobody's view changes


def test_a_row_never_changed_knows_its_readers(projects: Database) -> None:
    """What the function says after the membership has changed is not who saw the row before."""
    projects.run("DELETE FROM members")
    assert sorted(_changes(projects)) == [("u", "1", ["ann", "bob"], []), ("u", "2", ["cyd"], [])]


def test_membership_and_row_in_one_statement(projects: Database) -> None:
    projects.run(
        "WITH p AS (INSERT INTO projects VALUES (9, 'a', 'nine') RETURNING id) INSERT INTO members SELECT"
        " id, 'ann' FROM p"
    )
    last = projects.events()[-1]
    assert (last.key, last.audience) == ({"id": "9"}, ["ann"])


def test_an_undeclared_dependency_shows_at_the_next_update(db: Database) -> None:
    db.run(
        "CREATE TABLE m (user_id text)",
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id text)",
        "CREATE FUNCTION f(r t) RETURNS text[] LANGUAGE sql STABLE RETURN (SELECT array_agg(user_id) FROM"
        " public.m)",
        "GRANT SELECT ON m TO cloudsync_owner",
    )
    db.track("t", audience="'public.f'")
    db.run(
        "INSERT INTO t VALUES (1, 'a')",
        "INSERT INTO m VALUES ('ann')",
        "UPDATE t SET id = id",
        "UPDATE t SET id = id",
    )
    assert [(event.op, event.old_audience, event.audience, event.old) for event in db.events()] == [
        ("c", [], None, None), ("u", None, ["ann"], {})
    ]  # fmt: skip


def _blocked(db: Database, session: psycopg.Connection[object]) -> bool:
    return bool(db.one("SELECT cardinality(pg_blocking_pids(%s)) > 0", session.info.backend_pid))


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_new_row_meets_a_change_of_membership(projects: Database, eventually, isolation: str) -> None:  # type: ignore[no-untyped-def]
    """The row is written with the old membership, uncommitted, while the membership changes."""
    with projects.connect(autocommit=False) as writer, projects.connect(autocommit=False) as changer:
        projects.run("INSERT INTO members VALUES (7, 'ann')")
        changer.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
        changer.execute("SELECT 1 FROM members")
        writer.execute("INSERT INTO projects VALUES (7, 'a', 'seven')")
        with ThreadPoolExecutor(1) as pool:
            change = pool.submit(changer.execute, "INSERT INTO members VALUES (7, 'bob')")
            eventually(lambda: _blocked(projects, changer))
            writer.commit()
            change.result(timeout=10)
        changer.commit()
    events = projects.events()
    if isolation == "read committed":
        assert events[-1].key == {"id": "7"}
        assert (events[-1].old_audience, events[-1].audience) == (["ann"], ["ann", "bob"])
    else:  # its snapshot cannot see the row: everybody reads again
        assert events[-1].op == "t"


def test_a_change_of_membership_meets_a_new_row(projects: Database, eventually) -> None:  # type: ignore[no-untyped-def]
    with projects.connect(autocommit=False) as writer, projects.connect(autocommit=False) as changer:
        changer.execute("DELETE FROM members WHERE user_id = 'ann'")
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(writer.execute, "UPDATE projects SET name = 'uno' WHERE id = 1")
            eventually(lambda: _blocked(projects, writer))
            changer.commit()
            written.result(timeout=10)
        writer.commit()
    assert _changes(projects) == [("u", "1", ["ann", "bob"], ["bob"]), ("u", "1", ["bob"], ["bob"])]


@pytest.mark.parametrize(
    "write",
    ["UPDATE projects SET name = 'uno' WHERE id = 1", "INSERT INTO projects VALUES (8, 'a', 'eight')"],
)
def test_an_old_snapshot_does_not_write_an_old_audience(projects: Database, write: str) -> None:
    with projects.connect(autocommit=False) as writer:
        writer.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        writer.execute("SELECT 1 FROM projects")
        projects.run("INSERT INTO members VALUES (1, 'dan'), (8, 'dan')")
        with pytest.raises(psycopg.errors.SerializationFailure):
            writer.execute(write.encode())
        writer.rollback()
        writer.execute(write.encode())
    assert "dan" in (projects.events()[-1].audience or [])


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_who_was_given_a_row_unseen_is_told_when_it_goes(projects: Database, level: str) -> None:
    """A writer with an old snapshot changes the audience of rows that it cannot see; a reset shows them."""
    with projects.connect(autocommit=False) as changer, projects.connect() as gateway:
        changer.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        changer.execute("SELECT 1 FROM projects")
        projects.run("INSERT INTO projects VALUES (8, 'a', 'eight'), (9, 'a', 'nine')")
        changer.execute("INSERT INTO members VALUES (8, 'dan')")
        changer.commit()
        assert [event.op for event in projects.events()] == ["c", "c", "t"]
        gateway.execute("SET SESSION AUTHORIZATION cloudsync_service")
        for _ in range(2):
            gateway.execute("SELECT cloudsync.settle_audiences()")
    assert projects.events() == []
    recorded = dict(projects.rows("SELECT key, audience FROM cloudsync.row_state"))
    assert (recorded['["8"]'], recorded['["9"]'], recorded['["2"]']) == (["dan"], [], ["cyd"])
    assert not projects.rows("SELECT table_id FROM cloudsync.audience_locks WHERE unsure")
    projects.run("DELETE FROM members WHERE user_id = 'dan'")
    assert _changes(projects) == [("u", "8", ["dan"], [])]


def test_two_who_change_an_audience_by_two_tables_at_once_know_of_each_other(
    db: Database, eventually: Callable[..., Any]
) -> None:
    db.run(
        "CREATE TABLE shelves (id int PRIMARY KEY, tenant_id text)",
        "CREATE TABLE readers (shelf int, user_id text)",
        "CREATE TABLE writers (shelf int, user_id text)",
        "CREATE FUNCTION shelf_users(s shelves) RETURNS text[] LANGUAGE sql STABLE AS $$"
        " SELECT coalesce(array_agg(u.user_id), '{}') FROM (SELECT * FROM public.readers UNION ALL"
        " SELECT * FROM public.writers) u WHERE u.shelf = s.id $$",
        "INSERT INTO shelves VALUES (1, 'a')",
    )
    db.run(
        "SELECT cloudsync.track('shelves', audience => 'public.shelf_users', audience_depends_on =>"
        """ '{"public.readers": {"shelf": "id"}, "public.writers": {"shelf": "id"}}')"""
    )
    db.events()
    with db.connect() as other, db.connect(autocommit=False) as first, ThreadPoolExecutor(1) as thread:
        first.execute("INSERT INTO readers VALUES (1, 'ann')")
        second = thread.submit(other.execute, "INSERT INTO writers VALUES (1, 'bob')")
        eventually(lambda: db.rows("SELECT pid FROM pg_locks WHERE NOT granted"))
        first.commit()
        second.result(timeout=10)
    assert _changes(db) == [("u", 1, [], ["ann"]), ("u", 1, ["ann"], ["ann", "bob"])]


@pytest.mark.parametrize("held", ["bucket", "state", "turn"])
def test_who_is_given_a_row_is_recorded_without_waiting_for_a_writer(projects: Database, held: str) -> None:
    """Views go on meanwhile, and start over once it has been recorded."""
    with (
        projects.connect(autocommit=False) as changer,
        projects.connect(autocommit=False) as writer,
        projects.connect() as gateway,
    ):
        changer.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        changer.execute("SELECT 1 FROM projects")
        projects.run("INSERT INTO projects VALUES (8, 'a', 'eight'), (9, 'a', 'nine')")
        changer.execute("INSERT INTO members VALUES (8, 'dan')")
        changer.commit()
        projects.events()
        if held == "bucket":
            writer.execute("UPDATE projects SET name = 'acht' WHERE id = 8")
        elif held == "state":
            writer.execute("SELECT FROM cloudsync.row_state WHERE key = '[\"8\"]' FOR UPDATE")
        else:
            writer.execute("SELECT pg_advisory_xact_lock(1129512960, 3)")
        gateway.execute("SET SESSION AUTHORIZATION cloudsync_service")
        gateway.execute("SET lock_timeout = '20s'")
        for _ in range(2):
            began_s = time.monotonic()
            assert gateway.execute("SELECT cloudsync.settle_audiences()").fetchone() == (False,)
            assert time.monotonic() - began_s < 2
        assert projects.events() == []
        writer.rollback()
        for _ in range(2):
            assert gateway.execute("SELECT cloudsync.settle_audiences()").fetchone() == (True,)
    assert [event.op for event in projects.events()] == ["t"]
    recorded = dict(projects.rows("SELECT key, audience FROM cloudsync.row_state"))
    assert recorded['["8"]'] == ["dan"]
    assert not projects.rows("SELECT table_id FROM cloudsync.unsettled_views")


def test_a_deleted_row_is_not_brought_back_by_its_members(projects: Database, eventually) -> None:  # type: ignore[no-untyped-def]
    with projects.connect(autocommit=False) as writer, projects.connect(autocommit=False) as changer:
        writer.execute("DELETE FROM projects WHERE id = 1")
        with ThreadPoolExecutor(1) as pool:
            change = pool.submit(changer.execute, "DELETE FROM members WHERE project_id = 1")
            eventually(lambda: _blocked(projects, changer))
            writer.commit()
            change.result(timeout=10)
        changer.commit()
    assert _changes(projects) == [("d", "1", ["ann", "bob"], ["ann", "bob"])]


def test_a_row_moves_between_projects_while_members_change(db: Database, eventually) -> None:  # type: ignore[no-untyped-def]
    db.run(
        "CREATE TABLE members (project_id int, user_id text)",
        "CREATE TABLE tasks (id int PRIMARY KEY, tenant_id text, project_id int, title text)",
        """CREATE FUNCTION readers(t tasks) RETURNS text[] LANGUAGE sql STABLE BEGIN ATOMIC
           SELECT coalesce(array_agg(m.user_id), '{}') FROM members m WHERE m.project_id = t.project_id;
           END""",
        "INSERT INTO members VALUES (1, 'ann'), (2, 'bob')",
        "INSERT INTO tasks VALUES (5, 'a', 1, 'x')",
    )
    db.track(
        "tasks",
        audience="'public.readers'",
        audience_depends_on="""'{"public.members": {"project_id": "project_id"}}'""",
    )
    with db.connect(autocommit=False) as writer, db.connect(autocommit=False) as changer:
        writer.execute("UPDATE tasks SET project_id = 2 WHERE id = 5")
        with ThreadPoolExecutor(1) as pool:
            change = pool.submit(changer.execute, "INSERT INTO members VALUES (1, 'cyd')")
            eventually(lambda: _blocked(db, changer))
            writer.commit()
            change.result(timeout=10)
        changer.commit()
    assert [(event.old_audience, event.audience) for event in db.events()] == [(["ann"], ["bob"])]
    assert db.one("SELECT audience FROM cloudsync.row_state") == ["bob"]


def test_dependencies_of_several_columns_and_tables(db: Database) -> None:
    db.run(
        "CREATE TABLE shares (org text, doc int, user_id text)",
        "CREATE TABLE admins (org text, user_id text)",
        "CREATE TABLE docs (id int PRIMARY KEY, tenant_id text)",
        """CREATE FUNCTION readers(d docs) RETURNS text[] LANGUAGE sql STABLE BEGIN ATOMIC
           SELECT coalesce(array_agg(u), '{}') FROM (SELECT user_id FROM shares s WHERE s.org = d.tenant_id
           AND s.doc = d.id
           UNION SELECT user_id FROM admins a WHERE a.org = d.tenant_id) AS x (u); END""",
        "INSERT INTO docs VALUES (1, 'a'), (2, 'a'), (3, 'b')",
    )
    table = db.track(
        "docs",
        audience="'public.readers'",
        audience_depends_on="""'{"public.shares": {"org": "tenant_id", "doc": "id"}, "admins": {"org":
                               "tenant_id"}}'""",
    )
    db.run("INSERT INTO shares VALUES ('a', 1, 'ann'), ('b', 1, 'bob')")
    assert [(event.key, event.audience) for event in db.events()] == [({"id": 1}, ["ann"])]
    db.run("INSERT INTO admins VALUES ('a', 'eve')")
    assert sorted(event.key["id"] for event in db.events()) == [1, 2]
    db.run(
        "ALTER TABLE shares RENAME COLUMN doc TO document",
        "ALTER TABLE shares RENAME TO grants",
        "DELETE FROM grants",
    )
    assert [(event.key, event.audience) for event in db.events()] == [({"id": 1}, ["eve"])]
    assert db.one("SELECT audience_depends_on FROM cloudsync.tracked_tables") == {
        "public.grants": {"org": "tenant_id", "document": "id"}, "public.admins": {"org": "tenant_id"}
    }  # fmt: skip
    db.run("SET session_replication_role = replica", "INSERT INTO admins VALUES ('b', 'eve')")
    assert [event.key for event in db.events()] == [{"id": 3}]
    db.run("RESET session_replication_role")
    db.track("docs")
    assert db.rows("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'cloudsync_depends%'") == []
    assert db.rows("SELECT proname FROM pg_proc WHERE proname ~ %s", f"^(depends|audience)_{table}") == []
    db.run("INSERT INTO admins VALUES ('b', 'fay')")
    assert db.events() == []


def test_a_partition_attached_with_rows_knows_their_readers(db: Database) -> None:
    db.run(
        "CREATE TABLE m (id int, user_id text)",
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id text) PARTITION BY RANGE (id)",
        "CREATE FUNCTION f(r t) RETURNS text[] LANGUAGE sql STABLE RETURN ARRAY(SELECT user_id FROM"
        " public.m WHERE m.id = r.id)",
        "CREATE TABLE p (LIKE t INCLUDING ALL)",
        "INSERT INTO p VALUES (1, 'a')",
        "INSERT INTO m VALUES (1, 'ann')",
    )
    db.track("t", audience="'public.f'", audience_depends_on="""'{"public.m": {"id": "id"}}'""")
    db.run("ALTER TABLE t ATTACH PARTITION p FOR VALUES FROM (0) TO (10)", "DELETE FROM m")
    assert [(event.op, event.old_audience, event.audience) for event in db.events()] == [
        ("t", None, None),
        ("u", ["ann"], []),
    ]


def test_words_of_plpgsql_in_rules(db: Database) -> None:
    db.run(
        "CREATE TABLE m (by int, loop text)",
        "CREATE TABLE t (id int PRIMARY KEY, begin text, by int, loop text)",
        "CREATE FUNCTION f(r t) RETURNS text[] LANGUAGE sql STABLE"
        " RETURN ARRAY(SELECT m.loop FROM public.m WHERE m.by = r.by)",
    )
    db.track(
        "t",
        tenant_column="'begin'",
        owner_column="'loop'",
        audience="'public.f'",
        audience_depends_on="""'{"public.m": {"by": "by"}}'""",
    )
    db.run("INSERT INTO t VALUES (1, 'a', 5, 'ann')", "INSERT INTO m VALUES (5, 'bob')", "DELETE FROM t")
    assert [(event.op, event.tenant, event.audience) for event in db.events()] == [
        ("c", "a", ["ann"]),
        ("u", "a", ["ann", "bob"]),
        ("d", "a", ["ann", "bob"]),
    ]
