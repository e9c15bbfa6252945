"""`cloudsync verify` as a platform team runs it: a verdict, an exit status, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cloudsync.dev.databases import as_role
from cloudsync.dev.platform import Platform
from cloudsync.verify.program import Program, Put, Set, Settle, Shape, Subscribe, Transaction, encode
from cloudsync.verify.scratch import PREFIX

Eventually = Callable[..., Any]
PROGRAM = Program(
    tables=(Shape(columns=("numeric",), readers="members_and_owner"),),
    steps=(
        Subscribe(client=0, user=0),
        Settle(),  # or a view that comes late has what follows in its snapshot
        Transaction((Put(key=1, owner=0), Put(key=2, owner=0))),
        Transaction((Set(column=3, value=1),)),
    ),
)


@pytest.fixture
def owner(platform: Platform) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(platform.postgres_url(), autocommit=True) as connection:
        yield connection


def schemas(connection: psycopg.Connection[Any]) -> list[str]:
    rows = connection.execute(
        "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)", (PREFIX,)
    ).fetchall()
    return [name for (name,) in rows]


def command(platform: Platform, *arguments: str, url: str | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "cloudsync", "verify", "--url", platform.api_url),
            *("--postgres-url", url or platform.postgres_url(), *arguments),
        ],
        env={**os.environ, **platform.environment("api"), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_program_is_run_and_its_schema_dropped(
    platform: Platform, owner: psycopg.Connection[Any], tmp_path: Path
) -> None:
    tracked = owner.execute("SELECT count(*) FROM cloudsync.tracked_tables").fetchone()
    before = schemas(owner)
    file = tmp_path / "program.json"
    file.write_bytes(encode(PROGRAM))
    done = command(platform, "--program", str(file))
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 0, output
    assert "4 row images written, 4 events received on 1 connections" in output
    assert "lost 0, leaked 0, otherwise wrong 0" in output
    assert schemas(owner) == before
    assert owner.execute("SELECT count(*) FROM cloudsync.tracked_tables").fetchone() == tracked


def test_a_view_that_is_wrong_makes_it_fail(platform: Platform, tmp_path: Path) -> None:
    """Tokens of a user who is not the one that the program means: views cannot equal SQL."""
    file = tmp_path / "program.json"
    file.write_bytes(encode(PROGRAM))
    wrong = platform.token("cloudsync-verify", "somebody else")
    done = command(platform, "--program", str(file), "--patience", "1", "--token-command", f"echo {wrong}")
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 1, output
    assert "lost 1, leaked 0, otherwise wrong 0" in output


def test_a_subscription_that_fails_is_no_loss(
    platform: Platform, tmp_path: Path, second_database: str
) -> None:
    """Tables in a database that nobody is served from."""
    file = tmp_path / "program.json"
    file.write_bytes(encode(PROGRAM))
    done = command(platform, "--program", str(file), url=second_database)
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 1, output
    assert "the subscription was refused: " in output
    assert "[unknown_table]" in output
    assert "1 subscriptions failed, lost 0, leaked 0, otherwise wrong 0" in output


def test_a_tenant_with_a_database_of_its_own_is_not_verified_in_the_shared_one(
    platform: Platform, owner: psycopg.Connection[Any]
) -> None:
    before = schemas(owner)
    owner.execute(
        "INSERT INTO cloudsync.tenants (id, name, plan, database, status) VALUES"
        " ('verified', 'v', 'dedicated', 'postgresql://cloudsync_service@127.0.0.1:1/v', 'disabled')"
    )
    try:
        done = command(platform, "--tenant", "verified")
        output, _ = done.communicate(timeout=60)
    finally:
        owner.execute("DELETE FROM cloudsync.tenants WHERE id = 'verified'")
    assert done.returncode == 1
    assert (
        "has a database of its own, and this is the shared one. Name it with --dedicated verified" in output
    )
    assert schemas(owner) == before


def test_an_interrupt_cleans_up(
    platform: Platform, owner: psycopg.Connection[Any], eventually: Eventually
) -> None:
    before = set(schemas(owner))
    running = command(platform, "--minutes", "10", "--seed", "1")
    try:
        eventually(lambda: set(schemas(owner)) - before, 30)
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130, output
    assert "the scratch schema is gone" in output
    assert set(schemas(owner)) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--url", "http://127.0.0.1:1"), "127.0.0.1:1 does not answer"),
        (("--token-command", "echo nonsense"), "The token is not valid here. [bad_token]"),
        (("--token-command", "false"), "The token command did not give a token"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    platform: Platform, arguments: tuple[str, ...], sentence: str
) -> None:
    done = command(platform, *arguments)
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 1
    assert sentence in output
    assert "Traceback" not in output


def test_a_role_without_rights_is_told_so(platform: Platform, owner: psycopg.Connection[Any]) -> None:
    role = sql.Identifier("verify_nobody")
    owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        done = command(platform, url=as_role(platform.postgres_url(), "verify_nobody"))
        output, _ = done.communicate(timeout=60)
    finally:
        owner.execute(sql.SQL("DROP ROLE {}").format(role))
    assert done.returncode == 1
    assert "may not set up tables: permission denied" in output
    assert output.strip().endswith("[right_missing]")
    assert "Traceback" not in output


def test_schemas_of_killed_runs_are_dropped_on_demand(
    platform: Platform, owner: psycopg.Connection[Any]
) -> None:
    schema = PREFIX + "left_behind"
    owner.execute(
        sql.SQL(
            "CREATE SCHEMA {0}; CREATE TABLE {0}.t (id integer PRIMARY KEY); INSERT INTO {0}.t VALUES (1)"
        ).format(sql.Identifier(schema))
    )
    owner.execute("SELECT cloudsync.track(%s::regclass, tenant => 'acme')", (f"{schema}.t",))
    done = command(platform, "--clean")
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 0, output
    assert f"Dropped {schema}." in output
    assert schema not in schemas(owner)
    again, _ = command(platform, "--clean").communicate(timeout=60)
    assert again == "No scratch schemas are there.\n"
