"""What a client is told of a failure that is not its own; the log quotes nothing of a driver's message."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
import structlog
from psycopg_pool import PoolTimeout

from cloudsync.errors import LimitReached
from cloudsync.gateway import answers
from cloudsync.resolve.refusals import TryAgain

SECRET = "Key (email)=(ann@example.com) at db-7.internal"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> structlog.testing.CapturingLogger:
    written = structlog.testing.CapturingLogger()
    renderers: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    monkeypatch.setattr(answers, "_log", structlog.wrap_logger(written, processors=renderers))
    return written


@pytest.mark.parametrize(
    ("error", "code", "level", "reason"),
    [
        (psycopg.OperationalError(SECRET), "unavailable", "warning", "OperationalError"),
        (psycopg.errors.LockNotAvailable(SECRET), "unavailable", "warning", "LockNotAvailable"),
        (psycopg.errors.UndefinedTable(SECRET), "internal", "error", "UndefinedTable"),
        (PoolTimeout(SECRET), "unavailable", "warning", "PoolTimeout"),
        (ConnectionRefusedError(SECRET), "unavailable", "warning", "ConnectionRefusedError"),
        (TryAgain("the row is being changed by others"), "unavailable", "info",
         "the row is being changed by others"),
    ],
)  # fmt: skip
def test_a_failure_is_told_without_its_message(
    told: structlog.testing.CapturingLogger, error: Exception, code: str, level: str, reason: str
) -> None:
    answer = answers.unforeseen(error, "7", "change failed", client="c1")
    assert (answer.code, answer.ref) == (code, "7")
    (call,) = told.calls
    assert call.method_name == level
    assert "ann@example.com" not in call.args[0]
    assert "db-7" not in call.args[0]
    line = json.loads(call.args[0])
    assert (line["event"], line["client"], line["reason"]) == ("change failed", "c1", reason)


def test_a_mistake_of_our_own_is_told_with_where_it_was_made(
    told: structlog.testing.CapturingLogger,
) -> None:
    try:
        {}["missing"]
    except KeyError as error:
        answer = answers.failure(error, "s1")
    assert answer.code == "internal"
    (call,) = told.calls
    assert "test_answers.py" in call.args[0]


def test_what_the_client_may_hear_is_not_logged(told: structlog.testing.CapturingLogger) -> None:
    answer = answers.failure(LimitReached("Too many."), "s1")
    assert (answer.code, answer.message) == (LimitReached.code, "Too many.")
    assert told.calls == []
