"""One definition of shards in SQL, one in Python: the same."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudsync.sharding import key_text, shard_of
from integration.capture.logged import Database

NASTY = [
    "", "0", "-0", "1", "15", "16", "17", "-1", "-15", "-16", "-17", "007", "-007", "10000", "99999",
    "12345678901234567890", "-12345678901234567890123456789", "9223372036854775807", "-9223372036854775808",
    "-", "--1", "+1", " 1", "1 ", "1\n", "\n1", "1.0", "1e3", "٣", "１２", "½", "é", "e\u0301", "😀",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "user-1", "x" * 10_000, "\x01", "'", "\\",
]  # fmt: skip


def test_nasty_values(db: Database) -> None:
    found = db.rows("SELECT v, cloudsync.shard_of(v) FROM unnest(%s::text[]) v", NASTY)
    assert dict(found) == {value: shard_of(value) for value in NASTY}
    assert db.one("SELECT cloudsync.shard_of(NULL)") is None


_text = st.text(st.characters(blacklist_characters="\x00", blacklist_categories=("Cs",)), max_size=30)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(_text, st.integers().map(str), st.from_regex(r"-?[0-9]{1,30}\n?", fullmatch=True)),
        min_size=1,
        max_size=50,
    )
)
def test_any_value(db: Database, values: list[str]) -> None:
    found = db.rows("SELECT v, cloudsync.shard_of(v) FROM unnest(%s::text[]) v", values)
    assert dict(found) == {value: shard_of(value) for value in values}


def test_captured_rows_are_in_the_shard_of_their_key(db: Database) -> None:
    for number, (kind, values) in enumerate(
        {
            "int": [0, 1, -1, -16, -17, 2147483647, -2147483648],
            "smallint": [0, -1, 32767],
            "bigint": [9223372036854775807, -9223372036854775808, -5],
            "numeric": ["-5", "1.5", "123456789012345678901234567890"],
            "text": NASTY,
            "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000005"],
            "date": ["2026-01-01"],
            "boolean": ["true", "false"],
        }.items()
    ):
        db.run(f"CREATE TABLE t{number} (k {kind} PRIMARY KEY, tenant_id text)")
        db.track(f"t{number}")
        db.connection.execute(
            f"INSERT INTO t{number} SELECT v::{kind}, 'a' FROM unnest(%s::text[]) v".encode(),
            ([str(v) for v in values],),
        )
        for event in db.events():
            (value,) = event.key.values()
            text = (
                value
                if isinstance(value, str)
                else str(value).lower()
                if isinstance(value, bool)
                else str(value)
            )
            assert event.shard == shard_of(text), (kind, value)


def test_composite_keys_go_by_their_text(db: Database) -> None:
    db.run("CREATE TABLE t (a bigint, b text, tenant_id text, c int, d boolean, PRIMARY KEY (b, a, c, d))")
    db.track("t")
    db.connection.execute(
        "INSERT INTO t SELECT i, v, 'x', -i, i > 2 FROM unnest(%s::text[]) WITH ORDINALITY u (v, i)", (NASTY,)
    )
    for event in db.events():
        text = key_text([event.key[name] for name in ("b", "a", "c", "d")])
        assert event.shard == shard_of(text)
        assert db.one("SELECT count(*) FROM cloudsync.row_state WHERE key = %s", text) == 1


def test_an_owner_decides_and_a_new_owner_is_in_both(db: Database) -> None:
    for number, (kind, one, other) in enumerate(
        [
            ("int", "-3", "20"),
            ("bigint", "9007199254740993", "1"),
            ("text", "alice", "bob"),
            ("text", "7", "-9"),
            ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"),
            ("varchar(9)", "é", "x"),
            ("char(9)", "é", "x"),
            ("numeric", "12", "13"),
        ]
    ):
        db.run(f"CREATE TABLE t{number} (id int PRIMARY KEY, tenant_id text, who {kind})")
        db.track(f"t{number}", owner_column="'who'")
        db.run(
            f"INSERT INTO t{number} VALUES (1, 'a', '{one}')",
            f"UPDATE t{number} SET who = '{other}'",
            f"UPDATE t{number} SET who = NULL",
            f"DELETE FROM t{number}",
        )
        created, moved, orphaned, deleted = db.events()
        assert (created.shard, created.audience) == (shard_of(one), [one])
        assert (moved.shard, moved.audience, moved.old_audience) == (shard_of(other), [other], [one])
        assert moved.old_shard == (shard_of(one) if shard_of(one) != shard_of(other) else None)
        assert (orphaned.shard, orphaned.audience) == (shard_of("1"), [])
        assert (deleted.shard, deleted.audience) == (shard_of("1"), [])
