"""The runbooks are true: their queries run, their commands exist, and what can be drilled here is drilled."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import typer.main

from cloudsync.cli import app
from cloudsync.dev.platform import Platform
from integration.path.world import World, table_name
from waiting import eventually

_ROOT: Final = Path(__file__).parents[2]
_PAGES: Final = sorted((_ROOT / "runbooks").glob("*.md"))
_QUERIES = [
    (page.stem, query)
    for page in _PAGES
    for query in re.findall(r"^ *```sql\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
]
_PROMISED: Final = {
    "deploy", "roll-back", "add-a-cell", "drain-a-cell", "add-a-tenant", "move-a-tenant",
    "restore-a-database", "rotate-keys", "redis-unavailable", "relay-lag", "slot-lost", "backlog-growing",
    "reconnect-storm", "conflict-rate", "major-version-upgrade", "remove-an-export",
}  # fmt: skip


def test_every_page_is_there() -> None:
    assert {page.stem for page in _PAGES} >= _PROMISED


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.stem)
def test_a_page_says_how_to_know_that_it_worked(page: Path) -> None:
    text = page.read_text()
    assert "How to know it worked" in text or page.stem == "verify"


@pytest.mark.parametrize(("page", "query"), _QUERIES, ids=[page for page, _ in _QUERIES])
def test_a_query_of_a_page_runs(database: str, page: str, query: str) -> None:
    with psycopg.connect(database) as connection:
        assert connection.execute(query).description, page


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.stem)
def test_pages_name_pages_that_exist(page: Path) -> None:
    named = re.findall(r"`([a-z-]+\.md)`", page.read_text())
    assert not [name for name in named if not (page.parent / name).is_file()]


def _commands(text: str) -> Iterator[str]:
    """Every `cloudsync …` of a page, in the text and in blocks, without what stands for a value."""
    yield from re.findall(r"`(cloudsync [a-z][^`]*)`", text)
    yield from re.findall(r"^ {4,}(cloudsync [a-z].*)$", text, re.MULTILINE)


def _known(words: list[str]) -> Any:
    """The command that words name, or None."""
    command: Any = typer.main.get_command(app)
    while command is not None and words and hasattr(command, "commands"):
        command, words = command.commands.get(words[0]), words[1:]
    return command


@pytest.mark.parametrize("page", [*_PAGES, _ROOT / "README.md"], ids=lambda page: page.stem)
def test_commands_and_their_options_exist(page: Path) -> None:
    for line in _commands(page.read_text()):
        words = shlex.split(line.replace("…", ""), posix=True)[1:]
        command = _known(words)
        assert command is not None, line
        options = {name for parameter in command.params for name in parameter.opts}
        if command.context_settings.get("ignore_unknown_options"):
            continue  # it reads its own: bench, verify, psql
        assert {word for word in words if word.startswith("--")} <= options, line


# Drills

_VALUES: Final = {"TENANT": "drilled", "NAME": "dev", "GATEWAY": "nobody"}


def _drill(
    world: World, page: str, environment: dict[str, str]
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run the commands of a page's blocks as they stand there, with values put in."""
    done = {}
    for line in re.findall(
        r"^ {4,}(cloudsync [a-z].*)$", (_ROOT / f"runbooks/{page}.md").read_text(), re.MULTILINE
    ):
        words = [_VALUES.get(word, word) for word in shlex.split(line)]
        done[line] = subprocess.run(
            [sys.executable, "-P", "-m", *words],
            cwd=_ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                "CLOUDSYNC_POSTGRES_URL": world.url,
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    return done


@pytest.mark.slow
def test_drill_move_a_tenant(platform: Platform) -> None:
    world = World(platform)
    table = table_name("drill")
    world.run(
        f"CREATE TABLE {table} (id int, tenant_id text, PRIMARY KEY (id, tenant_id))"
        " PARTITION BY LIST (tenant_id)"
    )
    world.run(f"CREATE TABLE {table}_rest PARTITION OF {table} DEFAULT")
    world.run(f"SELECT cloudsync.track('{table}')")
    world.run(f"INSERT INTO {table} VALUES (1, 'drilled'), (2, 'other')")
    created, shown, moved = _drill(world, "move-a-tenant", {}).values()
    assert created.returncode == shown.returncode == moved.returncode == 0, created.stderr + moved.stderr
    assert f"{table}: {table}_drilled, 1 rows moved." in created.stdout
    assert f"{table}  {table}_drilled" in shown.stdout
    assert f"{table}: default partition, 1 rows moved." in moved.stdout
    assert world.run(f"SELECT count(*) FROM {table}") == [(2,)]


@pytest.mark.slow
def test_drill_after_a_restore_the_doctor_is_asked(platform: Platform) -> None:
    world = World(platform)
    environment = {**platform.environment("gateway"), "CLOUDSYNC_API_URL": platform.api_url}

    said = ""

    def is_well() -> bool:
        nonlocal said
        (asked,) = _drill(world, "restore-a-database", environment).values()
        said = asked.stdout
        return asked.returncode == 0 and "The relay is live." in said

    try:
        eventually(is_well, 60)
    finally:
        print(said)
