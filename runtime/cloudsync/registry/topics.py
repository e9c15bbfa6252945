"""Topics: what can be subscribed to, and which gateways host it.

A topic is (tenant, table, canonical where-clause); ten thousand connections with the same subscription are
one topic. Its id is a keyed hash and its definition is sealed, so Redis shows neither tables nor values.
Every change is also an entry in a log, by which routers refresh only what changed; the log's last id is
the registry's version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
import redis
import redis.asyncio

from cloudsync.errors import SealBroken
from cloudsync.feeds.keys import Keys
from cloudsync.feeds.scripts import HOST, UNHOST
from cloudsync.keyring import Keyring, Sealer
from cloudsync.registry.filters import Condition

_LOG_LENGTH: Final = 20_000
_LOG_READ: Final = 1000


class Topic(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One topic: a tenant's view on a table through a filter (conditions are ANDed, in canonical order)."""

    id: str
    tenant: str
    table: str
    where: tuple[Condition, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Topic).decode


def make_topic(keyring: Keyring, *, tenant: str, table: str, where: tuple[Condition, ...]) -> Topic:
    """The topic of a canonical filter; equal filters give equal ids in every process."""
    text = msgspec.json.encode(where).decode()
    return Topic(keyring.tag("topic", tenant, table, text), tenant, table, where)


def tenant_tag(keyring: Keyring, tenant: str) -> str:
    return keyring.tag("tenant", tenant, size_bytes=8)


class TopicDirectory:
    """A gateway's side of the registry: says which topics it hosts."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, keyring: Keyring, gateway_id: str) -> None:
        self._keys = keys
        self._keyring = keyring
        self._sealer: Sealer = keyring.sealer()
        self._gateway_id = gateway_id
        self._host = client.register_script(HOST)
        self._unhost = client.register_script(UNHOST)

    async def host(self, topic: Topic, connections: int) -> None:
        """Register the topic; when this returns, the Redis primary holds it and every later batch sees it."""
        keys, tag = self._names(topic)
        definition = self._sealer.seal(_encode(topic), topic.id.encode())
        await self._host(
            keys=keys, args=[topic.id, definition, self._gateway_id, connections, tag, _LOG_LENGTH]
        )

    async def unhost(self, topic: Topic) -> None:
        keys, tag = self._names(topic)
        await self._unhost(keys=keys, args=[topic.id, self._gateway_id, tag, _LOG_LENGTH])

    def _names(self, topic: Topic) -> tuple[list[str], str]:
        tag = tenant_tag(self._keyring, topic.tenant)
        return _hosting_keys(self._keys, self._gateway_id, tag, topic.id), tag


def queue_unhost(pipeline: Any, keys: Keys, gateway_id: str, tag: str, topic_id: str) -> None:
    """Take one topic of a gateway back, whoever it is that says so (a reaper, a successor)."""
    names = _hosting_keys(keys, gateway_id, tag, topic_id)
    pipeline.eval(UNHOST, len(names), *names, topic_id, gateway_id, tag, _LOG_LENGTH)


def _hosting_keys(keys: Keys, gateway_id: str, tag: str, topic_id: str) -> list[str]:
    return [keys.topics(tag), keys.topic(topic_id), keys.hosted(gateway_id), keys.registry]


class HostedTopic(msgspec.Struct, gc=False):
    """A topic as routers know it."""

    topic: Topic
    gateways: set[str]


class RegistryView:
    """A router's copy of the registry, brought up to date after each read of the feeds (never before)."""

    def __init__(self, client: redis.Redis, keys: Keys, keyring: Keyring) -> None:
        self._redis = client
        self._keys = keys
        self._keyring = keyring
        self._version: str | None = None
        self._tags: dict[str, str] = {}
        self._tenants: dict[str, dict[str, HostedTopic]] = {}
        self.changed: set[str] = set()
        """Tenants whose topics changed since the caller last cleared this."""

    def ask(self, pipeline: redis.client.Pipeline) -> None:
        """Queue, behind the commands that read the feeds, the one that reads the log."""
        pipeline.xread({self._keys.registry: self._version or "0-0"}, count=_LOG_READ)

    def refresh(self, log: Any, tenants: Iterable[str]) -> None:
        """Apply the log's answer to `ask` and load tenants seen for the first time.

        The log was read after the feeds, so what it says holds for every event that was read.
        """
        if self._version is None:
            self._version = self._newest()
            self._tenants.clear()
        elif log:
            self._follow(log)
        for tenant in tenants:
            tag = self._tags.get(tenant)
            if tag is None:
                tag = self._tags[tenant] = tenant_tag(self._keyring, tenant)
            if tag not in self._tenants:
                self._tenants[tag] = self._load(tag)
                self.changed.add(tenant)

    def topics(self, tenant: str) -> Iterator[HostedTopic]:
        """Every hosted topic of a tenant that `refresh` was called with."""
        return iter(self._tenants.get(self._tags.get(tenant, ""), {}).values())

    def forget_gateway(self, gateway_id: str) -> None:
        """Drop a gateway that turned out not to be registered; it registers anew when it comes back."""
        for tenant, tag in self._tags.items():
            hosted = self._tenants.get(tag, {})
            for topic_id in [i for i, h in hosted.items() if gateway_id in h.gateways]:
                hosted[topic_id].gateways.discard(gateway_id)
                if not hosted[topic_id].gateways:
                    del hosted[topic_id]
                self.changed.add(tenant)

    def _newest(self) -> str:
        entries: Any = self._redis.xrevrange(self._keys.registry, count=1)
        return entries[0][0].decode() if entries else "0-0"

    def _follow(self, log: Any) -> None:
        version = self._version or "0-0"
        while log:
            entries = log[0][1]
            for entry_id, fields in entries:
                version = entry_id.decode()
                self._apply(fields)
            if len(entries) < _LOG_READ:
                break
            log = self._redis.xread({self._keys.registry: version}, count=_LOG_READ)
        if self._trimmed(self._version or "0-0"):
            # The log no longer reaches back to what we knew: start over.
            self._version = self._newest()
            self._tenants.clear()
            self.changed.update(self._tags)
            return
        self._version = version

    def _trimmed(self, version: str) -> bool:
        if version == "0-0":
            return bool(self._redis.xlen(self._keys.registry) >= _LOG_LENGTH)
        first: Any = self._redis.xrange(self._keys.registry, count=1)
        return bool(first) and _id(first[0][0].decode()) > _id(version)

    def _apply(self, fields: dict[bytes, bytes]) -> None:
        tag = fields[b"t"].decode()
        hosted = self._tenants.get(tag)
        if hosted is None:
            return
        topic_id, gateway = fields[b"i"].decode(), fields[b"w"].decode()
        if fields[b"o"] == b"+":
            known = hosted.get(topic_id)
            if known is None:
                known = hosted[topic_id] = HostedTopic(self._open(topic_id, fields[b"d"]), set())
            known.gateways.add(gateway)
            self.changed.add(known.topic.tenant)
        elif (known := hosted.get(topic_id)) is not None:
            known.gateways.discard(gateway)
            self.changed.add(known.topic.tenant)
            if not known.gateways:
                del hosted[topic_id]

    def _load(self, tag: str) -> dict[str, HostedTopic]:
        definitions: Any = self._redis.hgetall(self._keys.topics(tag))
        ids = [i.decode() for i in definitions]
        with self._redis.pipeline(transaction=False) as pipeline:
            for topic_id in ids:
                pipeline.hkeys(self._keys.topic(topic_id))
            gateways = pipeline.execute()
        return {
            topic_id: HostedTopic(self._open(topic_id, sealed), {g.decode() for g in hosts})
            for topic_id, sealed, hosts in zip(ids, definitions.values(), gateways, strict=True)
            if hosts
        }

    def _open(self, topic_id: str, sealed: bytes) -> Topic:
        topic = _decode(self._keyring.open(sealed, topic_id.encode()))
        if topic.id != topic_id:
            raise SealBroken("A topic's definition does not belong to its id.")
        return topic


def _id(text: str) -> tuple[int, int]:
    ms, _, number = text.partition("-")
    return int(ms), int(number)
