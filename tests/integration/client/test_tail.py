"""`cloudsync tail` as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloudsync.dev.platform import Platform

RUNTIME = Path(__file__).parents[3] / "runtime"


class Tail:
    """The command as a child process whose lines can be read as they come."""

    def __init__(self, platform: Platform, folder: Path, *arguments: str) -> None:
        self.output, self.errors = folder / "out", folder / "err"
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "cloudsync", "tail", *arguments,
                    "--url", platform.api_url, "--token", platform.token("acme", "ada"),
                ],
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(RUNTIME)},
                stdout=output,
                stderr=errors,
                cwd=folder,
            )  # fmt: skip

    @property
    def lines(self) -> list[str]:
        assert "Traceback" not in self.errors.read_text()
        return self.output.read_text().splitlines()


@pytest.fixture
def tail(platform: Platform, tmp_path: Path) -> Iterator[Callable[..., Tail]]:
    running: list[Tail] = []

    def start(*arguments: str) -> Tail:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        running.append(Tail(platform, folder, *arguments))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.wait()


def test_lines_for_people(
    tail: Callable[..., Tail],
    sql: psycopg.Connection[Any],
    table: str,
    eventually: Callable[..., Any],
) -> None:
    sql.execute(f"INSERT INTO {table} (id, n) VALUES (1, 5), (2, 50)")
    command = tail(table, "--where", "done=false", "--where", "n >= 10")
    eventually(lambda: command.lines, 30)
    assert command.lines[0].startswith(f"public.{table}: 1 row;")
    sql.execute(f"UPDATE {table} SET title = E'two\\nlines \\x1b[31m' WHERE id = 2")
    eventually(lambda: len(command.lines) == 2, 20)  # no order is promised between rows of two shards
    sql.execute(f"UPDATE {table} SET n = 10 WHERE id = 1")
    eventually(lambda: len(command.lines) == 3, 20)
    sql.execute(f"DELETE FROM {table} WHERE id = 2")
    eventually(lambda: len(command.lines) == 4, 20)
    update, create, delete = (line.split("  ") for line in command.lines[1:])
    assert update[1:3] == ["update", "id=2"]
    assert update[3] == r'title="two\nlines \u001b[31m"'
    assert update[4] == "v2"
    assert update[5].endswith(" ms")
    assert create[1:3] == ["create", "id=1"]
    assert "n=10" in create[3]
    assert delete[1:3] == ["delete", "id=2"]
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(10) == 0
    assert command.errors.read_text() == ""


def test_lines_for_programs(
    tail: Callable[..., Tail],
    sql: psycopg.Connection[Any],
    table: str,
    eventually: Callable[..., Any],
) -> None:
    command = tail(table, "--json", "--columns", "id,title")
    eventually(lambda: command.lines, 30)
    assert json.loads(command.lines[0]) == {"type": "snapshot", "table": f"public.{table}", "count": 0}
    sql.execute(f"INSERT INTO {table} (id, title) VALUES (1, 'é')")
    sql.execute(f"UPDATE {table} SET title = NULL")
    eventually(lambda: len(command.lines) == 3, 20)
    create, update = (json.loads(line) for line in command.lines[1:])
    assert create.pop("latency_ms") > 0
    assert create == {
        "type": "create", "table": f"public.{table}", "key": {"id": 1}, "version": 1,
        "row": {"id": 1, "title": "é"},
    }  # fmt: skip
    assert update["changes"] == {"title": None}
    command.process.send_signal(signal.SIGTERM)
    command.process.wait(10)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "unknown_table"),
        (["{table}", "--where", "n ~ 3"], "bad_filter"),
        (["{table}", "--where", "n=abc"], "bad_filter"),
        (["{table}", "--where", "nope=1"], "unknown_column"),
        (["{table}", "--columns", "nope"], "unknown_column"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tail: Callable[..., Tail], table: str, arguments: list[str], sentence: str
) -> None:
    command = tail(*(argument.format(table=table) for argument in arguments))
    assert command.process.wait(30) == 1
    lines = command.errors.read_text().strip().splitlines()
    assert sentence in lines[-1]
    assert len(lines) == 1, lines
    assert command.lines == []


def test_a_reader_that_leaves_is_no_error(
    platform: Platform, sql: psycopg.Connection[Any], table: str, tmp_path: Path
) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "cloudsync", "tail", table, "--url", platform.api_url,
         "--token", platform.token("acme", "ada")],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(RUNTIME)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )  # fmt: skip
    assert command.stdout
    assert command.stderr
    command.stdout.readline()
    command.stdout.close()
    sql.execute(f"INSERT INTO {table} (id) VALUES (1)")
    assert command.wait(30) == 0
    assert command.stderr.read() == b""
    command.stderr.close()
