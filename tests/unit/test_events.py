"""Positions: two text forms that lose nothing, one order in Python and in PostgreSQL."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.events import ORIGIN, Position, format_lsn, parse_lsn

lsns = st.integers(0, 2**64 - 1)
positions = st.builds(Position, lsns, st.integers(0, 2**40))


@given(positions)
def test_wire_form_and_entry_id_lose_nothing(position: Position) -> None:
    assert Position.parse(str(position)) == position
    assert Position.from_entry_id(position.entry_id) == position
    assert Position.from_entry_id(position.entry_id.encode()) == position


@given(lsns)
def test_lsn_round_trip(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


def test_known_forms() -> None:
    assert str(Position(0x16_B374D848, 3)) == "16/B374D848.3"
    assert Position.parse("16/B374D848.3") == Position(0x16_B374D848, 3)
    assert ORIGIN.entry_id == "0-0"


@pytest.mark.parametrize("text", ["", "16", "16/", "/1", "16/G.1", "16/1", "16/1.", "16/1.x"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Position.parse(text)


@given(positions, positions)
def test_order_is_lsn_then_ordinal(a: Position, b: Position) -> None:
    assert (a < b) == ((a.lsn, a.ordinal) < (b.lsn, b.ordinal))
    assert (a == b) == (a.entry_id == b.entry_id)


def test_lsn_text_is_postgresqls(postgres: EmbeddedPostgres) -> None:
    values = [0, 1, 0xFFFFFFFF, 0x1_00000000, 0x16_B374D848, 2**63 - 1, 2**64 - 1]
    with psycopg.connect(postgres.url()) as connection:
        for value in values:
            row = connection.execute(
                "SELECT %(t)s::pg_lsn::text, (%(t)s::pg_lsn - '0/0'::pg_lsn)::text", {"t": format_lsn(value)}
            ).fetchone()
            assert row is not None
            assert parse_lsn(row[0]) == value
            assert row[1] == str(value)
