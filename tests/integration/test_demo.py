"""The demonstration, short: it succeeds, fails when a view is not what SQL says, can be interrupted."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys

import psutil
import psycopg
import pytest
from psycopg import sql
from rich.console import Console

from cloudsync.bench.target import child_environment
from cloudsync.dev import demo
from cloudsync.dev.demo import Watch
from cloudsync.dev.platform import Platform
from waiting import eventually

pytestmark = pytest.mark.slow


def test_every_view_equals_sql(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--seconds", "3", "--rate", "50"]) == 0
    output = capsys.readouterr().out
    assert "Every view equals SQL." in output
    assert "paced at 50 transactions/s" in output
    captured = re.search(r"([\d,]+) changes captured, .*\(everything ([\d,]+), ", output)
    assert captured is not None, output
    assert captured[1] == captured[2]  # or it looks like a loss
    assert "end to end" in output
    assert output.count("✓") == sum(map(len, demo.WATCHES.values()))


def test_what_the_platform_writes_to_watch_itself_is_not_counted(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT cloudsync.write_canaries()")
        connection.execute("CREATE TABLE pgbench_tellers (tid int PRIMARY KEY)")
        connection.execute("SELECT cloudsync.track('pgbench_tellers', tenant => 'demo')")
        connection.execute("INSERT INTO pgbench_tellers VALUES (1), (2)")
        assert demo._captured(connection) == 2


def test_a_view_that_differs_fails(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the tests' own platform: what differs is the question, not how it was started."""
    watches = {"filtered": (Watch("pgbench_tellers", {"tid": {"lte": 5}}, "tid <= 6"),)}
    monkeypatch.setattr(demo, "WATCHES", watches)
    monkeypatch.setattr(demo, "_CATCH_UP_S", 1.0)
    console = Console(highlight=False, soft_wrap=True)
    arguments = demo._parser().parse_args(["--seconds", "1", "--rate", "20"])
    outcome = asyncio.run(demo._demonstrate(platform, arguments, console))
    with psycopg.connect(platform.postgres_url(), autocommit=True) as connection:
        for table in demo._TABLES:
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(table)))
    assert outcome.status == 1
    demo._show(outcome, console)
    output = capsys.readouterr().out
    assert "6 rows in SQL: 1 missing" in output
    assert "A view does NOT equal SQL." in output


def test_an_interruption_leaves_nothing() -> None:
    """SIGTERM takes the way of Ctrl-C, with one step more."""
    with subprocess.Popen(
        [sys.executable, "-u", "-P", "-m", "cloudsync", "demo", "--seconds", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=child_environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while "captured" not in (line := process.stdout.readline()):
            assert line, "the demonstration ended early"
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) > 8
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(30) == 130, rest
    assert "Traceback" not in rest
    eventually(lambda: not any(child.is_running() for child in started), 10)
