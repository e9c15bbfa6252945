"""One database's routing step: feeds in, deliveries out, `done` moved.

Serial per shard (a lease), parallel across shards. What arrives during a step is taken by the next one as
a larger batch. Order inside a step: read the feeds first, bring the registry up to date second, match
third; the reverse could miss a subscription.
"""

from __future__ import annotations

import time
from typing import Any, Final

import redis

from cloudsync import logs
from cloudsync.audit.records import encode_routed
from cloudsync.events import (
    ORIGIN,
    ROW_OPERATIONS,
    ChangeEvent,
    Delivery,
    Position,
    TopicMatch,
)
from cloudsync.feeds.connection import text_of
from cloudsync.feeds.deliveries import encode_deliveries
from cloudsync.feeds.feed import decode_events
from cloudsync.feeds.keys import Keys, epoch_key
from cloudsync.feeds.scripts import DELIVER, JOIN, LEASE, RELEASE, RENEW, ROUTED
from cloudsync.keyring import Keyring
from cloudsync.metrics.definitions import EVENTS
from cloudsync.metrics.recorder import recorder
from cloudsync.registry.matcher import Matcher, changed_columns, part_told
from cloudsync.registry.topics import RegistryView
from cloudsync.routing.holders import new_holder
from cloudsync.routing.trail import Trail
from cloudsync.settings import Settings
from cloudsync.sharding import SHARDS

_STREAM_TTL_MS: Final = 3_600_000
_ENTRIES_FIRST: Final = 16
_ENTRIES_LAST: Final = 64

_log = logs.get("routing")


class Router:
    """Routes the shards of one database that it can lease; `slice.py` has the loop around it."""

    def __init__(self, client: redis.Redis, keys: Keys, keyring: Keyring, settings: Settings) -> None:
        self._redis = client
        self.keys = keys
        self._keyring = keyring
        self._settings = settings
        self._sealer = keyring.sealer()
        self._registry = RegistryView(client, keys, keyring)
        self._matcher = Matcher()
        self._token = new_holder()
        self._deliver = client.register_script(DELIVER)
        self._routed = client.register_script(ROUTED)
        self._lease = client.register_script(LEASE)
        self._renew = client.register_script(RENEW)
        self._release = client.register_script(RELEASE)
        self._done: dict[int, Position] = {}
        self._renew_due = 0.0
        self.outdated = False
        """Whether its epoch is over."""
        self.count = _ENTRIES_FIRST
        """How many entries of a feed to read at once."""
        for script in (DELIVER, ROUTED):
            client.script_load(script)
        self._counted = recorder.counter(EVENTS, stage="routing")

    def behind(self) -> bool:
        """Whether a feed holds more than has been routed."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for shard in range(SHARDS):
                pipeline.hget(self.keys.tail(shard), "id")
                pipeline.get(self.keys.done(shard))
                pipeline.exists(self.keys.lock(shard))
            answers = pipeline.execute()
        return any(
            tail and _position(tail) > _position(done) and not locked
            for tail, done, locked in zip(answers[::3], answers[1::3], answers[2::3], strict=True)
        )

    # Leases

    @property
    def holds(self) -> bool:
        """Whether it has leased any shard."""
        return bool(self._done)

    def share(self) -> None:
        """Hold a fair share of the shards: all of them if alone, a part when others are at work."""
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.eval(JOIN, 1, self.keys.routers, self._token, self._settings.routing_lease_ms)
            pipeline.get(epoch_key(self.keys.database_id))
            routers, epoch = pipeline.execute()
        self.outdated = epoch is not None and text_of(epoch) != self.keys.epoch
        fair = -(-SHARDS // max(1, routers))
        surplus = list(self._done)[fair:]
        if surplus:
            self._give_back(surplus)
        elif len(self._done) < fair:
            self._take(fair - len(self._done))

    def _take(self, wanted: int) -> None:
        free = [s for s in range(SHARDS) if s not in self._done]
        taken: Any = self._lease(
            keys=[self.keys.lock(s) for s in free],
            args=[self._token, self._settings.routing_lease_ms, wanted],
        )
        shards = [free[i - 1] for i in taken]
        if not shards:
            return
        done: Any = self._redis.mget([self.keys.done(s) for s in shards])
        for shard, position in zip(shards, done, strict=True):
            self._done[shard] = _position(position)

    def renew(self, now_s: float) -> None:
        """Keep the leases, when it is time to."""
        if now_s < self._renew_due:
            return
        shards = list(self._done)
        lost: Any = self._renew(
            keys=[self.keys.lock(s) for s in shards], args=[self._token, self._settings.routing_lease_ms]
        )
        for index in lost:
            del self._done[shards[index - 1]]
        self._renew_due = time.monotonic() + self._settings.routing_lease_ms / 4000

    def _give_back(self, shards: list[int]) -> None:
        self._release(keys=[self.keys.lock(s) for s in shards], args=[self._token])
        for shard in shards:
            del self._done[shard]

    def leave(self) -> None:
        """Give everything back."""
        self._redis.zrem(self.keys.routers, self._token)
        if self._done:
            self._give_back(list(self._done))

    # One step

    def streams(self) -> dict[str, str]:
        """The feeds of the shards that it holds, and from where on each is to be read."""
        return {self.keys.feed(s): done.entry_id for s, done in self._done.items()}

    def ask(self, pipeline: redis.client.Pipeline) -> None:
        """Queue, behind the command that reads the feeds, the one that reads the registry's log."""
        self._registry.ask(pipeline)

    def route(self, answer: list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]], log: Any) -> int:
        """Route what was read from the feeds, and then from the log; returns the number of events."""
        by_feed = {self.keys.feed(s): s for s in self._done}
        batches: dict[int, tuple[Position, list[ChangeEvent]]] = {}
        for feed, entries in answer:
            shard = by_feed[feed.decode()]
            batches[shard] = self._read(shard, entries)
        # Many entries a read under load, few while it is quiet: bounded memory, and little waits unread.
        full = any(len(entries) >= self.count for _, entries in answer)
        self.count = min(self.count * 2, _ENTRIES_LAST) if full else max(self.count // 2, _ENTRIES_FIRST)

        events = [event for _, part in batches.values() for event in part]
        self._registry.refresh(log, {e.tenant for e in events if e.tenant is not None})
        for tenant in self._registry.changed:
            self._matcher.replace(tenant, self._registry.topics(tenant))
        self._registry.changed.clear()

        routed_us = time.time_ns() // 1000
        everyone: list[str] | None = None
        outgoing: dict[str, list[tuple[Position, Delivery]]] = {}
        trails: dict[int, Trail] = {}
        for shard, (end, part) in batches.items():
            if everyone is None and any(e.op not in ROW_OPERATIONS for e in part):
                everyone = self._live_gateways()
            trail = trails[shard] = Trail(shard, part)
            for gateway_id, delivery in self._route(shard, part, routed_us, everyone or [], trail).items():
                outgoing.setdefault(gateway_id, []).append((end, delivery))
        refused = self._send(outgoing)
        self._move_done({s: end for s, (end, _) in batches.items()}, trails, refused)
        self._counted.add(len(events))
        return len(events)

    def _read(
        self, shard: int, entries: list[tuple[bytes, dict[bytes, bytes]]]
    ) -> tuple[Position, list[ChangeEvent]]:
        events: list[ChangeEvent] = []
        done = self._done[shard]
        for entry_id, fields in entries:
            sealed_at = self.keys.entry_context(shard, entry_id.decode())
            opened = decode_events(self._keyring.open(fields[b"d"], sealed_at))
            events += [e for e in opened if e.position > done] if opened[0].position <= done else opened
        return Position.from_entry_id(entries[-1][0]), events

    def _route(
        self, shard: int, events: list[ChangeEvent], routed_us: int, everyone: list[str], trail: Trail
    ) -> dict[str, Delivery]:
        """What each gateway is to be told of one shard's batch."""
        deliveries: dict[str, Delivery] = {}
        places = trail.places
        matches: dict[tuple[str, str], TopicMatch] = {}

        def place(gateway_id: str, number: int, event: ChangeEvent) -> int:
            known = places.setdefault(gateway_id, {})
            at = known.get(number)
            if at is None:
                delivery = deliveries.get(gateway_id)
                if delivery is None:
                    delivery = deliveries[gateway_id] = Delivery(shard, [], [])
                at = known[number] = len(delivery.events)
                delivery.events.append(event)
            return at

        for number, event in enumerate(events):
            event.routed_us = routed_us
            if event.op not in ROW_OPERATIONS:
                for gateway_id in everyone:
                    place(gateway_id, number, event)
                continue
            part = part_told(event, shard)
            for hosted, verdict in self._matcher.match(event):
                trail.topics[number] += 1
                topic_id = hosted.topic.id
                for gateway_id in hosted.gateways:
                    at = place(gateway_id, number, event)
                    match = matches.get((gateway_id, topic_id))
                    if match is None:
                        match = matches[gateway_id, topic_id] = TopicMatch(topic_id, [], [])
                        deliveries[gateway_id].matches.append(match)
                    match.indexes.append(at)
                    match.verdicts.append(verdict | part)
        for event in events:
            event.old = changed_columns(event)
        return deliveries

    def _live_gateways(self) -> list[str]:
        members: Any = self._redis.zrange(self.keys.gateways, 0, -1)
        return [m.decode() for m in members]

    def _send(self, outgoing: dict[str, list[tuple[Position, Delivery]]]) -> set[str]:
        """One entry for each gateway, whatever number of shards it concerns; returns who did not take it."""
        refused: set[str] = set()
        if not outgoing:
            return refused
        with self._redis.pipeline(transaction=False) as pipeline:
            for gateway_id, parts in outgoing.items():
                places = [(delivery.shard, end.entry_id) for end, delivery in parts]
                sealed = self._sealer.seal(
                    encode_deliveries([delivery for _, delivery in parts]),
                    self.keys.delivery_context(gateway_id, places),
                )
                names = [
                    self.keys.stream(gateway_id),
                    self.keys.sent(gateway_id),
                    self.keys.token(gateway_id),
                ]
                budget = self._settings.gateway_stream_budget_bytes
                arguments = [argument for place in places for argument in place]
                pipeline.evalsha(self._deliver.sha, 3, *names, sealed, budget, _STREAM_TTL_MS, *arguments)
            answers = pipeline.execute()
        for gateway_id, answer in zip(outgoing, answers, strict=True):
            if answer < 0:
                refused.add(gateway_id)
            if answer == -1:
                _log.info("gateway is not registered", gateway=gateway_id)
                self._registry.forget_gateway(gateway_id)
            elif answer == -2:
                _log.warning("gateway does not read its stream: over budget", gateway=gateway_id)
        return refused

    def _move_done(self, ends: dict[int, Position], trails: dict[int, Trail], refused: set[str]) -> None:
        with self._redis.pipeline(transaction=False) as pipeline:
            for shard, end in ends.items():
                pipeline.evalsha(
                    self._routed.sha,
                    4,
                    self.keys.lock(shard),
                    self.keys.done(shard),
                    self.keys.audit(shard),
                    self.keys.audit_size(shard),
                    self._token,
                    self._settings.routing_lease_ms,
                    self._done[shard].entry_id,
                    end.entry_id,
                    self._audited(shard, end, trails[shard], refused),
                    self._settings.audit_stream_budget_bytes,
                )
            answers = pipeline.execute()
        for (shard, end), moved in zip(ends.items(), answers, strict=True):
            if moved:
                self._done[shard] = end
            else:
                _log.warning("lease lost", shard=shard)
                del self._done[shard]

    def _audited(self, shard: int, end: Position, trail: Trail, refused: set[str]) -> bytes:
        if not self._settings.audit_enabled:
            return b""
        told = encode_routed(trail.events(refused))
        return self._sealer.seal(told, self.keys.audit_context(shard, end.entry_id))


def _position(entry_id: bytes | str | None) -> Position:
    return Position.from_entry_id(entry_id) if entry_id else ORIGIN
