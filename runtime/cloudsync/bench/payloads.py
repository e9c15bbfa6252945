"""Frames as the receivers read them: what all clients share is decoded once, a client's own is split off.

A gateway encodes an event once per topic and puts only the connection's own fields in front: delivery
number, subscription, time of sending. So a process with fifty clients gets the same bytes fifty times.
`PayloadReader` splits those fields off with one pattern and looks the rest up by its bytes; only what it
has not met is decoded, into the few fields that measuring needs. Every receipt is still counted, for every
client (`ledger`). A frame that does not begin as expected is decoded as a whole, which is slower and right.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

import msgspec

_SHARED: Final = re.compile(rb'\{"type":"([a-z.]+)","n":(\d+),"sub":\[[^\]]*\],(?:"sent":(\d+),)?')
_KEPT: Final = 4096
SENTINELS: Final = 16
"""Rows with a key below this are sentinels: written last, they prove that all before them has arrived."""
SENTINEL_KEYS: Final = frozenset(map(str, range(SENTINELS)))


class Times(msgspec.Struct, gc=False):
    """Microseconds since 1970."""

    commit: int = 0
    feed: int = 0
    route: int = 0


class _Event(msgspec.Struct, gc=False):
    key: dict[str, str | int]
    version: int
    type: str = ""
    times: Times | None = None


class _Frame(msgspec.Struct, gc=False):
    type: str
    n: int = 0
    sent: int = 0
    key: dict[str, str | int] | None = None
    version: int = 0
    times: Times | None = None
    events: list[_Event] | None = None
    last: bool = False


_decode = msgspec.json.Decoder(_Frame).decode


class Payload:
    """The shared part of a frame: which versions of which rows, and when they passed each stage.

    `rows` are (key, version) in order; `times` counts events by (commit, feed, route);
    deletes carry none, and sentinels do not count.
    """

    __slots__ = ("last", "rows", "sentinels", "times")

    def __init__(self, frame: _Frame) -> None:
        events = frame.events
        if events is None:
            events = [_Event(frame.key or {}, frame.version, frame.type, frame.times)]
        self.rows = [(str(next(iter(e.key.values()), "")), e.version) for e in events]
        self.times = tuple(
            Counter(
                (e.times.commit, e.times.feed, e.times.route)
                for e, (key, _) in zip(events, self.rows, strict=True)
                if e.times and e.times.commit and key not in SENTINEL_KEYS
            ).items()
        )
        self.last = frame.last
        self.sentinels = [(int(key), version) for key, version in self.rows if key in SENTINEL_KEYS]


class PayloadReader:
    """Reads data frames; keeps the newest few thousand payloads by their bytes."""

    def __init__(self) -> None:
        self._known: dict[bytes, Payload] = {}
        self.decoded = 0
        """How many payloads were distinct."""

    def read(self, frame: bytes) -> tuple[int, int, Payload] | None:
        """Delivery number, time of sending (0 where unknown) and payload; None if it is no data frame."""
        match = _SHARED.match(frame)
        if match is None:
            whole = _decode(frame)
            if not whole.type.startswith(("data.", "sync.")):
                return None
            return whole.n, whole.sent, self._remember(frame, whole)
        body = frame[match.end() :]
        payload = self._known.get(body)
        if payload is None:
            payload = self._remember(body, _decode(b'{"type":"' + match[1] + b'",' + body))
        return int(match[2]), int(match[3] or 0), payload

    def _remember(self, body: bytes, frame: _Frame) -> Payload:
        payload = Payload(frame)
        self.decoded += 1
        self._known[body] = payload
        if len(self._known) > _KEPT:
            del self._known[next(iter(self._known))]
        return payload
