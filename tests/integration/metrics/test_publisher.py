"""What `cloudsync publisher` writes to CloudWatch, read back from a simulated one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis.asyncio

boto3 = pytest.importorskip("boto3", reason="the extra `aws` is not installed")
moto = pytest.importorskip("moto", reason="the extra `deploy` is not installed")

from cloudsync.feeds.connection import connect, connect_async  # noqa: E402
from cloudsync.feeds.keys import DATABASES, Keys, epoch_key  # noqa: E402
from cloudsync.keyring import Keyring  # noqa: E402
from cloudsync.metrics.cloudwatch import CloudWatchPublisher  # noqa: E402
from cloudsync.registry.census import connections_by_cell  # noqa: E402
from cloudsync.registry.connections import ConnectionRegistry  # noqa: E402
from cloudsync.registry.gateways import GatewayRegistration  # noqa: E402
from cloudsync.settings import Settings  # noqa: E402
from cloudsync.tokens import Principal  # noqa: E402

_KEYS = Keys("db1", "e1")


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with moto.mock_aws():
        yield


async def _gateway(client: redis.asyncio.Redis, name: str, *, cell: int, clients: int) -> GatewayRegistration:
    registration = GatewayRegistration(client, _KEYS, name, cell=cell)
    await registration.register()
    connections = ConnectionRegistry(client, _KEYS, Keyring.generate(), name)
    for number in range(clients):
        principal = Principal("acme", f"u{number}", 2**33)
        connections.connected(number, principal, f"{name}-{number}")
    await connections.flush()
    return registration


def _written(name: str, **more: str) -> list[float]:
    dimensions = {"Environment": "prod", **more}
    now = datetime.now(UTC)
    answer: Any = boto3.client("cloudwatch").get_metric_statistics(
        Namespace="CloudSync",
        MetricName=name,
        Dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
        StartTime=now - timedelta(minutes=10),
        EndTime=now + timedelta(minutes=1),
        Period=3600,
        Statistics=["Maximum"],
    )
    return [each["Maximum"] for each in answer["Datapoints"]]


def _settings(database: str, redis_url: str) -> Settings:
    return Settings(postgres_url=database, redis_events_url=redis_url, environment="prod")


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    made = connect_async(redis_url)
    yield made
    await made.aclose()


async def test_backlog_and_connections_arrive_as_scaling_reads_them(
    database: str, redis_url: str, client: redis.asyncio.Redis
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO cloudsync.relay_state"
            " (database_id, system_identifier, timeline, slot_name, heartbeat_at)"
            " VALUES ('db1', '1', 1, 'cloudsync', clock_timestamp() - interval '40 seconds')"
        )
    await client.sadd(DATABASES, "db1")
    await client.set(epoch_key("db1"), "e1")
    await _gateway(client, "a", cell=1, clients=2)
    await _gateway(client, "b", cell=1, clients=3)
    leaving = await _gateway(client, "c", cell=2, clients=4)
    with connect(redis_url) as blocking:
        blocking.hset(_KEYS.tail(3), mapping={"id": "10-7", "n": "7"})
        for number in range(7):
            fields = {"n": str(number + 1), "t": "1000"}
            blocking.xadd(_KEYS.feed(3), fields, id=f"10-{number + 1}")  # type: ignore[arg-type]
        blocking.set(_KEYS.done(3), "10-2")
        assert CloudWatchPublisher(_settings(database, redis_url)).publish() > 8
        assert _written("redis.pubsub.backlog") == [5]
        assert _written("websocket.connections.active", Cell="1") == [5]
        assert _written("websocket.connections.active", Cell="2") == [4]
        assert _written("websocket.connections.active") == [9]
        assert 40 <= _written("relay.silence")[0] < 400
        assert _written("routing.lag")[0] > 1000
        assert not _written("relay.mode"), "a metric with a tag is another one there"
        await leaving.leave()
        assert connections_by_cell(blocking) == {1: 5}


def test_a_server_that_is_away_leaves_its_figures_out(database: str, redis_url: str) -> None:
    gone = "postgresql://nobody@127.0.0.1:1/none"
    with connect(redis_url) as client:
        client.flushall()
    assert CloudWatchPublisher(_settings(gone, redis_url)).publish() == 1
    assert _written("websocket.connections.active") == [0]
    assert CloudWatchPublisher(_settings(database, "redis://127.0.0.1:1/0")).publish() >= 3
    assert _written("relay.parked") == [0]


def test_dedicated_tenants_count_as_the_worst_or_in_the_sum(
    database: str, second_database: str, redis_url: str
) -> None:
    """One value of each figure, so that alarms and scaling need not know of tenants."""
    own = second_database.replace("postgres@", "cloudsync_service@")
    for url, name, silent_s, parked in ((database, "db1", 3, 2), (second_database, "db2", 4000, 5)):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO cloudsync.relay_state (database_id, system_identifier, timeline, slot_name,"
                " heartbeat_at) VALUES (%s, '1', 1, %s, clock_timestamp() - %s * interval '1 second')",
                (name, name, silent_s),
            )
            connection.execute(
                "INSERT INTO cloudsync.pending_events (shard, lsn, ordinal, event)"
                " SELECT 0, '0/1', n, '' FROM generate_series(1, %s) n",
                (parked,),
            )
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO cloudsync.tenants (id, name, plan, database) VALUES ('acme', 'a', 'dedicated', %s)",
            (own,),
        )
    with connect(redis_url) as client:
        client.flushall()
    CloudWatchPublisher(_settings(database, redis_url)).publish()
    assert _written("relay.silence")[0] >= 4000
    assert _written("relay.parked") == [7]
    assert _written("redis.pubsub.backlog") == [7]
    assert len(boto3.client("cloudwatch").list_metrics(Namespace="CloudSync")["Metrics"]) == len(
        {each["MetricName"] for each in boto3.client("cloudwatch").list_metrics()["Metrics"]}
    ), "no metric has a dimension of its own for a tenant"


def test_it_publishes_what_is_defined_as_published(database: str, redis_url: str) -> None:
    """And every other figure with an alarm is written by the processes themselves."""
    from cloudsync.metrics.definitions import METRICS

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO cloudsync.relay_state"
            " (database_id, system_identifier, timeline, slot_name, heartbeat_at)"
            " VALUES ('db9', '1', 1, 'cloudsync', clock_timestamp())"
        )
        connection.execute("SELECT pg_create_logical_replication_slot('published', 'pgoutput')")
    settings = _settings(database, redis_url).model_copy(update={"slot_name": "published"})
    CloudWatchPublisher(settings).publish()
    listed = boto3.client("cloudwatch").list_metrics(Namespace="CloudSync")["Metrics"]
    assert {each["MetricName"] for each in listed} == {each.name for each in METRICS if each.published}
