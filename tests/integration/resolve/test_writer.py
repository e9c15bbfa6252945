"""One change, one transaction: applied once, under the user's own rights, or refused with a sentence."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from cloudsync.errors import ClientRefused
from cloudsync.protocol.codes import ERROR_MEANINGS
from cloudsync.protocol.messages import ChangeConfirmed, ChangeRejected
from cloudsync.resolve.refusals import TryAgain
from integration.resolve.conftest import Author, Workshop


async def test_create_update_delete(workshop: Workshop) -> None:
    ann = await workshop.author()
    assert await ann.confirmed("create", 1, {"title": "a", "n": "9007199254740993"}) == ChangeConfirmed(
        1, "applied", 1
    )
    assert workshop.row(1) == {
        "id": 1,
        "tenant_id": "acme",
        "title": "a",
        "body": None,
        "n": 9007199254740993,
    }
    assert await ann.confirmed("update", 1, {"title": "b"}, base_version=1) == ChangeConfirmed(
        2, "applied", 2
    )
    assert await ann.confirmed("update", 1, {"body": None}, base_version=2) == ChangeConfirmed(
        3, "applied", 2
    )
    assert await ann.confirmed("delete", 1, base_version=2) == ChangeConfirmed(4, "applied", 3)
    assert workshop.row(1) is None


async def test_the_actor_and_the_time_travel_with_the_change(workshop: Workshop) -> None:
    ann = await workshop.author()
    await ann.confirmed("create", 1, {"title": "a"}, at="1700000000000-3-whoever")
    [(actor,)] = workshop.run("SELECT actor FROM cloudsync.change_log")
    at = f"1700000000000-3-{ann.client_id}"
    assert actor == {"user_id": "ann", "client_id": ann.client_id, "mutation_id": "1", "at": at}
    assert workshop.state(1) == (1, {"": {"v": 1, "at": at}}, False)


async def test_a_repeat_is_answered_and_not_applied(workshop: Workshop) -> None:
    ann = await workshop.author()
    created = ann.request("create", 1, {"title": "a"})
    wrong = ann.request("update", 1, {"n": "many"})
    assert await ann.send(created) == ChangeConfirmed(1, "applied", 1)
    refused = await ann.send(wrong)
    workshop.run("DELETE FROM notes")
    assert await ann.send(created) == ChangeConfirmed(1, "already_applied", 1)
    assert await ann.send(wrong) == refused
    workshop.run("DELETE FROM cloudsync.mutations")
    assert await ann.send(created) == ChangeConfirmed(1, "already_applied")
    assert workshop.row(1) is None


async def test_the_same_change_on_two_gateways_at_once_is_applied_once(workshop: Workshop) -> None:
    ann = await workshop.author()
    other = Author(workshop, await workshop.service(), ann.principal, ann.client_id)
    await ann.confirmed("create", 1, {"n": 0})
    for _ in range(20):
        request = ann.request("update", 1, {"title": "x"})
        answers = await asyncio.gather(ann.send(request), other.send(request))
        outcomes = sorted(a.outcome for a in answers if isinstance(a, ChangeConfirmed))
        assert outcomes == ["already_applied", "applied"]


async def test_clients_count_apart_and_a_revoked_one_writes_nothing(workshop: Workshop) -> None:
    ann, bob = await workshop.author(), await workshop.author("bob")
    await ann.confirmed("create", 1)
    await bob.confirmed("create", 2)
    workshop.run("UPDATE cloudsync.clients SET revoked_at = now() WHERE client_id = %s", ann.client_id)
    with pytest.raises(ClientRefused):
        await ann.write("create", 3)
    stolen = Author(workshop, bob.connection, ann.principal, bob.client_id)
    with pytest.raises(ClientRefused):
        await stolen.write("create", 3)
    assert workshop.row(3) is None


@pytest.mark.parametrize(
    ("op", "key", "values", "code", "part"),
    [
        ("create", 1, {"title": "again"}, "row_exists", "public.notes"),
        ("update", 99, {"title": "x"}, "unknown_row", "public.notes"),
        ("delete", 99, {}, "unknown_row", "public.notes"),
        ("update", 1, {"colour": "red"}, "unknown_column", "'colour'"),
        ("update", 1, {"id": 2}, "key_change", "id"),
        ("update", 1, {"title": 5}, "bad_value", "title"),
        (
            "update",
            1,
            {"n": "many", "title": "x"},
            "bad_value",
            "public.notes.n takes a value of type bigint",
        ),
        ("update", 1, {"n": True}, "bad_value", "n"),
        ("update", 1, {"title": "a\0b"}, "bad_value", "title"),
        ("update", 1, {"n": 2**70}, "bad_value", "n"),
        ("update", "one", {"title": "x"}, "bad_value", "public.notes.id takes a value of type integer"),
        ("update", {"id": None}, {"title": "x"}, "bad_value", "id"),
        ("update", {"id": 1, "n": 1}, {"title": "x"}, "bad_value", "The key of public.notes is id."),
        ("update", 1, {"tenant_id": None}, "forbidden", "public.notes. tenant_id must be 'acme'."),
        ("update", 1, {"body": None}, "constraint_violated", "public.notes.body must have a value"),
        ("update", 1, {"tenant_id": "evil"}, "forbidden", "public.notes"),
        ("create", 5, {"tenant_id": "evil"}, "forbidden", "public.notes. tenant_id must be 'acme'."),
        ("update", 1, {"title": "taken"}, "not_unique", "notes_title"),
        ("update", 1, {"n": -1}, "constraint_violated", "positive"),
        ("update", 1, {"owner": 77}, "constraint_violated", "notes_owner_fkey"),
        ("update", 1, {"twice": 7}, "generated_column", "twice"),
        ("update", 1, {"title": "forbidden word"}, "refused", "Mind your language."),
        ("update", 1, {"title": "swallowed"}, "refused", "trigger"),
        ("update", 1, {"title": "coded"}, "refused", "Not today."),
        ("update", 1, {"title": "strict"}, "refused", "trigger"),
        ("update", 1, {"title": "two"}, "refused", "trigger"),
        ("update", 1, {"place": "nowhere", "n": 3}, "bad_value", "public.notes.place takes a value of type"),
        ("update", 1, {"words": "a &", "n": 3}, "bad_value", "public.notes.words takes a value of type"),
        ("delete", 1, {"title": "x"}, "bad_value", "delete"),
        ("update", 1, {"title": "".join(map(chr, range(1, 9000))), "n": 3}, "too_large", "public.notes"),
    ],
)
async def test_what_is_refused_and_why(
    workshop: Workshop, op: str, key: Any, values: dict[str, Any], code: str, part: str
) -> None:
    workshop.run("CREATE TABLE owners (id integer PRIMARY KEY)")
    workshop.run("ALTER TABLE notes ADD twice bigint GENERATED ALWAYS AS (n * 2) STORED")
    workshop.run("ALTER TABLE notes ADD owner integer REFERENCES owners DEFERRABLE INITIALLY DEFERRED")
    workshop.run("ALTER TABLE notes ADD CONSTRAINT positive CHECK (n >= 0)")
    workshop.run("CREATE UNIQUE INDEX notes_title ON notes (title)")
    workshop.run("ALTER TABLE notes ALTER body SET DEFAULT '', ALTER body SET NOT NULL")
    workshop.run(
        "CREATE FUNCTION mind() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.title LIKE '%%forbidden%%' THEN RAISE 'Mind your language.'; END IF;"
        " IF NEW.title = 'coded' THEN RAISE 'Not today.' USING ERRCODE = 'APP01'; END IF;"
        " IF NEW.title = 'strict' THEN SELECT 1 INTO STRICT NEW.n WHERE false; END IF;"
        " IF NEW.title = 'two' THEN NEW.n := (SELECT g FROM generate_series(1, 2) g); END IF;"
        " IF NEW.title = 'swallowed' THEN RETURN NULL; END IF; RETURN NEW; END $$"
    )
    workshop.run("ALTER TABLE notes ADD place regclass, ADD words tsquery")
    workshop.run("CREATE TRIGGER mind BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION mind()")
    workshop.run("INSERT INTO notes (id, title) VALUES (1, 'a'), (2, 'taken')")
    before = workshop.run("SELECT * FROM notes ORDER BY id")
    ann = await workshop.author()
    answer = await ann.rejected(op, key, values)
    assert answer.code == code, answer
    assert part in answer.message
    assert code in ERROR_MEANINGS
    assert "taken" not in answer.message
    assert workshop.run("SELECT * FROM notes ORDER BY id") == before
    # The number is used up, and the next one goes on.
    assert (await ann.confirmed("update", 2, {"body": "next"})).id == 2


async def test_no_answer_tells_a_hidden_row_from_none(workshop: Workshop) -> None:
    workshop.run("INSERT INTO notes (id, tenant_id) VALUES (1, 'other')")
    workshop.run("INSERT INTO notes (id, tenant_id) VALUES (2, 'other')")
    workshop.run("DELETE FROM notes WHERE id = 2")
    ann = await workshop.author()
    for op, values in (("update", {"title": "x"}), ("delete", {})):
        answers = [await ann.rejected(op, key, values) for key in (1, 2, 99)]
        assert {(a.code, a.message) for a in answers} == {(answers[0].code, answers[0].message)}
        assert answers[0].code == "unknown_row"
    assert (await ann.rejected("create", 1)).code == "row_exists"
    assert workshop.row(1) is not None


async def test_only_the_owner_writes_his_rows(workshop: Workshop) -> None:
    workshop.run("CREATE TABLE own (id integer PRIMARY KEY, tenant_id text, owner text, n integer)")
    workshop.run("SELECT cloudsync.track('own', owner_column => 'owner')")
    ann, bob = await workshop.author(), await workshop.author("bob")
    mine = {"tenant_id": "acme", "owner": "ann", "n": 1}
    await ann.confirmed("create", 1, mine, table="own")
    assert (await bob.rejected("update", 1, {"n": 2}, table="own")).code == "unknown_row"
    refused = "You may not write such a row to public.own."
    for author, op, values, why in (
        (bob, "create", mine, " owner must be 'bob'."),
        (bob, "create", {"tenant_id": "acme"}, " owner must be 'bob'."),
        (bob, "create", {**mine, "tenant_id": "other"}, " tenant_id must be 'acme' and owner must be 'bob'."),
        (bob, "create", {"n": 1}, " tenant_id must be 'acme' and owner must be 'bob'."),
        (ann, "update", {"owner": "bob"}, " owner must be 'ann'."),
    ):
        answer = await author.rejected(op, 2 if op == "create" else 1, values, table="own")
        assert (answer.code, answer.message) == ("forbidden", refused + why), (op, values)
    await ann.confirmed("delete", 1, table="own")
    assert (await bob.rejected("update", 1, {"n": 2}, table="own")).code == "unknown_row"


async def test_values_of_every_kind_arrive_exactly(workshop: Workshop) -> None:
    workshop.run("CREATE TYPE mood AS ENUM ('glad', 'sad')")
    workshop.run("CREATE DOMAIN score AS numeric NOT NULL CHECK (VALUE >= 0)")
    workshop.run(
        "CREATE TABLE kinds (id uuid PRIMARY KEY, tenant_id text DEFAULT 'acme', s score DEFAULT 1,"
        " i8 bigint, num numeric, f float8, b bytea, bs bytea[], j jsonb, t timestamptz, d date, iv interval,"
        " e mood, flag boolean, tags text[], ns bigint[], c varchar(3), addr inet, span int4range, raw json)"
    )
    workshop.run("SELECT cloudsync.track('kinds')")
    values: dict[str, Any] = {
        "i8": "9223372036854775807",
        "num": "0.1000",
        "f": "Infinity",
        "b": "AP8Q",
        "bs": ["AA==", None],
        "j": {"deep": [1, None, "x"]},
        "t": "2026-01-02T03:04:05.678901+00:00",
        "d": "2026-02-03",
        "iv": "P1DT2H",
        "e": "sad",
        "flag": True,
        "tags": ["a", 'ü"', None],
        "ns": ["1", "2"],
        "c": "abc",
        "addr": "10.0.0.1",
        "span": "[1,5)",
        "raw": {"z": 1, "a": 2},
    }
    ann = await workshop.author()
    key = {"id": "6f1c2a34-0000-4000-8000-00000000abcd"}
    await ann.confirmed("create", key, values, table="kinds")
    [(row,)] = workshop.run("SELECT row FROM cloudsync.change_log WHERE table_name = 'public.kinds'")
    assert {name: row[name] for name in values} == values
    changed = {"flag": None, "s": "2.50", "b": None}
    await ann.confirmed("update", key, changed, table="kinds")
    [(now,)] = workshop.run(
        "SELECT row FROM cloudsync.change_log WHERE table_name = 'public.kinds' AND op = 'u'"
    )
    assert {name: now[name] for name in values} == {**values, "flag": None, "b": None}
    assert now["s"] == "2.50"
    for name, value, code in (
        ("b", "no base64!", "bad_value"),
        ("c", "long", "bad_value"),
        ("s", "-1", "constraint_violated"),
    ):
        refused = await ann.rejected("update", key, {name: value}, table="kinds")
        assert refused.code == code, refused


async def test_a_table_that_is_not_tracked(workshop: Workshop) -> None:
    workshop.run("CREATE TABLE secret (id integer PRIMARY KEY)")
    ann = await workshop.author()
    assert (await ann.rejected("create", 1, table="secret")).code == "unknown_table"
    assert (await ann.rejected("create", 1, table="cloudsync.clients")).code == "unknown_table"


async def test_a_locked_row_is_written_later(workshop: Workshop) -> None:
    workshop.run("INSERT INTO notes VALUES (1)")
    ann = await workshop.author()
    request = ann.request("update", 1, {"title": "late"})
    with psycopg.connect(workshop.url) as holder:
        holder.execute("UPDATE notes SET title = 'first'")
        with pytest.raises(TryAgain):
            await ann.send(request)
    assert await ann.send(request) == ChangeConfirmed(1, "applied", 3)


async def test_writers_of_all_kinds_do_not_deadlock(workshop: Workshop) -> None:
    """SQL takes the row and then its state; so does a change, whatever it has to create or bring back."""
    people = [await workshop.author(f"user{n}") for n in range(4)]

    async def write(author: Author, number: int) -> None:
        for turn in range(40):
            op = ("create", "update", "delete", "update")[(turn + number) % 4]
            values = {} if op == "delete" else {"title": f"{number}/{turn}"}
            try:
                answer = await author.write(op, 1, values)
            except TryAgain:
                continue  # no lock within two seconds: of a deadlock PostgreSQL tells after one
            if isinstance(answer, ChangeRejected):
                assert answer.code in ("row_exists", "unknown_row"), answer

    def churn() -> int:
        with psycopg.connect(workshop.url, autocommit=True) as connection:
            for turn in range(120):
                connection.execute(
                    "INSERT INTO notes (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET n = %s", (turn,)
                )
                if turn % 3 == 0:
                    connection.execute("DELETE FROM notes WHERE id = 1")
        return turn

    await asyncio.gather(asyncio.to_thread(churn), *(write(author, n) for n, author in enumerate(people)))
    [(deadlocks,)] = workshop.run("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert deadlocks == 0
    versions = workshop.run(
        "SELECT version FROM cloudsync.change_log WHERE table_name = 'public.notes' ORDER BY id"
    )
    assert len(set(versions)) == len(versions)
