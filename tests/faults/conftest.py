"""Each test's loads go along with its report, from whichever process ran it."""

from __future__ import annotations

import pytest

from faults import account


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "call":
        item.user_properties += [("load", line) for line in account.take()]
