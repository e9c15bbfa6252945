"""`cloudsync tenant attach` and `detach`: what they record, what they refuse, what they warn of."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import typer.testing

from cloudsync.cli import app, registered
from cloudsync.dev.ports import free_port

_AWAY = "postgresql://cloudsync_service@127.0.0.1:{port}/acme"


class Terminal:
    """The command line on a test's database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.away = _AWAY.format(port=free_port())

    def run(self, *arguments: str) -> typer.testing.Result:
        runner = typer.testing.CliRunner()
        return runner.invoke(app, ["tenant", *arguments, "--postgres-url", self.url])

    def attach(self, tenant: str, reference: str) -> typer.testing.Result:
        done = self.run("attach", tenant, "--database", reference)
        assert done.exit_code == 0, done.exception
        return done

    def refused(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert isinstance(done.exception, Exception), done.output
        known = registered(done.exception)
        assert known is not None, done.exception
        return str(known)

    def query(self, query: str) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(query)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def recorded(self) -> list[Any]:
        return self.query("SELECT id, plan, database, status FROM cloudsync.tenants ORDER BY id")


@pytest.fixture
def terminal(database: str) -> Terminal:
    return Terminal(database)


def test_a_tenant_is_recorded_once_and_a_repeat_changes_nothing(terminal: Terminal) -> None:
    first = terminal.attach("acme", terminal.away)
    assert "served from a database of its own" in first.stdout
    assert "Nobody listens at 127.0.0.1" in first.stderr, "and it is recorded all the same"
    assert terminal.recorded() == [("acme", "dedicated", terminal.away, "active")]
    before = terminal.query("SELECT xmin::text FROM cloudsync.tenants")
    assert "already" in terminal.attach("acme", terminal.away).stdout
    assert terminal.query("SELECT xmin::text FROM cloudsync.tenants") == before
    moved = terminal.away.replace("/acme", "/acme_2")
    assert "another database" in terminal.attach("acme", moved).stdout
    assert terminal.recorded() == [("acme", "dedicated", moved, "active")]
    assert terminal.away.rpartition(":")[2].partition("/")[0] in terminal.run("show", "acme").stdout


def test_a_tenant_that_exists_keeps_its_name_and_stays_disabled(terminal: Terminal) -> None:
    terminal.run("create", "acme", "--name", "Acme & Co.")
    terminal.run("disable", "acme")
    terminal.attach("acme", terminal.away)
    assert terminal.recorded() == [("acme", "dedicated", terminal.away, "disabled")]
    assert "Acme & Co." in terminal.run("show", "acme").stdout
    assert "tenant detach" in terminal.refused("move", "acme", "--plan", "shared")
    assert "shared database within" in terminal.run("detach", "acme").stdout
    assert "already" in terminal.run("detach", "acme").stdout
    assert terminal.recorded() == [("acme", "shared", None, "disabled")]


def test_a_tenant_with_rows_in_the_shared_database_is_refused(terminal: Terminal) -> None:
    terminal.query("CREATE TABLE notes (id int PRIMARY KEY, tenant_id text)")
    terminal.query("CREATE TABLE counted (id int PRIMARY KEY, tenant_id bigint)")
    terminal.query("CREATE TABLE only_acme (id int PRIMARY KEY)")
    terminal.query("SELECT cloudsync.track('notes'), cloudsync.track('counted')")
    terminal.query("SELECT cloudsync.track('only_acme', tenant_column => NULL, tenant => 'acme')")
    terminal.query("INSERT INTO notes VALUES (1, 'globex'), (2, '7')")
    terminal.query("INSERT INTO counted VALUES (1, 7)")
    terminal.query("INSERT INTO only_acme VALUES (1)")
    assert "rows in public.only_acme of" in terminal.refused("attach", "acme", "--database", terminal.away)
    assert "rows in public.notes of" in terminal.refused("attach", "globex", "--database", terminal.away)
    said = terminal.refused("attach", "7", "--database", terminal.away)
    assert "rows in public.counted, public.notes of" in said
    assert "move-a-tenant.md" in said
    assert terminal.recorded() == []
    terminal.query("DELETE FROM only_acme")
    terminal.attach("acme", terminal.away)


def test_one_database_is_one_tenants(terminal: Terminal) -> None:
    terminal.attach("acme", terminal.away)
    taken = terminal.refused("attach", "globex", "--database", f"{terminal.away}?sslmode=disable")
    assert "that of the tenant acme" in taken
    shared = terminal.url.replace("postgres@", "cloudsync_service@")
    assert "that of the shared database" in terminal.refused("attach", "globex", "--database", shared)
    assert [tenant for tenant, *_ in terminal.recorded()] == ["acme"]


def test_what_is_not_a_reference_is_refused(terminal: Terminal) -> None:
    assert "password" in terminal.refused(
        "attach", "acme", "--database", "postgresql://cloudsync_service:x@h/d"
    )
    assert "not usable" in terminal.refused("attach", "acme", "--database", "h")
    assert "tenant's id" in terminal.refused("attach", " ", "--database", terminal.away)
    assert "No tenant nobody" in terminal.refused("detach", "nobody")
    assert "tenant attach" in terminal.refused("create", "acme", "--plan", "dedicated")


def test_it_is_warned_of_a_database_that_nothing_was_made_in(
    terminal: Terminal, postgres: Any, migrated_template: str
) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
        connection.execute(f"CREATE DATABASE relayless TEMPLATE {migrated_template}")
    bare = postgres.url("cloudsync_service", "bare")
    assert "not been migrated" in terminal.attach("acme", bare).stderr
    relayless = postgres.url("cloudsync_service", "relayless")
    assert "No relay has begun" in terminal.attach("acme", relayless).stderr
    with psycopg.connect(relayless.replace("cloudsync_service@", "postgres@"), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO cloudsync.relay_state (database_id, system_identifier, timeline, slot_name)"
            " VALUES ('db', 1, 1, 'none')"
        )
    assert terminal.attach("acme", relayless).stderr == ""


def test_a_table_that_this_role_may_not_read_is_named(terminal: Terminal) -> None:
    terminal.query("CREATE TABLE hidden (id int PRIMARY KEY, tenant_id text)")
    terminal.query("SELECT cloudsync.track('hidden')")
    terminal.url = terminal.url.replace("postgres@", "cloudsync_service@")
    assert "Whether public.hidden has rows" in terminal.attach("acme", terminal.away).stderr
