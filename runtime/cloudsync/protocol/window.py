"""The acknowledgement window of one connection: what has been sent and not yet acknowledged."""

from __future__ import annotations

from collections import deque

from cloudsync.errors import RequestError


class BadAck(RequestError):
    """An acknowledgement names a delivery that was never sent."""

    code = "bad_ack"


class Window:
    """Delivery numbers count from 1; at most so many frames or bytes may be unacknowledged.

    A frame larger than the whole window passes when nothing else is under way.
    """

    __slots__ = ("_bytes", "_limit_bytes", "_limit_frames", "_sent", "acked", "last")

    def __init__(self, *, limit_frames: int, limit_bytes: int) -> None:
        self._limit_frames = limit_frames
        self._limit_bytes = limit_bytes
        self._sent: deque[tuple[int, float]] | None = None
        self._bytes = 0
        self.last = 0
        """Number of the newest delivery."""
        self.acked = 0
        """Everything up to this delivery is acknowledged."""

    def admits(self, size_bytes: int) -> bool:
        waiting = self.last - self.acked
        return not waiting or (waiting < self._limit_frames and self._bytes + size_bytes <= self._limit_bytes)

    def send(self, size_bytes: int, now_s: float) -> int:
        """Count a delivery as sent; returns its number."""
        if self._sent is None:
            self._sent = deque()
        self.last += 1
        self._bytes += size_bytes
        self._sent.append((size_bytes, now_s))
        return self.last

    def ack(self, n: int) -> None:
        """Everything up to delivery n is applied. Raises BadAck; a repeat of an older number is harmless."""
        if n > self.last or n < 0:
            raise BadAck(f"Delivery {n} was never sent: the last one is {self.last}.")
        sent = self._sent
        while self.acked < n and sent is not None:
            size, _ = sent.popleft()
            self._bytes -= size
            self.acked += 1
        if not sent:
            self._sent = None  # most connections are idle: an empty deque costs 600 bytes

    def oldest_sent_s(self) -> float | None:
        """When the oldest unacknowledged delivery was sent."""
        return self._sent[0][1] if self._sent else None
