"""What was written and who could see it when: the judge of everything that clients are sent.

Rights are computed here, in Python, from tenant, owner, room and membership alone.

Each image of a row carries a number drawn in the database after the row's lock was taken, so the images of a
key are ordered as their transactions were, whatever the order in which this process hears of their commits.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import msgspec

from cloudsync.verify.program import Shape


class User(NamedTuple):
    tenant: str
    user: str


class Image(msgspec.Struct, kw_only=True, gc=False):
    """A row as one statement left it (`present`), or that it was gone afterwards; seconds are monotonic."""

    table: str
    key: str
    order: int
    mark: str = ""
    present: bool = True
    tenant: str = ""
    owner: str | None = None
    room: int | None = None
    from_s: float = 0.0
    until_s: float | None = None
    state: Literal["open", "committed", "rolled_back"] = "open"


class Sighting(NamedTuple):
    """An event that a client was sent."""

    user: User
    table: str
    key: str
    mark: str | None
    kind: str


class Ledger:
    """Images of all tables by key; memberships are images of the table "" with the key `room user`."""

    def __init__(self, shapes: dict[str, Shape], *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.shapes = shapes
        self.clock_s = clock_s
        self.committed = 0
        self._by_mark: dict[tuple[str, str, str], Image] = {}
        self._histories: dict[tuple[str, str], list[Image]] = {}

    def write(self, image: Image) -> None:
        """Before the transaction ends: from here on a client may be sent it."""
        if image.mark:
            self._by_mark[image.table, image.mark, image.key] = image

    def commit(self, images: Iterable[Image]) -> None:
        now_s = self.clock_s()
        for image in images:
            if image.state == "rolled_back":
                continue  # by a savepoint
            image.state = "committed"
            self.committed += 1
            history = self._histories.setdefault((image.table, image.key), [])
            at = bisect.bisect(history, image.order, key=lambda other: other.order)
            history.insert(at, image)
            if at > 0:
                before = history[at - 1]
                before.until_s = now_s if before.until_s is None else min(before.until_s, now_s)
            if at + 1 < len(history):
                image.until_s = now_s  # its successor's commit was heard of first

    def roll_back(self, images: Iterable[Image]) -> None:
        for image in images:
            image.state = "rolled_back"

    def may_see(self, user: User, image: Image) -> bool:
        """Whether the user had the right to the row at any moment at which it was like this."""
        shape = self.shapes[image.table]
        if not image.present or image.tenant != user.tenant:
            return False
        if shape.readers == "tenant" or (shape.by_members and image.room is None):
            return True
        if shape.by_owner and image.owner == user.user:
            return True
        return shape.by_members and any(
            member.present
            and (member.until_s is None or member.until_s >= image.from_s)
            and (image.until_s is None or image.until_s >= member.from_s)
            for member in self._histories.get(("", membership_key(image.room, user.user)), ())
        )

    def judge(self, seen: Sighting) -> str | None:
        """What is wrong with an event that a client was sent.

        While transactions are about to end this may still change for the better: then ask again later.
        """
        what = (
            f"user {seen.user.user} of {seen.user.tenant} was sent a {seen.kind} of {seen.table} {seen.key}"
        )
        if seen.mark is None:
            if any(
                self.may_see(seen.user, image) for image in self._histories.get((seen.table, seen.key), ())
            ):
                return None
            return f"{what}, a row that it could never see"
        image = self._by_mark.get((seen.table, seen.mark, seen.key))
        if image is None:
            return f"{what} with the mark {seen.mark!r}, which nobody wrote there"
        if image.state == "rolled_back":
            return f"{what} as a transaction wrote it that was rolled back"
        if image.state == "open":
            return f"{what} as a transaction wrote it that has not ended"
        if not self.may_see(seen.user, image):
            where = f"tenant {image.tenant}, owner {image.owner}, room {image.room}"
            return f"{what} without the right to see it ({where})"
        return None


def membership_key(room: int | None, user: str) -> str:
    return f"{room} {user}"
