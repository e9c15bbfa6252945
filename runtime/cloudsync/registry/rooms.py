"""Who is present in a topic, as one gateway knows it: its own members, and what other gateways say of theirs.

Pure: messages in, messages out, time by the caller. Nothing is stored anywhere. A gateway tells what changes,
and all of its members every few seconds, so that whoever missed a message, or came later, is put right, and
the members of a gateway that says nothing any more are forgotten. The members that are told are the
first that came, up to a limit; of the others it is known that they are there.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

import msgspec

MEMBERS_TOLD: Final = 100
"""More members of a topic are counted, not told."""
REFRESH_S: Final = 5.0
FORGET_S: Final = 12.0
"""A gateway that was not heard of for so long is dead, for all that a room knows."""


class Member(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Somebody who is here: one subscription of one connection. `since_ms` orders them; `state` is JSON."""

    id: str
    user: str
    client: str
    since_ms: int
    state: msgspec.Raw

    @property
    def order(self) -> tuple[int, str]:
        return self.since_ms, self.id


class Said(msgspec.Struct, gc=False, array_like=True):
    """What a gateway tells the others of a topic. `whole`: these are all that it tells of.

    `number` counts its messages, so that an older one is not believed. `asks`: it has just come and knows
    nobody.
    """

    gateway: str
    number: int
    here: list[Member]
    gone: list[str]
    count: int
    whole: bool = False
    asks: bool = False


class News(msgspec.Struct, frozen=True):
    """What this gateway's watchers are to be told."""

    here: list[Member]
    gone: list[str]
    count: int


class _Others:
    """The members of another gateway."""

    def __init__(self) -> None:
        self.number = 0
        self.heard_s = 0.0
        self.count = 0
        self.members: dict[str, Member] = {}


class Room:
    """The members of one topic. `numbers` go on where a room is given up and made anew.

    `phase_s` sets when in the course of `REFRESH_S` all are told again, so that many rooms of a gateway do it
    at different times.
    """

    def __init__(self, gateway: str, numbers: Iterator[int], phase_s: float = 0.0) -> None:
        self._gateway = gateway
        self._phase_s = phase_s
        self._numbers = numbers
        self._own: dict[str, Member] = {}
        self._said: dict[str, Member] = {}
        self._said_count = 0
        self._others: dict[str, _Others] = {}
        self._told: dict[str, Member] = {}
        self._told_count = 0
        self.whole_due_s = 0.0
        """When all own members are to be told again, changed or not."""

    def enter(self, member: Member) -> None:
        """A member of this gateway is here, or has another state."""
        self._own[member.id] = member

    def leave(self, member_id: str) -> None:
        self._own.pop(member_id, None)

    @property
    def count(self) -> int:
        return len(self._own) + sum(others.count for others in self._others.values())

    @property
    def silent(self) -> bool:
        """Whether no gateway believes that anybody is here."""
        return not self._own and not self._said

    def here(self) -> list[Member]:
        """Those that are told of, in the order in which they came."""
        everybody = [*self._own.values()]
        for others in self._others.values():
            everybody += others.members.values()
        return heapq.nsmallest(MEMBERS_TOLD, everybody, key=lambda member: member.order)

    def hear(self, said: Said, now_s: float) -> None:
        """Take in what another gateway says."""
        if said.gateway == self._gateway:
            return
        others = self._others.get(said.gateway)
        if others is None:
            others = self._others[said.gateway] = _Others()
        elif said.number <= others.number:
            return
        others.number, others.heard_s, others.count = said.number, now_s, said.count
        if said.whole:
            others.members.clear()
        for member_id in said.gone:
            others.members.pop(member_id, None)
        for member in said.here[:MEMBERS_TOLD]:
            others.members[member.id] = member
        if said.asks:
            self.whole_due_s = 0.0

    def forget(self, now_s: float) -> None:
        """Let go of gateways that are dead; their last number stays known for as long again."""
        for gateway, others in list(self._others.items()):
            silent_s = now_s - others.heard_s
            if silent_s > 2 * FORGET_S:
                del self._others[gateway]
            elif silent_s > FORGET_S:
                others.members.clear()
                others.count = 0

    def say(self, now_s: float, *, asks: bool = False) -> Said | None:
        """What the other gateways are to be told now; None: nothing has changed."""
        wanted = {
            member.id: member
            for member in heapq.nsmallest(MEMBERS_TOLD, self._own.values(), key=lambda m: m.order)
        }
        whole = asks or (now_s >= self.whole_due_s and bool(wanted or self._said))
        here = [m for m in wanted.values() if whole or self._said.get(m.id) is not m]
        gone = [id_ for id_ in self._said if id_ not in wanted]
        if not (whole or here or gone or self._said_count != len(self._own)):
            return None
        if whole:
            self.whole_due_s = now_s + REFRESH_S - (now_s - self._phase_s) % REFRESH_S
        self._said, self._said_count = wanted, len(self._own)
        return Said(self._gateway, next(self._numbers), here, gone, len(self._own), whole, asks)

    def news(self) -> News | None:
        """What has changed for this gateway's watchers since they were told last; None: nothing."""
        wanted = {member.id: member for member in self.here()}
        here = [m for m in wanted.values() if self._told.get(m.id) != m]
        gone = [id_ for id_ in self._told if id_ not in wanted]
        count = self.count
        if not (here or gone or count != self._told_count):
            return None
        self._told, self._told_count = wanted, count
        return News(here, gone, count)
