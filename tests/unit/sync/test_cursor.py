"""Cursors: what the platform did not issue is refused, whatever it looks like."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.events import Position
from cloudsync.keyring import Keyring
from cloudsync.sync.cursor import Cursor, CursorRefused, Holder, open_cursor, seal_cursor

KEYRING = Keyring.generate()
CURSOR = Cursor("7f3a", "e91c", 2**40, 7, 2**33)
ANN = Holder("acme", "ann", "c_1")

cursors = st.builds(Cursor, st.text(max_size=8), st.text(max_size=8), *[st.integers(0, 2**63)] * 5)


@given(cursors)
def test_round_trip_in_url_safe_text(cursor: Cursor) -> None:
    text = seal_cursor(KEYRING, cursor, ANN)
    assert open_cursor(KEYRING, text, ANN) == cursor
    assert cursor.position == Position(cursor.lsn, cursor.ordinal)
    assert all(c.isalnum() or c in "-_" for c in text)


@given(st.integers(0), st.integers(1, 255))
def test_an_altered_byte_is_refused(index: int, change: int) -> None:
    text = seal_cursor(KEYRING, CURSOR, ANN)
    raw = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    raw[index % len(raw)] ^= change
    with pytest.raises(CursorRefused):
        open_cursor(KEYRING, base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("="), ANN)


def test_another_platforms_cursor_is_refused() -> None:
    with pytest.raises(CursorRefused):
        open_cursor(Keyring.generate(), seal_cursor(KEYRING, CURSOR, ANN), ANN)


@pytest.mark.parametrize(
    "other",
    [Holder("acme", "ann", "c_2"), Holder("acme", "bob", "c_1"), Holder("umbrella", "ann", "c_1"),
     Holder("acm", "eann", "c_1"), Holder("", "", "")],
)  # fmt: skip
def test_another_clients_cursor_is_refused(other: Holder) -> None:
    with pytest.raises(CursorRefused):
        open_cursor(KEYRING, seal_cursor(KEYRING, CURSOR, ANN), other)


def test_a_tag_of_another_purpose_does_not_make_a_cursor() -> None:
    content = msgspec.msgpack.encode(CURSOR)
    holder = msgspec.msgpack.encode(ANN)
    forged = content + bytes.fromhex(KEYRING.tag("topic", content.hex(), holder.hex()))
    with pytest.raises(CursorRefused):
        open_cursor(KEYRING, base64.urlsafe_b64encode(forged).decode().rstrip("="), ANN)


def test_authentic_bytes_that_are_no_cursor_are_refused() -> None:
    content = msgspec.msgpack.encode(["7f3a"])
    holder = msgspec.msgpack.encode(ANN)
    sealed = content + bytes.fromhex(KEYRING.tag("cursor", content.hex(), holder.hex()))
    with pytest.raises(CursorRefused):
        open_cursor(KEYRING, base64.urlsafe_b64encode(sealed).decode().rstrip("="), ANN)


@given(st.text() | st.text("ABCabc-_=", max_size=100))
def test_any_other_text_is_refused_and_nothing_else_is_raised(text: str) -> None:
    with pytest.raises(CursorRefused):
        open_cursor(KEYRING, text, ANN)


def test_every_prefix_is_refused() -> None:
    text = seal_cursor(KEYRING, CURSOR, ANN)
    for length in range(len(text)):
        with pytest.raises(CursorRefused):
            open_cursor(KEYRING, text[:length], ANN)
