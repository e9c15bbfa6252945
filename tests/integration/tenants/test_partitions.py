"""A tenant's own partitions: rows move there and back, and nobody is told."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from cloudsync.errors import TenantRefused
from cloudsync.tenants import partitions
from integration.capture.logged import Database


@pytest.fixture
def db(database: str) -> Iterator[Database]:
    made = Database(database)
    yield made
    made.connection.close()


@pytest.fixture
def notes(db: Database) -> Database:
    """notes, by tenant: acme and globex in the default partition, with an identity, a generated column and
    an application's own trigger."""
    db.run(
        "CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY, tenant_id text NOT NULL, body text,"
        " size int GENERATED ALWAYS AS (length(body)) STORED, PRIMARY KEY (tenant_id, id))"
        " PARTITION BY LIST (tenant_id)",
        "CREATE TABLE notes_rest PARTITION OF notes DEFAULT",
        "CREATE INDEX notes_body ON notes (body)",
        "CREATE TABLE seen (what text)",
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO seen VALUES (TG_OP); RETURN NULL; END $$",
        "CREATE TRIGGER see AFTER INSERT OR DELETE ON notes FOR EACH ROW EXECUTE FUNCTION see()",
    )
    db.track("notes")
    db.run(
        "INSERT INTO notes (tenant_id, body) VALUES ('acme', 'a'), ('acme', 'bb'), ('globex', 'c')",
        "UPDATE notes SET body = 'bbb' WHERE id = 2",
        "TRUNCATE seen",
    )
    db.events()
    return db


def _state(db: Database) -> tuple[list[object], list[object]]:
    return (
        db.rows("SELECT id, tenant_id, body, size FROM notes ORDER BY id"),
        db.rows("SELECT key, version FROM cloudsync.row_state ORDER BY key"),
    )


def test_rows_move_and_come_back_unseen(notes: Database) -> None:
    before = _state(notes)
    assert list(partitions.separate(notes.connection, "acme")) == [("notes", "notes_acme", 2)]
    assert notes.one("SELECT count(*) FROM notes_acme") == 2
    assert notes.one("SELECT count(*) FROM notes_rest") == 1
    assert _state(notes) == before
    assert notes.events() == []
    assert notes.rows("SELECT * FROM seen") == []
    assert list(partitions.places(notes.connection, "acme")) == [("notes", "notes_acme")]
    assert list(partitions.places(notes.connection, "globex")) == [("notes", None)]

    # From here on it is captured as before, wherever rows are.
    notes.run("UPDATE notes SET body = 'x'", "INSERT INTO notes (tenant_id, body) VALUES ('acme', 'new')")
    assert sorted((event.op, event.key["id"], event.version) for event in notes.events()) == [
        ("c", "4", 1), ("u", "1", 2), ("u", "2", 3), ("u", "3", 2)
    ]  # fmt: skip
    assert notes.rows("SELECT * FROM seen") == [("INSERT",)]

    after = _state(notes)
    assert list(partitions.unite(notes.connection, "acme")) == [("notes", None, 3)]
    assert notes.one("SELECT to_regclass('notes_acme')") is None
    assert _state(notes) == after
    assert notes.events() == []
    notes.run("DELETE FROM notes WHERE id = 4")
    assert notes.ops() == "d"


def test_a_repeat_takes_up_what_was_left(notes: Database) -> None:
    list(partitions.separate(notes.connection, "acme"))
    notes.run(
        "CREATE TABLE later (id int, tenant_id text, PRIMARY KEY (id, tenant_id))"
        " PARTITION BY LIST (tenant_id)",
        "CREATE TABLE later_rest PARTITION OF later DEFAULT",
    )
    notes.track("later")
    notes.run("INSERT INTO later VALUES (1, 'acme'), (2, 'globex')")
    notes.events()
    assert list(partitions.separate(notes.connection, "acme")) == [
        ("later", "later_acme", 1), ("notes", "notes_acme", 0)
    ]  # fmt: skip
    assert notes.ops() == ""


def test_every_trigger_is_as_it_was(notes: Database) -> None:
    notes.run("ALTER TABLE notes_rest DISABLE TRIGGER see")
    query = (
        "SELECT tgrelid::regclass::text, tgname::text, tgenabled::text FROM pg_trigger"
        " WHERE tgrelid IN ('notes'::regclass, 'notes_rest'::regclass) ORDER BY 1, 2"
    )
    before = notes.rows(query)
    list(partitions.separate(notes.connection, "acme"))
    assert notes.rows(query) == before
    own = dict(
        notes.rows(
            "SELECT tgname::text, tgenabled::text FROM pg_trigger WHERE tgrelid = 'notes_acme'::regclass"
        )
    )
    assert own["cloudsync_capture"] == own["cloudsync_truncate"] == "A"


def test_foreign_keys_notice_nothing(notes: Database) -> None:
    """Of a table with CASCADE nothing is deleted."""
    notes.run(
        "CREATE TABLE comments (tenant_id text, note bigint, FOREIGN KEY (tenant_id, note) REFERENCES notes"
        " (tenant_id, id) ON DELETE CASCADE)",
        "INSERT INTO comments VALUES ('acme', 1), ('globex', 3)",
    )
    list(partitions.separate(notes.connection, "acme"))
    assert notes.one("SELECT count(*) FROM comments") == 2
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        notes.run("INSERT INTO comments VALUES ('acme', 99)")
    with pytest.raises(TenantRefused, match="Foreign keys refer to notes"):
        list(partitions.unite(notes.connection, "acme"))
    notes.run("DELETE FROM notes WHERE id = 1")
    assert notes.rows("SELECT note FROM comments") == [(3,)]


def test_an_owner_that_is_no_superuser(notes: Database) -> None:
    notes.run(
        "CREATE ROLE app_owner",
        "ALTER TABLE notes OWNER TO app_owner",
        "GRANT ALL ON SCHEMA public TO app_owner",
    )
    notes.run(
        "ALTER TABLE notes_rest OWNER TO app_owner",
        "CREATE ROLE app_other LOGIN",
        "GRANT cloudsync_service TO app_other",
    )
    with notes.connect() as other:
        other.execute("SET SESSION AUTHORIZATION app_other")
        with pytest.raises(TenantRefused, match="Connect as a member of app_owner"):
            list(partitions.separate(other, "acme"))
    notes.run("GRANT app_owner TO app_other")
    with notes.connect() as member:
        member.execute("SET SESSION AUTHORIZATION app_other")
        assert list(partitions.separate(member, "acme")) == [("notes", "notes_acme", 2)]
    assert (
        notes.one("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'notes_acme'") == "app_owner"
    )
    assert notes.events() == []
    assert notes.rows("SELECT * FROM seen") == []
    notes.run("REASSIGN OWNED BY app_owner TO CURRENT_USER", "DROP OWNED BY app_owner, app_other")
    notes.run("DROP ROLE app_other", "DROP ROLE app_owner")


def test_what_cannot_be_split_is_said(notes: Database) -> None:
    notes.run("CREATE TABLE notes_two PARTITION OF notes FOR VALUES IN ('one', 'two')")
    with pytest.raises(TenantRefused, match="notes_two of notes holds two together with others"):
        list(partitions.separate(notes.connection, "two"))
    notes.run("CREATE TABLE notes_acme (x int)")
    with pytest.raises(TenantRefused, match=r"public\.notes_acme exists"):
        list(partitions.separate(notes.connection, "acme"))
    assert notes.one("SELECT count(*) FROM notes_rest") == 3


def test_a_table_in_use_is_left_alone(notes: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "_LOCK_TIMEOUT", "200ms")
    with notes.connect(autocommit=False) as reader:
        reader.execute("SELECT FROM notes")
        with pytest.raises(TenantRefused, match="notes was in use"):
            list(partitions.separate(notes.connection, "acme"))
    assert notes.one("SELECT count(*) FROM notes_rest") == 3


@pytest.mark.parametrize("tenant", ["it's \\ odd", "Ä", "5", "x" * 90])
def test_any_tenant_has_a_partition(notes: Database, tenant: str) -> None:
    notes.connection.execute("INSERT INTO notes (tenant_id, body) VALUES (%s, 'x')", (tenant,))
    notes.events()
    ((_, name, rows),) = partitions.separate(notes.connection, tenant)
    assert rows == 1
    assert name is not None
    assert len(name.encode()) <= 63
    assert list(partitions.separate(notes.connection, tenant)) == [("notes", name, 0)]
    assert list(partitions.unite(notes.connection, tenant)) == [("notes", None, 1)]
    assert notes.ops() == ""


def test_tables_whose_tenants_are_numbers(db: Database) -> None:
    db.run(
        "CREATE TABLE t (id int, tenant_id int, PRIMARY KEY (id, tenant_id)) PARTITION BY LIST (tenant_id)",
        "CREATE TABLE rest PARTITION OF t DEFAULT",
    )
    db.track("t")
    db.run("INSERT INTO t VALUES (1, 7)")
    db.events()
    assert list(partitions.separate(db.connection, "acme")) == []  # nothing there can be acme's
    assert list(partitions.separate(db.connection, "007")) == []
    assert list(partitions.separate(db.connection, "7")) == [("t", "t_7", 1)]
    assert list(partitions.separate(db.connection, "7")) == [("t", "t_7", 0)]
    assert db.ops() == ""
