"""track, untrack and touch on the command line: what they print, and refuse."""

from __future__ import annotations

import sys
from typing import NamedTuple, Protocol

import psycopg
import pytest

from cloudsync import cli
from cloudsync.dev.platform import Platform


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Command(Protocol):
    def __call__(self, verb: str, *arguments: str) -> Done: ...


@pytest.fixture
def command(database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, on the test's database."""
    monkeypatch.setenv("COLUMNS", "300")

    def run(verb: str, *arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["cloudsync", verb, "--postgres-url", database, *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        status = ended.value.code
        assert status is None or isinstance(status, int)
        return Done(status or 0, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def tables(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE todos (id bigint PRIMARY KEY, title text)")
        connection.execute("CREATE TABLE tasks (id bigint PRIMARY KEY, tenant_id text, who text, body text)")
        connection.execute("INSERT INTO tasks VALUES (2, 'acme', 'ann', 'x')")


@pytest.mark.parametrize("name", ["a.b.c", "a.b.c.d", "two words", ""])
def test_a_name_of_no_table_is_refused(command: Command, name: str) -> None:
    done = command("track", name)
    assert (done.status, done.err) == (
        1,
        f"cloudsync: There is no table {name}. Write it as schema.table. [track_refused]\n",
    )


def test_a_key_of_other_columns_is_no_missing_row(command: Command) -> None:
    command("track", "tasks")
    for key, words in {
        '{"idd": 2}': "The key of tasks is id; this one names idd.",
        '{"id": 2, "who": "ann"}': "The key of tasks is id; this one names id, who.",
        "{}": "The key of tasks is id; this one names no column.",
        '{"id": "two"}': "tasks cannot have a row with this key: invalid input syntax",
        '{"id": 3}': "tasks has no row with this key.",
    }.items():
        done = command("touch", "tasks", key)
        assert done.err.startswith(f"cloudsync: {words}"), key
        assert done.err.endswith("[track_refused]\n")
    assert command("touch", "tasks", '{"id": "2"}').status == 0


def test_refusals_keep_names_and_advise_in_options(command: Command) -> None:
    assert command("track", "todos").err == (
        'cloudsync: public.todos has no column "tenant_id" (tenant). Name the column that holds the'
        " tenant with --tenant-column, or give the whole table to one tenant: --tenant acme."
        " [track_refused]\n"
    )
    assert command("track", "cloudsync.clients").err.startswith("cloudsync: cloudsync.clients belongs to")
    assert command("untrack", "tasks").err == (
        "cloudsync: public.tasks is not tracked. Track it first: `cloudsync track`. [not_tracked]\n"
    )
    checked = command("track", "tasks", "--checked").err
    assert "Leave --checked out; say who may see a row with --tenant-column, --owner-column and" in checked


def test_a_column_and_a_constant_are_not_both_the_tenant(command: Command) -> None:
    done = command("track", "tasks", "--tenant", "acme", "--tenant-column", "tenant_id")
    assert done.status == 2
    assert "give one of them" in done.err


def test_rules_are_said_and_not_lost_by_a_call_without_them(command: Command, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE FUNCTION readers(r tasks) RETURNS text[] LANGUAGE sql RETURN ARRAY['ann']")
    rules = ("tasks", "--owner-column", "who", "--audience", "readers", "--column", "body=ot")
    said = "tenant column tenant_id, owner column who, audience readers(tasks), conflicts of body ot"
    for _ in range(2):
        assert command("track", *rules) == Done(0, f"Tracking public.tasks: {said}.\n", "")
    assert command("track", "tasks", "--tenant", "acme") == Done(
        1,
        "",
        f"cloudsync: public.tasks is tracked with {said}; this call would make that tenant acme. Give all"
        " rules that are to stay; --replace takes away what is not given. [track_refused]\n",
    )
    assert command("track", *rules[:-2]).status == 1
    assert command("track", *rules).status == 0  # they are what they were
    replaced = command("track", "tasks", "--replace", "--conflict", "manual")
    assert replaced == Done(0, "Tracking public.tasks: tenant column tenant_id, conflicts manual.\n", "")


def test_tail_says_whose_view_it_shows(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(platform.postgres_url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE tailed (id int PRIMARY KEY, tenant_id text, who text)")
        connection.execute("SELECT cloudsync.track('tailed', owner_column => 'who')")
    for more, said in ((), "-- as user ann of tenant acme\n"), (("--json",), ""):
        arguments = ("--url", platform.api_url, "--tenant", "acme", "--user", "ann", "--limit", "0", *more)
        monkeypatch.setattr(sys, "argv", ["cloudsync", "tail", "tailed", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        assert capsys.readouterr().err == said
