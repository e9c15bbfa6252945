"""A worker whose broker dies while it acknowledges a task: it must notice, or it never takes another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery.utils.log import get_logger
from kombu import Connection
from kombu.asynchronous import Hub

from cloudsync.dev.valkey import EmbeddedValkey
from cloudsync.routing.reconnection import Consumer


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
