"""Recorded editing, read so that it can be replayed by clients that hear of each other when they do.

A patch of a concurrent trace names positions in the merge of its parents. Here every character that is ever
inserted has a rank: its place among all of them, those deleted included. Wherever a client is, a character's
place in its text is that among the ranks there. The ranks follow from the trace alone: a character belongs
behind the one that it was inserted behind.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "data" / "editing-traces"
FIRST_CODE_POINT = 0xF0000
"""Ranks as characters of a private plane: each is in the text once, and tells where it belongs."""


def read(name: str) -> dict[str, Any]:
    trace: dict[str, Any] = json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))
    return trace


class Step(NamedTuple):
    """One transaction of one person: characters inserted and deleted, after `heard` steps of the other's."""

    agent: int
    inserted: list[str]
    deleted: list[str]
    heard: int


class Concurrent:
    """The first transactions of a trace of two, each of one character, as steps by ranks."""

    def __init__(self, trace: dict[str, Any], limit: int | None = None) -> None:
        self._letters: list[str] = []
        self._order: list[int] = []
        """Numbers of all characters, those deleted included, where they belong."""
        self._people = (_Person(), _Person())
        self._clocks: list[tuple[int, int]] = []
        """For each transaction how many of either person's are among it and its ancestors."""
        raw = [self._read(transaction) for transaction in trace["txns"][:limit]]
        ranks = {number: chr(FIRST_CODE_POINT + rank) for rank, number in enumerate(self._order)}
        self._meanings = {rank: self._letters[number] for number, rank in ranks.items()}
        self.steps = [
            Step(agent, [ranks[n] for n in inserted], [ranks[n] for n in deleted], heard)
            for agent, inserted, deleted, heard in raw
        ]
        for person, other in (self._people, self._people[::-1]):
            self._hear(person, other, len(other.did))
        assert self._people[0].text == self._people[1].text
        self.text = "".join(self._letters[number] for number in self._people[0].text)
        """What any correct merge ends with, if no two insertions met at one place."""

    def spelled(self, text: str) -> str:
        """A text of ranks in the letters that they stand for."""
        return "".join(map(self._meanings.__getitem__, text))

    def _read(self, transaction: dict[str, Any]) -> tuple[int, list[int], list[int], int]:
        agent = transaction["agent"]
        person, other = self._people[agent], self._people[1 - agent]
        clocks = [self._clocks[parent] for parent in transaction["parents"]] or [(0, 0)]
        heard = max(clock[1 - agent] for clock in clocks)
        assert max(clock[agent] for clock in clocks) == len(person.did)
        self._hear(person, other, heard)
        ((place, count, text),) = transaction["patches"]
        gone = person.text[place : place + count]
        del person.text[place : place + count]
        behind = person.text[place - 1] if place else -1
        new = range(len(self._letters), len(self._letters) + len(text))
        self._letters += text
        at = self._order.index(behind) + 1 if place else 0
        self._order[at:at] = new
        person.text[place:place] = new
        person.did.append((list(new), gone))
        mine = len(person.did)
        self._clocks.append((mine, heard) if agent == 0 else (heard, mine))
        return agent, list(new), gone, heard

    def _hear(self, person: _Person, other: _Person, upto: int) -> None:
        """Bring a person's text up to what the other had done."""
        for new, gone in other.did[person.heard : upto]:
            for number in gone:
                if number in person.text:
                    person.text.remove(number)
            if new:
                there = set(person.text)
                at = self._order.index(new[0])
                while at and self._order[at - 1] not in there:
                    at -= 1
                place = person.text.index(self._order[at - 1]) + 1 if at else 0
                person.text[place:place] = new
        person.heard = max(person.heard, upto)


class _Person:
    def __init__(self) -> None:
        self.text: list[int] = []
        self.did: list[tuple[list[int], list[int]]] = []
        self.heard = 0
