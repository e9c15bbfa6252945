"""The judge itself: what it lets pass, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cloudsync.verify.ledger import Image, Ledger, Sighting, User, membership_key
from cloudsync.verify.program import Readers, Shape

ANN, BOB, STRANGER = User("acme", "1"), User("acme", "2"), User("umbrella", "1")


class World:
    """A ledger of one table whose clock is moved by hand."""

    def __init__(self, readers: Readers = "tenant") -> None:
        self.now_s = 0.0
        self.ledger = Ledger({"t": Shape(readers=readers)}, clock_s=lambda: self.now_s)
        self._orders: Iterator[int] = iter(range(1, 1000))
        self._marks: Iterator[int] = iter(range(1, 1000))

    def image(self, key: str = "[1]", **fields: Any) -> Image:
        fields = {"tenant": "acme", "owner": "1", "room": 0, "mark": f"m{next(self._marks)}"} | fields
        image = Image(table="t", key=key, order=next(self._orders), from_s=self.now_s, **fields)
        self.ledger.write(image)
        return image

    def write(self, key: str = "[1]", **fields: Any) -> Image:
        image = self.image(key, **fields)
        self.ledger.commit([image])
        return image

    def member(self, room: int, user: str, *, present: bool) -> None:
        key = membership_key(room, user)
        image = Image(table="", key=key, order=next(self._orders), present=present, from_s=self.now_s)
        self.ledger.commit([image])

    def verdict(self, user: User, image: Image, *, marked: bool = True) -> str | None:
        mark = image.mark if marked else None
        return self.ledger.judge(Sighting(user, "t", image.key, mark, "create"))


def test_a_tenants_rows_are_for_its_users() -> None:
    world = World()
    image = world.write()
    assert world.verdict(ANN, image) is None
    assert "without the right" in str(world.verdict(STRANGER, image))
    assert "could never see" in str(world.verdict(STRANGER, image, marked=False))


def test_an_owner_sees_a_row_while_it_is_theirs() -> None:
    world = World("owner")
    first, second = world.write(owner="1"), world.write(owner="2")
    assert world.verdict(ANN, first) is None
    assert "without the right" in str(world.verdict(ANN, second))
    assert world.verdict(ANN, second, marked=False) is None  # that it left is hers to know
    assert world.verdict(BOB, second) is None
    unowned = world.write("[2]", owner=None)
    assert world.verdict(ANN, unowned)


def test_a_member_sees_what_was_there_while_they_were_a_member() -> None:
    world = World("members")
    before = world.write()
    world.now_s = 1
    during = world.write()
    world.now_s = 2
    world.member(0, "1", present=True)
    world.now_s = 3
    world.member(0, "1", present=False)
    world.now_s = 4
    after = world.write()
    assert world.verdict(ANN, before)
    assert world.verdict(ANN, during) is None
    assert world.verdict(ANN, after)
    assert world.verdict(BOB, during)
    assert world.verdict(BOB, world.write(room=None)) is None


def test_an_owner_beside_the_members() -> None:
    world = World("members_and_owner")
    image = world.write(owner="2")
    assert world.verdict(BOB, image) is None
    assert world.verdict(ANN, image)


@pytest.mark.parametrize("end", ["roll_back", "open"])
def test_what_was_not_committed_may_not_be_seen(end: str) -> None:
    world = World()
    image = world.image()
    if end == "roll_back":
        world.ledger.roll_back([image])
    assert "transaction" in str(world.verdict(ANN, image))


def test_a_savepoints_images_stay_rolled_back() -> None:
    world = World()
    kept, undone = world.image(), world.image()
    world.ledger.roll_back([undone])
    world.ledger.commit([kept, undone])
    assert world.verdict(ANN, kept) is None
    assert "rolled back" in str(world.verdict(ANN, undone))


def test_what_nobody_wrote() -> None:
    world = World()
    image = world.write("[1]")
    assert "nobody wrote" in str(world.ledger.judge(Sighting(ANN, "t", "[2]", image.mark, "create")))


def test_commits_that_are_heard_of_in_the_wrong_order() -> None:
    world = World("members")
    first, second = world.image(), world.image()
    world.now_s = 1
    world.ledger.commit([second])
    world.now_s = 2
    world.ledger.commit([first])
    world.now_s = 5
    world.member(0, "1", present=True)
    assert world.verdict(ANN, first)  # it was over before she came
    assert world.verdict(ANN, second) is None
