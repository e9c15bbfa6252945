"""The oracle notices: each kind of fault, made on purpose, is found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cloudsync.client.frames import DataCreate
from cloudsync.verify.program import Program, Put, Set, Settle, Shape, Subscribe, Transaction
from cloudsync.verify.runner import Report, Runner
from cloudsync.verify.target import Target

OWNED = Program(
    tables=(Shape(columns=("integer",), readers="owner"),),
    steps=(
        Subscribe(client=0, user=0),
        Subscribe(client=1, user=1),
        Transaction(
            (Put(key=1, owner=0), Put(key=2, owner=1)),
        ),
        Settle(),
        Transaction((Set(column=3, value=1, key=1),)),
    ),
)


class Sabotaged(Runner):
    """Does something to the platform's work right before the last transaction."""

    def __init__(self, target: Target, program: Program, act: Callable[[Sabotaged], None]) -> None:
        super().__init__(target, program, settle_s=2)
        self._act = act
        self._url = target.postgres_url

    async def _step(self, step: Any) -> None:
        if step is self._program.steps[-1]:
            self._act(self)
        await super()._step(step)

    def alter(self, text: str) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("SET cloudsync.tracking = 'on'")  # or capture would keep itself enabled
            connection.execute(sql.SQL(text).format(self._scratch.tables[0].identifier))


def sabotaged(target: Target, act: Callable[[Sabotaged], None]) -> Report:
    return asyncio.run(Sabotaged(target, OWNED, act).run())


def test_the_program_is_sound_without_sabotage(target: Target) -> None:
    report = sabotaged(target, lambda _: None)
    assert report.good, report.findings
    assert (report.images, report.events) == (3, 3)


def test_a_change_that_is_not_captured(target: Target) -> None:
    report = sabotaged(target, lambda run: run.alter("ALTER TABLE {} DISABLE TRIGGER cloudsync_capture"))
    assert report.lost
    assert not report.leaked


def test_a_policy_that_shows_too_much(target: Target) -> None:
    report = sabotaged(target, lambda run: run.alter("ALTER POLICY cloudsync_client ON {} USING (true)"))
    assert any("row-level security shows" in finding for finding in report.wrong)


@pytest.mark.parametrize("mark", ["theirs", "unheard of", None])
def test_a_row_that_is_sent_to_somebody_else(target: Target, mark: str | None) -> None:
    """As if the gateway had sent the second user's row to the first one."""

    def leak(run: Sabotaged) -> None:
        first, second = run._present
        (view,) = (watch.view for watch in second.watches)
        assert view is not None
        ((key, row),) = view.rows.items()
        row = {"theirs": {"mark": row["mark"]}, "unheard of": {"mark": "m0"}, None: {}}[mark]
        (theirs,) = first.watches
        assert theirs.view is not None
        id_ = theirs.view.subscription.id
        first._frame(DataCreate(key={"k1": key[0]}, version=9, row=row, sub=[id_]))

    report = sabotaged(target, leak)
    assert len(report.leaked) == 1, report.findings
    assert not report.lost
