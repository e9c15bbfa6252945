"""One text, several writers: from an edit to the other client and to its confirmation, and edits a second.

The writers are clients of the SDK: each has one operation under way and composes what is edited meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple

import psycopg

from cloudsync.bench.options import Options, now
from cloudsync.bench.report import Result
from cloudsync.bench.target import TENANT, Target
from cloudsync.bench.usage import Usage
from cloudsync.client import Document, Edit, TextEvent, connect

TABLE: Final = "public.cloudsync_bench_text"
_EDITS_PER_S: Final = 20.0
_WARM_UP_S: Final = 1.0
_PATIENCE_S: Final = 30.0
_AHEAD: Final = 50
"""Edits that a writer at full speed makes before it waits for the last of them to be confirmed."""
_FIRST_CHARACTER: Final = 0xF0000
_CHARACTERS: Final = 0x10FFFE - _FIRST_CHARACTER

_CREATE: Final = f"""
DROP TABLE IF EXISTS {TABLE};
CREATE TABLE {TABLE} (id integer PRIMARY KEY, body text NOT NULL DEFAULT '');
INSERT INTO {TABLE} (id) SELECT generate_series(1, 3);
"""


def run(options: Options) -> Result:
    """Two writers on a clock, then one and four as fast as they are confirmed, each on a text of its own."""
    seconds, rate = options.seconds or 20.0, options.rate or _EDITS_PER_S
    started = now()
    with options.target() as target, psycopg.connect(target.postgres_url, autocommit=True) as database:
        database.execute(_CREATE)
        database.execute(
            'SELECT cloudsync.track(%s::regclass, tenant => %s, columns => \'{"body": "ot"}\')',
            (TABLE, TENANT),
        )
        usage = Usage(target.processes())
        try:
            found = asyncio.run(_Bench(target, database, options).measure(seconds, rate))
        finally:
            database.execute(f"DROP TABLE IF EXISTS {TABLE}")
        used = usage.end()
    return Result(
        scenario="text",
        started_at=started,
        config={
            "platform": options.place,
            "edits_per_s_and_writer": rate,
            "seconds": seconds,
            "edits_ahead": _AHEAD,
        },
        metrics={**found, **used.metrics()},
        notes=[
            "Latency counts from the edit being made, with the commit in between.",
            "operations_per_s counts edits before composing, until every client has them all;"
            " stored_per_s what they were composed to.",
        ],
    )


class _Made(NamedTuple):
    """An edit: one character that no other inserts, when it was made, and its change."""

    character: str
    at_s: float
    edit: Edit


class _Bench:
    def __init__(self, target: Target, database: psycopg.Connection[Any], options: Options) -> None:
        self._target = target
        self._database = database
        self._options = options
        self._characters = itertools.cycle(range(_CHARACTERS))
        self._made: list[str] = []

    async def measure(self, seconds: float, rate: float) -> dict[str, float]:
        found: dict[str, float] = {"lost": 0, "repeated": 0, "diverged": 0}
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    connect(self._target.api_url, token=self._target.token(f"writer-{number}"))
                )
                for number in range(4)
            ]
            views = [await client.subscribe(TABLE) for client in clients]
            pair = [view.text((1,), "body") for view in views[:2]]
            self._options.say(f"two writers, {rate:g} edits/s each, for {seconds:g} s")
            await self._on_a_clock(pair, rate, min(_WARM_UP_S, seconds))
            found |= await self._on_a_clock(pair, rate, seconds)
            found = self._compared(found, 1, pair)
            for key, writers in ((2, 1), (3, 4)):
                self._options.say(f"{writers} at full speed for {seconds / 4:g} s")
                documents = [view.text((key,), "body") for view in views]
                found |= await self._flat_out(key, documents, writers, seconds / 4)
                found = self._compared(found, key, documents)
        return found

    async def _on_a_clock(self, pair: list[Document], rate: float, seconds: float) -> dict[str, float]:
        seen: dict[str, float] = {}
        confirmed: dict[str, float] = {}
        made: list[_Made] = []

        def note(event: TextEvent) -> None:
            if event.origin == "remote":
                moment_s = time.monotonic()
                for component in event.operation:
                    if isinstance(component, str):
                        seen.update(dict.fromkeys(component, moment_s))

        async def confirm(each: _Made) -> None:
            await each.edit.confirmed()
            confirmed[each.character] = time.monotonic()

        async def write(document: Document, seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311 - positions
            place, begin_s = 0, time.monotonic()
            for number in range(round(seconds * rate)):
                await asyncio.sleep(max(0.0, begin_s + number / rate - time.monotonic()))
                each, place = self._edit(document, place, chance)
                made.append(each)
                waiting.append(asyncio.create_task(confirm(each)))

        waiting: list[asyncio.Task[None]] = []
        stop = [document.on_change(note) for document in pair]
        await asyncio.gather(*(write(document, number) for number, document in enumerate(pair)))
        async with asyncio.timeout(_PATIENCE_S):
            await asyncio.gather(*waiting)
        await _until(lambda: all(each.character in seen for each in made))
        for remove in stop:
            remove()
        return {
            **_percentiles("end_to_end", [seen[e.character] - e.at_s for e in made]),
            **_percentiles("confirm", [confirmed[e.character] - e.at_s for e in made]),
            "edits": len(made),
        }

    async def _flat_out(
        self, key: int, documents: list[Document], writers: int, seconds: float
    ) -> dict[str, float]:
        """Edits a second until every client has all of them."""
        end_s = time.monotonic() + seconds

        async def write(document: Document, seed: int) -> int:
            chance = random.Random(seed)  # noqa: S311 - positions
            place = edits = 0
            while time.monotonic() < end_s:
                for _ in range(_AHEAD):
                    each, place = self._edit(document, place, chance)
                    edits += 1
                    await asyncio.sleep(0)
                await each.edit.confirmed()
            return edits

        begin_s = time.monotonic()
        counts = await asyncio.gather(*(write(documents[number], number) for number in range(writers)))
        # Every client has every edit.
        await _until(lambda: not any(d.pending for d in documents) and len({d.text for d in documents}) == 1)
        taken_s = time.monotonic() - begin_s
        ((stored,),) = self._database.execute(
            "SELECT count(*) FROM cloudsync.text_ops o JOIN cloudsync.tracked_tables t USING (table_id)"
            " WHERE t.relid = %s::regclass AND o.key = %s",
            (TABLE, f"[{key}]"),
        )
        return {
            f"operations_per_s_{writers}": round(sum(counts) / taken_s, 1),
            f"stored_per_s_{writers}": round(stored / taken_s, 1),
        }

    def _edit(self, document: Document, place: int, chance: random.Random) -> tuple[_Made, int]:
        """A character behind the one before, as somebody types; now and then somewhere else."""
        if chance.random() < 0.05 or place > len(document.text):
            place = chance.randint(0, len(document.text))
        character = chr(_FIRST_CHARACTER + next(self._characters))
        self._made.append(character)
        at_s = time.monotonic()
        edit = document.insert(place, character)
        return _Made(character, at_s, edit), place + 1

    def _compared(self, found: dict[str, float], key: int, documents: list[Document]) -> dict[str, float]:
        """Whether all have the text that SQL has, and every character is in it once."""
        ((text,),) = self._database.execute(f"SELECT body FROM {TABLE} WHERE id = %s", (key,))  # noqa: S608
        there, made = Counter(text), Counter(self._made)
        self._made.clear()
        found["lost"] += (made - there).total()
        found["repeated"] += (there - made).total()
        found["diverged"] += sum(document.text != text for document in documents)
        return found


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for a condition. Raises TimeoutError."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        if condition():
            return
        if time.monotonic() > deadline_s:
            raise TimeoutError("Edits are still missing somewhere.")
        await asyncio.sleep(0.005)


def _percentiles(name: str, taken_s: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * taken for taken in taken_s)
    return {
        f"{name}_p{percent}_ms": round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 2)
        for percent in (50, 95, 99)
        if ordered
    }
