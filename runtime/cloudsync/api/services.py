"""What a request needs: the database pool, Redis, the token verifier, and the principal of the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

import psycopg
import redis.asyncio
import redis.exceptions
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from psycopg_pool import AsyncConnectionPool

from cloudsync.audit.journal import Journal, open_journal
from cloudsync.audit.records import TOKEN_REFUSED, Record
from cloudsync.errors import TokenRefused
from cloudsync.settings import Settings
from cloudsync.sync.snapshot import SESSION_OPTIONS
from cloudsync.tenants.directory import TenantDirectory, read_special
from cloudsync.tokens import Principal, TokenVerifier
from cloudsync.unlocking import open_keyring

POOL_TIMEOUT_S: Final = 2.0
STATEMENT_TIMEOUT_S: Final = 2.0
REDIS_TIMEOUT_S: Final = 2.0
Connection = psycopg.AsyncConnection[Any]
T = TypeVar("T")
_bearer = HTTPBearer(auto_error=False, bearerFormat="JWT", description="A token of the tenant's user.")


class Services:
    """Connections of one API process; open between `start` and `stop`."""

    def __init__(self, settings: Settings) -> None:
        settings.require("postgres_url", "redis_events_url")
        self.journal: Journal | None = None
        if settings.audit_enabled:
            self.journal = open_journal(settings, open_keyring(settings), role="api")
        self._journaling: asyncio.Task[None] | None = None
        self.settings = settings
        self.verifier = TokenVerifier(settings)
        self.tenants = TenantDirectory(
            lambda: self.database(read_special), refresh_s=settings.tenant_refresh_s
        )
        self._reading: asyncio.Task[None] | None = None
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            settings.postgres_url,
            kwargs={"connect_timeout": 2, "application_name": "cloudsync api", "options": SESSION_OPTIONS},
            min_size=1,
            max_size=8,
            max_waiting=200,
            timeout=POOL_TIMEOUT_S,
            # An attempt that fails is given up soon, and the next request starts another: a database that
            # is back is found at once, not after the pool's minutes of backing off.
            reconnect_timeout=2,
            check=AsyncConnectionPool.check_connection,
            open=False,
            name="api",
        )
        self.redis: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            settings.redis_events_url,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
        )

        self._leaving: set[asyncio.Future[Any]] = set()

    async def start(self) -> None:
        await self._pool.open(wait=False)
        self._reading = asyncio.create_task(self.tenants.run())
        if self.journal is not None:
            self._journaling = asyncio.create_task(self.journal.run())

    async def stop(self) -> None:
        if self.journal is not None and self._journaling is not None:
            self._journaling.cancel()
            await asyncio.wait([self._journaling])
            await self.journal.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        await self.redis.aclose()
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=2)
        await self._pool.close(timeout=2)

    async def database(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run one short transaction. Raises OperationalError or TimeoutError, never hangs."""
        task = asyncio.ensure_future(self._transaction(work))
        try:
            done, _ = await asyncio.wait({task}, timeout=POOL_TIMEOUT_S + STATEMENT_TIMEOUT_S)
        finally:
            if not task.done():
                # Cancelling asks the server to cancel, too, and a silent one would make the caller wait.
                task.cancel()
                self._leaving.add(task)
                task.add_done_callback(self._left)
        if not done:
            raise TimeoutError
        return task.result()

    async def _transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with self._pool.connection() as connection:
            return await work(connection)

    def _left(self, task: asyncio.Future[Any]) -> None:
        self._leaving.discard(task)
        if not task.cancelled():
            task.exception()  # nobody waits for it any more

    def note(
        self, kind: str, principal: Principal | None, client_id: str | None = None, outcome: str | None = None
    ) -> None:
        """Leave a security event to the audit."""
        if self.journal is not None:
            tenant, user = (principal.tenant, principal.user) if principal is not None else (None, None)
            self.journal.note(Record(kind=kind, tenant=tenant, user=user, client=client_id, outcome=outcome))

    async def readiness(self) -> dict[str, str]:
        """State of each dependency: `ok` or `unreachable`."""
        postgres, events = await asyncio.gather(self._postgres_ready(), self._redis_ready())
        return {"postgres": postgres, "redis": events}

    async def _postgres_ready(self) -> str:
        try:
            await self.database(
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
        served.note(TOKEN_REFUSED, None, outcome=error.code)
        raise
    served.tenants.admit(principal.tenant)
    return principal


Caller = Annotated[Principal, Depends(caller)]
