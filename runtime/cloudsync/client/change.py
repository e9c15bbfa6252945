"""A change that this client made: queued, shown at once, and at last confirmed or rejected."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec

from cloudsync.client.errors import Closed
from cloudsync.client.replica import Row
from cloudsync.protocol import messages
from cloudsync.protocol.messages import Outcome

Operation = Literal["create", "update", "delete", "resolve"]


class Confirmation(msgspec.Struct, frozen=True):
    """How the server carried a change out: durable from here on.

    `outcome`: `applied`, `merged` with what others changed meanwhile, `superseded` by a later change,
    `conflict` (a person decides about `fields`), or `already_applied` before this answer.
    """

    outcome: Outcome
    version: int | None = None
    fields: list[str] | None = None
    conflict_id: str | None = None


class Change:
    """One change of one row. `number` counts this client's changes and is never used twice.

    `key` and `values` are as they travel, `base` what the changed fields were before (None: not known here),
    `base_version` the row's version that the change was made upon, `at` its hybrid logical time.
    """

    __slots__ = (
        "_error",
        "_waiting",
        "at",
        "base",
        "base_version",
        "confirmation",
        "key",
        "number",
        "op",
        "table",
        "values",
        "withdrawn",
    )

    def __init__(
        self,
        number: int,
        op: Operation,
        table: str,
        key: Row,
        values: Row,
        *,
        base_version: int | None,
        base: Row | None,
        at: str,
    ) -> None:
        self.number = number
        self.op: Operation = op
        self.table = table
        self.key = key
        self.values = values
        self.base_version = base_version
        self.base = base
        self.at = at
        self.withdrawn: frozenset[str] = frozenset()
        """Fields that are not shown any more: a person decides about them."""
        self.confirmation: Confirmation | None = None
        self._error: Exception | None = None
        self._waiting: list[asyncio.Future[Confirmation]] = []

    def __repr__(self) -> str:
        return f"<Change {self.number}: {self.op} {self.table}>"

    async def confirmed(self) -> Confirmation:
        """Wait until the change is durable in PostgreSQL, however long the client is offline.

        Raises ChangeRejected (the views are as if it had never been made), or Closed if the client stops
        first: then a client with a store sends the change when it is opened again.
        """
        if self.confirmation is not None:
            return self.confirmation
        if self._error is not None:
            raise self._error
        answer: asyncio.Future[Confirmation] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        return await answer

    @property
    def error(self) -> Exception | None:
        """Why it was rejected, or why nothing more will be heard of it."""
        return self._error

    def confirm(self, confirmation: Confirmation) -> None:
        """For the session: the server has carried it out."""
        self.confirmation = confirmation
        for answer in self._take_waiting():
            answer.set_result(confirmation)

    def fail(self, error: Exception) -> None:
        """For the session: the server has rejected it, or the client has stopped."""
        if self.confirmation is None and (self._error is None or isinstance(self._error, Closed)):
            self._error = error
        for answer in self._take_waiting():
            answer.set_exception(error)

    @property
    def waits(self) -> bool:
        """Whether it may not be sent yet; what comes behind it may."""
        return False

    @property
    def kept(self) -> bool:
        """Whether the store has to hold it longer than until it is settled."""
        return False

    def frame(self) -> messages.Change | messages.Text | messages.Resolve:
        assert self.op != "resolve"  # noqa: S101 - a subclass's
        return messages.Change(
            self.number, self.op, self.table, self.key, self.values, self.base_version, self.at
        )

    def content(self) -> dict[str, Any]:
        """Everything but the number, as it is stored."""
        names = ("op", "table", "key", "values", "base_version", "base", "at")
        return {name: getattr(self, name) for name in names}

    def _take_waiting(self) -> list[asyncio.Future[Confirmation]]:
        waiting, self._waiting = self._waiting, []
        return [answer for answer in waiting if not answer.done()]
