"""What the emitter really sends, and that an agent that is not there costs nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cloudsync.metrics.definitions import CLIENT_ERRORS, CONNECTIONS
from cloudsync.metrics.emitter import Emitter
from cloudsync.metrics.recorder import Recorder
from statsd import Agent
from waiting import eventually


@pytest.fixture
def agent() -> Iterator[Agent]:
    listening = Agent()
    yield listening
    listening.close()


def test_readings_arrive_with_their_weights_and_tags(agent: Agent) -> None:
    recorder = Recorder()
    emitter = Emitter(recorder, host="127.0.0.1", port=agent.port, process="gateway")
    recorder.counter(CLIENT_ERRORS, code="bad_filter").add(5)
    recorder.watch(CONNECTIONS, lambda: 42)
    recorder.latency("delivery").add(10_000, 1000)
    emitter.stop()
    eventually(lambda: len(agent.received) == 3)
    errors, connections, latency = sorted(agent.received, key=lambda r: (r.kind == "distribution", r.name))
    assert errors == ("client.errors", "count", 5, 1, {"code": "bad_filter", "process": "gateway"})
    assert connections == ("websocket.connections.active", "gauge", 42, 1, {"process": "gateway"})
    assert latency.weight == pytest.approx(1000)
    assert latency.value == pytest.approx(10, rel=0.021)
    assert latency.tags == {"stage": "delivery", "process": "gateway"}


def test_it_flushes_by_itself_and_when_it_stops(agent: Agent) -> None:
    recorder = Recorder()
    emitter = Emitter(recorder, host="127.0.0.1", port=agent.port, process="api")
    emitter.start()
    recorder.counter(CLIENT_ERRORS, code="internal").add(1)
    eventually(lambda: agent.named("client.errors"))
    recorder.counter(CLIENT_ERRORS, code="internal").add(2)
    emitter.stop()
    eventually(lambda: sum(r.value for r in agent.named("client.errors")) == 3)


def test_a_missing_agent_is_not_noticed(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    recorder = Recorder()
    emitter = Emitter(recorder, host="127.0.0.1", port=port, process="relay")
    for _ in range(5):  # the first refusal is reported to the second datagram
        recorder.counter(CLIENT_ERRORS, code="internal").add(1)
        emitter.flush()
    emitter.stop()
    assert caplog.records == []


def test_a_source_that_fails_does_not_end_the_sending(agent: Agent) -> None:
    recorder = Recorder()
    answers = iter([ZeroDivisionError(), 7])

    def source() -> float:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    recorder.watch(CONNECTIONS, source)
    emitter = Emitter(recorder, host="127.0.0.1", port=agent.port, process="gateway")
    emitter.start()
    try:
        eventually(lambda: [r.value for r in agent.named("websocket.connections.active")] == [7])
    finally:
        recorder.watch(CONNECTIONS, lambda: 7)
        emitter.stop()
