"""Upkeep whose lock somebody holds: it gives up, so that the worker can go on sweeping."""

from __future__ import annotations

import psycopg
import pytest

from cloudsync.routing.database import connect


def test_a_task_does_not_wait_for_ever_for_a_lock(database: str) -> None:
    with psycopg.connect(database) as holder, connect(database) as task:
        holder.execute("LOCK TABLE cloudsync.canary")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            task.execute("SELECT cloudsync.write_canaries()")
        holder.rollback()
        task.execute("SELECT cloudsync.write_canaries()")
