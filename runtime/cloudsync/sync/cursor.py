"""Cursors: how far a client has been served, in a token that it cannot forge."""

from __future__ import annotations

import base64
import binascii
import hmac

import msgspec

from cloudsync.errors import RequestError
from cloudsync.events import Position
from cloudsync.keyring import Keyring


class Cursor(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Everything of this database and epoch up to `position` has been handed to the client."""

    database_id: str
    epoch: str
    lsn: int
    ordinal: int
    horizon: int

    @property
    def position(self) -> Position:
        return Position(self.lsn, self.ordinal)


class CursorRefused(RequestError):
    """The cursor was not issued by this platform."""

    code = "bad_cursor"


_decode = msgspec.msgpack.Decoder(Cursor).decode


def seal_cursor(keyring: Keyring, cursor: Cursor) -> str:
    """The cursor as text for the client: URL-safe, authenticated."""
    content = msgspec.msgpack.encode(cursor)
    return base64.urlsafe_b64encode(content + _tag(keyring, content)).decode().rstrip("=")


def open_cursor(keyring: Keyring, text: str) -> Cursor:
    """The cursor in a client's text. Raises CursorRefused."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise CursorRefused from None
    content, tag = raw[:-16], raw[-16:]
    if not hmac.compare_digest(tag, _tag(keyring, content)):
        raise CursorRefused
    try:
        return _decode(content)
    except msgspec.MsgspecError:
        raise CursorRefused from None


def _tag(keyring: Keyring, content: bytes) -> bytes:
    return bytes.fromhex(keyring.tag("cursor", content.hex()))
