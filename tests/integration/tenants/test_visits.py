"""Short work in tenants' databases: one that is away keeps nobody waiting, and shows as silent."""

from __future__ import annotations

import threading
import time
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import Connection

from cloudsync.metrics.definitions import BACKLOG, RELAY_SILENCE, ROUTING_LAG
from cloudsync.metrics.vitals import Reading, all_together
from cloudsync.tenants.visits import Visits
from waiting import eventually
from wire import Wire


def _attach(shared: Connection[Any], **references: str) -> None:
    shared.execute("DELETE FROM cloudsync.tenants")
    for tenant, reference in references.items():
        shared.execute(
            "INSERT INTO cloudsync.tenants (id, name, plan, database) VALUES (%s, 'x', 'dedicated', %s)",
            (tenant, reference),
        )


def _where(connection: Connection[Any]) -> str:
    (name,) = connection.execute("SELECT current_database()::text").fetchone() or ("",)
    return str(name)


async def test_a_database_that_says_nothing_keeps_its_own_thread_alone(
    database: str, second_database: str
) -> None:
    own = second_database.replace("postgres@", "cloudsync_service@")
    visits = Visits("test", _where)
    with psycopg.connect(database, autocommit=True) as shared:
        async with Wire(port=urlsplit(own).port or 0) as wire:
            wire.freeze()
            silent = own.replace(str(urlsplit(own).port), str(wire.port))
            _attach(shared, acme=own, broken="nonsense", gone="postgresql://cloudsync_service@127.0.0.1:1/x")
            visits.start(shared)
            visits.wait(10)
            assert visits.found(10) == [urlsplit(own).path[1:]]
            _attach(shared, acme=own, silent=silent)
            for _ in range(3):  # it is not visited again while a visit is under way
                began_s = time.monotonic()
                visits.start(shared)
                assert time.monotonic() - began_s < 1
                eventually(lambda: len(visits.found(1)) == 1)
            assert [t.name for t in threading.enumerate() if t.name == "test of silent"] == ["test of silent"]
            assert visits.longest_missed_s() > 0
            wire.thaw()
        visits.wait(10)


def test_figures_of_several_databases_become_one(database: str, second_database: str) -> None:
    own = second_database.replace("postgres@", "cloudsync_service@")

    def read(connection: Connection[Any]) -> list[Reading]:
        _where(connection)
        return [Reading(BACKLOG, 5, {}), Reading(ROUTING_LAG, 700, {})]

    tenants = Visits("figures", read)
    shared = [Reading(BACKLOG, 2, {}), Reading(ROUTING_LAG, 900, {}), Reading(RELAY_SILENCE, 1, {})]
    with psycopg.connect(database, autocommit=True) as connection:
        _attach(connection, acme=own)
        tenants.start(connection)
        tenants.wait(10)
        found = {each.metric: each.value for each in all_together(shared, tenants, within_s=10)}
        assert found == {BACKLOG: 7, ROUTING_LAG: 900, RELAY_SILENCE: 1}
        _attach(connection, acme=own, gone="postgresql://cloudsync_service@127.0.0.1:1/x")
        tenants.start(connection)
        tenants.wait(10)

        def silence() -> float:
            readings = all_together(shared, tenants, within_s=0.5)
            return next(each.value for each in readings if each.metric is RELAY_SILENCE)

        eventually(lambda: silence() > 1, 10)
        _attach(connection)
        tenants.start(connection)
        assert silence() == 1, "a tenant that was detached is silent no more"
