"""One tree of errors: a sentence each, and every code that reaches the wire is registered."""

from __future__ import annotations

import importlib
import pkgutil
import re

import cloudsync
from cloudsync.errors import AccessError, CloudSyncError, RequestError
from cloudsync.protocol.codes import CLOSE_MEANINGS, ERROR_MEANINGS, Close


def family(kind: type[CloudSyncError]) -> set[type[CloudSyncError]]:
    """A class and all below it, in every stage that speaks to clients."""
    for stage in ("gateway", "sync", "protocol", "registry", "feeds"):
        package = importlib.import_module(f"cloudsync.{stage}")
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(found.name)
    found_kinds = {kind}
    for below in kind.__subclasses__():
        found_kinds |= family(below)
    return {k for k in found_kinds if k.__module__.startswith(cloudsync.__name__)}


def test_every_error_is_a_sentence_with_a_code() -> None:
    for kind in family(CloudSyncError):
        if kind.__module__.startswith("cloudsync.client"):
            continue
        message = str(kind())
        assert re.match(r"[A-Z].*\.\Z", message, re.DOTALL) or "broken" in kind.code, kind
        assert re.fullmatch(r"[a-z_]+", kind.code), kind


def test_what_requests_and_access_raise_is_registered_on_the_wire() -> None:
    unregistered = {
        kind.__name__
        for kind in family(RequestError) | family(AccessError)
        if kind.code not in ERROR_MEANINGS and not kind.__module__.startswith("cloudsync.client")
    }
    # The root is never raised itself; a refused cursor leads to a resync, not to an error.
    assert unregistered <= {"AccessError", "CursorRefused"}


def test_a_hint_follows_the_message() -> None:
    assert str(CloudSyncError("It broke.", hint="Mend it.")) == "It broke. Mend it."
    assert str(CloudSyncError()) == "Something went wrong in CloudSync."


def test_close_codes_are_described_and_their_range_decides() -> None:
    assert set(CLOSE_MEANINGS) == set(Close)
    assert all(len(text.encode()) <= 123 for text in CLOSE_MEANINGS.values())  # the frame's limit
    assert {c for c in Close if c.reconnect} == {
        Close.DRAINING, Close.TOKEN_EXPIRED, Close.SLOW, Close.NO_ACK, Close.SERVER_ERROR, Close.MOVED,
    }  # fmt: skip
    assert all(4000 <= c < 5000 for c in Close)


def test_meanings_are_sentences() -> None:
    assert all(text.endswith(".") for text in ERROR_MEANINGS.values())
