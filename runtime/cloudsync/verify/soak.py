"""`cloudsync soak`: minutes of writes and watching clients, while one process after the other is killed."""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import signal
import time
from collections.abc import Sequence
from typing import Final

import msgspec
from rich.console import Console

from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from cloudsync.verify.chooser import Chooser, Seeded
from cloudsync.verify.filters import translate
from cloudsync.verify.ledger import Ledger, User
from cloudsync.verify.local import faults_of, target_of
from cloudsync.verify.observer import Observer, Watch
from cloudsync.verify.program import (
    Condition,
    Join,
    Leave,
    Operations,
    Put,
    Remove,
    Set,
    Shape,
    Transaction,
)
from cloudsync.verify.runner import Report
from cloudsync.verify.scratch import Scratch
from cloudsync.verify.target import Fault, Target
from cloudsync.verify.truth import Question, Truth
from cloudsync.verify.writer import Writer

_SHAPES: Final = (
    Shape(columns=("integer", "text", "numeric"), readers="tenant", tenant_in_key=True),
    Shape(key=("bigint",), columns=("integer", "boolean"), readers="owner", owner="bigint"),
    Shape(columns=("text", "timestamptz"), readers="members_and_owner"),
)
_KEYS: Final = 300
_USERS_A_TENANT: Final = 10
_WRITERS: Final = 24
_JUDGE_EVERY_S: Final = 2.0
_RECOVER_S: Final = 60.0
_STRUCK_S: Final = 0.1
_PROBE_S: Final = 0.25


class Soak(msgspec.Struct, kw_only=True):
    """What a soak is asked to do."""

    minutes: float = 10.0
    rate: float = 200.0
    clients: int = 200
    kill_every_s: float = 10.0
    seed: int = 0


class Strike(msgspec.Struct):
    """A fault, and how long after it until a change written since then had come everywhere."""

    name: str
    flowing_s: float | None = None


class Run:
    """One soak on a target."""

    def __init__(self, target: Target, options: Soak, console: Console) -> None:
        self._target, self._options, self._console = target, options, console
        self._random = random.Random(options.seed)  # noqa: S311 - which process to kill
        self.strikes: list[Strike] = []
        self.report = Report()
        self.seconds = 0.0

    async def run(self) -> None:
        scratch = Scratch(self._target.postgres_url, _SHAPES, tenants=self._target.tenants, keys=_KEYS)
        await asyncio.to_thread(scratch.__enter__)
        try:
            await self._run(scratch)
        finally:
            await asyncio.shield(asyncio.to_thread(scratch.drop))

    async def _run(self, scratch: Scratch) -> None:
        self._ledger = Ledger({table.name: table.shape for table in scratch.tables})
        writers = [Writer(scratch, self._ledger) for _ in range(_WRITERS + 1)]
        self._probe = writers[-1]
        self._observers = [self._observer(scratch, number) for number in range(self._options.clients)]
        try:
            async with Truth(scratch) as truth:
                await self._connect(scratch)
                self._console.print(f"{len(self._observers)} clients are live; writing …")
                await self._disturbed(writers)
                await self._settle(truth)
                self.report.wrong += await truth.distrust(self._target.users)
        finally:
            await asyncio.gather(*(o.leave() for o in self._observers), *(w.close() for w in writers))
        for observer in self._observers:
            observer.judge()
            self.report.leaked += observer.leaks
            self.report.wrong += observer.findings
            self.report.events += observer.counts.events
            self.report.connections += observer.counts.connections
            for way, count in observer.counts.resumed.items():
                self.report.resumed[way] = self.report.resumed.get(way, 0) + count
        self.report.images = self._ledger.committed
        self.report.refused = sum(writer.refused for writer in writers)

    def _observer(self, scratch: Scratch, number: int) -> Observer:
        users = self._target.users
        user = users[number % len(users)]
        return Observer(
            user,
            scratch.tables,
            self._ledger,
            url=self._target.api_url,
            token=lambda: self._target.token(user, self._target.token_lifetime_s),
            label=f"client {number}",
        )

    async def _connect(self, scratch: Scratch) -> None:
        gate = asyncio.Semaphore(16)

        async def connect(number: int, observer: Observer) -> None:
            async with gate:
                await observer.open()
                table = scratch.tables[number % len(scratch.tables)]
                # One in six watches all that its user may see, the others one or a few values of a column.
                first = len(table.key) + 3  # behind tenant, owner and room
                chosen = (
                    ()
                    if number // 3 % 6 == 0
                    else (Condition(first, number // 3 % 2 * 3, (number, number + 1)),)
                )
                where, condition = translate(table, chosen)
                observer.subscribe(Watch(table.number, where, condition, None))
                await observer.wait_settled()

        await asyncio.gather(*(connect(number, observer) for number, observer in enumerate(self._observers)))

    async def _disturbed(self, writers: list[Writer]) -> None:
        began_s = time.monotonic()
        deadline_s = began_s + self._options.minutes * 60
        async with asyncio.TaskGroup() as group:
            for number, writer in enumerate(writers[:-1]):
                group.create_task(self._write(writer, number, deadline_s))
            group.create_task(self._judge(deadline_s))
            group.create_task(self._strike(deadline_s))
        self.seconds = time.monotonic() - began_s

    async def _write(self, writer: Writer, number: int, deadline_s: float) -> None:
        chooser = Seeded(self._options.seed * 1000 + number)
        began_s = time.monotonic()
        while (now_s := time.monotonic()) < deadline_s:
            ahead_s = self._ledger.committed / self._options.rate - (now_s - began_s)
            if ahead_s > 0:
                await asyncio.sleep(min(ahead_s, deadline_s - now_s))
            operations = chooser.several(_operation, least=1, most=3)
            end = chooser.pick(("commit",) * 15 + ("rollback",))
            await writer.carry_out(Transaction(operations, "commit" if end == "commit" else "rollback"))

    async def _judge(self, deadline_s: float) -> None:
        while time.monotonic() < deadline_s:
            await asyncio.sleep(_JUDGE_EVERY_S)
            for observer in self._observers:
                observer.judge(busy=True)
                await asyncio.sleep(0)

    async def _strike(self, deadline_s: float) -> None:
        """One fault every so often, of each kind in turn, in a random order."""
        waiting: list[Fault] = []
        next_s = time.monotonic() + self._options.kill_every_s
        while next_s < deadline_s - self._options.kill_every_s / 2:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            next_s = max(next_s + self._options.kill_every_s, time.monotonic())
            if not waiting:
                waiting = list(self._target.faults)
                self._random.shuffle(waiting)
            fault = waiting.pop()
            strike = Strike(fault.name)
            self.strikes.append(strike)
            began_s = time.monotonic()
            striking = asyncio.create_task(asyncio.to_thread(fault.strike))
            await asyncio.sleep(_STRUCK_S)
            strike.flowing_s = await self._flowing(began_s)
            await striking
            if strike.flowing_s is None:
                self.report.wrong.append(f"{strike.name}: changes did not flow within {_RECOVER_S:g} s")
            self._line(strike)

    async def _flowing(self, began_s: float) -> float | None:
        """Write a row until every client that watches all of its tenant's rows has it anew."""
        user = self._observers[0].user
        watching = [
            watch.view
            for observer in self._observers
            for watch in observer.watches
            if watch.view and watch.table == 0 and watch.where is None and observer.user.tenant == user.tenant
        ]
        key = (user.tenant, 0)
        before = [view.versions.get(key, -1) for view in watching]
        while time.monotonic() - began_s < _RECOVER_S:
            await self._probe.carry_out(Transaction((Put(),)))
            again_s = time.monotonic() + _PROBE_S
            while time.monotonic() < again_s:
                if all(view.versions.get(key, -1) > old for view, old in zip(watching, before, strict=True)):
                    return time.monotonic() - began_s
                await asyncio.sleep(0.01)
        return None

    def _line(self, strike: Strike) -> None:
        flowing = f"{strike.flowing_s:.1f} s" if strike.flowing_s is not None else "NOT again"
        events = sum(observer.counts.events for observer in self._observers)
        self._console.print(
            f"  {strike.name:34} changes flow after {flowing:9} "
            f"{self._ledger.committed:9,} images {events:11,} events"
        )

    async def _settle(self, truth: Truth) -> None:
        deadline_s = time.monotonic() + _RECOVER_S
        while True:
            failures = [text for o in self._observers if (text := o.failure(o.watches[0])) is not None]
            differences = [] if failures else await self._differences(truth)
            if not differences or time.monotonic() > deadline_s:
                break
            await asyncio.sleep(0.3)
        self.report.failed += failures
        self.report.lost += differences

    async def _differences(self, truth: Truth) -> list[str]:
        unsettled = [f"{o.label} is {o.client.state}" for o in self._observers if not o.settled]
        if unsettled:
            return unsettled
        questions: dict[tuple[User, int, str], Question] = {}
        keys = []
        for observer in self._observers:
            watch = observer.watches[0]
            key = (observer.user, watch.table, str(watch.where))
            questions.setdefault(key, Question(observer.user, watch.table, watch.condition))
            keys.append(key)
        answers = dict(zip(questions, await truth.rows(list(questions.values())), strict=True))
        found = [
            observer.difference(observer.watches[0], answers[key])
            for observer, key in zip(self._observers, keys, strict=True)
        ]
        return [text for text in found if text is not None]


def _operation(chooser: Chooser) -> Operations:
    table, key = chooser.number(2), chooser.number(_KEYS - 1)
    kind = chooser.pick("ppppsssssssrjl")
    if kind == "p":
        return Put(
            table=table,
            key=key,
            tenant=chooser.number(1),
            owner=chooser.number(4),
            room=chooser.number(3),
            values=chooser.several(lambda c: c.number(8), least=2, most=3),
        )
    if kind == "s":
        return Set(table, chooser.number(5), chooser.number(8), key)
    if kind == "r":
        return Remove(table, key)
    if kind == "j":
        return Join(chooser.number(2), chooser.number(4))
    return Leave(chooser.number(2), chooser.number(4))


def main(arguments: Sequence[str]) -> int:
    """0 if all clients equal SQL at the end and nothing leaked, 1 if not, 130 after Ctrl-C."""
    parsed = _parser().parse_args(list(arguments))
    options = Soak(
        minutes=parsed.minutes,
        rate=parsed.rate,
        clients=parsed.clients,
        kill_every_s=parsed.kill_every,
        seed=parsed.seed,
    )
    console = Console(highlight=False, soft_wrap=True)
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    _allow_files(4 * options.clients + 256)
    try:
        with Platform(PlatformOptions.private(gateways=2, standby=True, durable=True)) as platform:
            target = target_of(platform)
            users = [User(t, str(n + 1)) for t in target.tenants for n in range(_USERS_A_TENANT)]
            run = Run(target._replace(users=users, faults=faults_of(platform)), options, console)
            console.print(
                f"{options.minutes:g} minutes, {options.rate:g} changes/s, {options.clients} clients, "
                f"a fault every {options.kill_every_s:g} s (seed {options.seed})"
            )
            asyncio.run(run.run())
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.", style="dim")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    _show(run, console)
    return 0 if run.report.good else 1


def _show(run: Run, console: Console) -> None:
    from cloudsync.verify.command import show

    console.print(
        f"{run.report.images / run.seconds:.0f} changes/s committed over {run.seconds:.0f} s, "
        f"{run.report.refused:,} transactions refused by PostgreSQL (locks, taken keys)."
    )
    by_name: dict[str, list[Strike]] = {}
    for strike in run.strikes:
        by_name.setdefault(strike.name, []).append(strike)
    for name, strikes in sorted(by_name.items()):
        flowing = [strike.flowing_s for strike in strikes if strike.flowing_s is not None]
        slowest = (
            f"changes flow after at most {max(flowing):.1f} s" if flowing else "changes did not flow again"
        )
        console.print(f"  {name}: {len(strikes)} times, {slowest}")
    recovered = sum(strike.flowing_s is not None for strike in run.strikes)
    console.print(f"{len(run.strikes)} faults, {recovered} recoveries.")
    show(run.report, console)


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloudsync soak",
        description="Run a platform of its own under writes and watching clients while its processes are "
        "killed one after the other, and compare every view with SQL at the end.",
    )
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="how long (10)")
    parser.add_argument("--rate", type=float, default=200.0, metavar="N", help="changes per second (200)")
    parser.add_argument("--clients", type=int, default=200, metavar="N", help="how many watch (200)")
    parser.add_argument(
        "--kill-every", type=float, default=10.0, metavar="S", help="seconds between faults (10)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of writes and faults (0)")
    return parser
