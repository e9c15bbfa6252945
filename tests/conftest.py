"""Real parts for every test: PostgreSQL and Valkey for the session, a database of its own for each test."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import psycopg
import pytest
import redis
from hypothesis import settings
from psycopg import sql
from xdist.scheduler.loadscope import LoadScopeScheduling

import waiting
from cloudsync.dev.platform import Platform
from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.dev.valkey import EmbeddedValkey
from faults import account
from integration.path.world import World
from platforms import private

_TEMPLATE = "cloudsync_template"
_numbers = itertools.count(1)
_folder = pytest.StashKey[str]()
_TOGETHER = ("stacks", "oracle")
_FIRST = {"faults": 0, "stacks": 1, "oracle": 2}


# A machine on which much else runs is slow: that is no fault of the example.
settings.register_profile("cloudsync", deadline=None)
settings.load_profile("cloudsync")


def pytest_configure(config: pytest.Config) -> None:
    """A folder of this run's own: the common one is closed to other users whenever a run of pytest begins.

    As root PostgreSQL runs as another user, and a server that had been let in would stop.
    """
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        config.option.basetemp = config.stash[_folder] = tempfile.mkdtemp(prefix="cloudsync-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nothing stays behind."""
    if folder := config.stash.get(_folder, None):
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process ends long before another; faults not beside synthesis."""
    items.sort(key=lambda item: _FIRST.get(item.path.parent.name, len(_FIRST)))


class _Scheduling(LoadScopeScheduling):
    """What one process of several runs: a file, or all of a folder that shares what is dear to make."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePosixPath(nodeid.partition("::")[0])
        return str(file.parent if file.parent.name in _TOGETHER else file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """A module's platform is started once, not in each process that gets one of its tests."""
    return _Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of all loads under faults: sent, received, lost, repeated, and how soon it recovered."""
    reports = itertools.chain(*(terminalreporter.stats.get(name, ()) for name in ("passed", "failed")))
    told = [line for r in reports if r.when == "call" for name, line in r.user_properties if name == "load"]
    if told:
        terminalreporter.section("loads under faults")
        for line in (account.heading(), *told):
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server with logical WAL, without fsync."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """A Valkey server that keeps nothing."""
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey"), ephemeral=True) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres: EmbeddedPostgres) -> str:
    """Name of a migrated database that others are copied from; never connect to it."""
    from cloudsync.capture.migrations import migrate

    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_TEMPLATE)))
    migrate(postgres.url(database=_TEMPLATE), phase="all")
    return _TEMPLATE


@pytest.fixture
def database(postgres: EmbeddedPostgres, migrated_template: str) -> Iterator[str]:
    """URL, as superuser, of a fresh migrated database that goes with the test."""
    name = _copy_of(postgres, migrated_template)
    yield postgres.url(database=name)
    drop_database(postgres, name)


@pytest.fixture
def second_database(postgres: EmbeddedPostgres, migrated_template: str) -> Iterator[str]:
    """As `database`: for a dedicated tenant beside it."""
    name = _copy_of(postgres, migrated_template)
    yield postgres.url(database=name)
    drop_database(postgres, name)


def _copy_of(postgres: EmbeddedPostgres, template: str) -> str:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    return name


def drop_database(postgres: EmbeddedPostgres, name: str) -> None:
    """Drop a database with the sessions and replication slots that hold it."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:

        def drop_slots() -> bool:
            rows = connection.execute(
                "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s", (name,)
            ).fetchall()
            for slot, pid in rows:
                if pid is not None:
                    connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
                else:
                    connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
            return not rows

        waiting.eventually(drop_slots)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def redis_url(valkey: EmbeddedValkey) -> str:
    """URL of an empty Valkey (channels are shared by the session, names in them are not)."""
    with redis.Redis.from_url(valkey.url) as server:
        server.flushall()
    return valkey.url


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    """Every process of a deployment, on a database of its own; shared, so use tables of your own."""
    with private() as running:
        yield running


@pytest.fixture
async def world(platform: Platform) -> AsyncIterator[World]:
    """The platform as tests use it: the shared one, or the module's own that it calls `platform`."""
    made = World(platform)
    yield made
    await made.close()


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`eventually(condition, timeout_s)`, as in `waiting`."""
    return waiting.eventually


@pytest.fixture
def eventually_async() -> Callable[..., Any]:
    """`await eventually_async(condition, timeout_s)`, as in `waiting`."""
    return waiting.eventually_async
