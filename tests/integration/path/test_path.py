"""From a commit to the clients that may see it: subscribing under fire, entering, leaving, isolation."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from integration.path.world import Subscribed, Watcher, World, table_name
from waiting import eventually_async

Step = Callable[[psycopg.Connection[Any], random.Random], None]


@contextmanager
def writers(world: World, step: Step, count: int = 3) -> Iterator[None]:
    """Threads that change a table until the block ends. Their errors are the test's."""
    halt = threading.Event()
    failures: list[BaseException] = []

    def write(seed: int) -> None:
        chance = random.Random(seed)
        try:
            with psycopg.connect(world.url, options="-c deadlock_timeout=5ms") as connection:
                while not halt.wait(0.02):  # more than the reader in this process could take otherwise
                    try:
                        step(connection, chance)
                        (connection.rollback if chance.random() < 0.1 else connection.commit)()
                    except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                        connection.rollback()
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        halt.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


async def converged(world: World, watched: list[tuple[Watcher, Subscribed, str, str]]) -> None:
    """Every view becomes what SQL shows its user, and on the way nothing was repeated or went back."""
    for watcher, subscribed, table, where in watched:
        wanted: dict[str, Any] = {}

        def equal() -> bool:
            wanted.clear()  # noqa: B023 - called at once
            wanted.update(world.rows(table, watcher.tenant, watcher.user, where))  # noqa: B023 - called at once
            return subscribed.rows == wanted  # noqa: B023

        try:
            await eventually_async(equal, 15)
        except AssertionError:
            differing = {
                key: (subscribed.rows.get(key), subscribed.versions.get(key), wanted.get(key))
                for key in subscribed.rows.keys() | wanted.keys()
                if subscribed.rows.get(key) != wanted.get(key)
            }
            raise AssertionError(f"{watcher.user} on {table} where {where}: {differing}") from None
    for watcher, subscribed, _, _ in watched:
        assert subscribed.faults == []
        assert watcher.closed is None


def churn(table: str, owners: list[str] | None = None) -> Step:
    """Creates, updates, deletes and brings back thirty rows, one or several to a transaction."""

    def step(connection: psycopg.Connection[Any], chance: random.Random) -> None:
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            key, tenant = chance.randrange(30), chance.choice(["acme", "umbrella"])
            owner = chance.choice(owners) if owners else None
            kind = chance.random()
            if kind < 0.3:
                connection.execute(
                    f"INSERT INTO {table} VALUES (%s, %s, %s, %s, %s) ON CONFLICT (tenant_id, id) DO UPDATE"
                    " SET n = excluded.n, owner = excluded.owner",
                    (key, tenant, owner, chance.randrange(10), "x" * chance.randrange(50)),
                )
            elif kind < 0.5:
                connection.execute(f"DELETE FROM {table} WHERE id = %s AND tenant_id = %s", (key, tenant))
            elif kind < 0.7 and owners:
                connection.execute(f"UPDATE {table} SET owner = %s WHERE id = %s", (owner, key))
            else:
                connection.execute(
                    f"UPDATE {table} SET n = %s, body = body || 'y' WHERE mod(id, 7) = %s AND id < 30",
                    (chance.randrange(10), chance.randrange(7)),
                )

    return step


def make_table(world: World, *, track: str = "") -> str:
    table = table_name("churn")
    world.run(
        f"CREATE TABLE {table} (id integer, tenant_id text, owner text, n integer, body text,"
        " PRIMARY KEY (tenant_id, id))"
    )
    world.run(f"SELECT cloudsync.track('{table}'{track})")
    return table


FILTERS: list[tuple[dict[str, Any] | None, str]] = [
    (None, "true"),
    ({"n": {"gte": 5}}, "n >= 5"),
    ({"n": 3}, "n = 3"),
    ({"n": {"in": [1, 2, 3]}, "id": {"lt": 20}}, "n IN (1, 2, 3) AND id < 20"),
    ({"owner": None}, "owner IS NULL"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tenant", "owner", "audience"])
async def test_subscribing_under_fire(world: World, kind: str) -> None:
    """Snapshot and stream meet without a gap or a repeat, again and again, whatever is written meanwhile."""
    owners = ["ann", "bob"] if kind != "tenant" else None
    if kind == "audience":
        function = table_name("readers")
        table = make_table(world)
        world.run(f"SELECT cloudsync.untrack('{table}')")
        world.run(
            f"CREATE FUNCTION {function}(r {table}) RETURNS text[] LANGUAGE sql IMMUTABLE RETURN"
            " CASE WHEN r.n % 2 = 0 THEN ARRAY[r.owner, 'carol'] ELSE ARRAY[r.owner] END"
        )
        world.run(f"SELECT cloudsync.track('{table}', audience => 'public.{function}')")
    else:
        table = make_table(world, track=", owner_column => 'owner'" if kind == "owner" else "")
    watched: list[tuple[Watcher, Subscribed, str, str]] = []
    people = [("acme", "ann"), ("acme", "bob"), ("umbrella", "ann"), ("acme", "carol")]
    watchers = [await world.watch(tenant, user) for tenant, user in people]
    with writers(world, churn(table, owners)):
        for number in range(15):
            for watcher in watchers:
                where, condition = FILTERS[number % len(FILTERS)]
                subscribed = await watcher.subscribe(f"s{number}", table, where=where)
                watched.append((watcher, subscribed, f"public.{table}", condition))
    await converged(world, watched)
    assert sum(s.events for _, s, _, _ in watched) > 500
    for watcher in watchers:
        other = "umbrella" if watcher.tenant == "acme" else "acme"
        assert not any(f'"{other}"'.encode() in frame for frame in watcher.frames)
        await watcher.close()


async def test_rows_enter_and_leave_a_filter(world: World) -> None:
    table = make_table(world)
    world.run(f"INSERT INTO {table} VALUES (1, 'acme', NULL, 1, 'geheim'), (2, 'acme', NULL, 9, 'b')")
    watcher = await world.watch("acme", "ann")
    subscribed = await watcher.subscribe("s", table, where={"n": {"gte": 5}})
    assert [r["id"] for r in subscribed.rows.values()] == [2]

    for query, expected in [
        ("UPDATE $ SET n = 7 WHERE id = 1", "data.create"),
        ("UPDATE $ SET n = 8 WHERE id = 1", "data.update"),
        ("UPDATE $ SET n = 2 WHERE id = 1", "data.delete"),
        ("UPDATE $ SET n = NULL WHERE id = 2", "data.delete"),
        ("UPDATE $ SET n = 6 WHERE id = 2", "data.create"),
        ("DELETE FROM $ WHERE id = 2", "data.delete"),
        ("INSERT INTO $ VALUES (2, 'acme', NULL, 5, 'again')", "data.create"),
    ]:
        before = len(watcher.frames)
        world.run(query.replace("$", table))
        await watcher.until(lambda n=before: len(watcher.frames) > n)
        assert [json.loads(f)["type"] for f in watcher.frames[before:]] == [expected]
    await converged(world, [(watcher, subscribed, f"public.{table}", "n >= 5")])
    assert all(set(json.loads(f)) == {"type", "n", "sub", "table", "key", "version"}
               for f in watcher.frames if b"data.delete" in f)  # fmt: skip
    await watcher.close()


async def test_an_owner_change_is_a_departure_and_an_arrival(world: World) -> None:
    table = make_table(world, track=", owner_column => 'owner'")
    world.run(f"INSERT INTO {table} VALUES (1, 'acme', 'ann', 1, 'a')")
    ann, bob = await world.watch("acme", "ann"), await world.watch("acme", "bob")
    of_ann, of_bob = await ann.subscribe("s", table), await bob.subscribe("s", table)
    assert (len(of_ann.rows), len(of_bob.rows)) == (1, 0)
    for number in range(20):
        owner = ["bob", "ann"][number % 2]
        world.run(f"UPDATE {table} SET owner = %s, n = n + 1 WHERE id = 1", owner)
    world.run(f"UPDATE {table} SET owner = 'bob', body = 'end' WHERE id = 1")
    name = f"public.{table}"
    await converged(world, [(ann, of_ann, name, "true"), (bob, of_bob, name, "true")])
    assert (len(of_ann.rows), len(of_bob.rows)) == (0, 1)
    for watcher in (ann, bob):
        await watcher.close()


async def test_a_row_that_moves_to_another_tenant_leaves_one_and_enters_the_other(world: World) -> None:
    table = table_name("moving")
    world.run(f"CREATE TABLE {table} (id integer PRIMARY KEY, tenant_id text, v text)")
    world.run(f"SELECT cloudsync.track('{table}')")
    world.run(f"INSERT INTO {table} VALUES (1, 'acme', 'geheim'), (2, 'umbrella', 'u')")
    acme, umbrella = await world.watch("acme", "ann"), await world.watch("umbrella", "ann")
    of_acme, of_umbrella = await acme.subscribe("s", table), await umbrella.subscribe("s", table)
    world.run(f"UPDATE {table} SET tenant_id = 'umbrella', v = 'given' WHERE id = 1")
    name = f"public.{table}"
    await converged(world, [(acme, of_acme, name, "true"), (umbrella, of_umbrella, name, "true")])
    assert not any(b"geheim" in f for f in umbrella.frames)
    assert not any(b"given" in f or b"umbrella" in f for f in acme.frames)
    for watcher in (acme, umbrella):
        await watcher.close()


async def test_membership_decides_and_its_changes_arrive(world: World) -> None:
    rooms, members, notes = (table_name(n) for n in ("rooms", "members", "notes"))
    world.run(
        f"CREATE TABLE {members} (room integer, person text, PRIMARY KEY (room, person));"
        f"CREATE TABLE {notes} (id integer PRIMARY KEY, tenant_id text, room integer, body text);"
        f"CREATE FUNCTION {rooms}(r {notes}) RETURNS text[] STABLE SECURITY DEFINER LANGUAGE sql RETURN"
        f" (SELECT coalesce(array_agg(person), '{{}}') FROM {members} m WHERE m.room = r.room)"
    )
    world.run(
        f"SELECT cloudsync.track('{notes}', audience => 'public.{rooms}',"
        f' audience_depends_on => \'{{"public.{members}": {{"room": "room"}}}}\')'
    )
    world.run(f"INSERT INTO {members} VALUES (1, 'ann'), (2, 'bob')")
    world.run(f"INSERT INTO {notes} SELECT n, 'acme', 1 + mod(n, 2), 'n' || n FROM generate_series(1, 10) n")
    ann, bob = await world.watch("acme", "ann"), await world.watch("acme", "bob")
    views = [(w, await w.subscribe("s", notes), f"public.{notes}", "true") for w in (ann, bob)]
    assert [len(s.rows) for _, s, _, _ in views] == [5, 5]
    world.run(f"INSERT INTO {members} VALUES (1, 'bob')")
    await converged(world, views)
    assert len(views[1][1].rows) == 10
    world.run(f"DELETE FROM {members} WHERE person = 'bob'")
    await converged(world, views)
    assert len(views[1][1].rows) == 0
    world.run(f"UPDATE {notes} SET body = 'geheim'")
    await converged(world, views)
    assert not any(b"geheim" in f for f in bob.frames)
    for watcher in (ann, bob):
        await watcher.close()


async def test_rollbacks_and_savepoints_deliver_nothing(world: World) -> None:
    table = make_table(world)
    watcher = await world.watch("acme", "ann")
    subscribed = await watcher.subscribe("s", table)
    with psycopg.connect(world.url) as connection:
        connection.execute(f"INSERT INTO {table} VALUES (1, 'acme', NULL, 1, 'geheim')")
        connection.rollback()
        connection.execute("SAVEPOINT a")
        connection.execute(f"INSERT INTO {table} VALUES (2, 'acme', NULL, 1, 'geheim')")
        connection.execute("ROLLBACK TO a")
        connection.execute(f"INSERT INTO {table} VALUES (3, 'acme', NULL, 1, 'kept')")
        connection.commit()
    await watcher.until(lambda: subscribed.rows)
    await converged(world, [(watcher, subscribed, f"public.{table}", "true")])
    assert not any(b"geheim" in f for f in watcher.frames)
    await watcher.close()


async def test_what_happens_to_the_table_itself(world: World) -> None:
    table = make_table(world)
    name = f"public.{table}"
    world.run(f"INSERT INTO {table} SELECT n, 'acme', NULL, n, 'b' FROM generate_series(1, 50) n")
    watcher = await world.watch("acme", "ann")
    whole = await watcher.subscribe("whole", table)
    some = await watcher.subscribe("some", table, where={"n": {"lt": 10}}, columns=["n", "body"])
    projected = {"n", "body"}

    world.run(f"TRUNCATE {table}")
    await watcher.until(lambda: whole.resets == ["truncate"] and whole.complete and not whole.rows)
    await watcher.until(lambda: some.resets and some.complete and not some.rows)

    world.run(f"INSERT INTO {table} VALUES (1, 'acme', NULL, 1, 'b')")
    world.run(f"ALTER TABLE {table} ADD COLUMN extra numeric DEFAULT 7.50")
    world.run(f"UPDATE {table} SET extra = 1.10")
    await converged(world, [(watcher, whole, name, "true")])
    assert {r["extra"] for r in whole.rows.values()} == {"1.10"}
    assert whole.schema is not None
    assert "extra" in {c["name"] for c in whole.schema["columns"]}

    world.run(f"ALTER TABLE {table} RENAME COLUMN extra TO other")
    world.run(f"UPDATE {table} SET other = 2")
    await converged(world, [(watcher, whole, name, "true")])
    assert all(set(r) == projected for r in some.rows.values())

    world.run(f"ALTER TABLE {table} DROP COLUMN other")
    world.run(f"UPDATE {table} SET n = 3")
    await converged(world, [(watcher, whole, name, "true")])

    world.run(f"ALTER TABLE {table} ALTER COLUMN n TYPE text USING 'n' || n")
    world.run(f"UPDATE {table} SET n = 'abc'")
    assert (await watcher.error(ref="some"))["code"] == "unknown_column"
    await converged(world, [(watcher, whole, name, "true")])

    world.run(f"DROP TABLE {table}")
    assert (await watcher.error(ref="whole"))["code"] == "table_dropped"
    await watcher.send({"type": "subscribe", "id": "again", "table": table})
    assert (await watcher.error(ref="again"))["code"] == "unknown_table"
    assert watcher.closed is None
    await watcher.close()


async def test_a_table_that_is_dropped_and_made_anew_at_once(world: World) -> None:
    table = make_table(world)
    world.run(f"INSERT INTO {table} VALUES (1, 'acme', NULL, 1, 'old')")
    watcher = await world.watch("acme", "ann")
    subscribed = await watcher.subscribe("s", table)
    with psycopg.connect(world.url) as connection:
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, tenant_id text, fresh text)")
        connection.execute(f"SELECT cloudsync.track('{table}')")
        connection.execute(f"INSERT INTO {table} VALUES (1, 'acme', 'new')")
    await watcher.until(lambda: subscribed.errors or subscribed.resets)
    if subscribed.errors:
        assert subscribed.errors[0]["code"] == "table_dropped"
    else:
        await converged(world, [(watcher, subscribed, f"public.{table}", "true")])
        world.run(f"UPDATE {table} SET fresh = 'newer'")
        await converged(world, [(watcher, subscribed, f"public.{table}", "true")])
    await watcher.close()


async def test_bursts_arrive_in_batches_of_limited_size_in_order(world: World) -> None:
    table = make_table(world)
    watcher = await world.watch("acme", "ann")
    subscribed = await watcher.subscribe("s", table)
    world.run(
        f"INSERT INTO {table} SELECT n, 'acme', NULL, n, repeat('é', 400) FROM generate_series(1, 3000) n"
    )
    world.run(f"UPDATE {table} SET n = n + 1")
    await watcher.until(lambda: subscribed.events >= 6000, 30)
    await converged(world, [(watcher, subscribed, f"public.{table}", "true")])
    assert max(map(len, watcher.frames)) <= 100_000 + 200
    assert any(b'"sync.batch"' in f for f in watcher.frames)
    await watcher.close()


@pytest.mark.parametrize("document", ["1e5000", "[" * 1500 + "]" * 1500])
async def test_a_document_that_python_cannot_decode_stops_nobody(world: World, document: str) -> None:
    """PostgreSQL stores it, so a single row of one tenant must not end the routing of everybody's shards."""
    table, other = table_name("documents"), table_name("beside")
    world.run(f"CREATE TABLE {table} (id integer PRIMARY KEY, tenant_id text, n integer, doc jsonb)")
    world.run(f"CREATE TABLE {other} (id integer PRIMARY KEY, tenant_id text)")
    world.run(f"SELECT cloudsync.track('{table}'), cloudsync.track('{other}')")
    ann, bob = await world.watch("acme", "ann"), await world.watch("umbrella", "bob")
    filtered = await ann.subscribe("s", table, where={"n": 3, "doc": {"is_null": False}}, columns=["n"])
    beside = await bob.subscribe("s", other)
    world.run(f"INSERT INTO {table} VALUES (1, 'acme', 3, %s::jsonb)", document)
    world.run(f"INSERT INTO {other} SELECT n, 'umbrella' FROM generate_series(1, 16) n")  # in every shard
    world.run(f"UPDATE {table} SET n = 3, doc = NULL; DELETE FROM {table}")
    await bob.until(lambda: len(beside.rows) == 16)
    await ann.until(lambda: filtered.events == 2)
    assert (filtered.rows, filtered.faults) == ({}, [])


async def test_a_label_of_another_name_reaches_those_who_hold_it(world: World) -> None:
    """No row gets a new version by it; a filter that names the old label has no meaning any more."""
    table = table_name("moods")
    world.run(f"CREATE TYPE {table}_mood AS ENUM ('sad', 'glad')")
    world.run(f"CREATE TABLE {table} (id integer PRIMARY KEY, tenant_id text, mood {table}_mood)")
    world.run(f"SELECT cloudsync.track('{table}')")
    world.run(f"INSERT INTO {table} VALUES (1, 'acme', 'sad')")
    ann = await world.watch("acme", "ann")
    everything, sad = await ann.subscribe("e", table), await ann.subscribe("s", table, where={"mood": "sad"})
    world.run(f"ALTER TYPE {table}_mood RENAME VALUE 'sad' TO 'blue'")
    await converged(world, [(ann, everything, table, "true")])
    await ann.until(lambda: sad.errors)
    assert sad.errors[0]["code"] == "bad_filter"


def teams(world: World) -> str:
    """Rows of teams, whose members see them."""
    table = table_name("tasks")
    world.run(f"CREATE TABLE {table} (id integer PRIMARY KEY, tenant_id text, team integer)")
    world.run(f"CREATE TABLE {table}_members (team integer, who text)")
    world.run(
        f"CREATE FUNCTION {table}_readers(r {table}) RETURNS text[] LANGUAGE sql STABLE AS"
        f" 'SELECT coalesce(array_agg(m.who), ''{{}}'') FROM public.{table}_members m WHERE m.team = r.team'"
    )
    depends = json.dumps({f"public.{table}_members": {"team": "team"}})
    world.run(
        f"SELECT cloudsync.track('{table}', audience => 'public.{table}_readers',"
        f" audience_depends_on => '{depends}')"
    )
    return table


async def test_a_member_of_whom_an_old_snapshot_knew_nothing_leaves_again(world: World) -> None:
    table = teams(world)
    eve = await world.watch("acme", "eve")
    view = await eve.subscribe("s", table)
    give_unseen(world, table, "eve")
    await eve.until(lambda: view.rows)
    world.run(f"DELETE FROM {table}_members")
    await eve.until(lambda: not view.rows)
    assert view.faults == []


async def test_a_transaction_that_stays_open_keeps_nobody_from_what_others_committed(world: World) -> None:
    """Nor from hearing of what it did itself to rows of which it could not know who sees them."""
    table = teams(world)
    eve = await world.watch("acme", "eve")
    view = await eve.subscribe("s", table)
    gateway = world.platform.processes["gateway"].pid
    assert gateway is not None
    with psycopg.connect(world.url) as writer:
        os.kill(gateway, signal.SIGSTOP)
        try:
            give_unseen(world, table, "eve")
            writer.execute(f"INSERT INTO {table} VALUES (2, 'acme', 3)".encode())
        finally:
            os.kill(gateway, signal.SIGCONT)
        await eve.until(lambda: list(view.rows) == ['{"id": 1}'])
        writer.execute(f"UPDATE {table} SET team = 4 WHERE id = 1".encode())
    await eve.until(lambda: list(view.rows) == ['{"id": 2}'])


def give_unseen(world: World, table: str, user: str) -> None:
    """A row is written, and its team's member added by a transaction that cannot see the row."""
    with world.connect() as changer:
        changer.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT")
        changer.execute(f"SELECT FROM {table}".encode())
        world.run(f"INSERT INTO {table} VALUES (1, 'acme', 3)")
        changer.execute(f"INSERT INTO {table}_members VALUES (3, '{user}')".encode())
        changer.execute("COMMIT")
