"""What one statement leaves in the change log."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from integration.capture.logged import Database


def test_create_update_delete(notes: Database) -> None:
    notes.run(
        "INSERT INTO notes VALUES (1, 'a', 'x', 1)",
        "UPDATE notes SET body = 'y' WHERE id = 1",
        "DELETE FROM notes WHERE id = 1",
    )
    created, updated, deleted = notes.events()
    first = {"id": 1, "tenant_id": "a", "body": "x", "n": 1}
    second = first | {"body": "y"}
    assert (created.op, created.key, created.version) == ("c", {"id": 1}, 1)
    assert (created.row, created.old) == (first, None)
    assert (updated.op, updated.version, updated.row, updated.old) == ("u", 2, second, {"body": "x"})
    assert (deleted.op, deleted.version, deleted.row, deleted.old) == ("d", 3, None, second)
    assert {event.tenant for event in (created, updated, deleted)} == {"a"}
    assert {event.table for event in (created, updated, deleted)} == {"public.notes"}


def test_a_transaction_is_one_xid_also_through_savepoints(notes: Database) -> None:
    with notes.connect(autocommit=False) as writer:
        xid = writer.execute("SELECT pg_current_xact_id()::text").fetchone()
        writer.execute("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
        with writer.transaction():
            writer.execute("INSERT INTO notes VALUES (2, 'a', 'x', 1)")
        with writer.transaction(force_rollback=True):
            writer.execute("INSERT INTO notes VALUES (3, 'a', 'x', 1)")
    events = notes.events()
    assert [event.key["id"] for event in events] == [1, 2]
    assert xid is not None
    assert {event.xid for event in events} == {xid[0]}


def test_rollback_leaves_nothing(notes: Database) -> None:
    with notes.connect(autocommit=False) as writer:
        writer.execute("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
        writer.rollback()
    assert notes.events() == []
    assert notes.rows("SELECT * FROM cloudsync.row_state") == []


def test_an_update_that_changes_nothing_is_not_logged(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', NULL, 1)")
    notes.events()
    notes.run("UPDATE notes SET body = NULL, n = 1", "UPDATE notes SET id = id, tenant_id = tenant_id")
    assert notes.events() == []
    assert notes.one("SELECT version FROM cloudsync.row_state") == 1


def test_nulls_come_and_go(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', NULL, 1)", "UPDATE notes SET body = 'x', n = NULL")
    created, updated = notes.events()
    assert created.row == {"id": 1, "tenant_id": "a", "body": None, "n": 1}
    assert updated.row == {"id": 1, "tenant_id": "a", "body": "x", "n": None}
    assert updated.old == {"body": None, "n": 1}


def test_versions_go_on_across_delete_and_create(notes: Database) -> None:
    for _ in range(2):
        notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)", "DELETE FROM notes")
    assert [(event.op, event.version) for event in notes.events()] == [("c", 1), ("d", 2), ("c", 3), ("d", 4)]
    deleted, image = notes.one("SELECT deleted_at IS NOT NULL, image FROM cloudsync.row_state")
    assert deleted
    assert image == {"id": 1, "tenant_id": "a", "body": "x", "n": 1}
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
    assert notes.one("SELECT deleted_at, image FROM cloudsync.row_state") == (None, None)


def test_another_key_is_another_row(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)", "UPDATE notes SET id = 2, body = 'y'")
    _, deleted, created = notes.events()
    assert (deleted.op, deleted.key, deleted.version) == ("d", {"id": 1}, 2)
    assert deleted.old["body"] == "x"
    assert (created.op, created.key, created.version) == ("c", {"id": 2}, 1)
    assert created.row["body"] == "y"


def test_keys_moving_up_leave_no_row_deleted(notes: Database) -> None:
    notes.run("INSERT INTO notes SELECT i, 'a', 'x', i FROM generate_series(3, 1, -1) i")
    notes.events()
    notes.run("UPDATE notes SET id = id + 1")
    alive: dict[int, bool] = {}
    for event in notes.events():
        alive[event.key["id"]] = event.op == "c"
    assert alive == {1: False, 2: True, 3: True, 4: True}


def test_another_tenant_is_a_delete_there_and_a_create_here(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)", "UPDATE notes SET tenant_id = 'b'")
    _, deleted, created = notes.events()
    assert (deleted.op, deleted.tenant, deleted.version) == ("d", "a", 2)
    assert (created.op, created.tenant, created.version) == ("c", "b", 3)


def test_a_row_without_tenant_belongs_to_nobody(db: Database) -> None:
    db.run("CREATE TABLE t (id int PRIMARY KEY, tenant_id text)")
    db.track("t")
    db.run("INSERT INTO t VALUES (1, NULL)", "UPDATE t SET tenant_id = 'a'")
    assert [(event.op, event.tenant) for event in db.events()] == [("c", ""), ("d", ""), ("c", "a")]


def test_upserts_and_merge(notes: Database) -> None:
    upsert = "INSERT INTO notes VALUES (1, 'a', 'x', 1) ON CONFLICT (id) DO UPDATE SET n = notes.n + 1"
    notes.run(
        upsert,
        upsert,
        "INSERT INTO notes VALUES (1, 'a', 'x', 1) ON CONFLICT DO NOTHING",
        "MERGE INTO notes USING (VALUES (1), (2)) AS v (id) ON notes.id = v.id"
        " WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (v.id, 'a', 'm', 0)",
    )
    events = notes.events()
    assert [(event.op, event.key["id"], event.version) for event in events[:2]] == [("c", 1, 1), ("u", 1, 2)]
    assert {(event.op, event.key["id"], event.version) for event in events[2:]} == {("d", 1, 3), ("c", 2, 1)}


def test_the_actor_travels_along(notes: Database) -> None:
    with notes.connect(autocommit=False) as writer:
        writer.execute(
            "SELECT set_config('cloudsync.user_id', 'u1', true), set_config('cloudsync.client_id', 'c1',"
            " true),"
            " set_config('cloudsync.mutation_id', '7', true), set_config('cloudsync.at', '123-0-c1', true)"
        )
        writer.execute("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
        writer.commit()
        writer.execute("INSERT INTO notes VALUES (2, 'a', 'x', 1)")
    by_client, by_sql = notes.events()
    assert by_client.actor == {"user_id": "u1", "client_id": "c1", "mutation_id": "7", "at": "123-0-c1"}
    assert by_sql.actor is None
    fields = dict(notes.rows("SELECT key, fields -> '' FROM cloudsync.row_state"))
    assert fields["[1]"] == {"v": 1, "at": "123-0-c1"}
    assert abs(fields["[2]"]["at"] - notes.one("SELECT extract(epoch FROM now())::float8")) < 60


def test_fields_say_when_each_last_changed(notes: Database) -> None:
    notes.run(
        "INSERT INTO notes VALUES (1, 'a', 'x', 1)",
        "UPDATE notes SET body = 'y'",
        "UPDATE notes SET n = 2",
        "UPDATE notes SET body = 'z', n = 3",
        "UPDATE notes SET n = 4",
    )
    fields = notes.one("SELECT fields FROM cloudsync.row_state")
    assert {name: stamp["v"] for name, stamp in fields.items()} == {"": 1, "body": 4, "n": 5}
    assert abs(fields["n"]["at"] - notes.one("SELECT extract(epoch FROM now())::float8")) < 60


def test_odd_names_and_tenants_survive_the_generator(db: Database) -> None:
    name = r'"Größe %s"."a.b ""c"" \ é"'
    odd = [r'"select ""x"" "', '"100%"', '"O\'Neil"', r'"\n"', "v_old", '"NEW"', "r", "version", "audience"]
    columns = ", ".join(f"{each} int" for each in odd)
    db.run('CREATE SCHEMA "Größe %s"', f'CREATE TABLE {name} ("key" text PRIMARY KEY, {columns})')
    db.connection.execute("SELECT cloudsync.track(%s::regclass, tenant => %s)", (name, "{row} %s '\\"))
    db.run(f"INSERT INTO {name} VALUES ('k', {', '.join(map(str, range(len(odd))))})")
    db.run(f"UPDATE {name} SET " + ", ".join(f"{each} = -1" for each in odd))
    created, updated = db.events()
    assert created.table == r'Größe %s.a.b "c" \ é'
    assert created.tenant == "{row} %s '\\"
    plain = ['select "x" ', "100%", "O'Neil", r"\n", "v_old", "NEW", "r", "version", "audience"]
    assert updated.old == dict(zip(plain, range(len(odd)), strict=True))
    assert set(db.one("SELECT fields FROM cloudsync.row_state")) == {"", *plain}


@pytest.mark.parametrize(
    ("type_name", "value", "text", "key"),
    [
        ("int", "-7", "[-7]", -7),
        ("bigint", "9007199254740993", '["9007199254740993"]', "9007199254740993"),
        ("numeric", "1.50", '["1.50"]', "1.50"),
        ("text", "'a\"b\\c/d\té\x01 '", '["a\\"b\\\\c/d\\té\\u0001 "]', 'a"b\\c/d\té\x01 '),
        ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", None, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("boolean", "true", "[true]", True),
        ("date", "'2026-01-02'", '["2026-01-02"]', "2026-01-02"),
        (
            "timestamptz",
            "'2026-01-02 03:04:05+02'",
            '["2026-01-02T01:04:05+00:00"]',
            "2026-01-02T01:04:05+00:00",
        ),
        ("bytea", "'\\xdeadbeef'", '["3q2+7w=="]', "3q2+7w=="),
        ("char(4)", "'ab'", '["ab  "]', "ab  "),
        ("inet", "'10.0.0.1'", '["10.0.0.1"]', "10.0.0.1"),
    ],
)
def test_keys_of_many_types(db: Database, type_name: str, value: str, text: str | None, key: object) -> None:
    db.run(f"CREATE TABLE t (k {type_name} PRIMARY KEY, tenant_id text, x int)")
    db.track("t")
    db.run(f"INSERT INTO t VALUES ({value}, 'a', 1)", "UPDATE t SET x = 2")
    assert [event.key for event in db.events()] == [{"k": key}, {"k": key}]
    assert db.one("SELECT key FROM cloudsync.row_state") == (text or f'["{key}"]')
    # The recorded condition finds the row again, and touch with it.
    assert (
        db.one("SELECT cloudsync.touch('t', (SELECT key FROM cloudsync.change_log ORDER BY id DESC LIMIT 1))")
        == 3
    )
    db.run("DELETE FROM t")
    assert db.ops() == "ud"


def test_composite_key_in_its_own_order(db: Database) -> None:
    db.run("CREATE TABLE t (tenant_id text, b bigint, a text, x int, PRIMARY KEY (b, a, tenant_id))")
    db.track("t")
    db.run("INSERT INTO t VALUES ('acme', 5, 'x, y', 1)")
    (event,) = db.events()
    assert event.key == {"b": "5", "a": "x, y", "tenant_id": "acme"}
    assert db.one("SELECT key FROM cloudsync.row_state") == '["5","x, y","acme"]'
    assert db.one("SELECT key_columns FROM cloudsync.tracked_tables") == ["b", "a", "tenant_id"]


def test_truncate_resets_and_versions_go_on_above(notes: Database) -> None:
    notes.run(
        "INSERT INTO notes SELECT i, 'a', 'x', i FROM generate_series(1, 3) i",
        "UPDATE notes SET n = 9 WHERE id = 2",
    )
    notes.events()
    notes.run("TRUNCATE notes")
    (reset,) = notes.events()
    assert (reset.op, reset.key, reset.row, reset.tenant, reset.version) == ("t", None, None, None, 2)
    assert notes.rows("SELECT * FROM cloudsync.row_state") == []
    notes.run("INSERT INTO notes VALUES (2, 'a', 'x', 1)")
    assert [event.version for event in notes.events()] == [3]


def test_truncate_and_insert_in_one_transaction(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)", "UPDATE notes SET n = 2")
    notes.events()
    with notes.connect(autocommit=False) as writer:
        writer.execute("INSERT INTO notes VALUES (2, 'a', 'x', 1)")
        writer.execute("TRUNCATE notes")
        writer.execute("INSERT INTO notes VALUES (1, 'a', 'y', 1)")
    assert [(event.op, event.version) for event in notes.events()] == [("c", 1), ("t", 2), ("c", 3)]


def test_a_rolled_back_truncate_changes_nothing(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
    with notes.connect(autocommit=False) as writer:
        writer.execute("TRUNCATE notes")
        writer.rollback()
    notes.run("UPDATE notes SET n = 2", "INSERT INTO notes VALUES (2, 'a', 'x', 1)")
    assert [(event.op, event.version) for event in notes.events()] == [("c", 1), ("u", 2), ("c", 1)]


def test_replica_role_does_not_silence_capture(notes: Database) -> None:
    notes.run(
        "SET session_replication_role = replica",
        "INSERT INTO notes VALUES (1, 'a', 'x', 1)",
        "UPDATE notes SET n = 2",
        "DELETE FROM notes",
        "TRUNCATE notes",
    )
    assert notes.ops() == "cudt"


def test_an_apply_worker_is_not_captured(notes: Database, eventually) -> None:  # type: ignore[no-untyped-def]
    source = f"{notes.connection.info.dbname}_source"
    notes.run(f"CREATE DATABASE {source}")
    with psycopg.connect(notes.url.rsplit("/", 1)[0] + f"/{source}", autocommit=True) as publisher:
        publisher.execute(
            "CREATE TABLE notes (id int PRIMARY KEY, tenant_id text NOT NULL, body text, n int)"
        )
        publisher.execute("CREATE PUBLICATION p FOR TABLE notes")
        publisher.execute(f"SELECT pg_create_logical_replication_slot('{source}', 'pgoutput')".encode())
        publisher.execute("INSERT INTO notes VALUES (1, 'a', 'from elsewhere', 1)")
        notes.run(
            f"CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={notes.connection.info.port}"
            f" user=postgres dbname={source}'"
            f" PUBLICATION p WITH (create_slot = false, slot_name = '{source}', copy_data = false)"
        )
        try:
            eventually(lambda: notes.rows("SELECT FROM notes WHERE id = 1"))
            assert notes.events() == []
            notes.run("UPDATE notes SET n = 2")
            assert notes.ops() == "u"
        finally:
            notes.run(
                "ALTER SUBSCRIPTION s DISABLE",
                "ALTER SUBSCRIPTION s SET (slot_name = NONE)",
                "DROP SUBSCRIPTION s",
            )
            eventually(
                lambda: (
                    not publisher.execute(
                        "SELECT FROM pg_replication_slots WHERE slot_name = %s AND active", (source,)
                    ).fetchall()
                )
            )
            publisher.execute("SELECT pg_drop_replication_slot(%s)", (source,))
    notes.run(f"DROP DATABASE {source} WITH (FORCE)")


def test_one_megabyte_rows(notes: Database) -> None:
    body = "é" + "x" * 1_000_000
    notes.connection.execute("INSERT INTO notes VALUES (1, 'a', %s, 1)", (body,))
    notes.run("UPDATE notes SET n = 2")
    created, updated = notes.events()
    assert created.row["body"] == body
    assert updated.old == {"n": 1}
    assert updated.row["body"] == body


def test_a_statement_of_a_hundred_thousand_rows(notes: Database) -> None:
    notes.run("INSERT INTO notes SELECT i, 'a', 'x', i FROM generate_series(1, 100000) i")
    count, keys, versions, xids = notes.one(
        "SELECT count(*), count(DISTINCT key), max(version), count(DISTINCT xid) FROM cloudsync.change_log"
    )
    assert (count, keys, versions, xids) == (100_000, 100_000, 1, 1)


def test_versions_follow_commit_order_of_concurrent_writers(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 0)")
    writers, rounds = 6, 25
    barrier = threading.Barrier(writers)

    def write(number: int) -> None:
        with notes.connect() as connection:
            barrier.wait()
            for i in range(rounds):
                if i % 5 == 4:  # delete and create the same key now and then
                    with connection.transaction():
                        connection.execute("DELETE FROM notes WHERE id = 1")
                        connection.execute(
                            "INSERT INTO notes SELECT 1, 'a', 'x', coalesce(max(n), 0) FROM notes ON"
                            " CONFLICT DO NOTHING"
                        )
                else:
                    connection.execute("UPDATE notes SET n = n + 1 WHERE id = 1")

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    logged = notes.rows(
        "SELECT l.version, l.op::text, (\"row\" ->> 'n')::int FROM cloudsync.change_log l ORDER BY l.version"
    )
    assert [version for version, _, _ in logged] == list(range(1, len(logged) + 1))
    # Replaying by version gives the row as it is.
    state: int | None = None
    for _, op, n in logged:
        assert op != "u" or state is None or n == state + 1, "an update did not build on the version before"
        state = None if op == "d" else n
    assert state == notes.one("SELECT n FROM notes")


def test_triggers_that_write_back_do_not_leave_an_old_row_behind(notes: Database) -> None:
    """An AFTER trigger's own update is captured before the update that fired it: the last event must be
    the newest."""
    notes.run(
        """CREATE FUNCTION complete() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF pg_trigger_depth() = 1 THEN
                UPDATE notes SET body = 'completed ' || NEW.n WHERE true;
            END IF;
            RETURN NULL; END $$""",
        "CREATE TRIGGER a_first AFTER INSERT OR UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION complete()",
        "CREATE TRIGGER z_last AFTER UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION complete()",
        "INSERT INTO notes VALUES (1, 'a', 'x', 1), (2, 'a', 'x', 2)",
        "UPDATE notes SET n = n + 10",
    )
    latest = {}
    for event in notes.events():
        assert event.version > latest.get(event.key["id"], (0,))[0]
        latest[event.key["id"]] = (event.version, event.row)
    assert {key: row for key, (_, row) in latest.items()} == {
        row["id"]: row for (row,) in notes.rows("SELECT to_jsonb(notes.*) FROM notes")
    }


def test_a_trigger_that_deletes_or_recreates_the_row_has_the_last_word(notes: Database) -> None:
    notes.run(
        """CREATE FUNCTION react() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF TG_OP = 'DELETE' AND OLD.body = 'undead' THEN
                INSERT INTO notes VALUES (OLD.id, OLD.tenant_id, 'again', 0);
            ELSIF TG_OP = 'INSERT' AND NEW.body = 'vanish' THEN
                DELETE FROM notes WHERE id = NEW.id;
            END IF;
            RETURN NULL; END $$""",
        "CREATE TRIGGER a_first AFTER INSERT OR DELETE ON notes FOR EACH ROW EXECUTE FUNCTION react()",
        "INSERT INTO notes VALUES (1, 'a', 'vanish', 1)",
        "INSERT INTO notes VALUES (2, 'a', 'undead', 1)",
        "DELETE FROM notes WHERE id = 2",
    )
    last = {
        event.key["id"]: (event.op, event.version)
        for event in sorted(notes.events(), key=lambda e: e.version)
    }
    assert last[1][0] == "d"
    assert last[2][0] == "c"
    assert [row for (row,) in notes.rows("SELECT id FROM notes")] == [2]


def test_foreign_key_cascades_are_captured(db: Database) -> None:
    db.run(
        "CREATE TABLE p (id int PRIMARY KEY, tenant_id text)",
        "CREATE TABLE q (id int PRIMARY KEY, tenant_id text, p int REFERENCES p ON DELETE CASCADE ON UPDATE"
        " CASCADE)",
    )
    db.track("q")
    db.run(
        "INSERT INTO p VALUES (1, 'a')",
        "INSERT INTO q VALUES (1, 'a', 1)",
        "UPDATE p SET id = 2",
        "DELETE FROM p",
    )
    assert [(event.op, event.old) for event in db.events()] == [
        ("c", None),
        ("u", {"p": 1}),
        ("d", {"id": 1, "tenant_id": "a", "p": 2}),
    ]


def test_touch_sends_the_row_again(notes: Database) -> None:
    notes.run("INSERT INTO notes VALUES (1, 'a', 'x', 1)")
    notes.events()
    assert notes.one("SELECT cloudsync.touch('notes', '{\"id\": 1}')") == 2
    (event,) = notes.events()
    assert (event.op, event.version, event.old) == ("u", 2, {})
    assert event.row == {"id": 1, "tenant_id": "a", "body": "x", "n": 1}
    assert notes.one("SELECT cloudsync.touch('notes', '{\"id\": 5}')") is None


def test_default_partition_takes_what_no_day_takes(notes: Database) -> None:
    """A missing partition must not stop a writer."""
    day = notes.one("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')")
    notes.run(f"DROP TABLE cloudsync.change_log_{day}", "INSERT INTO notes VALUES (1, 'a', 'x', 1)")
    assert notes.ops() == "c"
    assert (
        notes.one("SELECT tableoid::regclass::text FROM cloudsync.change_log")
        == "cloudsync.change_log_default"
    )
    assert notes.one("SELECT cloudsync.maintain()")["made"] == 1
    assert (
        notes.one("SELECT tableoid::regclass::text FROM cloudsync.change_log")
        == f"cloudsync.change_log_{day}"
    )


def test_the_publication_streams_inserts_of_the_log_alone(notes: Database) -> None:
    assert notes.one(
        "SELECT array_agg(tablename::text), bool_and(pubinsert), bool_or(pubupdate OR pubdelete OR"
        " pubtruncate), bool_and(pubviaroot)"
        " FROM pg_publication_tables JOIN pg_publication USING (pubname) WHERE pubname = 'cloudsync_changes'"
    ) == (["change_log"], True, False, True)


def test_columns_named_like_words_of_plpgsql(db: Database) -> None:
    """Words such as `by` need no quotes in SQL; a trigger's language takes them for its own."""
    names = ("by", "loop", "begin", "if", "execute", "while", 'a"b')
    columns = ", ".join(f'"{name.replace(chr(34), chr(34) * 2)}" bigint' for name in names)
    db.run(
        f'CREATE TABLE words ("for" int, n numeric, tenant_id text, {columns}, PRIMARY KEY ("for", "by"))',
        "SELECT cloudsync.track('words', owner_column => 'loop')",
        "INSERT INTO words VALUES (1, 1.50, 'a', 1, 2, 3, 4, 5, 6, 7)",
        'UPDATE words SET "execute" = 50, "if" = 40',
        'UPDATE words SET "by" = 10',
        "DELETE FROM words",
    )
    events = db.events()
    assert [event.op for event in events] == ["c", "u", "d", "c", "d"]
    assert events[1].old == {"if": "4", "execute": "5"}
    assert events[-1].key == {"for": 1, "by": "10"}
    assert events[0].audience == ["2"]


def test_a_row_leaves_its_tenant_after_a_trigger_has_written(db: Database) -> None:
    """What a trigger has written before, to whatever table, must not hide that the row left its tenant."""
    db.run(
        "CREATE TABLE notes (id int PRIMARY KEY, tenant_id text, n int)",
        "CREATE TABLE log (id int PRIMARY KEY, tenant_id text)",
        "CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN UPDATE notes SET n = n + 1 WHERE id = 1; RETURN NULL; END'",
        "CREATE TRIGGER count_it AFTER INSERT ON log FOR EACH ROW EXECUTE FUNCTION count_it()",
    )
    db.track("notes")
    db.track("log")
    db.run("INSERT INTO notes VALUES (1, 'a', 0), (2, 'a', 0)")
    db.events()
    with db.connection.transaction():
        db.run("INSERT INTO log VALUES (1, 'a')", "UPDATE notes SET tenant_id = 'b' WHERE id = 2")
    told = [(e.op, e.tenant, e.key["id"]) for e in db.events() if e.table == "public.notes"]
    assert told[:2] == [("u", "a", 1), ("d", "a", 2)]
    assert set(told[2:]) == {("c", "b", 2)}
    with db.connection.transaction():
        db.run("INSERT INTO log VALUES (2, 'a')", "DELETE FROM notes WHERE id = 2")
    assert [(e.op, e.tenant) for e in db.events() if e.key == {"id": 2}][-1] == ("d", "b")


def test_a_trigger_puts_a_row_back_for_another_tenant(db: Database) -> None:
    db.run(
        "CREATE TABLE notes (id int PRIMARY KEY, tenant_id text)",
        "CREATE FUNCTION give() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO notes VALUES (OLD.id, ''b''); RETURN NULL; END'",
        "CREATE TRIGGER a_give AFTER DELETE ON notes FOR EACH ROW WHEN (OLD.tenant_id = 'a')"
        " EXECUTE FUNCTION give()",
    )
    db.track("notes")
    db.run("INSERT INTO notes VALUES (1, 'a')")
    db.events()
    db.run("DELETE FROM notes")
    events = db.events()
    assert ("d", "a") in [(e.op, e.tenant) for e in events]
    assert (events[-1].op, events[-1].tenant) == ("c", "b")
    assert db.one("SELECT version, deleted_at FROM cloudsync.row_state") == (events[-1].version, None)
