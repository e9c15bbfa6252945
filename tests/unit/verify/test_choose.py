"""Programs as data: the same seed is the same program, and a program that was kept is the one that ran."""

from __future__ import annotations

import pytest

from cloudsync.verify import choose
from cloudsync.verify.choose import Seeded
from cloudsync.verify.program import KEYS, Shape, decode, encode
from cloudsync.verify.tables import Table


@pytest.mark.parametrize("seed", range(40))
def test_a_program_is_its_seed_and_survives_being_kept(seed: int) -> None:
    program = choose.program(Seeded(seed), steps=40, faults=True)
    assert program == choose.program(Seeded(seed), steps=40, faults=True)
    assert decode(encode(program)) == program


def test_seeds_differ() -> None:
    assert len({encode(choose.program(Seeded(seed))) for seed in range(40)}) == 40


@pytest.mark.parametrize("kinds", [("integer",), ("text",), ("date",), ("bytea",), ("enum", "bigint")])
def test_keys_are_distinct(kinds: tuple[str, ...]) -> None:
    table = Table(Shape(key=kinds), schema="s", number=0, tenants=("a", "b"))
    keys = {tuple(table.key_literals(number)) for number in range(KEYS)}
    assert len(keys) == KEYS
