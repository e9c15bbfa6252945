"""How tasks of upkeep reach PostgreSQL: a lock that is not given ends the task, not the sweeps behind it."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from cloudsync.settings import current

_OPTIONS: Final = "-c lock_timeout=5s"
"""The general worker has one task at a time: one that waited for ever would be the last."""


def connect(url: str = "", **options: Any) -> psycopg.Connection[Any]:
    """A connection to this process's database, or another one, that commits by itself."""
    return psycopg.connect(url or current().postgres_url, autocommit=True, options=_OPTIONS, **options)
