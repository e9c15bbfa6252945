"""What a request needs: the tenant's database, Redis, the token verifier, and the principal of the caller."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, Final

import psycopg
import redis.asyncio
import redis.exceptions
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from cloudsync.api.database import Database
from cloudsync.audit.journal import open_journal
from cloudsync.audit.records import TOKEN_REFUSED
from cloudsync.errors import TokenRefused
from cloudsync.settings import Settings
from cloudsync.tenants.dedicated import DedicatedDatabases
from cloudsync.tenants.directory import TenantDirectory, read_special
from cloudsync.tenants.login import Login
from cloudsync.tokens import Principal, TokenVerifier
from cloudsync.unlocking import open_keyring

REDIS_TIMEOUT_S: Final = 2.0
_LOOK_WITHIN_S: Final = 2.0
_bearer = HTTPBearer(auto_error=False, bearerFormat="JWT", description="A token of the tenant's user.")


class Services:
    """Connections of one API process; open between `start` and `stop`."""

    def __init__(self, settings: Settings) -> None:
        settings.require("postgres_url", "redis_events_url")
        self.settings = settings
        self._keyring = open_keyring(settings) if settings.audit_enabled else None
        self.verifier = TokenVerifier(settings)
        self._shared = self._make(Login(settings.postgres_url))
        self.tenants = TenantDirectory(
            lambda: self._shared.transact(read_special), refresh_s=settings.tenant_refresh_s
        )
        self._dedicated: DedicatedDatabases[Database] = DedicatedDatabases(
            self.tenants, lambda _, login: self._make(login)
        )
        self._following: asyncio.Task[None] | None = None
        self.redis: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            settings.redis_events_url,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
        )

    async def start(self) -> None:
        await self._shared.start()
        self._following = asyncio.create_task(self._dedicated.run())

    async def stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        await self.redis.aclose()
        await self._shared.stop()

    async def database(self, principal: Principal) -> Database:
        """The database of the principal's tenant, for one request: what it did is noted there, too.

        Raises DatabaseAway, OperationalError or TimeoutError; never hangs.
        """
        if not self.tenants.known:
            await self.tenants.refresh()
        return self._dedicated.of(principal.tenant) or self._shared

    async def look_again(self) -> None:
        """Read where tenants are, if that can be done: what is issued now in a place left is good nowhere."""
        with contextlib.suppress(psycopg.Error, TimeoutError):
            async with asyncio.timeout(_LOOK_WITHIN_S):
                await self.tenants.refresh()

    def note_refused(self, outcome: str) -> None:
        """Leave to the audit that a token was refused: it is no tenant's."""
        self._shared.note(TOKEN_REFUSED, None, outcome=outcome)

    def _make(self, login: Login) -> Database:
        journal = None
        if self._keyring is not None:
            journal = open_journal(self.settings, login, self._keyring, role="api")
        return Database(login, journal)

    async def readiness(self) -> dict[str, str]:
        """State of each dependency: `ok` or `unreachable`."""
        postgres, events = await asyncio.gather(self._postgres_ready(), self._redis_ready())
        return {"postgres": postgres, "redis": events}

    async def _postgres_ready(self) -> str:
        try:
            await self._shared.transact(
                lambda connection: connection.execute("SELECT FROM cloudsync.clients LIMIT 0")
            )
        except (psycopg.ProgrammingError, psycopg.errors.InsufficientPrivilege):
            return "not migrated"
        except (psycopg.Error, TimeoutError):
            return "unreachable"
        return "ok"

    async def _redis_ready(self) -> str:
        try:
            await self.redis.ping()
        except redis.exceptions.AuthenticationError:
            return "unauthorized"
        except (redis.exceptions.RedisError, OSError, TimeoutError):
            return "unreachable"
        return "ok"


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


Served = Annotated[Services, Depends(services)]


async def caller(
    served: Served, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Principal:
    """The principal of the bearer token. Raises TokenRefused, TenantDisabled."""
    token = credentials.credentials if credentials else ""
    try:
        if served.verifier.blocking:
            principal = await asyncio.to_thread(served.verifier.verify, token)
        else:
            principal = served.verifier.verify(token)
    except TokenRefused as error:
        served.note_refused(error.code)
        raise
    served.tenants.admit(principal.tenant)
    return principal


Caller = Annotated[Principal, Depends(caller)]
