"""Conflicts over HTTP, for applications without a WebSocket: what waits for a person, and their decision."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from cloudsync.api import failures
from cloudsync.api.bodies import ConflictList, Decision, Resolved
from cloudsync.api.database import Connection
from cloudsync.api.services import Caller, Served
from cloudsync.audit.records import CHANGE_REJECTED
from cloudsync.errors import RequestError
from cloudsync.protocol.messages import ChangeRejected, ResolveRequest
from cloudsync.resolve import manual
from cloudsync.resolve.refusals import TryAgain
from cloudsync.sync.catalog import Catalog

T = TypeVar("T")
_MOST = 100


class _Decision(msgspec.Struct):
    """The body of a decision as it came: no number in it is rounded."""

    values: dict[str, msgspec.Raw] | None = None


_decode = msgspec.json.Decoder(_Decision).decode
_encode = msgspec.json.Encoder().encode


def router() -> APIRouter:
    """`/v1/conflicts`, for the token's user."""
    routes = APIRouter(prefix="/v1/conflicts", responses=failures.documented("bad_token", "unavailable"))

    @routes.get(
        "",
        summary="Open conflicts of rows that the caller may see",
        response_model=ConflictList,
        responses=failures.documented("bad_request", "unknown_table"),
    )
    async def list_conflicts(
        principal: Caller,
        served: Served,
        table: Annotated[str | None, Query(max_length=200)] = None,
        after: Annotated[str | None, Query(max_length=100, description="`next` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=_MOST)] = manual.PAGE,
    ) -> Response:
        database = await served.database(principal)
        page = await database.transact(
            _alone(
                lambda connection, catalog: manual.open_conflicts(
                    connection, catalog, principal, table=table, after=after, limit=limit
                )
            )
        )
        conflicts = [msgspec.structs.asdict(conflict) for conflict in page.conflicts]
        body = _encode({"conflicts": conflicts, "next": page.next})
        return Response(body, media_type="application/json")

    @routes.post(
        "/{conflict_id}/resolve",
        summary="Decide a conflict",
        response_model=Resolved,
        responses=failures.documented(
            "bad_request", "unknown_conflict", "conflict_resolved", "forbidden", "too_large"
        ),
    )
    async def resolve(
        principal: Caller, served: Served, request: Request, conflict_id: str, body: Decision
    ) -> Resolved | JSONResponse:
        values = _decode(await request.body()).values
        decision = ResolveRequest(0, conflict_id, body.choice, values, body.base_version)
        database = await served.database(principal)
        try:
            answer = await database.transact(
                _alone(
                    lambda connection, catalog: manual.resolve(connection, catalog, principal, None, decision)
                )
            )
        except TryAgain:
            return failures.answer("unavailable")
        except RequestError as refusal:
            database.note(CHANGE_REJECTED, principal, outcome=refusal.code)
            raise
        if isinstance(answer, ChangeRejected):
            database.note(CHANGE_REJECTED, principal, outcome=answer.code)
            return failures.answer(answer.code, answer.message)
        return Resolved(conflict_id=conflict_id, choice=body.choice, version=answer.version)

    return routes


def _alone(work: Callable[[Connection, Catalog], Awaitable[T]]) -> Callable[[Connection], Awaitable[T]]:
    """Work that makes its own transactions, with the tables as they are now."""

    async def run(connection: Connection) -> T:
        await connection.set_autocommit(True)
        try:
            catalog = Catalog()
            await catalog.load(connection)
            return await work(connection, catalog)
        finally:
            if not connection.closed:
                await connection.set_autocommit(False)

    return run
