"""The acknowledgement window of one connection: what has been sent and not yet acknowledged."""

from __future__ import annotations

from collections import deque

from cloudsync.errors import RequestError
from cloudsync.protocol.frames import Body


class BadAck(RequestError):
    """An acknowledgement names a delivery that was never sent."""

    code = "bad_ack"


class Window:
    """Delivery numbers count from 1; at most so many frames or bytes may be unacknowledged.

    A frame larger than the whole window passes when nothing else is under way. What is unacknowledged is
    kept, so that the oldest can be sent again; bodies are shared by connections, so that costs little.
    """

    __slots__ = (
        "_bytes",
        "_limit_bytes",
        "_limit_frames",
        "_sent",
        "acked",
        "last",
        "resent",
        "waiting_since_s",
    )

    def __init__(self, *, limit_frames: int, limit_bytes: int) -> None:
        self._limit_frames = limit_frames
        self._limit_bytes = limit_bytes
        self._sent: deque[tuple[str, Body]] | None = None
        self._bytes = 0
        self.last = 0
        """Number of the newest delivery."""
        self.acked = 0
        """Everything up to this delivery is acknowledged."""
        self.waiting_since_s: float | None = None
        """Since when no acknowledgement has come although one is due; None if none is."""
        self.resent = False
        """Whether the oldest delivery has been sent again since then."""

    def admits(self, size_bytes: int, frames: int = 1) -> bool:
        waiting = self.last - self.acked
        if not waiting and frames == 1:
            return True
        return waiting + frames <= self._limit_frames and self._bytes + size_bytes <= self._limit_bytes

    @property
    def half_open(self) -> bool:
        """Whether at least half of it is free."""
        return (self.last - self.acked) * 2 <= self._limit_frames and self._bytes * 2 <= self._limit_bytes

    def send(self, sub: str, body: Body, now_s: float) -> int:
        """Count a delivery as sent; returns its number."""
        if self._sent is None:
            self._sent = deque()
            self.waiting_since_s = now_s
        self.last += 1
        self._bytes += body.size_bytes
        self._sent.append((sub, body))
        return self.last

    def ack(self, n: int, now_s: float) -> None:
        """Everything up to delivery n is applied. Raises BadAck; a repeat of an older number is harmless."""
        if n > self.last or n < 0:
            raise BadAck(f"Delivery {n} was never sent: the last one is {self.last}.")
        sent = self._sent
        if n <= self.acked or sent is None:
            return
        for _ in range(n - self.acked):
            self._bytes -= sent.popleft()[1].size_bytes
        self.acked = n
        self.resent = False
        self.waiting_since_s = now_s if sent else None
        if not sent:
            self._sent = None  # most connections are idle: an empty deque costs 600 bytes

    def send_again(self, now_s: float) -> tuple[int, str, Body] | None:
        """The oldest delivery, to be sent once more: its number, subscription, body."""
        if self._sent is None:
            return None
        self.resent = True
        self.waiting_since_s = now_s
        return (self.acked + 1, *self._sent[0])
