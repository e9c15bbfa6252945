"""Conflicts that a person decides: what is kept, who sees it, and what a decision does."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from cloudsync.errors import RequestError
from cloudsync.protocol.codes import ERROR_MEANINGS
from cloudsync.protocol.messages import (
    ChangeConfirmed,
    ChangeRejected,
    ResolveRequest,
    decode_client_frame,
)
from cloudsync.resolve import manual
from integration.resolve.conftest import Author, Workshop


class Person(Author):
    """An author who also decides."""

    async def conflicts(self, **options: Any) -> list[dict[str, Any]]:
        page = await manual.open_conflicts(self.connection, self.workshop.catalog, self.principal, **options)
        return [msgspec.json.decode(msgspec.json.encode(conflict)) for conflict in page.conflicts]

    async def decide(
        self, conflict_id: str, choice: str, values: Any = None, *, counted: bool = True, **more: Any
    ) -> ChangeConfirmed | ChangeRejected:
        number = next(self._numbers) if counted else 0
        frame = {"type": "resolve", "id": number, "conflict_id": conflict_id, "choice": choice, **more}
        if values is not None:
            frame["values"] = values
        request = decode_client_frame(msgspec.json.encode(frame))
        assert isinstance(request, ResolveRequest)
        client_id = self.client_id if counted else None
        return await manual.resolve(
            self.connection, self.workshop.catalog, self.principal, client_id, request
        )

    async def applied(self, *decision: Any, **more: Any) -> ChangeConfirmed:
        answer = await self.decide(*decision, **more)
        assert isinstance(answer, ChangeConfirmed), answer
        return answer

    async def refused(self, *decision: Any, **more: Any) -> str:
        answer = await self.decide(*decision, **more)
        assert isinstance(answer, ChangeRejected), answer
        assert answer.code in ERROR_MEANINGS
        return answer.code


async def person(workshop: Workshop, user: str = "ann", tenant: str = "acme") -> Person:
    made = await workshop.author(user, tenant)
    return Person(workshop, made.connection, made.principal, made.client_id)


@pytest.fixture
async def people(workshop: Workshop) -> tuple[Person, Person]:
    """Ann and Bob; titles are decided by people, everything else by time. Row 1 is at version 1."""
    workshop.run("""SELECT cloudsync.track('notes', columns => '{"title": "manual", "n": "manual"}')""")
    workshop.run("INSERT INTO notes (id, title, body, n) VALUES (1, 'old', 'old', 9007199254740993)")
    return await person(workshop), await person(workshop, "bob")


async def contested(ann: Person, bob: Person) -> str:
    """Bob changed the title unseen by Ann, whose own change is kept: the conflict's id."""
    await bob.confirmed("update", 1, {"title": "bob"}, base_version=1)
    answer = await ann.confirmed("update", 1, {"title": "ann"}, base_version=1)
    assert answer.outcome == "conflict"
    assert answer.conflict_id is not None
    return answer.conflict_id


async def test_nothing_is_overwritten_and_the_rest_is_applied(
    workshop: Workshop, people: tuple[Person, Person]
) -> None:
    ann, bob = people
    await bob.confirmed("update", 1, {"title": "bob"}, base_version=1)
    answer = await ann.confirmed("update", 1, {"title": "ann", "body": "new"}, base_version=1)
    assert (answer.outcome, answer.version, answer.fields) == ("conflict", 3, ["title"])
    row = workshop.row(1)
    assert row is not None
    assert (row["title"], row["body"]) == ("bob", "new")
    [conflict] = await bob.conflicts()
    assert conflict == {
        "type": "conflict.detected",
        "conflict_id": answer.conflict_id,
        "revision": 1,
        "table": "public.notes",
        "key": {"id": 1},
        "fields": ["title"],
        "version": 3,
        "base": {"title": "old"},
        "theirs": {"title": "bob"},
        "mine": {"title": "ann"},
        "by": {"user_id": "ann", "client_id": ann.client_id, "mutation_id": "1", "at": conflict["by"]["at"]},
        "theirs_by": {
            "user_id": "bob",
            "client_id": bob.client_id,
            "mutation_id": "1",
            "at": conflict["theirs_by"]["at"],
        },
    }
    values = {name: conflict[name] for name in ("base", "theirs", "mine", "by", "theirs_by")}
    payload = len(msgspec.json.encode(conflict)) - len(msgspec.json.encode(values))
    assert payload <= 500


async def test_who_has_seen_the_change_or_wrote_the_same_is_in_no_conflict(
    workshop: Workshop, people: tuple[Person, Person]
) -> None:
    ann, bob = people
    await bob.confirmed("update", 1, {"title": "bob"}, base_version=1)
    assert (await bob.confirmed("update", 1, {"title": "bob 2"}, base_version=1)).outcome != "conflict"
    same = await ann.confirmed("update", 1, {"title": "bob 2"}, base_version=1)
    assert (same.outcome, same.fields) == ("applied", None)
    assert (await ann.confirmed("update", 1, {"title": "ann"}, base_version=3)).outcome == "applied"
    assert (await ann.confirmed("update", 1, {"body": "x"}, base_version=1)).outcome == "merged"
    assert not await ann.conflicts()


async def test_a_clients_later_writes_go_into_its_open_conflict(people: tuple[Person, Person]) -> None:
    ann, bob = people
    conflict_id = await contested(ann, bob)
    again = await ann.confirmed("update", 1, {"title": "ann 2"}, base_version=1)
    assert again.conflict_id == conflict_id
    await bob.confirmed("update", 1, {"n": "5"}, base_version=2)
    third = await ann.confirmed("update", 1, {"n": "6"}, base_version=1)
    assert third.conflict_id == conflict_id
    [conflict] = await ann.conflicts()
    assert conflict["mine"] == {"title": "ann 2", "n": "6"}
    assert conflict["theirs"] == {"title": "bob", "n": "5"}
    assert conflict["base"] == {"title": "old", "n": "9007199254740993"}
    assert conflict["revision"] == 3


@pytest.mark.parametrize("counted", [True, False])
async def test_a_decision_is_applied_once(
    workshop: Workshop, people: tuple[Person, Person], counted: bool
) -> None:
    ann, bob = people
    for choice, values, title in (
        ("mine", None, "ann"),
        ("theirs", None, "bob"),
        ("merged", {"title": "both"}, "both"),
    ):
        base = workshop.state(1)[0]
        await bob.confirmed("update", 1, {"title": "bob"}, base_version=base)
        conflict_id = str((await ann.confirmed("update", 1, {"title": "ann"}, base_version=base)).conflict_id)
        answer = await bob.applied(conflict_id, choice, values, counted=counted)
        assert answer.outcome == "applied"
        row = workshop.row(1)
        assert row is not None
        assert row["title"] == title
        assert answer.version == workshop.state(1)[0]
        assert not await ann.conflicts()
        [(told,)] = workshop.run(
            "SELECT old FROM cloudsync.change_log WHERE op = 'r' ORDER BY id DESC LIMIT 1"
        )
        assert (told["id"], told["choice"], told["version"]) == (conflict_id, choice, answer.version)
        assert told["by"]["user_id"] == "bob"
        assert await ann.refused(conflict_id, "mine") == "conflict_resolved"
        with pytest.raises(RequestError) as refusal:
            await ann.decide(conflict_id, "mine", counted=False)
        assert refusal.value.code == "conflict_resolved"
        workshop.run("UPDATE notes SET title = 'between'")


async def test_a_repeated_decision_is_not_applied_again(
    workshop: Workshop, people: tuple[Person, Person]
) -> None:
    ann, bob = people
    conflict_id = await contested(ann, bob)
    request = ResolveRequest(2, conflict_id, "mine")
    resolve = (ann.connection, workshop.catalog, ann.principal, ann.client_id, request)
    assert await manual.resolve(*resolve) == ChangeConfirmed(2, "applied", 3)
    await bob.confirmed("update", 1, {"title": "bob again"}, base_version=3)
    assert await manual.resolve(*resolve) == ChangeConfirmed(2, "already_applied", 3)
    row = workshop.row(1)
    assert row is not None
    assert row["title"] == "bob again"


async def test_two_people_at_once_one_wins(workshop: Workshop, people: tuple[Person, Person]) -> None:
    ann, bob = people
    for turn in range(10):
        base = workshop.state(1)[0]
        await bob.confirmed("update", 1, {"title": f"bob {turn}"}, base_version=base)
        conflict = await ann.confirmed("update", 1, {"title": f"ann {turn}"}, base_version=base)
        answers = await asyncio.gather(
            ann.decide(str(conflict.conflict_id), "mine"), bob.decide(str(conflict.conflict_id), "theirs")
        )
        codes = sorted(getattr(answer, "code", "won") for answer in answers)
        assert codes in (["conflict_resolved", "won"], ["conflict_changed", "won"])
        assert not await ann.conflicts()


async def test_a_row_that_changed_again_keeps_the_conflict_open(
    workshop: Workshop, people: tuple[Person, Person]
) -> None:
    ann, bob = people
    conflict_id = await contested(ann, bob)
    workshop.run("UPDATE notes SET title = 'sql' WHERE id = 1")
    assert await ann.refused(conflict_id, "mine") == "conflict_changed"
    row = workshop.row(1)
    assert row is not None
    assert row["title"] == "sql"
    [(told,)] = workshop.run("SELECT old FROM cloudsync.change_log WHERE op = 'k' ORDER BY id DESC LIMIT 1")
    assert (told["theirs"], told["mine"], told["revision"]) == ({"title": "sql"}, {"title": "ann"}, 2)
    [conflict] = await bob.conflicts()
    assert (conflict["theirs"], conflict["version"]) == ({"title": "sql"}, 3)
    # Who still has the old one before their eyes decides nothing, whoever has refreshed it meanwhile.
    assert await bob.refused(conflict_id, "theirs", base_version=2) == "conflict_changed"
    # A change of another field changes nothing about the decision.
    workshop.run("UPDATE notes SET body = 'other' WHERE id = 1")
    assert (await bob.applied(conflict_id, "mine", base_version=3)).version == 5


async def test_only_who_may_write_the_row_decides(workshop: Workshop, people: tuple[Person, Person]) -> None:
    ann, bob = people
    conflict_id = await contested(ann, bob)
    eve = await person(workshop, "eve", "evil")
    assert not await eve.conflicts()
    assert await eve.refused(conflict_id, "mine") == "unknown_conflict"
    assert await eve.refused("f47ac10b-58cc-4372-a567-0e02b2c3d479", "mine") == "unknown_conflict"
    assert await ann.refused("'; DROP TABLE notes", "mine") == "unknown_conflict"
    workshop.run("DELETE FROM notes")
    assert not await ann.conflicts()
    assert await ann.refused(conflict_id, "mine") == "unknown_conflict"
    with pytest.raises(RequestError):
        await ann.conflicts(after="nowhere")
    with pytest.raises(RequestError):
        await ann.conflicts(table="nothing")


async def test_rows_of_others_stay_hidden_and_so_do_earlier_values(workshop: Workshop) -> None:
    """A conflict is its row's readers'; the base is for those who could read it when it was written."""
    workshop.run("CREATE TABLE members (note integer, person text, PRIMARY KEY (note, person))")
    workshop.run("INSERT INTO members VALUES (1, 'ann'), (1, 'bob')")
    workshop.run(
        "CREATE FUNCTION readers(n notes) RETURNS text[] LANGUAGE sql STABLE AS"
        " $$ SELECT array_agg(person) FROM public.members WHERE note = n.id $$"
    )
    workshop.run(
        "SELECT cloudsync.track('notes', audience => 'readers',"
        """ audience_depends_on => '{"members": {"note": "id"}}', conflict => 'manual')"""
    )
    workshop.run("INSERT INTO notes (id, title) VALUES (1, 'secret')")
    ann, bob = await person(workshop), await person(workshop, "bob")
    cyd = await person(workshop, "cyd")
    conflict_id = await contested(ann, bob)
    assert not await cyd.conflicts()
    assert await cyd.refused(conflict_id, "theirs") == "unknown_conflict"
    workshop.run("INSERT INTO members VALUES (1, 'cyd')")
    [conflict] = await cyd.conflicts()
    assert (conflict["base"], conflict["theirs"]) == (None, {"title": "bob"})
    [conflict] = await bob.conflicts()
    assert conflict["base"] == {"title": "secret"}
    # Whoever names a version from before they could read gets no base either.
    workshop.run("UPDATE notes SET title = 'later' WHERE id = 1")
    await cyd.confirmed("update", 1, {"title": "cyd"}, base_version=1)
    told = {c["mine"]["title"]: c["base"] for c in await cyd.conflicts()}
    assert told == {"ann": None, "cyd": None}


async def test_a_hidden_conflict_is_none_whatever_is_decided(workshop: Workshop) -> None:
    workshop.run("ALTER TABLE notes ADD owner text DEFAULT 'ann'")
    workshop.run("SELECT cloudsync.track('notes', owner_column => 'owner', conflict => 'manual')")
    workshop.run("INSERT INTO notes (id, title) VALUES (1, 'old')")
    eve = await person(workshop, "eve")
    hidden = await contested(await person(workshop), await person(workshop))
    # Nor is told what the values that were kept would be refused for.
    workshop.run("ALTER TABLE notes RENAME COLUMN title TO label")
    await workshop.catalog.load(eve.connection)
    unknown = ("unknown_conflict", "There is no such conflict, or you may not resolve it.")
    for choice, values in (
        ("theirs", None),
        ("mine", None),
        ("merged", None),
        ("merged", {"zzz": 1}),
        ("merged", {"body": "not contested"}),
        ("merged", {"title": 5}),
    ):
        answer = await eve.decide(hidden, choice, values)
        assert isinstance(answer, ChangeRejected)
        assert (answer.code, answer.message) == unknown, (choice, values)
        with pytest.raises(RequestError) as refusal:
            await eve.decide(hidden, choice, values, counted=False)
        assert (refusal.value.code, str(refusal.value)) == unknown, (choice, values)


async def test_without_the_log_there_is_no_base(workshop: Workshop, people: tuple[Person, Person]) -> None:
    ann, bob = people
    await bob.confirmed("update", 1, {"title": "bob"}, base_version=1)
    workshop.run("DELETE FROM cloudsync.change_log")
    await ann.confirmed("update", 1, {"title": "ann"}, base_version=1)
    await ann.confirmed("update", 1, {"n": "1"})
    [conflict] = await ann.conflicts()
    assert conflict["base"] is None
    assert conflict["theirs"]["title"] == "bob"


async def test_pages_hold_what_the_user_sees_and_nothing_twice(
    workshop: Workshop, people: tuple[Person, Person]
) -> None:
    ann, bob = people
    workshop.run(
        "INSERT INTO notes (id, title, tenant_id) SELECT n, 'old', 'acme' FROM generate_series(2, 12) n"
    )
    workshop.run("CREATE TABLE others (id integer PRIMARY KEY, tenant_id text DEFAULT 'acme', title text)")
    workshop.run("SELECT cloudsync.track('others', conflict => 'manual')")
    for key in range(1, 13):
        workshop.run("UPDATE notes SET title = 'sql' WHERE id = %s", key)
        await ann.confirmed("update", key, {"title": "ann"}, base_version=1)
    workshop.run("UPDATE notes SET tenant_id = 'other' WHERE id IN (3, 4)")
    seen: list[int] = []
    after = None
    for _ in range(10):
        page = await manual.open_conflicts(
            bob.connection, workshop.catalog, bob.principal, table="notes", after=after, limit=4
        )
        seen += [msgspec.json.decode(conflict.key)["id"] for conflict in page.conflicts]
        after = page.next
        if after is None:
            break
    assert seen == [1, 2, 5, 6, 7, 8, 9, 10, 11, 12]
    assert not await bob.conflicts(table="others")


async def test_long_values_end_a_page_early(
    workshop: Workshop, people: tuple[Person, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted are `theirs`, `base` and `mine`; what is not contested is not read at all."""
    ann, _ = people
    monkeypatch.setattr(manual, "_PAGE_BYTES", 2000)
    workshop.run("INSERT INTO notes (id, title) SELECT n, 'old' FROM generate_series(2, 6) n")
    for key, theirs, mine in (
        (1, 10, 10), (2, 1500, 10), (3, 10, 1500), (4, 2500, 10), (5, 10, 2500), (6, 10, 10),
    ):  # fmt: skip
        workshop.run("UPDATE notes SET title = repeat('t', %s) WHERE id = %s", theirs, key)
        await ann.confirmed("update", key, {"title": "m" * mine}, base_version=1)
    workshop.run("UPDATE notes SET body = repeat('b', 9000) WHERE id < 4")
    pages: list[list[int]] = []
    after = None
    while len(pages) < 10:
        page = await manual.open_conflicts(ann.connection, workshop.catalog, ann.principal, after=after)
        pages.append([msgspec.json.decode(conflict.key)["id"] for conflict in page.conflicts])
        after = page.next
        if after is None:
            break
    assert pages == [[1, 2, 3], [4], [5], [6]]


async def test_the_log_holds_the_beginning_of_a_long_text(workshop: Workshop) -> None:
    workshop.run("""SELECT cloudsync.track('notes', columns => '{"title": "manual", "body": "ot"}')""")
    workshop.run("INSERT INTO notes (id, title, body) VALUES (1, 'old', repeat('x', 5000)), (2, 'old', NULL)")
    ann, bob = await person(workshop), await person(workshop, "bob")
    conflict_id = await contested(ann, bob)
    await ann.applied(conflict_id, "mine")
    workshop.run("UPDATE notes SET title = repeat('t', 5000) WHERE id = 2")
    await ann.confirmed("update", 2, {"title": "ann"}, base_version=1)
    logged = workshop.run(
        """SELECT op::text, length("row" ->> 'body'), length("row" ->> 'title'), "row" ->> 'tenant_id'"""
        " FROM cloudsync.change_log WHERE op IN ('k', 'r') ORDER BY id"
    )
    assert logged == [("k", 1024, 3, "acme"), ("r", 1024, 3, "acme"), ("k", None, 5000, "acme")]
    [conflict] = await bob.conflicts()
    assert conflict["theirs"] == {"title": "t" * 5000}


async def test_what_is_refused_leaves_the_conflict_open(
    workshop: Workshop, people: tuple[Person, Person]
) -> None:
    ann, bob = people
    workshop.run("ALTER TABLE notes ADD CHECK (length(title) < 6)")
    conflict_id = await contested(ann, bob)
    for values, code in (
        (None, "bad_value"),
        ({}, "bad_value"),
        ({"body": "not contested"}, "bad_value"),
        ({"title": 5}, "bad_value"),
        ({"title": "a\0b"}, "bad_value"),
        ({"title": "too long"}, "constraint_violated"),
    ):
        assert await ann.refused(conflict_id, "merged", values) == code, values
        assert len(await ann.conflicts()) == 1
    await ann.applied(conflict_id, "mine")


async def test_values_of_the_wrong_type_are_no_conflict(people: tuple[Person, Person]) -> None:
    ann, bob = people
    await bob.confirmed("update", 1, {"n": "5"}, base_version=1)
    assert (await ann.rejected("update", 1, {"n": "many"}, base_version=1)).code == "bad_value"
    assert not await ann.conflicts()


async def test_an_edit_that_brings_a_row_back_overwrites_nothing(
    workshop: Workshop, people: tuple[Person, Person]
) -> None:
    ann, bob = people
    workshop.run("UPDATE notes SET title = 'sql' WHERE id = 1")
    workshop.run("DELETE FROM notes")
    answer = await ann.confirmed(
        "update", 1, {"title": "ann", "body": "new"}, base_version=1, at="99999999999999-0-x"
    )
    assert answer.outcome == "conflict"
    row = workshop.row(1)
    assert row is not None
    assert (row["title"], row["body"]) == ("sql", "new")
    [conflict] = await bob.conflicts()
    assert (conflict["theirs"], conflict["mine"]) == ({"title": "sql"}, {"title": "ann"})


async def test_upkeep_closes_what_nobody_can_decide(
    workshop: Workshop, people: tuple[Person, Person]
) -> None:
    ann, bob = people
    await contested(ann, bob)
    workshop.run("SELECT cloudsync.maintain()")
    assert len(await ann.conflicts()) == 1
    workshop.run("DELETE FROM cloudsync.row_state")  # as a week after the row is gone
    workshop.run("SELECT cloudsync.maintain()")
    [(status, resolution)] = workshop.run("SELECT status, resolution FROM cloudsync.conflicts")
    assert (status, resolution) == ("resolved", {"choice": "gone"})
    workshop.run("UPDATE cloudsync.conflicts SET resolved_at = now() - interval '31 days'")
    workshop.run("SELECT cloudsync.maintain()")
    assert workshop.run("SELECT count(*) FROM cloudsync.conflicts") == [(0,)]


async def test_another_key_closes_its_tables_conflicts_and_no_others(
    workshop: Workshop, people: tuple[Person, Person]
) -> None:
    ann, bob = people
    other = await contested(ann, bob)
    workshop.run("CREATE TABLE tags (id text PRIMARY KEY, tenant_id text DEFAULT 'acme', title text)")
    workshop.run("SELECT cloudsync.track('tags', conflict => 'manual')")
    workshop.run("INSERT INTO tags VALUES ('of a tag', 'acme', 'old')")
    workshop.run("UPDATE tags SET title = 'sql'")
    await workshop.catalog.load(ann.connection)
    change = ann.request("update", {"id": "of a tag"}, {"title": "ann"}, base_version=1)
    answer = await ann.send(msgspec.structs.replace(change, table="tags"))
    assert isinstance(answer, ChangeConfirmed)
    closed = str(answer.conflict_id)
    assert {c["conflict_id"] for c in await ann.conflicts()} == {other, closed}
    workshop.run("ALTER TABLE tags ALTER COLUMN id TYPE integer USING length(id)")
    await workshop.catalog.load(ann.connection)
    assert [c["conflict_id"] for c in await ann.conflicts()] == [other]
    assert not await ann.conflicts(table="tags")
    assert await ann.refused(closed, "mine") == "unknown_conflict"
    assert (await ann.applied(other, "mine")).outcome == "applied"


async def test_columns_of_another_name(workshop: Workshop, people: tuple[Person, Person]) -> None:
    """What is to be decided goes by the new names, the key's too; else nobody could decide it any more."""
    ann, bob = people
    conflict_id = await contested(ann, bob)
    workshop.run("ALTER TABLE notes RENAME title TO id2")
    workshop.run("ALTER TABLE notes RENAME id TO title")
    workshop.run("ALTER TABLE notes RENAME id2 TO heading")
    await workshop.catalog.load(ann.connection)
    (conflict,) = await bob.conflicts()
    assert (conflict["key"], conflict["fields"]) == ({"title": 1}, ["heading"])
    told = ("base", "theirs", "mine")
    assert [conflict[name] for name in told] == [{"heading": value} for value in ("old", "bob", "ann")]
    await ann.applied(conflict_id, "mine")
    assert workshop.run("SELECT title, heading FROM notes") == [(1, "ann")]
