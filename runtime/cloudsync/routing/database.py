"""How tasks of upkeep reach PostgreSQL: a lock that is not given ends the task, not the sweeps behind it.

The general worker has one task at a time: one that waited for ever would be the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, LiteralString

import psycopg

from cloudsync.settings import current
from cloudsync.tenants.visits import LOCK_TIMEOUT, Visits


def connect(url: str = "", **options: Any) -> psycopg.Connection[Any]:
    """A connection to the shared database, or another one, that commits by itself."""
    return psycopg.connect(url or current().postgres_url, autocommit=True, options=LOCK_TIMEOUT, **options)


def everywhere(what: str, query: LiteralString) -> Callable[[], None]:
    """A task of upkeep: the same query in the shared database, and then in every dedicated tenant's."""
    tenants: Visits[bool] = Visits(what, lambda connection: bool(connection.execute(query)))

    def run() -> None:
        with connect() as connection:
            tenants.start(connection)  # in threads: nobody waits for a tenant's database
            connection.execute(query)

    return run
