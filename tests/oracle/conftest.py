"""The platform as a target of programs, and where programs that failed are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudsync.dev.platform import Platform
from cloudsync.verify.local import target_of
from cloudsync.verify.program import Program, encode
from cloudsync.verify.runner import Report, Runner
from cloudsync.verify.target import Target

REGRESSIONS = Path(__file__).parent / "regressions"


@pytest.fixture(scope="session")
def target(platform: Platform) -> Target:
    return target_of(platform)


@pytest.fixture(scope="session")
def run(target: Target) -> Callable[[Program], Report]:
    """Runs a program in a loop of its own: hypothesis calls from outside of any."""

    def run_program(program: Program) -> Report:
        return asyncio.run(Runner(target, program, settle_s=20).run())

    return run_program


@pytest.fixture(scope="session")
def run_both(target: Target) -> Callable[[Program, Program], list[Report]]:
    """Runs two programs at once, each in tables of its own: much of a run is waiting for still views."""

    async def run_programs(*programs: Program) -> list[Report]:
        runs = (Runner(target, program, settle_s=20).run() for program in programs)
        return await asyncio.gather(*runs)

    return lambda first, second: asyncio.run(run_programs(first, second))


def explain(program: Program, report: Report) -> str:
    """For a failing test: what was wrong, and the program to keep in `regressions/`."""
    return "\n".join([*report.findings[:8], encode(program).decode()])
