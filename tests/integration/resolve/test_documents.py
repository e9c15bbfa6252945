"""Text operations in PostgreSQL: transformed in turn, applied once, recorded; SQL takes part."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings

from cloudsync.protocol.messages import ChangeConfirmed, ChangeRejected, TextRequest, decode_client_frame
from cloudsync.resolve import documents
from cloudsync.resolve import text as ot
from integration.resolve.conftest import Answer, Author, Workshop
from unit.resolve.operations import rivals, texts

_LIMIT_BYTES = 20_000


@pytest.fixture
def shop(workshop: Workshop) -> Workshop:
    workshop.run("SELECT cloudsync.track('notes', columns => '{\"body\": \"ot\"}')")
    workshop.run("INSERT INTO notes (id, title, body) VALUES (1, 'a title', 'hello')")
    return workshop


def request(author: Author, revision: int, op: Any, *, key: Any = 1, column: str = "body") -> TextRequest:
    number = author.request("update", key).id
    frame = {"type": "text", "id": number, "table": "notes", "key": {"id": key}}
    frame |= {"column": column, "revision": revision, "op": op}
    decoded = decode_client_frame(msgspec.json.encode(frame))
    assert isinstance(decoded, TextRequest)
    return decoded


async def send(author: Author, asked: TextRequest) -> Answer:
    return await documents.edit(
        author.connection, author.workshop.catalog, author.principal, author.client_id, asked,
        limit_bytes=_LIMIT_BYTES,
    )  # fmt: skip


async def edit(author: Author, revision: int, op: Any, **more: Any) -> Answer:
    return await send(author, request(author, revision, op, **more))


def body(shop: Workshop, key: int = 1) -> str | None:
    row = shop.row(key)
    assert row is not None
    text: str | None = row["body"]
    return text


def history(shop: Workshop) -> list[Any]:
    return shop.run("SELECT revision, previous, op, client_id FROM cloudsync.text_ops ORDER BY revision")


def events(shop: Workshop) -> list[Any]:
    return shop.run(
        'SELECT op::text, version, "row", old, text_op FROM cloudsync.change_log'
        " WHERE op IN ('c', 'u', 'd') ORDER BY version"
    )


async def test_concurrent_operations_meet(shop: Workshop) -> None:
    ann, bob = await shop.author("ann"), await shop.author("bob")
    first = await edit(ann, 1, [5, " world"])
    assert first == ChangeConfirmed(1, "applied", 2, None, 2)
    second = await edit(bob, 1, [{"d": 1}, "J", 4, "!"])
    assert second == ChangeConfirmed(1, "merged", 3, None, 3)
    assert body(shop) == "Jello! world"  # of two insertions at one place the one that comes later is left
    assert history(shop) == [
        (2, 1, [5, " world"], ann.client_id),
        (3, 2, [{"d": 1}, "J", 4, "!"], bob.client_id),
    ]
    last = events(shop)[-1]
    assert last[4] == {"body": {"op": [{"d": 1}, "J", 4, "!"]}}
    assert shop.state(1)[1]["body"]["at"].endswith(bob.client_id)


async def test_a_repeat_is_answered_and_not_applied(shop: Workshop) -> None:
    ann = await shop.author("ann")
    asked = request(ann, 1, ["x"])
    await send(ann, asked)
    assert await send(ann, asked) == ChangeConfirmed(1, "already_applied", 2, None, 2)
    assert body(shop) == "xhello"


async def test_what_changes_nothing_makes_no_revision(shop: Workshop) -> None:
    ann, bob = await shop.author("ann"), await shop.author("bob")
    await edit(ann, 1, [{"d": 5}])
    assert await edit(bob, 1, [1, {"d": 2}]) == ChangeConfirmed(1, "merged", 2, None, 2)
    assert await edit(bob, 2, []) == ChangeConfirmed(2, "applied", 2, None, 2)
    assert len(history(shop)) == 1


async def test_other_columns_do_not_disturb(shop: Workshop) -> None:
    ann, bob = await shop.author("ann"), await shop.author("bob")
    await bob.confirmed("update", 1, {"title": "b"})
    assert (await edit(ann, 1, ["x"])) == ChangeConfirmed(1, "applied", 3, None, 3)
    assert (await edit(ann, 2, ["y"])) == ChangeConfirmed(2, "merged", 4, None, 4)
    assert body(shop) == "yxhello"
    assert [e[4] for e in events(shop)][1] == {"body": {}}


@pytest.mark.parametrize(
    ("op", "code"),
    [
        ([6, "x"], "bad_operation"),
        ([{"d": 6}], "bad_operation"),
        ([5], "bad_operation"),
        (["a", "b"], "bad_operation"),
        (["x" * (_LIMIT_BYTES + 1)], "too_large"),
        (["\u0000"], "bad_value"),
        ([component for _ in range(5001) for component in ("x", {"d": 1})], "too_large"),
    ],
)
async def test_an_operation_that_cannot_be_applied(shop: Workshop, op: Any, code: str) -> None:
    ann = await shop.author("ann")
    answer = await edit(ann, 1, op)
    assert isinstance(answer, ChangeRejected)
    assert answer.code == code
    assert (body(shop), shop.state(1)[0]) == ("hello", 1)
    assert isinstance(await edit(ann, 1, ["x"]), ChangeConfirmed)


async def test_who_may_not_edit(shop: Workshop) -> None:
    ann, eve = await shop.author("ann"), await shop.author("eve", tenant="other")
    for author, wanted, more in (
        (eve, "unknown_row", {}),
        (ann, "unknown_row", {"key": 2}),
        (ann, "not_a_text", {"column": "title"}),
        (ann, "not_a_text", {"column": "no such"}),
        (ann, "bad_value", {"key": "one"}),
        (ann, "bad_value", {"key": None}),
    ):
        answer = await edit(author, 1, ["x"], **more)
        assert isinstance(answer, ChangeRejected)
        assert answer.code == wanted
    refused = await ann.rejected("update", 1, {"body": "whole"})
    assert refused.code == "text_column"
    shop.run(
        "CREATE POLICY frozen ON notes AS RESTRICTIVE FOR UPDATE TO cloudsync_client"
        " USING (title <> 'a title')"
    )
    answer = await edit(ann, 1, ["x"])
    assert isinstance(answer, ChangeRejected)
    assert answer.code == "unknown_row"
    assert body(shop) == "hello"


async def test_the_rules_of_the_table_hold(shop: Workshop) -> None:
    shop.run("ALTER TABLE notes ADD CHECK (length(body) < 8)")
    ann = await shop.author("ann")
    answer = await edit(ann, 1, ["much too long"])
    assert isinstance(answer, ChangeRejected)
    assert answer.code == "constraint_violated"


async def test_a_trigger_of_the_application_changes_the_text_again(shop: Workshop) -> None:
    shop.run(
        "CREATE FUNCTION louder() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.body := upper(NEW.body); RETURN NEW; END $$"
    )
    shop.run("CREATE TRIGGER louder BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION louder()")
    ann = await shop.author("ann")
    await edit(ann, 1, [5, "x"])
    assert body(shop) == "HELLOX"
    assert history(shop)[0][2] == [{"d": 5}, "HELLOX"]  # what has happened, not what was asked for


async def test_sql_becomes_an_operation(shop: Workshop) -> None:
    ann = await shop.author("ann")
    shop.run("UPDATE notes SET body = 'hi 𝄞, hello', title = 'b'")
    assert await edit(ann, 1, [5, " world"]) == ChangeConfirmed(1, "merged", 3, None, 3)
    assert body(shop) == "hi 𝄞, hello world"
    assert [row[2] for row in history(shop)] == [[1, "i 𝄞, h"], [11, " world"]]
    shop.run("UPDATE notes SET body = NULL")
    assert await edit(ann, 3, ["back"]) == ChangeConfirmed(2, "merged", 5, None, 5)
    assert body(shop) == "back"
    assert [e[4]["body"].get("whole") for e in events(shop)[-2:]] == [True, None]


async def test_a_text_that_was_changed_without_an_operation(shop: Workshop) -> None:
    """By a trigger's own statement: nobody knows in which order it was told, so older bases are refused."""
    shop.run(
        "CREATE FUNCTION sign() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN UPDATE notes SET body = body || ' --' || NEW.title WHERE id = NEW.id; RETURN NULL; END $$"
    )
    shop.run("CREATE TRIGGER sign AFTER UPDATE OF title ON notes FOR EACH ROW EXECUTE FUNCTION sign()")
    ann = await shop.author("ann")
    await edit(ann, 1, ["x"])
    shop.run("UPDATE notes SET title = 'b'")
    version = shop.state(1)[0]
    answer = await edit(ann, 2, ["y"])
    assert isinstance(answer, ChangeRejected)
    assert answer.code == "stale_revision"
    assert (await edit(ann, version, ["y"])).version == version + 1  # type: ignore[union-attr]
    assert body(shop) == "yxhello --b"


async def test_a_revision_that_is_too_old_or_not_of_this_row(shop: Workshop) -> None:
    ann = await shop.author("ann")
    for revision in range(1, 6):
        await edit(ann, revision, ["x"])
    shop.run("UPDATE cloudsync.text_ops SET applied_at = now() - interval '8 days' WHERE revision < 4")
    shop.run("SELECT cloudsync.maintain()")
    assert [row[0] for row in history(shop)] == [4, 5, 6]
    for revision, is_known in ((2, False), (3, True), (6, True), (9, False), (-1, False)):
        answer = await edit(ann, revision, ["y"])
        assert isinstance(answer, ChangeConfirmed) is is_known, revision
        assert is_known or answer.code == "stale_revision"  # type: ignore[union-attr]
    shop.run("DELETE FROM notes")
    assert (await edit(ann, 6, ["y"])).code == "unknown_row"  # type: ignore[union-attr]
    shop.run("INSERT INTO notes (id, body) VALUES (1, 'another')")
    assert (await edit(ann, 6, ["y"])).code == "stale_revision"  # type: ignore[union-attr]


async def test_a_history_has_a_length(shop: Workshop) -> None:
    shop.run(
        "INSERT INTO cloudsync.text_ops (table_id, key, column_name, revision, previous, op)"
        " SELECT t.table_id, '[1]', 'body', n, n - 1, '[\"x\"]'"
        " FROM cloudsync.tracked_tables t, generate_series(2, 2502) n"
    )
    shop.run('UPDATE cloudsync.row_state SET version = 2502, fields = \'{"body": {"v": 2502, "at": ""}}\'')
    ann = await shop.author("ann")
    assert (await edit(ann, 501, ["y"])).code == "stale_revision"  # type: ignore[union-attr]
    assert isinstance(await edit(ann, 502, ["y"]), ChangeConfirmed)
    shop.run("SELECT cloudsync.maintain()")
    assert len(history(shop)) == documents.HISTORY


async def test_a_long_text_is_logged_by_its_beginning(shop: Workshop) -> None:
    ann = await shop.author("ann")
    long = "0123456789" * 1000
    shop.run("UPDATE notes SET body = %s", long)
    await edit(ann, 2, [10_000, "!"])
    shop.run("UPDATE notes SET title = 'b'")
    assert body(shop) == long + "!"
    created, by_sql, edited, titled = events(shop)
    assert created[2]["body"] == "hello"
    assert (by_sql[2]["body"], by_sql[4]["body"]["cut"]) == (long[:1024], True)
    assert (edited[2]["body"], edited[3], edited[4]) == (
        long[:1024], {"body": long[:1024]}, {"body": {"op": [10_000, "!"], "cut": True}},
    )  # fmt: skip
    assert (titled[2]["body"], titled[3], titled[4]) == (
        long[:1024], {"title": "a title"}, {"body": {"cut": True}},
    )  # fmt: skip


async def test_an_operation_that_would_take_too_long_to_move(shop: Workshop) -> None:
    ann = await shop.author("ann")
    long = [component for _ in range(1000) for component in ("x", {"d": 1})]
    shop.run("UPDATE notes SET body = repeat('a', 2000)")
    for revision in range(2, 27):
        await edit(ann, revision, [1000, "y"])
    assert (await edit(ann, 2, long * 5)).code == "stale_revision"  # type: ignore[union-attr]
    assert isinstance(await edit(ann, 2, long), ChangeConfirmed)


async def test_editors_and_sql_at_once(shop: Workshop) -> None:
    """Whoever comes in between, the recorded operations lead from the first text to the last."""
    authors = [await shop.author(name) for name in ("ann", "bob", "cyd")]
    outcomes: list[str] = []

    async def write(author: Author, seed: int) -> None:
        chance = random.Random(seed)
        revision, text = 1, "hello"
        for _ in range(25):
            place = chance.randint(0, len(text))
            gone = min(len(text) - place, chance.choice((0, 0, 1, 2)))
            answer = await edit(author, revision, ot.normalize([place, {"d": gone}, chance.choice("abc")]))
            assert isinstance(answer, ChangeConfirmed)
            outcomes.append(answer.outcome)
            if chance.random() < 0.5:  # else it goes on from what it knew
                ((revision, text),) = author.workshop.run(
                    "SELECT s.version, t.body FROM notes t JOIN cloudsync.row_state s ON s.key = '[1]'"
                )

    def sql() -> None:
        with psycopg.connect(shop.url, autocommit=True) as connection:
            for n in range(25):
                connection.execute("UPDATE notes SET body = body || %s, title = %s", (str(n), str(n)))

    await asyncio.gather(*(write(author, n) for n, author in enumerate(authors)), asyncio.to_thread(sql))
    text = "hello"
    at = 1
    for revision, previous, operation, _ in history(shop):
        assert previous == at
        text, at = ot.apply(text, ot.check(operation)), revision
    assert text == body(shop)
    assert at == shop.state(1)[0]
    assert "merged" in outcomes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(before=texts, after=texts, case=rivals(1))
def test_postgresql_and_python_agree(
    shop: Workshop, before: str, after: str, case: tuple[str, list[ot.Operation]]
) -> None:
    ((operation,),) = shop.run("SELECT cloudsync.text_difference(%s, %s)", before, after)
    assert operation == ot.counted(ot.difference(before, after))
    text, (made,) = case
    encoded = msgspec.json.encode(made).decode()
    assert shop.run("SELECT cloudsync.apply_text(%s, %s::jsonb)", text, encoded) == [(ot.apply(text, made),)]


async def test_an_operation_that_grows_on_its_way_is_given_up(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each insertion splits what it falls into: the work is that of what is made, not of what was sent."""
    monkeypatch.setattr(documents, "_WORK", 10_000)
    ann, bob = await shop.author(), await shop.author("bob")
    shop.run("UPDATE notes SET body = repeat('a', 6000)")
    ((base,),) = shop.run("SELECT version FROM cloudsync.row_state")
    revision = base
    for number in range(1, 21):
        done = await edit(bob, revision, [100 + number, "x", *[100, "x"] * 48])
        assert isinstance(done, ChangeConfirmed)
        revision = done.revision or 0
    refused = await edit(ann, base, [{"d": 6000}])
    assert isinstance(refused, ChangeRejected)
    assert refused.code == "stale_revision"
    assert isinstance(await edit(ann, base, ["y"]), ChangeConfirmed)  # that stays short


async def test_of_a_history_of_large_operations_only_so_much_is_read(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_HISTORY_BYTES", 5000)
    ann = await shop.author()
    revisions = [1]
    for letter in "abcdefgh":
        shop.run("UPDATE notes SET body = repeat(%s, 1000)", letter)
        ((version,),) = shop.run("SELECT version FROM cloudsync.row_state")
        revisions.append(version)
    refused = await edit(ann, revisions[1], ["y"])
    assert isinstance(refused, ChangeRejected)
    assert refused.code == "stale_revision"
    assert isinstance(await edit(ann, revisions[-3], ["y"]), ChangeConfirmed)
