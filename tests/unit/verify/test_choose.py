"""Programs as data: the same seed is the same program, and a program that was kept is the one that ran."""

from __future__ import annotations

import itertools

import pytest

from cloudsync.verify import choose
from cloudsync.verify.chooser import Seeded
from cloudsync.verify.program import (
    KEYS,
    Break,
    Disturb,
    Shape,
    Subscribe,
    Transaction,
    decode,
    encode,
)
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


def test_programs_are_dense() -> None:
    """Most conditions are on what is set, and every scene that catches faults comes up in a few programs."""
    programs = [choose.program(Seeded(seed), steps=30, faults=True) for seed in range(60)]
    steps = [step for program in programs for step in program.steps]
    transactions = [step for step in steps if isinstance(step, Transaction)]
    asked = [
        condition.column - len(program.tables[step.table].key)
        for program in programs
        for step in program.steps
        if isinstance(step, Subscribe)
        for condition in step.where
    ]
    payload = sum(column >= 3 for column in asked)
    assert payload > len(asked) / 2
    assert sum(len(step.operations) for step in transactions) > 3 * len(transactions)
    overlapping = [
        (first, second)
        for first, second in itertools.pairwise(transactions)
        if first.end == "open" and second.end == "commit" and first.session != second.session
    ]
    assert len(overlapping) >= len(programs) / 2
    assert sum(isinstance(step, Disturb) and step.act == "away" for step in steps) >= len(programs)
    breaks = [step for step in steps if isinstance(step, Break)]
    assert {step.fault for step in breaks} == set(range(12))
    assert all(step.during for step in breaks)
