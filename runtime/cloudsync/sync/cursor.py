"""Cursors: how far a client has been served, in a token that it cannot forge nor give to another.

What it covers is the whole gateway's; the seal names the client that it was given to. So a cursor also shows
that this client was verified when it was issued, and a gateway that replays need not ask the database again.
"""

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
    fed_bytes: int = 0
    """How much all feeds had taken in by then: what was fed since is what a replay has to read."""
    at_s: int = 0
    """When it was issued, in seconds since 1970."""

    @property
    def position(self) -> Position:
        return Position(self.lsn, self.ordinal)


class CursorRefused(RequestError):
    """The cursor was not issued by this platform."""

    code = "bad_cursor"


_decode = msgspec.msgpack.Decoder(Cursor).decode


class Holder(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Whose cursor it is."""

    tenant: str
    user: str
    client_id: str


def seal_cursor(keyring: Keyring, cursor: Cursor, holder: Holder) -> str:
    """The cursor as text for its client: URL-safe, authenticated."""
    content = msgspec.msgpack.encode(cursor)
    return base64.urlsafe_b64encode(content + _tag(keyring, content, holder)).decode().rstrip("=")


def open_cursor(keyring: Keyring, text: str, holder: Holder) -> Cursor:
    """The cursor in a client's text. Raises CursorRefused, also for another client's."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise CursorRefused from None
    content, tag = raw[:-16], raw[-16:]
    if not hmac.compare_digest(tag, _tag(keyring, content, holder)):
        raise CursorRefused
    try:
        return _decode(content)
    except msgspec.MsgspecError:
        raise CursorRefused from None


def _tag(keyring: Keyring, content: bytes, holder: Holder) -> bytes:
    named = msgspec.msgpack.encode(holder)
    return bytes.fromhex(keyring.tag("cursor", content.hex(), named.hex()))
