"""What libraries log: in the form of our own lines, and no flood."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from cloudsync.logs import Repeats


def complain(text: str = "error connecting in %r: %s", *args: object) -> logging.LogRecord:
    return logging.LogRecord("psycopg.pool", logging.WARNING, "", 0, text, args, None)


def test_a_complaint_is_heard_once_in_half_a_minute() -> None:
    now_s = 0.0
    repeats = Repeats(lambda: now_s)
    assert repeats.filter(complain("error connecting in %r: %s", "pool-1", "refused"))
    for now_s in (0.5, 1.0, 29.0):
        assert not repeats.filter(complain("error connecting in %r: %s", "pool-1", f"refused at {now_s}"))
    now_s = 30.0
    again = complain("error connecting in %r: %s", "pool-1", "refused")
    assert repeats.filter(again)
    assert again.getMessage() == "error connecting in 'pool-1': refused (3 times more until now)"


def test_what_others_complain_of_is_heard() -> None:
    repeats = Repeats(lambda: 0.0)
    assert repeats.filter(complain("error connecting in %r: %s", "pool-1", "refused"))
    assert repeats.filter(complain("error connecting in %r: %s", "pool-2", "refused"))
    assert repeats.filter(complain("100% full"))


def test_what_is_remembered_is_bounded() -> None:
    repeats = Repeats(lambda: 0.0)
    for number in range(5000):
        repeats.filter(complain("error in %s", number))
    assert len(repeats._seen) <= 1000


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_librarys_line_looks_like_our_own(log_format: str) -> None:
    script = (
        "import logging; from cloudsync import logs;"
        f"logs.configure(level='info', log_format='{log_format}');"
        "logs.get('ours').warning('hello', shard=3);"
        "logging.getLogger('psycopg.pool').warning('error in %s', 'pool-1');"
        "logging.getLogger('asyncio').info('not heard')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    ours, theirs = done.stderr.splitlines()
    if log_format == "json":
        line = json.loads(theirs)
        assert json.loads(ours).keys() - {"shard"} == line.keys()
        assert (line["component"], line["level"], line["event"]) == (
            "psycopg.pool",
            "warning",
            "error in pool-1",
        )
    else:
        assert "[warning  ] error in pool-1" in theirs
        assert "component=psycopg.pool" in theirs
