"""The routes under /v1, and the two health checks."""

from __future__ import annotations

import contextlib
import itertools

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from cloudsync.api import failures
from cloudsync.api.bodies import (
    ClientBody,
    ClientList,
    Endpoint,
    Health,
    NewClient,
    Readiness,
    Token,
    TokenRequest,
)
from cloudsync.api.database import Database
from cloudsync.api.services import Caller, Served, Services
from cloudsync.audit.records import CLIENT_REGISTERED, CLIENT_REVOKED
from cloudsync.protocol.messages import SUBPROTOCOL
from cloudsync.registry import clients, revocations
from cloudsync.settings import Settings
from cloudsync.sharding import cell_of
from cloudsync.tokens import Principal, development_token

_TOKEN_LIFETIME_S = 12 * 3600


def public(settings: Settings) -> APIRouter:
    """What clients and applications call with a user's token."""
    router = APIRouter(
        prefix="/v1", responses=failures.documented("bad_token", "tenant_disabled", "unavailable")
    )
    bucket_map = settings.bucket_map
    templates = itertools.cycle(settings.gateway_url_template.split())

    @router.get("/endpoint", summary="Where the caller connects")
    async def endpoint(principal: Caller) -> Endpoint:
        cell = cell_of(principal.user, settings.cells, bucket_map)
        url = next(templates).replace("{cell}", str(cell))
        return Endpoint(url=url, cell=cell, protocol=SUBPROTOCOL)

    @router.post(
        "/clients",
        status_code=201,
        summary="Issue a client id to the caller",
        responses=failures.documented("bad_request", "limit_reached", "too_large"),
    )
    async def register(principal: Caller, served: Served, body: NewClient | None = None) -> ClientBody:
        wanted = body or NewClient()
        await served.look_again()
        database = await served.database(principal)
        client, displaced = await database.transact(
            lambda connection: clients.register(connection, principal, **wanted.model_dump())
        )
        database.note(CLIENT_REGISTERED, principal, client.client_id)
        if displaced is not None:
            # The new id is given away, and was not asked for what became of another: that one keeps nothing,
            # and is refused as soon as no cursor vouches for it.
            with contextlib.suppress(RedisError, OSError):
                await _announce(database, served, principal, displaced)
        return ClientBody.model_validate(client)

    @router.get("/clients", summary="The caller's live clients")
    async def list_clients(principal: Caller, served: Served) -> ClientList:
        database = await served.database(principal)
        found = await database.transact(lambda connection: clients.list_clients(connection, principal))
        return ClientList(clients=[ClientBody.model_validate(client) for client in found])

    @router.delete(
        "/clients/{client_id}",
        status_code=204,
        summary="Revoke one of the caller's clients and close its connection",
        responses=failures.documented("not_found", "bad_request"),
    )
    async def revoke(principal: Caller, served: Served, client_id: str) -> Response:
        database = await served.database(principal)
        found = await database.transact(lambda connection: clients.revoke(connection, principal, client_id))
        if not found:
            return failures.answer("not_found", "You have no client with this id.")
        await _announce(database, served, principal, client_id)
        return Response(status_code=204)

    return router


async def _announce(database: Database, services: Services, principal: Principal, client_id: str) -> None:
    """A client was revoked. Raises redis errors: who asked for it gets 503 and repeats, which is harmless."""
    database.note(CLIENT_REVOKED, principal, client_id)
    await revocations.announce(services.redis, client_id)


def development(settings: Settings) -> APIRouter:
    """Mounted in development mode alone."""
    router = APIRouter(prefix="/v1/dev", tags=["development"])

    @router.post(
        "/token",
        summary="A token for any user of any tenant",
        responses=failures.documented("bad_request", "too_large"),
    )
    async def token(body: TokenRequest) -> Token:
        text = development_token(settings, tenant=body.tenant, user=body.user, lifetime_s=_TOKEN_LIFETIME_S)
        return Token(token=text, expires_in_s=_TOKEN_LIFETIME_S)

    return router


health = APIRouter(tags=["health"])


@health.get("/healthz", summary="Whether the process is alive")
async def healthz() -> Health:
    return Health(status="ok")


@health.get(
    "/readyz",
    summary="Whether the process can serve: PostgreSQL and Redis answer",
    response_model=Readiness,
    responses=failures.documented("unavailable"),
)
async def readyz(request: Request, served: Served) -> Readiness | JSONResponse:
    checks = await served.readiness()
    if all(state == "ok" for state in checks.values()):
        return Readiness(status="ready", checks=checks)
    broken = ", ".join(f"{name} is {state}" for name, state in checks.items() if state != "ok")
    return failures.answer("unavailable", f"Not ready: {broken}.", checks=checks)
