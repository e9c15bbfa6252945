"""A client's turn: what it asks for is carried out once, in one transaction, whatever happens.

The client's row in `cloudsync.clients` is locked first, so that its requests are carried out one after the
other on whichever gateway they arrive; its number is noted in the same transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncPipeline, errors

from cloudsync.errors import ClientRefused, RequestError
from cloudsync.protocol.messages import ChangeConfirmed, ChangeRejected, Outcome
from cloudsync.resolve.refusals import ChangeRefused, TryAgain
from cloudsync.tokens import Principal

Answer = ChangeConfirmed | ChangeRejected

_TRIES: Final = 6
_HIDDEN_AFTER: Final = 2
"""A row that is there and cannot be seen so many times in a row is hidden, not just being changed."""
_AGAIN: Final = (errors.SerializationFailure, errors.DeadlockDetected)

_TURN: Final = """
SELECT c.last_mutation, (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM cloudsync.clients c
 WHERE c.client_id = %s AND c.tenant_id = %s AND c.user_id = %s AND c.revoked_at IS NULL
   FOR NO KEY UPDATE
"""
_UNCOUNTED: Final = "SELECT 0, (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_STORED: Final = "SELECT result FROM cloudsync.mutations WHERE client_id = %s AND mutation_id = %s"
_DONE: Final = """
WITH noted AS (INSERT INTO cloudsync.mutations (client_id, mutation_id, result) VALUES (%(client)s, %(number)s, %(result)s))
UPDATE cloudsync.clients SET last_mutation = %(number)s WHERE client_id = %(client)s
"""  # noqa: E501
_json: Final = msgspec.json.Encoder().encode


class Moved(Exception):
    """The row was created or deleted by somebody else between two statements."""


class Applied(msgspec.Struct, frozen=True):
    """What became of a request; `refused` although something was noted of it."""

    outcome: Outcome
    version: int | None
    lost: list[str] | None = None
    conflict_id: str | None = None
    refused: RequestError | None = None
    revision: int | None = None


class Work(Protocol):
    """What a client asks to be written, in its transaction."""

    async def look(self) -> None:
        """Lock the row and ask what is known of it. Raises RequestError if the request is none."""

    async def apply(self, now_ms: int, *, settled: bool) -> Applied:
        """Raises RequestError if it is refused, psycopg errors, Moved."""


class Turn(msgspec.Struct, frozen=True):
    """Whose request it is, and which of theirs; without a client, one that is not counted."""

    principal: Principal
    client_id: str | None = None
    number: int = 0


async def carry_out(
    connection: AsyncConnection[Any],
    turn: Turn,
    begin: Callable[[AsyncPipeline], Work],
    explain: Callable[[psycopg.Error], Awaitable[ChangeRefused | None]],
) -> Answer:
    """Carry out a request in a transaction, once, and answer when it is durable.

    Raises as `write`, and RequestError if an uncounted request is refused.
    """
    refused: RequestError | None = None
    for tries in range(_TRIES):
        try:
            return await _attempt(connection, turn, begin, refused, tries)
        except RequestError as refusal:
            # The number is used up all the same: with a transaction of its own, the one before is void.
            refused = refusal
        except Moved:
            continue
        except _AGAIN:
            continue
        except psycopg.Error as error:
            found = await explain(error)
            if found is None:
                raise TryAgain(type(error).__name__) from error
            refused = found
        if refused is not None and turn.client_id is None:
            raise refused
    raise TryAgain("the row is being changed by others")


async def _attempt(
    connection: AsyncConnection[Any],
    turn: Turn,
    begin: Callable[[AsyncPipeline], Work],
    refused: RequestError | None,
    tries: int,
) -> Answer:
    principal, client_id, number = turn.principal, turn.client_id, turn.number
    # Statements go in groups, without waiting for each one's answer.
    async with connection.pipeline() as pipeline, connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '2s'")
        if client_id is None:
            asked = await connection.execute(_UNCOUNTED)
        else:
            asked = await connection.execute(_TURN, (client_id, principal.tenant, principal.user))
        work: Work | None = None
        if refused is None:
            work = begin(pipeline)
            await work.look()
        await pipeline.sync()
        row = await asked.fetchone()
        if row is None:
            raise ClientRefused
        last_mutation, now_ms = row
        if client_id is not None and number <= last_mutation:
            return await _repeated(connection, client_id, number)
        if work is not None:
            applied = await work.apply(now_ms, settled=tries >= _HIDDEN_AFTER)
            refused = applied.refused
        if refused is not None:
            answer: Answer = ChangeRejected(number, refused.code, str(refused))
            result: dict[str, Any] = {"code": refused.code, "message": str(refused)}
        else:
            answer = ChangeConfirmed(
                number, applied.outcome, applied.version, applied.lost, applied.revision, applied.conflict_id
            )
            result = {
                "outcome": applied.outcome,
                "version": applied.version,
                "fields": applied.lost,
                "revision": applied.revision,
                "conflict": applied.conflict_id,
            }
        if client_id is not None:
            await connection.execute(
                _DONE, {"client": client_id, "number": number, "result": _json(result).decode()}
            )
    return answer


async def _repeated(connection: AsyncConnection[Any], client_id: str, number: int) -> Answer:
    cursor = await connection.execute(_STORED, (client_id, number))
    row = await cursor.fetchone()
    if row is None:
        return ChangeConfirmed(number, "already_applied")
    result = row[0]
    if "code" in result:
        return ChangeRejected(number, result["code"], result["message"])
    return ChangeConfirmed(
        number, "already_applied", result["version"], result["fields"],
        result.get("revision"), result.get("conflict"),
    )  # fmt: skip
