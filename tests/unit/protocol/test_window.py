"""The window against a model: a list of what was sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudsync.protocol.window import BadAck, Window

FRAMES, BYTES = 4, 100


class WindowMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.window = Window(limit_frames=FRAMES, limit_bytes=BYTES)
        self.sent: list[tuple[int, float]] = []
        self.acked = 0
        self.now_s = 0.0

    @property
    def waiting(self) -> list[tuple[int, float]]:
        return self.sent[self.acked :]

    @rule(size=st.integers(1, 150))
    def send_if_admitted(self, size: int) -> None:
        total = sum(s for s, _ in self.waiting)
        wanted = not self.waiting or (len(self.waiting) < FRAMES and total + size <= BYTES)
        assert self.window.admits(size) == wanted
        if wanted:
            self.now_s += 1
            self.sent.append((size, self.now_s))
            assert self.window.send(size, self.now_s) == len(self.sent)

    @rule(n=st.integers(-2, 60))
    def ack(self, n: int) -> None:
        if n < 0 or n > len(self.sent):
            with pytest.raises(BadAck):
                self.window.ack(n)
        else:
            self.window.ack(n)
            self.acked = max(self.acked, n)

    @rule()
    def ack_all(self) -> None:
        self.ack(len(self.sent))

    @invariant()
    def agrees(self) -> None:
        assert (self.window.last, self.window.acked) == (len(self.sent), self.acked)
        assert self.window.oldest_sent_s() == (self.waiting[0][1] if self.waiting else None)


TestWindow = WindowMachine.TestCase


@given(st.integers(1, 10**9))
def test_a_frame_larger_than_the_window_passes_alone(size: int) -> None:
    window = Window(limit_frames=1, limit_bytes=10)
    assert window.admits(size)
    window.send(size, 0.0)
    assert not window.admits(1)
    window.ack(1)
    assert window.admits(size)


def test_an_ack_of_nothing_sent_is_refused_with_numbers() -> None:
    window = Window(limit_frames=1, limit_bytes=10)
    with pytest.raises(BadAck, match="Delivery 1 was never sent: the last one is 0"):
        window.ack(1)
