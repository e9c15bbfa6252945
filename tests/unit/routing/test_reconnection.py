"""A worker whose broker dies while it acknowledges a task, and beat whose clock is set back: both go on."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import Celery
from celery.utils.log import get_logger
from kombu import Connection
from kombu.asynchronous import Hub

from cloudsync.dev.valkey import EmbeddedValkey
from cloudsync.routing.reconnection import Consumer, Scheduler


def test_an_acknowledgement_that_fails_ends_the_connection(tmp_path: Path) -> None:
    consumer = Consumer.__new__(Consumer)
    consumer.hub = Hub()
    log = get_logger("test")
    with EmbeddedValkey(tmp_path, ephemeral=True) as server:
        connection = Connection(server.url, transport_options={"socket_connect_timeout": 1})
        queue = connection.SimpleQueue("tasks")
        queue.put({"a": "task"})
        queue.put({"another": "task"})
        heard, unheard = queue.get(timeout=5), queue.get(timeout=5)
        consumer.call_soon_ack(heard.ack_log_error, log, connection.connection_errors)
        consumer.hub.run_once()
        assert heard.acknowledged
    consumer.call_soon_ack(unheard.ack_log_error, log, connection.connection_errors)
    with pytest.raises(connection.connection_errors):
        consumer.hub.run_once()
    assert not unheard.acknowledged
    queue.channel.qos._on_collect.cancel()  # or it would try to give the task back when Python ends
    consumer.hub.close()


class Beat:
    """A scheduler with two tasks, a clock that a test moves, and a count of what it sent."""

    def __init__(self, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
        application = Celery(broker="memory://")
        application.conf.beat_schedule = {
            "often": {"task": "often", "schedule": 1.0},
            "seldom": {"task": "seldom", "schedule": 10.0},
        }
        self.now = now
        monkeypatch.setattr(application, "now", lambda: self.now)
        self.sent: Counter[str] = Counter()
        self.scheduler = Scheduler(application)
        self.scheduler.apply_entry = lambda entry, producer=None: self.sent.update([entry.name])

    def run(self, seconds: int) -> Counter[str]:
        """What is sent within this time."""
        self.sent.clear()
        for _ in range(seconds * 2):
            self.now += timedelta(seconds=0.5)
            while self.scheduler.tick() == 0:
                pass
        return self.sent


def test_beat_goes_on_when_its_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    beat = Beat(datetime(2026, 11, 22, 12, tzinfo=UTC), monkeypatch)
    sent = beat.run(30)
    assert (sent["often"], sent["seldom"]) in [(29, 2), (30, 3), (30, 2), (29, 3)]
    beat.now -= timedelta(hours=3)
    sent = beat.run(30)
    assert sent["often"] >= 28
    assert sent["seldom"] >= 2


def test_beat_keeps_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is killed would leave them behind."""
    monkeypatch.chdir(tmp_path)
    beat = Beat(datetime(2026, 11, 22, 12, tzinfo=UTC), monkeypatch)
    beat.run(2)
    beat.scheduler.close()
    assert list(tmp_path.iterdir()) == []
