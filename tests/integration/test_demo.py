"""The demonstration, short: it succeeds, fails when a view is not what SQL says, can be interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from cloudsync.bench.target import child_environment
from cloudsync.dev import demo
from cloudsync.dev.demo import Watch
from waiting import eventually

pytestmark = pytest.mark.slow


def test_every_view_equals_sql(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--seconds", "3", "--rate", "50"]) == 0
    output = capsys.readouterr().out
    assert "Every view equals SQL." in output
    assert "paced at 50 transactions/s" in output
    assert "captured" in output
    assert "end to end" in output
    assert output.count("✓") == sum(map(len, demo.WATCHES.values()))


def test_a_view_that_differs_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watches = {"filtered": (Watch("pgbench_tellers", {"tid": {"lte": 5}}, "tid <= 6"),)}
    monkeypatch.setattr(demo, "WATCHES", watches)
    monkeypatch.setattr(demo, "_CATCH_UP_S", 1.0)
    assert demo.main(["--seconds", "1", "--rate", "20"]) == 1
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
