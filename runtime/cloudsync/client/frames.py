"""The server's frames as a client reads them."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any, Final, get_args

import msgspec

from cloudsync.client.errors import FrameUnreadable
from cloudsync.protocol.messages import (
    ChangeConfirmed,
    ChangeRejected,
    Choice,
    ConflictReset,
    Draining,
    Error,
    Heartbeat,
    Subscribed,
    SubscriptionChanged,
    SubscriptionReset,
    Welcome,
)


class Times(msgspec.Struct, frozen=True, gc=False):
    """When an event passed each stage, microseconds since 1970 by the servers' clocks; 0 where unknown."""

    commit: int = 0
    feed: int = 0
    route: int = 0


class TextChange(msgspec.Struct, frozen=True, gc=False):
    """How a text has changed: the operation, and the version of the row that it made."""

    revision: int
    op: list[Any]


class _Data(msgspec.Struct, tag_field="type", kw_only=True):
    key: dict[str, Any]
    version: int
    n: int = 0
    sub: list[str] = []
    sent: int = 0
    table: str = ""
    by: dict[str, Any] | None = None
    at: str | None = None
    id: str | None = None
    tx: str | None = None
    times: Times | None = None


class DataCreate(_Data, tag="data.create"):
    row: dict[str, Any]
    revisions: dict[str, int] | None = None


class DataUpdate(_Data, tag="data.update"):
    prev_version: int
    changes: dict[str, Any]
    text: dict[str, TextChange] | None = None


class DataDelete(_Data, tag="data.delete"):
    pass


Data = DataCreate | DataUpdate | DataDelete


class SyncBatch(msgspec.Struct, tag_field="type", tag="sync.batch"):
    events: list[Data]
    n: int = 0
    sub: list[str] = []
    sent: int = 0
    snapshot: bool = False
    last: bool = False


class ConflictDetected(msgspec.Struct, tag_field="type", tag="conflict.detected"):
    conflict_id: str
    revision: int
    table: str
    key: dict[str, Any]
    fields: list[str]
    version: int
    theirs: dict[str, Any]
    mine: dict[str, Any]
    base: dict[str, Any] | None = None
    by: dict[str, Any] | None = None
    theirs_by: dict[str, Any] | None = None


class ConflictResolved(msgspec.Struct, tag_field="type", tag="conflict.resolved"):
    conflict_id: str
    revision: int
    choice: Choice
    version: int
    by: dict[str, Any] | None = None


class ConflictPage(msgspec.Struct, tag_field="type", tag="conflict.page"):
    id: str
    conflicts: list[ConflictDetected]
    next: str | None = None


class PresentMember(msgspec.Struct):
    id: str
    user: str
    client: str
    state: Any


class PresenceNews(msgspec.Struct, tag_field="type", tag="presence"):
    """Who came or has another state, and who left; `whole`: these are all, and `you` is the receiver."""

    sub: str
    members: list[PresentMember] = []
    left: list[str] = []
    count: int = 0
    whole: bool = False
    you: str = ""


ConflictFrame = ConflictDetected | ConflictResolved | ConflictPage | ConflictReset
Frame = (
    Data
    | SyncBatch
    | Welcome
    | Subscribed
    | SubscriptionReset
    | SubscriptionChanged
    | ChangeConfirmed
    | ChangeRejected
    | ConflictFrame
    | PresenceNews
    | Heartbeat
    | Draining
    | Error
)


class _Typed(msgspec.Struct):
    type: str


def float_or_decimal(text: str) -> float | Decimal:
    """A number with a fraction or an exponent; jsonb may hold 1e400, which is beyond floats."""
    value = float(text)
    return value if math.isfinite(value) else Decimal(text)


_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Frame, float_hook=float_or_decimal)
_typed = msgspec.json.Decoder(_Typed)
_KNOWN: Final = frozenset(kind.__struct_config__.tag for kind in get_args(Frame))


def decode(data: bytes) -> Frame | None:
    """One frame; None if this client does not know its type (newer servers). Raises FrameUnreadable."""
    try:
        frame: Frame = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        try:
            kind = _typed.decode(data).type
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise FrameUnreadable("The server sent something that is not a frame.") from None
        if kind not in _KNOWN:
            return None
        try:
            return _decode_patiently(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise FrameUnreadable(
                f"The server sent a {kind!r} frame that this client cannot read: {error}."
            ) from None
    return frame


def _decode_patiently(data: bytes) -> Frame:
    """A frame with an integer of more digits than are converted by default; jsonb may hold them."""
    content = json.loads(data, parse_int=_int_or_decimal, parse_float=float_or_decimal)
    frame: Frame = msgspec.convert(content, Frame)
    return frame


def _int_or_decimal(text: str) -> int | Decimal:
    try:
        return int(text)
    except ValueError:
        return Decimal(text)
