"""Shards, buckets and cells: one definition in Python and in SQL, for every text an id may be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.sharding import BUCKETS, SHARDS, bucket_of, cell_of, key_text, shard_of

# Zero characters cannot be stored, lone surrogates cannot be encoded.
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30)
integers = st.integers(-(10**40), 10**40).map(str)
oddities = [
    "", "0", "-0", "007", "-007", "+5", " 5", "5 ", "5\n", "-", "--5", "-5\n", "1.5", "1e3",
    "٣", "-٣", "५", "²",
    "9223372036854775807", "-9223372036854775808", "\n", "-16", "-1", "-10000", "10000", "é", "💥", "Ünï",
    "f47ac10b-58cc-4372-a567-0e02b2c3d479",
]  # fmt: skip


@pytest.fixture(scope="module")
def database_connection(postgres: EmbeddedPostgres, migrated_template: str) -> Iterator[psycopg.Connection]:
    """A migrated database for the whole module: hypothesis runs many examples in one test."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE sharding TEMPLATE {migrated_template}")
        with psycopg.connect(postgres.url(database="sharding"), autocommit=True) as inside:
            yield inside
        connection.execute("DROP DATABASE sharding WITH (FORCE)")


@given(st.integers(-(10**30), 10**30))
def test_integers_go_by_the_non_negative_remainder(value: int) -> None:
    assert shard_of(str(value)) == value % SHARDS


@given(texts)
def test_every_text_has_a_shard(text: str) -> None:
    assert 0 <= shard_of(text) < SHARDS


@settings(max_examples=8)
@given(st.lists(texts | integers, min_size=50, max_size=200))
def test_sql_and_python_agree(database_connection: psycopg.Connection, values: list[str]) -> None:
    values = values + oddities
    rows = database_connection.execute(
        "SELECT v, cloudsync.shard_of(v) FROM unnest(%s::text[]) AS u (v)", (values,)
    ).fetchall()
    assert [(v, shard_of(v)) for v in values] == rows


@given(st.text())
def test_a_user_stays_in_its_bucket_and_cells_are_ranges(user: str) -> None:
    try:
        bucket = bucket_of(user)
    except UnicodeEncodeError:
        return
    assert 0 <= bucket < BUCKETS
    assert cell_of(user, 1) == 1
    for cells in (2, 3, 7, 80):
        assert 1 <= cell_of(user, cells) <= cells


def test_cells_are_even_and_one_more_moves_neighbours_only() -> None:
    users = [f"user-{n}" for n in range(4000)]
    counts = Counter(cell_of(u, 4) for u in users)
    assert set(counts) == {1, 2, 3, 4}
    assert max(counts.values()) < 1.3 * min(counts.values())
    assert all(cell_of(u, 5) - cell_of(u, 4) in (0, 1) for u in users)


def test_a_map_of_buckets_moves_only_what_it_names() -> None:
    users = [str(n) for n in range(4000)]
    before, after = ((511, 1), (1023, 2)), ((511, 1), (767, 2), (1023, 3))
    for user in users:
        cell = cell_of(user, 3, after)
        assert cell == (3 if bucket_of(user) > 767 else cell_of(user, 2, before))
    assert {cell_of(user, 3, after) for user in users} == {1, 2, 3}


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | texts | st.booleans() | st.none(), max_size=4))
def test_key_text_is_compact_json(values: list[object]) -> None:
    text = key_text(values)
    assert json.loads(text) == values
    if not any(isinstance(v, str) for v in values):
        assert " " not in text


@settings(max_examples=20)
@given(st.lists(texts, min_size=1, max_size=50))
def test_key_text_of_a_text_key_is_the_triggers(
    database_connection: psycopg.Connection, values: list[str]
) -> None:
    with database_connection.transaction(force_rollback=True):
        database_connection.execute("CREATE TABLE keyed (id text PRIMARY KEY)")
        database_connection.execute(
            "SELECT cloudsync.track('keyed', tenant => 'acme', tenant_column => NULL)"
        )
        database_connection.execute(
            "INSERT INTO keyed SELECT DISTINCT v FROM unnest(%s::text[]) AS u (v)", (values,)
        )
        rows = database_connection.execute("SELECT key FROM cloudsync.row_state").fetchall()
    assert {key for (key,) in rows} == {key_text([v]) for v in values}
