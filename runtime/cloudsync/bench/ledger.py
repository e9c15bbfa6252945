"""What every client received, and whether that is all there was: kept as it comes, reckoned up afterwards.

While events arrive a client only notes (payload, when it was sent, when it came). The account is made
later: each payload's events against each receipt for the latencies, and each client's rows against the
versions in SQL. Clients that received the same payloads in the same order, as most do, are reckoned once.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Set
from typing import Any

import msgspec

from cloudsync.bench.payloads import SENTINEL_KEYS, Payload
from cloudsync.bench.stages import Latencies

Versions = dict[str, int]
_NOTHING: Versions = {}


class Receipts:
    """One client's notes since the last account. A None payload is a new snapshot's beginning."""

    __slots__ = ("events", "frames", "held", "payloads", "received_us", "sent_us", "sentinels")

    def __init__(self) -> None:
        self.held: Versions = _NOTHING
        """Versions at the last account; shared by clients that hold the same."""
        self.sentinels: dict[int, int] = {}
        self.events = 0
        self.frames = 0
        self.forget()

    def note(self, payload: Payload, sent_us: int, received_us: int) -> None:
        self.payloads.append(payload)
        self.sent_us.append(sent_us)
        self.received_us.append(received_us)
        self.events += len(payload.rows)
        self.frames += 1
        for key, version in payload.sentinels:
            self.sentinels[key] = max(version, self.sentinels.get(key, 0))

    def restart(self) -> None:
        """A new connection: its snapshot says what is held."""
        self.payloads.append(None)
        self.sent_us.append(0)
        self.received_us.append(0)

    def forget(self) -> None:
        self.payloads: list[Payload | None] = []
        self.sent_us = array("q")
        self.received_us = array("q")


class Account(msgspec.Struct):
    """What the clients of one process received in one phase, summed over clients.

    `lost`: versions neither received nor superseded by a newer one; `repeated`: received twice;
    `reordered`: a version of a row came after a newer one; `skipped`: superseded without having come.
    """

    latencies: dict[str, list[tuple[int, int]]] = {}
    deliveries: int = 0
    frames: int = 0
    snapshot_rows: int = 0
    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    skipped: int = 0
    first_commit_us: int = 0
    last_commit_us: int = 0
    first_us: int = 0
    last_us: int = 0
    incomplete: int = 0


def settle(clients: list[Receipts], versions: Mapping[str, int], deleted: Set[str] = frozenset()) -> Account:
    """Reckon up, and begin anew. `versions`: of every row in SQL now, also of those `deleted`."""
    account = Account()
    latencies = Latencies()
    known: dict[tuple[Any, ...], tuple[Account, Versions]] = {}
    stages_done: set[int] = set()
    for client in clients:
        _reckon_times(client, account, latencies, stages_done)
        what = (id(client.held), *map(id, client.payloads))
        found = known.get(what)
        if found is None:
            found = known[what] = _reckon_rows(client, versions, deleted)
        part = found[0]
        for name in ("deliveries", "snapshot_rows", "lost", "repeated", "reordered", "skipped"):
            setattr(account, name, getattr(account, name) + getattr(part, name))
        account.incomplete += part.lost > 0
    for client in clients:  # after all were reckoned: their ids stood for what they held
        client.held = known[(id(client.held), *map(id, client.payloads))][1]
        client.forget()
    account.latencies = latencies.encoded()
    return account


def _reckon_times(client: Receipts, account: Account, latencies: Latencies, stages_done: set[int]) -> None:
    add = latencies.add
    snapshot = False
    for payload, sent_us, received_us in zip(
        client.payloads, client.sent_us, client.received_us, strict=True
    ):
        if payload is None or snapshot:
            snapshot = payload is None or not payload.last
            continue
        account.frames += 1
        if payload.times:
            account.first_us = min(account.first_us or received_us, received_us)
            account.last_us = max(account.last_us, received_us)
        first_met = id(payload) not in stages_done
        stages_done.add(id(payload))
        for (commit, feed, route), count in payload.times:
            if first_met:  # the same for every client
                account.first_commit_us = min(account.first_commit_us or commit, commit)
                account.last_commit_us = max(account.last_commit_us, commit)
                add("detection", feed - commit, count)
                add("processing", route - feed, count)
            if sent_us:
                add("delivery", sent_us - route, count)
                add("receipt", received_us - sent_us, count)
            add("end_to_end", received_us - commit, count)


def _reckon_rows(
    client: Receipts, versions: Mapping[str, int], deleted: Set[str]
) -> tuple[Account, Versions]:
    part = Account()
    held = dict(client.held)
    seen: set[tuple[str, int]] = set()
    snapshot = started_anew = False
    for payload in client.payloads:
        if payload is None:
            snapshot = started_anew = True
            held, seen = {}, set()
            continue
        for key, version in payload.rows:
            if snapshot:
                held[key] = version
                part.snapshot_rows += 1
                continue
            part.deliveries += key not in SENTINEL_KEYS
            before = held.get(key, 0)
            if (key, version) in seen or version == before:
                part.repeated += 1
            elif version < before:
                part.reordered += 1
            else:
                part.skipped += version - before - 1
                held[key] = version
            seen.add((key, version))
        if snapshot and payload.last:
            snapshot = False
    if started_anew:  # a snapshot says nothing of rows that were deleted before it
        for key in deleted:
            held.setdefault(key, versions[key])
    part.lost = sum(
        version - held.get(key, 0) for key, version in versions.items() if version > held.get(key, 0)
    )
    return part, held


__all__ = ["Account", "Receipts", "settle"]
