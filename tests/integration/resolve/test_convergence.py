"""The writer keeps in PostgreSQL what the decision promises: one row whatever the order of arrival."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cloudsync.clock import HybridClock
from integration.resolve.conftest import Author, Workshop

FIELDS = ("title", "body", "n")
START_MS = 1_700_000_000_000


class Plan:
    """Writes of three clients to a row that all have seen in version 1, and nothing of each other's."""

    def __init__(self, chance: random.Random) -> None:
        self.queues: list[list[tuple[str, dict[str, Any], str]]] = []
        for client in range(3):
            wall_ms = [START_MS + chance.randint(0, 3)]
            clock = HybridClock(wall_ms=lambda wall_ms=wall_ms: wall_ms[0])  # type: ignore[misc]
            queue: list[tuple[str, dict[str, Any], str]] = []
            for number in range(chance.randint(0, 4)):
                wall_ms[0] += chance.randint(-1, 2)
                at = str(clock.tick("x"))
                if chance.random() < 0.25:
                    queue.append(("delete", {}, at))
                    break
                names = chance.sample(FIELDS, chance.randint(1, 3))
                # Few values, so that some writes set what is there already.
                queue.append(("update", {name: str(chance.randint(0, 2)) for name in names}, at))
                del number
            del client
            self.queues.append(queue)

    async def run(self, authors: list[Author], key: int, chance: random.Random) -> None:
        """In a random interleaving that keeps each client's order."""
        waiting = [list(queue) for queue in self.queues]
        while any(waiting):
            who = chance.choice([n for n, queue in enumerate(waiting) if queue])
            op, values, at = waiting[who].pop(0)
            await authors[who].confirmed(op, key, values, at=at, base_version=1)


@pytest.mark.parametrize("seed", range(6))
async def test_every_order_of_arrival_gives_the_same_row(workshop: Workshop, seed: int) -> None:
    chance = random.Random(seed)
    authors = [await workshop.author(name) for name in ("ann", "bob", "cyd")]
    workshop.run("SET cloudsync.at = '1600000000000-0-sql'")
    gone = 0
    for case in range(20):
        plan = Plan(chance)
        keys = range(10 * case, 10 * case + 4)
        results = []
        for key in keys:
            workshop.run("INSERT INTO notes (id, title) VALUES (%s, 'first')", key)
            await plan.run(authors, key, chance)
            row = workshop.row(key)
            results.append(None if row is None else {**row, "id": 0})
        assert all(result == results[0] for result in results), (plan.queues, results)
        gone += results[0] is None
    assert 0 < gone < 20


async def test_a_later_edit_brings_the_row_back_with_everything_else(workshop: Workshop) -> None:
    workshop.run(
        "CREATE TABLE docs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant_id text, b bytea,"
        " n bigint, twice bigint GENERATED ALWAYS AS (n * 2) STORED, word text)"
    )
    workshop.run("SELECT cloudsync.track('docs')")
    workshop.run("INSERT INTO docs (tenant_id, b, n, word) VALUES ('acme', '\\x00ff', 9007199254740993, 'x')")
    ann, bob = await workshop.author(), await workshop.author("bob")
    workshop.run("DELETE FROM docs")
    old = await ann.confirmed(
        "update", "1", {"word": "late"}, table="docs", base_version=1, at="1600000000000-0-x"
    )
    assert (old.outcome, old.fields) == ("superseded", ["word"])
    assert workshop.row(1, "docs") is None
    back = await bob.confirmed("update", "1", {"n": "5"}, table="docs", base_version=1)
    assert (back.outcome, back.version) == ("merged", 3)
    row = workshop.row(1, "docs")
    assert row == {"id": 1, "tenant_id": "acme", "b": "\\x00ff", "n": 5, "twice": 10, "word": "late"}


async def test_direct_sql_takes_part_with_the_servers_time(workshop: Workshop) -> None:
    ann = await workshop.author()
    workshop.run("INSERT INTO notes (id, title, body) VALUES (1, 'a', 'a')")
    workshop.run("UPDATE notes SET title = 'sql' WHERE id = 1")
    older = await ann.confirmed(
        "update", 1, {"title": "x", "body": "x"}, base_version=1, at="1600000000000-0-a"
    )
    assert (older.outcome, older.version, older.fields) == ("merged", 3, ["title"])
    assert workshop.row(1) == {"id": 1, "tenant_id": "acme", "title": "sql", "body": "x", "n": None}
    none = await ann.confirmed("update", 1, {"title": "x"}, base_version=1, at="1600000000001-0-a")
    assert (none.outcome, none.version, none.fields) == ("superseded", 3, ["title"])
    newer = await ann.confirmed("update", 1, {"title": "y"}, base_version=1)
    assert newer.outcome == "merged"
    seen = await ann.confirmed("update", 1, {"body": "z"}, base_version=4, at="1500000000000-0-a")
    assert (seen.outcome, seen.version) == ("applied", 5)
    workshop.run("UPDATE notes SET title = 'sql' WHERE id = 1")
    lost = await ann.confirmed("delete", 1, base_version=5, at="1600000000000-0-a")
    assert lost.outcome == "superseded"
    assert workshop.row(1) is not None


async def test_a_clock_that_is_ahead_wins_nothing_by_it(workshop: Workshop) -> None:
    ann, bob = await workshop.author(), await workshop.author("bob")
    await ann.confirmed("create", 1, {"title": "a"})
    await ann.confirmed("update", 1, {"title": "ahead"}, base_version=1, at="9999999999999-0-a")
    [(ahead_ms,)] = workshop.run(
        "SELECT split_part(fields->'title'->>'at', '-', 1)::float8 - extract(epoch FROM now())::float8 * 1000"
        " FROM cloudsync.row_state"
    )
    assert ahead_ms < 5000
    later = await bob.confirmed("update", 1, {"title": "later"}, base_version=1)
    assert later.outcome == "merged"


async def test_columns_that_are_not_for_changes_and_those_that_a_person_decides(workshop: Workshop) -> None:
    workshop.run('SELECT cloudsync.track(\'notes\', columns => \'{"title": "manual", "body": "ot"}\')')
    ann = await workshop.author()
    await ann.confirmed("create", 1, {"title": "a", "body": "text"})
    assert (await ann.rejected("update", 1, {"body": "b"})).code == "text_column"
    workshop.run("UPDATE notes SET title = 'theirs'")
    assert (await ann.confirmed("update", 1, {"title": "mine"}, base_version=1)).outcome == "conflict"
    assert (await ann.confirmed("update", 1, {"title": "seen"}, base_version=2)).outcome == "applied"
