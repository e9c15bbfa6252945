"""What the running processes of a platform really send: every line read as an agent would."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import httpx
import pytest

from cloudsync.dev.platform import Platform
from cloudsync.metrics.definitions import METRICS, PROCESS_TAG
from integration.path.world import World, table_name
from platforms import private
from statsd import Agent, Received
from waiting import eventually_async

pytestmark = pytest.mark.slow
_REGISTRY: Final = {metric.name: metric for metric in METRICS}
_TENANT, _USER = "tenant-7731", "user-9917"

EXPECTED: Final = {
    "relay": {"sync.latency", "sync.events", "relay.lag", "process.loop.lag"},
    "routing": {"sync.events"},
    "gateway": {
        "sync.latency",
        "sync.latency.p95",
        "sync.events",
        "websocket.connections.active",
        "websocket.connections.slow",
        "client.errors",
        "process.loop.lag",
    },
    "general": {
        "redis.pubsub.backlog",
        "routing.lag",
        "relay.slot.wal_held",
        "relay.horizon.age",
        "relay.parked",
        "relay.mode",
        "relay.silence",
        "conflict.rate",
    },
    "api": {"api.requests", "client.errors", "process.loop.lag"},
}


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    listening = Agent()
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def platform(agent: Agent) -> Iterator[Platform]:
    environment = {"CLOUDSYNC_STATSD_HOST": "127.0.0.1", "CLOUDSYNC_STATSD_PORT": str(agent.port)}
    with private(environment=environment) as running:
        yield running


async def test_every_process_sends_what_it_knows_and_nothing_else(world: World, agent: Agent) -> None:
    table = table_name("measured")
    world.run(f"CREATE TABLE {table} (id int PRIMARY KEY, secret text)")
    world.run(f"SELECT cloudsync.track('{table}', tenant => '{_TENANT}')")
    watcher = await world.watch(_TENANT, _USER)
    view = await watcher.subscribe("s", table)
    await watcher.raw.subscribe("bad", "no_such_table")
    await watcher.error(ref="bad")
    url = f"{world.platform.api_url}/v1/endpoint"
    answer = await asyncio.to_thread(httpx.get, url, trust_env=False, timeout=20)
    assert answer.status_code == 401
    for number in range(40):
        world.run(f"INSERT INTO {table} VALUES (%s, 'row-secret')", number)
    await watcher.until(lambda: len(view.rows) == 40)

    def missing() -> dict[str, set[str]]:
        seen: dict[str, set[str]] = {}
        for line in agent.received:
            seen.setdefault(line.tags[PROCESS_TAG], set()).add(line.name)
        return {p: names - seen.get(p, set()) for p, names in EXPECTED.items() if names - seen.get(p, set())}

    await eventually_async(lambda: not missing(), 40, message="every process sends its metrics")
    for line in agent.received:
        _check(line)
    sent = b"".join(agent.datagrams)
    for secret in (_TENANT, _USER, table, watcher.client_id, "row-secret"):
        assert secret.encode() not in sent
    await _figures(agent)


async def _figures(agent: Agent) -> None:
    """The values are those of what was done, not just well-formed."""

    def weight(stage: str) -> float:
        return round(sum(r.weight for r in agent.named("sync.latency", stage=stage)))

    await eventually_async(lambda: weight("end_to_end") >= 40, 15)
    assert weight("detection") >= 40
    assert max(r.value for r in agent.named("websocket.connections.active")) == 1
    assert sum(r.value for r in agent.named("client.errors", code="unknown_table")) == 1
    assert sum(r.value for r in agent.named("client.errors", code="bad_token", process="api")) == 1
    assert sum(r.value for r in agent.named("sync.events", stage="relay")) >= 40
    assert agent.named("relay.mode", mode="live")
    p95 = [r.value for r in agent.named("sync.latency.p95")]
    assert all(0 < value < 60_000 for value in p95)
    await eventually_async(lambda: agent.named("redis.pubsub.backlog")[-1].value == 0, 15)
    assert agent.named("sync.lost") == []


def _check(line: Received) -> None:
    metric = _REGISTRY[line.name]
    assert line.kind == metric.kind
    assert set(line.tags) == {*metric.tag_names, PROCESS_TAG}
    assert line.tags[PROCESS_TAG] in EXPECTED
    for name, values in metric.tags:
        assert values is None or line.tags[name] in values
