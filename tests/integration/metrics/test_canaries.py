"""Canaries on a running platform: they arrive in every shard, at no user, and one that does not is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from cloudsync.dev.platform import Platform
from cloudsync.errors import TokenRefused
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.feeds.scripts import UNHOST
from cloudsync.keyring import Keyring
from cloudsync.registry.topics import make_topic, tenant_tag
from cloudsync.tokens import RESERVED_TENANT, TokenVerifier
from integration.path.world import World
from platforms import private
from statsd import Agent
from waiting import eventually_async

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    listening = Agent()
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def platform(agent: Agent) -> Iterator[Platform]:
    environment = {
        "CLOUDSYNC_STATSD_HOST": "127.0.0.1",
        "CLOUDSYNC_STATSD_PORT": str(agent.port),
        "CLOUDSYNC_CANARY_WRITE_S": "0.5",
    }
    with private(environment=environment) as running:
        yield running


def _sequences(world: World) -> dict[int, int]:
    return dict(world.run("SELECT shard, sequence FROM cloudsync.canary"))


def _lost(agent: Agent) -> float:
    return sum(line.value for line in agent.named("sync.lost"))


async def test_canaries_travel_in_every_shard_and_are_fresh_at_the_gateway(
    world: World, agent: Agent
) -> None:
    await eventually_async(lambda: min(_sequences(world).values()) >= 4, 40)
    shards = world.run(
        "SELECT shard, count(*) FROM cloudsync.change_log WHERE table_name = 'cloudsync.canary'"
        " AND key->>'shard' = shard::text GROUP BY 1 HAVING count(*) >= 4"
    )
    assert sorted(shard for shard, _ in shards) == list(range(16))

    began = len(agent.datagrams)

    def fresh() -> bool:
        ages = [line.value for line in agent.named("sync.canary.age")]
        return len(agent.datagrams) > began and bool(ages) and ages[-1] < 5000

    await eventually_async(fresh, 30)
    assert _lost(agent) == 0
    assert world.run("SELECT * FROM cloudsync.losses") == []


async def test_no_user_sees_them(world: World) -> None:
    verifier = TokenVerifier(world.platform.settings("api"))
    with pytest.raises(TokenRefused, match="platform's own"):
        verifier.verify(world.token(RESERVED_TENANT, "me"))
    watcher = await world.watch("demo", "me")
    await watcher.raw.subscribe("c", "cloudsync.canary")
    assert (await watcher.error(ref="c"))["code"] == "unknown_table"


async def test_canaries_that_are_not_routed_are_lost_and_nothing_else_shows_it(
    world: World, agent: Agent
) -> None:
    """The silent fault: the registry forgets a topic. Deliveries have no gap, watermarks move on."""
    await eventually_async(lambda: agent.named("sync.canary.age"), 30)
    with redis.Redis.from_url(world.platform.redis_url) as client:
        _forget_topic(client, world)
    await eventually_async(lambda: _lost(agent) >= 16, 40, message="the loss is counted")
    await eventually_async(
        lambda: world.run("SELECT sum(events) FROM cloudsync.losses WHERE seen_by = 'canary'")[0][0], 10
    )
    shards = world.run("SELECT DISTINCT detail->>'shard' FROM cloudsync.losses")
    assert len(shards) == 16
    assert "canaries did not arrive" in (world.platform.logs / "gateway.log").read_text()


def _forget_topic(client: Any, world: World) -> None:
    settings = world.platform.settings("gateway")
    assert settings.keyring_file is not None
    keyring = Keyring.load(settings.keyring_file)
    ((database_id,),) = world.run("SELECT database_id FROM cloudsync.relay_state")
    keys = Keys(database_id, client.get(epoch_key(database_id)).decode())
    topic = make_topic(keyring, tenant=RESERVED_TENANT, table="cloudsync.canary", where=())
    tag = tenant_tag(keyring, RESERVED_TENANT)
    (gateway_id,) = client.hkeys(keys.topic(topic.id))
    names = [keys.topics(tag), keys.topic(topic.id), keys.hosted(gateway_id.decode()), keys.registry]
    client.eval(UNHOST, 4, *names, topic.id, gateway_id, tag, int(time.time()))
