"""Random programs against a real platform: every view equals SQL, nothing is lost, nobody sees too much."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cloudsync.verify import choose
from cloudsync.verify.chooser import Chooser
from cloudsync.verify.program import Program, decode
from cloudsync.verify.runner import Report
from oracle.conftest import REGRESSIONS, explain

T = TypeVar("T")
EXAMPLES = int(os.environ.get("ORACLE_EXAMPLES", "20"))
FAULTY = int(os.environ.get("ORACLE_FAULTY_EXAMPLES", "5"))


class Drawn:
    """Choices that hypothesis makes, and takes back one by one from a program that fails."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def number(self, most: int) -> int:
        return self._draw(st.integers(0, most))

    def pick(self, options: Any) -> Any:
        return self._draw(st.sampled_from(options))

    def several(self, make: Callable[[Chooser], T], *, least: int, most: int) -> tuple[T, ...]:
        @st.composite
        def element(draw: st.DrawFn) -> T:
            return make(Drawn(draw))

        return tuple(self._draw(st.lists(element(), min_size=least, max_size=most)))


@st.composite
def programs(draw: st.DrawFn, *, steps: int, faults: bool = False) -> Program:
    return choose.program(Drawn(draw), steps=steps, faults=faults)


def within(examples: int, *, shrink: bool = True) -> settings:
    return settings(
        max_examples=examples,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@within((EXAMPLES + 1) // 2)
@given(first=programs(steps=30), second=programs(steps=30))
def test_views_equal_sql(
    run_both: Callable[[Program, Program], list[Report]], first: Program, second: Program
) -> None:
    for program, report in zip((first, second), run_both(first, second), strict=True):
        assert report.good, explain(program, report)


@pytest.mark.slow
@pytest.mark.timeout(900)
@within(FAULTY, shrink=False)  # each try of a program that fails breaks things and waits
@given(program=programs(steps=12, faults=True))
def test_views_equal_sql_whatever_breaks(run: Callable[[Program], Report], program: Program) -> None:
    report = run(program)
    assert report.good, explain(program, report)


@pytest.mark.parametrize("name", sorted(path.name for path in REGRESSIONS.glob("*.json")))
def test_programs_that_failed_once(run: Callable[[Program], Report], name: str) -> None:
    program = decode((REGRESSIONS / name).read_bytes())
    report = run(program)
    assert report.good, explain(program, report)
