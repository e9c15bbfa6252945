"""What presence costs where many take part in many topics. Valkey is real, the clients are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cloudsync.feeds.connection import connect_async
from cloudsync.gateway.presence import Presences
from cloudsync.keyring import Keyring
from cloudsync.protocol.messages import PresenceRequest
from cloudsync.registry.rooms import Member, Said
from cloudsync.settings import Settings
from waiting import eventually_async

TOPICS = 300


class CountedKeys:
    """Names of channels, and how many have been made."""

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.made = 0

    def presence(self, topic_id: str) -> str:
        self.made += 1
        return f"presence-test:{self.epoch}:{topic_id}"


class Client:
    """A connection with a subscription to each topic."""

    busy = False

    def __init__(self, count: int) -> None:
        self.principal, self.client_id = SimpleNamespace(user="ann"), "c_1"
        self.told: list[dict[str, Any]] = []
        table = SimpleNamespace(restricted=False)
        self.subscriptions: dict[str, Any] = {
            f"s{n}": _Subscription(connection=self, id=f"s{n}", sub=f'"s{n}"', table=table,
                                   topic=SimpleNamespace(id=f"topic-{n}"))
            for n in range(count)
        }  # fmt: skip

    def tell(self, text: str) -> None:
        self.told.append(msgspec.json.decode(text))

    def control(self, frame: Any) -> None:
        raise AssertionError(frame)


class _Subscription(SimpleNamespace):
    __hash__ = object.__hash__


class Desk:
    """Presences of a gateway with a client that takes part in every topic."""

    def __init__(self, redis_url: str) -> None:
        self.keyring = Keyring.generate()
        self.keys = CountedKeys("e1")
        self.client = Client(TOPICS)
        anything: Any = SimpleNamespace()
        keys: Any = lambda: self.keys  # noqa: E731
        self.presences = Presences(Settings(redis_events_url=redis_url), self.keyring, anything, keys)
        self.redis = connect_async(redis_url)

    def enter(self, number: int) -> None:
        client: Any = self.client
        self.presences.forget(client)  # it may send as many states as it likes
        self.presences.take(client, PresenceRequest(f"s{number}", msgspec.Raw(b"1")))

    async def say(self, number: int, user: str) -> bool:
        """As another gateway; whether somebody listens."""
        channel = f"presence-test:{self.keys.epoch}:topic-{number}"
        said = Said(
            f"gateway-of-{user}", 1, [Member(user, user, "c", 0, msgspec.Raw(b"1"))], [], 1, whole=True
        )
        sealed = self.keyring.sealer().seal(msgspec.json.encode(said), channel.encode())
        return bool(await self.redis.publish(channel, sealed))

    def heard_of(self, user: str) -> bool:
        return any(member["user"] == user for frame in self.client.told for member in frame["members"])


@pytest.fixture
async def desk(redis_url: str) -> AsyncIterator[Desk]:
    made = Desk(redis_url)
    for number in range(TOPICS):
        made.enter(number)
    running = asyncio.create_task(made.presences.run())
    await eventually_async(lambda: made.say(TOPICS - 1, "bob"))
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await made.redis.aclose()


async def test_a_message_does_not_cost_a_look_at_every_topic(desk: Desk) -> None:
    assert desk.keys.made == TOPICS
    for number in range(50):
        await desk.say(number, f"cyd-{number}")
    await eventually_async(lambda: desk.heard_of("cyd-49"))
    assert desk.keys.made == TOPICS


async def test_a_topic_that_is_given_up_and_a_new_epoch_are_followed(desk: Desk) -> None:
    desk.presences.left(desk.client.subscriptions["s7"])
    await eventually_async(lambda: _is_false(desk.say(7, "bob")))
    assert desk.keys.made == TOPICS + 1
    desk.enter(7)
    await eventually_async(lambda: desk.say(7, "dan"))
    await eventually_async(lambda: desk.heard_of("dan"))
    desk.keys = CountedKeys("e2")
    await eventually_async(lambda: desk.say(7, "eve"))
    await eventually_async(lambda: desk.heard_of("eve"))
    assert desk.keys.made == TOPICS
    assert not await desk.redis.publish("presence-test:e1:topic-7", b"")


async def _is_false(answer: Any) -> bool:
    return not await answer


def test_topics_are_looked_after_by_turns(redis_url: str) -> None:
    desk = Desk(redis_url)
    for number in range(TOPICS):
        desk.enter(number)
    shares = []
    for _ in range(10):
        desk.presences._dirty.clear()
        desk.presences._look_after_some(0.0)
        shares.append(set(desk.presences._dirty))
    assert [len(share) for share in shares] == [TOPICS / 10] * 10
    assert len(set().union(*shares)) == TOPICS
