"""The window against a model: a list of what was sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudsync.protocol.frames import Body
from cloudsync.protocol.window import BadAck, Window

FRAMES, BYTES = 4, 100


def body(size_bytes: int) -> Body:
    return Body("", "", size_bytes)


class WindowMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.window = Window(limit_frames=FRAMES, limit_bytes=BYTES)
        self.sent: list[int] = []
        self.acked = 0
        self.heard_s: float | None = None
        self.resent = False
        self.now_s = 0.0

    @property
    def waiting(self) -> list[int]:
        return self.sent[self.acked :]

    @rule(size=st.integers(1, 150), frames=st.integers(1, 6))
    def send_if_admitted(self, size: int, frames: int) -> None:
        fits = len(self.waiting) + frames <= FRAMES and sum(self.waiting) + size <= BYTES
        assert self.window.admits(size, frames) == (fits or (frames == 1 and not self.waiting))
        if self.window.admits(size):
            self.now_s += 1
            if not self.waiting:
                self.heard_s = self.now_s
            self.sent.append(size)
            assert self.window.send(f'"{len(self.sent)}"', body(size), self.now_s) == len(self.sent)

    @rule(n=st.integers(-2, 60))
    def ack(self, n: int) -> None:
        if n < 0 or n > len(self.sent):
            with pytest.raises(BadAck):
                self.window.ack(n, self.now_s)
        else:
            self.now_s += 1
            self.window.ack(n, self.now_s)
            if n > self.acked:
                self.acked, self.resent = n, False
                self.heard_s = self.now_s if self.waiting else None

    @rule()
    def send_again(self) -> None:
        self.now_s += 1
        again = self.window.send_again(self.now_s)
        if not self.waiting:
            assert again is None
            return
        assert again == (self.acked + 1, f'"{self.acked + 1}"', body(self.waiting[0]))
        self.heard_s, self.resent = self.now_s, True

    @rule()
    def ack_all(self) -> None:
        self.ack(len(self.sent))

    @invariant()
    def agrees(self) -> None:
        assert (self.window.last, self.window.acked) == (len(self.sent), self.acked)
        assert (self.window.waiting_since_s, self.window.resent) == (self.heard_s, self.resent)
        half = len(self.waiting) * 2 <= FRAMES and sum(self.waiting) * 2 <= BYTES
        assert self.window.half_open == half


TestWindow = WindowMachine.TestCase


@given(st.integers(1, 10**9))
def test_a_frame_larger_than_the_window_passes_alone(size: int) -> None:
    window = Window(limit_frames=1, limit_bytes=10)
    assert window.admits(size)
    window.send('"s"', body(size), 0.0)
    assert not window.admits(1)
    window.ack(1, 0.0)
    assert window.admits(size)


def test_an_ack_of_nothing_sent_is_refused_with_numbers() -> None:
    window = Window(limit_frames=1, limit_bytes=10)
    with pytest.raises(BadAck, match="Delivery 1 was never sent: the last one is 0"):
        window.ack(1, 0.0)
