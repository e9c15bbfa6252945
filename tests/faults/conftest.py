"""The table of all loads at the end of a run: sent, received, lost, repeated, and how soon it recovered."""

from __future__ import annotations

import pytest

from faults import account


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := account.table():
        terminalreporter.section("loads under faults")
        for line in lines:
            terminalreporter.line(line)
