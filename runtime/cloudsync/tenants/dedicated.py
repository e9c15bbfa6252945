"""What a process keeps for each dedicated tenant's database, in step with the directory, without a restart.

Who belongs to which database is decided here and nowhere else: a tenant that has a database of its own is
served from it or not at all. A reference that cannot be used, a database that is away, or one that is another
one's under a second name, is no reason to look for the tenant's rows elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, Protocol, TypeVar

from cloudsync import logs
from cloudsync.errors import DatabaseAway, TenantRefused
from cloudsync.tenants.directory import TenantDirectory
from cloudsync.tenants.login import Login
from cloudsync.tenants.reference import parse

_AGAIN_S: Final = 5.0

_log = logs.get("tenants")


class Served(Protocol):
    """What a process keeps for one database."""

    @property
    def database_id(self) -> str | None:
        """Which database it has found there; None before."""

    async def run(self) -> None:
        """Until cancelled; gives everything back then."""


T = TypeVar("T", bound=Served)


class _Place(Generic[T]):
    """A tenant's database, as the directory has it."""

    def __init__(self, tenant: str, reference: str) -> None:
        self.tenant = tenant
        self.reference = reference
        self.served: T | None = None
        self.task: asyncio.Task[None] | None = None
        self.doubted = False


class DedicatedDatabases(Generic[T]):
    """The databases beside the shared one; `make(tenant, login)` makes what is run for each."""

    def __init__(self, directory: TenantDirectory, make: Callable[[str, Login], T]) -> None:
        self._directory = directory
        self._make = make
        self._places: dict[str, _Place[T]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def of(self, tenant: str) -> T | None:
        """What serves a tenant; None: the shared database does.

        Raises DatabaseAway if it has a database of its own that cannot be used now, and before the directory
        was read.
        """
        if not self._directory.known:
            raise DatabaseAway
        if tenant not in self._directory.databases:
            return None
        place = self._places.get(tenant)
        if place is None or place.served is None or not self._is_sure(place):
            raise DatabaseAway
        return place.served

    def is_sure(self, tenant: str) -> bool:
        """Whether the tenant's database is known to be nobody else's."""
        place = self._places.get(tenant)
        return place is not None and self._is_sure(place)

    def __iter__(self) -> Iterator[T]:
        """All that run now."""
        return (place.served for place in list(self._places.values()) if place.served is not None)

    async def run(self) -> None:
        """Follow the directory until cancelled; ends when all that ran has ended."""
        self._directory.refreshed = self._follow
        try:
            await self._directory.run()
        finally:
            self._directory.refreshed = None
            for tenant in list(self._places):
                self._end(tenant)
            if self._ending:
                await asyncio.wait(self._ending)

    def _follow(self) -> None:
        """Begin and end what the last reading asks for."""
        wanted = self._directory.databases
        for tenant, place in list(self._places.items()):
            if wanted.get(tenant) != place.reference:
                _log.info("database given up", tenant=tenant)
                self._end(tenant)
        for tenant, reference in wanted.items():
            if tenant not in self._places:
                self._begin(tenant, reference)
        self._places = {tenant: self._places[tenant] for tenant in wanted}  # in the directory's order
        for place in self._places.values():
            self._doubt(place)

    def _begin(self, tenant: str, reference: str) -> None:
        place: _Place[T] = _Place(tenant, reference)
        self._places[tenant] = place
        try:
            login = Login.of(parse(reference))
        except TenantRefused as error:
            _log.error("a tenant's database cannot be used", tenant=tenant, reason=str(error))
            return
        _log.info("database taken up", tenant=tenant)
        # One that is ending may still hold what the new one takes: a place in a registry, a lock.
        place.task = asyncio.create_task(self._serve(place, login, after=set(self._ending)))

    def _end(self, tenant: str) -> None:
        place = self._places.pop(tenant)
        if place.task is not None:
            place.task.cancel()
            self._ending.add(place.task)
            place.task.add_done_callback(self._ending.discard)

    async def _serve(self, place: _Place[T], login: Login, *, after: set[asyncio.Task[Any]]) -> None:
        if after:
            await asyncio.wait(after)
        while True:
            place.served = self._make(place.tenant, login)
            try:
                await place.served.run()
            except Exception:  # noqa: BLE001 - one tenant's failure must not reach the others
                _log.exception("a tenant's database is not served, trying again", tenant=place.tenant)
            finally:
                place.served = None
            await asyncio.sleep(_AGAIN_S)

    # Whose database it is

    def _is_sure(self, place: _Place[T]) -> bool:
        found = place.served.database_id if place.served is not None else None
        return found is not None and self._namesake(place, found) is None

    def _namesake(self, place: _Place[T], database_id: str) -> str | None:
        """Who else has this database, and has precedence: the shared one, then the older tenant."""
        if database_id == self._directory.shared_id:
            return "the shared database"
        for other in self._places.values():
            if other is place:
                return None
            if other.served is not None and other.served.database_id == database_id:
                return f"the tenant {other.tenant}"
        return None

    def _doubt(self, place: _Place[T]) -> None:
        """Say once that a database is another one's."""
        found = place.served.database_id if place.served is not None else None
        namesake = self._namesake(place, found) if found is not None else None
        if namesake is not None and not place.doubted:
            _log.error(
                "a tenant's database cannot be used", tenant=place.tenant, reason=f"it is that of {namesake}"
            )
        place.doubted = namesake is not None
