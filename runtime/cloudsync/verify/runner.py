"""Runs a program on a platform, and says what was wrong."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from cloudsync.errors import CloudSyncError
from cloudsync.verify.filters import translate
from cloudsync.verify.ledger import Ledger
from cloudsync.verify.observer import Observer, Watch
from cloudsync.verify.program import (
    Break,
    Disturb,
    Program,
    Steps,
    Subscribe,
    Together,
    Transaction,
    Unsubscribe,
)
from cloudsync.verify.scratch import Scratch
from cloudsync.verify.target import Target
from cloudsync.verify.truth import Question, Truth
from cloudsync.verify.writer import Writer

CLIENTS: Final = 4
SESSIONS: Final = 3
_POLL_S: Final = 0.05
_PATIENCE_S: Final = 1.0
_PACE_S: Final = 0.02
_REST_S: Final = 1.2
"""Gateways read how far they are once a second."""
_STILL_S: Final = 0.15
"""Views that are right must still be right after this time."""


class Report(msgspec.Struct):
    """What a run did and found; a run is good if nothing is `failed`, `lost`, `leaked` or `wrong`.

    `failed`: subscriptions that were refused or ended, so that there was nothing to compare. `lost`: views
    that differ from SQL. `leaked`: rows sent to who must not know of them. `wrong`: the rest.
    """

    failed: list[str] = []
    lost: list[str] = []
    leaked: list[str] = []
    wrong: list[str] = []
    images: int = 0
    events: int = 0
    connections: int = 0
    refused: int = 0
    faults: list[str] = []
    resumed: dict[str, int] = {}

    @property
    def good(self) -> bool:
        return not (self.failed or self.lost or self.leaked or self.wrong)

    @property
    def findings(self) -> list[str]:
        return [*self.leaked, *self.failed, *self.lost, *self.wrong]

    def add(self, other: Report) -> None:
        self.failed += other.failed
        self.lost += other.lost
        self.leaked += other.leaked
        self.wrong += other.wrong
        self.faults += other.faults
        self.images += other.images
        self.events += other.events
        self.connections += other.connections
        self.refused += other.refused
        for way, count in other.resumed.items():
            self.resumed[way] = self.resumed.get(way, 0) + count


class Runner:
    """One run of a program in a scratch schema of its own."""

    def __init__(self, target: Target, program: Program, *, settle_s: float = 30.0) -> None:
        self._target = target
        self._program = program
        self._settle_s = settle_s
        self.report = Report()

    async def run(self) -> Report:
        scratch = Scratch(self._target.postgres_url, self._program.tables, tenants=self._target.tenants)
        making = asyncio.create_task(asyncio.to_thread(scratch.__enter__))
        try:
            await asyncio.shield(making)
            async with self._prepared(scratch):
                for step in self._program.steps:
                    await self._step(step)
                    if self.report.lost or self.report.failed:
                        break  # each further comparison would wait for it in vain
                else:
                    await self._finish()
        finally:
            await asyncio.wait({making})  # an interrupt does not stop the thread that makes it
            if making.exception() is None:
                await asyncio.shield(asyncio.to_thread(scratch.drop))
        return self.report

    @contextlib.asynccontextmanager
    async def _prepared(self, scratch: Scratch) -> AsyncIterator[None]:
        self._scratch = scratch
        self._ledger = Ledger({table.name: table.shape for table in scratch.tables})
        self._observers: list[Observer | None] = [None] * CLIENTS
        self._past: list[Observer] = []
        self._writers = [Writer(scratch, self._ledger) for _ in range(2 * SESSIONS)]
        with tempfile.TemporaryDirectory(prefix="cloudsync-verify-") as self._folder:
            try:
                async with Truth(scratch) as self._truth:
                    yield
            finally:
                await asyncio.gather(
                    *(observer.leave() for observer in self._present), *(w.close() for w in self._writers)
                )
                self._sum_up()

    @property
    def _present(self) -> list[Observer]:
        return [observer for observer in self._observers if observer is not None]

    async def _step(self, step: Steps) -> None:
        if isinstance(step, Transaction):
            await self._writers[step.session % SESSIONS].carry_out(step)
        elif isinstance(step, Together):
            sessions = self._writers[SESSIONS:]
            await asyncio.gather(
                *(
                    writer.carry_out(msgspec.structs.replace(transaction, end="commit"))
                    for writer, transaction in zip(sessions, step.transactions, strict=False)
                )
            )
        elif isinstance(step, Subscribe):
            await self._subscribe(step)
        elif isinstance(step, Unsubscribe):
            observer = self._observers[step.client % CLIENTS]
            if observer is not None and observer.watches:
                await observer.unsubscribe(observer.watches[step.which % len(observer.watches)])
        elif isinstance(step, Disturb):
            await self._disturb(step)
        elif isinstance(step, Break):
            await self._break(step)
        else:
            await self._end_open(lambda writer: writer.exclusive_now)  # we are readers, too
            await self._settle([o for o in self._present if not o.away])
            if step.rested:
                await asyncio.sleep(_REST_S)

    async def _subscribe(self, step: Subscribe) -> None:
        number = step.client % CLIENTS
        observer = self._observers[number]
        if observer is None:
            user = self._target.users[step.user % len(self._target.users)]
            observer = Observer(
                user,
                self._scratch.tables,
                self._ledger,
                url=self._target.api_url,
                token=lambda: self._target.token(user, self._target.token_lifetime_s),
                label=f"client {number}",
                store=Path(self._folder) / f"{number}-{len(self._past)}.db" if number % 2 else None,
            )
            try:
                await observer.open()
            except CloudSyncError as error:
                self.report.wrong.append(f"client {number} could not connect: {error}")
                return
            self._observers[number] = observer
        table = self._scratch.tables[step.table % len(self._scratch.tables)]
        where, condition = translate(table, step.where)
        columns = None
        if step.columns is not None:
            columns = list(dict.fromkeys(table.columns[n % len(table.columns)].name for n in step.columns))
        watch = Watch(table.number, where, condition, columns or None, step.mode)
        observer.subscribe(watch)
        if step.wait and not observer.away and not any(writer.exclusive_now for writer in self._writers):
            # What the next step had better find; a view that never comes is said at the end.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(observer.wait_settled(), _PATIENCE_S)

    async def _disturb(self, step: Disturb) -> None:
        number = step.client % CLIENTS
        observer = self._observers[number]
        if observer is None:
            return
        if step.act == "cut":
            observer.suspend()
            observer.resume()
        elif step.act == "away":
            observer.suspend()
        elif step.act == "back":
            observer.resume()
        elif step.act == "slow":
            observer.slow()
        elif step.act == "renew":
            await observer.renew_token()
        elif step.act == "restart":
            await observer.restart()
        else:
            await self._close(number, observer)

    async def _close(self, number: int, observer: Observer) -> None:
        self._observers[number] = None
        self._past.append(observer)
        await observer.leave()

    async def _break(self, step: Break) -> None:
        if self._target.faults:
            fault = self._target.faults[step.fault % len(self._target.faults)]
            self.report.faults.append(fault.name)
            strike = asyncio.create_task(asyncio.to_thread(fault.strike))
            while True:
                for transaction in step.during:
                    writer = self._writers[transaction.session % SESSIONS]
                    await writer.carry_out(msgspec.structs.replace(transaction, end="commit"))
                    await asyncio.sleep(_PACE_S)
                if not step.during or strike.done():
                    break
            await strike

    async def _finish(self) -> None:
        await self._end_open(lambda writer: True)
        for observer in self._present:
            observer.resume()
        await self._settle(self._present)
        self.report.wrong += await self._truth.distrust(self._target.users)

    async def _end_open(self, which: Callable[[Writer], bool]) -> None:
        for writer in self._writers:
            if writer.open and which(writer):
                await writer.carry_out(Transaction(end="commit"))

    async def _settle(self, observers: Sequence[Observer]) -> None:
        """Wait until every view equals SQL, and see that it stays so."""
        for observer in observers:
            observer.client.resume_reading()
        deadline_s = time.monotonic() + self._settle_s
        right_since_s: float | None = None
        while True:
            failures = [text for o in observers for w in o.watches if (text := o.failure(w)) is not None]
            if failures:
                self.report.failed += failures
                differences = []
                break
            differences = await self._differences(observers)
            now_s = time.monotonic()
            if differences:
                right_since_s = None
                if now_s > deadline_s:
                    break
            elif right_since_s is None:
                right_since_s = now_s
            elif now_s - right_since_s >= _STILL_S:
                break
            await asyncio.sleep(_POLL_S)
        self.report.lost += differences
        for observer in (*observers, *self._past):
            observer.judge()

    async def _differences(self, observers: Sequence[Observer]) -> list[str]:
        pairs: list[tuple[Observer, Watch]] = [(o, watch) for o in observers for watch in o.watches]
        unsettled = [f"{o.label} is {o.client.state} ({o.client.error})" for o in observers if not o.settled]
        if unsettled:
            return unsettled
        answers = await self._truth.rows([Question(o.user, w.table, w.condition) for o, w in pairs])
        found: list[Any] = [
            observer.difference(watch, rows) for (observer, watch), rows in zip(pairs, answers, strict=True)
        ]
        return [text for text in found if text is not None]

    def _sum_up(self) -> None:
        report = self.report
        report.images = self._ledger.committed
        report.refused = sum(writer.refused for writer in self._writers)
        for observer in (*self._present, *self._past):
            report.wrong += observer.findings
            report.leaked += observer.leaks
            report.events += observer.counts.events
            report.connections += observer.counts.connections
            for way, count in observer.counts.resumed.items():
                report.resumed[way] = report.resumed.get(way, 0) + count
