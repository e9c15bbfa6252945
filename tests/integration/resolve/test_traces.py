"""Recorded editing through real clients, composed on the way: the table ends with the recorded text."""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from collections import Counter

import pytest

import traces
from cloudsync.client import Document, Edit, TextEvent
from cloudsync.dev.platform import Platform
from integration.path.world import World
from integration.resolve.test_documents_path import connect, converged, table

__all__ = ["table"]  # a fixture


_WHOLE = "CLOUDSYNC_WHOLE_TRACES" in os.environ


async def test_one_person_writing_a_component(platform: Platform, world: World, table: str) -> None:
    trace = traces.read("sveltecomponent")
    world.run(f"UPDATE {table} SET body = %s", trace["startContent"])
    async with connect(platform, "ann") as ann:
        document = (await ann.subscribe(table)).text((1,), "body")
        for transaction in trace["txns"]:
            for position, deleted, inserted in transaction["patches"]:
                document.replace(position, deleted, inserted)
            await asyncio.sleep(0)
        text = await converged(world, table, [document])
        assert text == trace["endContent"]


class _Friend:
    """One of two who write together: knows what has arrived of the other's."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.seen: set[str] = set()
        self.heard = 0
        self.edits: list[Edit] = []
        self._news = asyncio.Event()
        document.on_change(self._note)

    def _note(self, event: TextEvent) -> None:
        if event.origin == "remote":
            for component in event.operation:
                if isinstance(component, str):
                    self.seen.update(component)
            self._news.set()

    async def hear(self, other: _Friend, steps: list[traces.Step], upto: int) -> None:
        """Wait until the other's steps up to there have arrived, but for what he has deleted himself."""
        async with asyncio.timeout(30):
            while self.heard < upto:
                new = steps[self.heard].inserted
                if self.seen.issuperset(new) or not set(new) & set(other.document.text):
                    self.heard += 1
                    continue
                self._news.clear()
                await self._news.wait()

    def take(self, step: traces.Step) -> None:
        document = self.document
        for character in step.deleted:
            place = bisect_left(document.text, character)
            if document.text[place : place + 1] == character:
                self._follow(document.delete(place, 1))
        for character in step.inserted:
            self._follow(document.insert(bisect_left(document.text, character), character))

    def _follow(self, edit: Edit) -> None:
        if not self.edits or self.edits[-1] is not edit:  # else it was composed with the one before
            self.edits.append(edit)


@pytest.mark.timeout(300)
async def test_two_people_writing_at_once(platform: Platform, world: World, table: str) -> None:
    """In the recorded order, each as soon as what it was made from has arrived.

    Nobody hears less than in the recording. With CLOUDSYNC_WHOLE_TRACES=1 all of it, which takes a minute.
    """
    limit = None if _WHOLE else 1500
    trace = traces.read("friendsforever")
    recorded = traces.Concurrent(trace, limit)
    own = [[step for step in recorded.steps if step.agent == agent] for agent in (0, 1)]
    world.run(f"UPDATE {table} SET body = ''")
    async with connect(platform, "ann") as ann, connect(platform, "bob") as bob:
        friends = [_Friend((await client.subscribe(table)).text((1,), "body")) for client in (ann, bob)]
        for step in recorded.steps:
            friend = friends[step.agent]
            await friend.hear(friends[1 - step.agent], own[1 - step.agent], step.heard)
            friend.take(step)
            await asyncio.sleep(0)
        text = await converged(world, table, [friend.document for friend in friends])
    assert recorded.spelled(text) == recorded.text
    assert not _WHOLE or recorded.text == trace["endContent"]
    outcomes = Counter(edit.confirmation.outcome for f in friends for edit in f.edits if edit.confirmation)
    assert outcomes["merged"] > 20, outcomes  # they did write at once
