"""The chain: every part of a row counts, and so does its place."""

from __future__ import annotations

from datetime import date

import msgspec
import pytest

from cloudsync.audit.chain import START, Head, chain_key, day_of, extend, link
from cloudsync.audit.records import Record
from cloudsync.audit.verification import parse_head
from cloudsync.keyring import Keyring

KEY = b"k" * 32
RECORD = Record(
    kind="change.update", happened_us=1, tenant="acme", user="ann", client="c_1", table="public.t",
    key='{"id": 1}', event_id="0/1.1", outcome="delivered", counts='{"topics":1}',
)  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in msgspec.structs.fields(Record)])
def test_every_field_of_a_record_counts(name: str) -> None:
    value = getattr(RECORD, name)
    changed = msgspec.structs.replace(RECORD, **{name: value + 1 if isinstance(value, int) else value + "x"})
    missing = msgspec.structs.replace(RECORD, **{name: 0 if isinstance(value, int) else None})
    digests = {link(KEY, START, 5, "w", 1, record) for record in (RECORD, changed, missing)}
    assert len(digests) == 3


def test_the_place_of_a_row_counts() -> None:
    digests = {
        link(KEY, START, 5, "w", 1, RECORD),
        link(b"j" * 32, START, 5, "w", 1, RECORD),
        link(KEY, b"1" * 32, 5, "w", 1, RECORD),
        link(KEY, START, 6, "w", 1, RECORD),
        link(KEY, START, 5, "v", 1, RECORD),
        link(KEY, START, 5, "w", 2, RECORD),
    }
    assert len(digests) == 6


def test_rows_follow_one_another() -> None:
    day = date(2026, 11, 22)
    rows, head = extend(KEY, Head("w", day), [RECORD, RECORD], 5)
    assert [row.sequence for row in rows] == [1, 2]
    assert rows[1].digest == link(KEY, rows[0].digest, 5, "w", 2, RECORD) == head.digest
    more, end = extend(KEY, head, [RECORD], 6)
    assert (more[0].sequence, end.sequence) == (3, 3)
    assert head.seal(KEY) != Head("w", day, 1, head.digest).seal(KEY)


def test_a_head_is_read_as_the_auditor_logs_it() -> None:
    head = Head("auditor-a/b-1", date(2026, 11, 22), 7, b"d" * 32)
    assert parse_head("/".join(map(str, head.quote))) == head
    with pytest.raises(ValueError, match="isoformat"):
        parse_head("a/b/1/ff")


def test_days_are_utc_and_keys_are_each_keyrings_own() -> None:
    assert day_of(1_763_855_999_999_999) == date(2025, 11, 22)
    assert day_of(1_763_856_000_000_000) == date(2025, 11, 23)
    assert len({chain_key(Keyring.generate()) for _ in range(2)}) == 2
