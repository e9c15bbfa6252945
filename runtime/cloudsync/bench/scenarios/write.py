"""One client writes, another sees it: from the frame being sent to the confirmation and to the other."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Final

import msgspec

from cloudsync.bench.options import Options, now
from cloudsync.bench.report import Result
from cloudsync.bench.tables import FIRST_ROW, TABLE, BenchTable
from cloudsync.bench.target import Target
from cloudsync.bench.usage import Usage
from cloudsync.client.raw import RawConnection
from cloudsync.client.rest import Rest
from cloudsync.protocol.messages import Change

_ROWS: Final = 1000
_WARM_UP_S: Final = 2.0
_PATIENCE_S: Final = 30.0
_decode: Final = msgspec.json.Decoder().decode


def run(options: Options) -> Result:
    """Updates of random rows, one field each, on a clock; every tenth creates a row."""
    seconds, rate = options.seconds or 20.0, options.rate or 50.0
    started = now()
    with options.target() as target, BenchTable(target, rows=_ROWS):
        usage = Usage(target.processes())
        found = asyncio.run(_measure(target, options, seconds, rate))
        used = usage.end()
    return Result(
        scenario="write",
        started_at=started,
        config={"platform": options.place, "changes_per_s": rate, "seconds": seconds},
        metrics={**found, **used.metrics()},
        notes=["Latency counts from the frame being sent; a change's commit is in between."],
    )


class _Pair:
    """The writer and the other client, and when each change was sent, confirmed and seen (seconds)."""

    def __init__(self, writer: RawConnection, reader: RawConnection) -> None:
        self.writer = writer
        self.reader = reader
        self.sent: dict[int, float] = {}
        self.confirmed: dict[int, float] = {}
        self.complete: dict[int, float] = {}
        self.seen: dict[int, float] = {}
        self.rejected = 0
        self.repeated = 0

    async def answers(self) -> None:
        while True:
            frame = _decode(await self.writer.receive())
            moment = time.monotonic()
            if frame["type"] == "change.confirmed":
                self.confirmed[frame["id"]] = moment
            elif frame["type"] == "sync.complete":
                self.complete[frame["id"]] = moment
            elif frame["type"] in ("change.rejected", "error"):
                self.rejected += 1

    async def deliveries(self) -> None:
        while True:
            frame = _decode(await self.reader.receive())
            moment = time.monotonic()
            if "n" not in frame:
                continue
            for event in frame.get("events", (frame,)):
                number = int((event.get("by") or {}).get("mutation_id", 0))
                self.repeated += number in self.seen
                self.seen[number] = moment
            await self.reader.ack(frame["n"])

    async def write(self, seconds: float, rate: float) -> list[int]:
        """The numbers of the changes that were sent."""
        chance = random.Random(7)  # noqa: S311 - the same load every time
        due = time.monotonic()
        numbers = []
        for _ in range(round(seconds * rate)):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + 1 / rate, time.monotonic())  # made up for, a pause would break the limit
            number = len(self.sent) + 1
            change = _change(number, chance)
            self.sent[number] = time.monotonic()
            await self.writer.send(change)
            numbers.append(number)
        return numbers

    async def settled(self, numbers: list[int]) -> None:
        """Wait until every change has been answered and seen."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s:
            if numbers[-1] in self.complete and all(n in self.seen and n in self.confirmed for n in numbers):
                return
            await asyncio.sleep(0.01)


def _change(number: int, chance: random.Random) -> Change:
    if number % 10 == 0:
        values: dict[str, Any] = {"title": f"Written {number}", "amount": "1.50"}
        return Change(number, "create", TABLE, {"id": str(FIRST_ROW + _ROWS + number)}, values)
    key = {"id": str(FIRST_ROW + chance.randrange(_ROWS))}
    return Change(number, "update", TABLE, key, {"quantity": number})


async def _measure(target: Target, options: Options, seconds: float, rate: float) -> dict[str, float]:
    pair = _Pair(await _connect(target, "writer"), await _connect(target, "reader"))
    await pair.reader.subscribe("s1", TABLE, snapshot=False)
    while _decode(await pair.reader.receive())["type"] != "subscribed":
        pass
    tasks = [asyncio.create_task(pair.answers()), asyncio.create_task(pair.deliveries())]
    await pair.settled(await pair.write(min(_WARM_UP_S, seconds), rate))
    options.say(f"{rate:g} changes/s for {seconds:g} s")
    numbers = await pair.write(seconds, rate)
    await pair.settled(numbers)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await pair.writer.close()
    await pair.reader.close()
    return {
        **_percentiles("confirm", numbers, pair.sent, pair.confirmed),
        **_percentiles("end_to_end", numbers, pair.sent, pair.seen),
        **_percentiles("complete", numbers, pair.sent, pair.complete),
        "changes": len(numbers),
        "unconfirmed": sum(n not in pair.confirmed for n in numbers),
        "lost": sum(n not in pair.seen for n in numbers),
        "rejected": pair.rejected,
        "repeated": pair.repeated,
    }


def _percentiles(
    name: str, numbers: list[int], began: dict[int, float], ended: dict[int, float]
) -> dict[str, float]:
    taken_ms = sorted(1000 * (ended[n] - began[n]) for n in numbers if n in ended)
    if not taken_ms:
        return {}
    return {
        f"{name}_p{percent}_ms": round(taken_ms[min(len(taken_ms) - 1, len(taken_ms) * percent // 100)], 2)
        for percent in (50, 95, 99)
    }


async def _connect(target: Target, user: str) -> RawConnection:
    token = target.token(user)
    rest = Rest(target.api_url)
    client_id = await rest.register(token, name="bench", platform=None, ephemeral=True)
    return await RawConnection.open(await rest.endpoint(token), token=token, client_id=client_id)
