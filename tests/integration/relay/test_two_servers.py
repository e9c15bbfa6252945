"""Two PostgreSQL servers, the data directory of one copied from the other's, and one Redis: who feeds it.

Database id, system identifier and timeline are the same on both; each has relays of its own, as processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from cloudsync.capture.migrations import migrate
from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.doctor.processes import check_relay
from cloudsync.feeds.feed import decode_events
from cloudsync.feeds.keys import Keys, epoch_key, feeder_key
from cloudsync.keyring import Keyring
from cloudsync.sharding import SHARDS
from waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SLOT = "cloudsync"
CONTESTED = "another PostgreSQL server feeds Redis"


class RelayProcess:
    """`cloudsync relay`, with its log."""

    def __init__(self, postgres_url: str, redis_url: str, keyring: Path, log: Path) -> None:
        self._log = log
        environment = {
            "CLOUDSYNC_POSTGRES_URL": postgres_url,
            "CLOUDSYNC_REDIS_EVENTS_URL": redis_url,
            "CLOUDSYNC_KEYRING_FILE": str(keyring),
            "CLOUDSYNC_SLOT_NAME": SLOT,
            "CLOUDSYNC_RELAY_PATIENCE_S": "0.5",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cloudsync", "relay"],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """As a deploy does."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        self._process.wait(30)

    def said(self, text: str) -> int:
        return self._log.read_text().count(text)


class Side:
    """One server, and the relays on it."""

    def __init__(self, folder: Path, redis_url: str, keyring: Path) -> None:
        self.server = EmbeddedPostgres(folder, durable=False)
        self._redis_url, self._keyring = redis_url, keyring
        self._relays: list[RelayProcess] = []

    def relay(self) -> RelayProcess:
        log = self.server.folder.parent / f"{self.server.folder.name}-relay-{len(self._relays)}.log"
        made = RelayProcess(self.server.url("cloudsync_relay"), self._redis_url, self._keyring, log)
        self._relays.append(made)
        return made

    def run(self, statement: str, *parameters: Any) -> list[Any]:
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def insert(self, first: int, last: int) -> set[int]:
        query = "INSERT INTO rows SELECT n, 'acme' FROM generate_series(%s::integer, %s::integer) n"
        self.run(query, first, last)
        return set(range(first, last + 1))

    def is_streamed(self) -> bool:
        return bool(self.run("SELECT FROM pg_replication_slots WHERE active"))

    def database_id(self) -> str | None:
        found = self.run("SELECT database_id FROM cloudsync.relay_state")
        return found[0][0] if found else None

    def mode(self) -> str | None:
        found = self.run("SELECT mode FROM cloudsync.relay_state")
        return found[0][0] if found else None

    def stamps(self) -> set[str]:
        ((found,),) = self.run("SELECT stamps FROM cloudsync.relay_state")
        return set(found or ()) - {""}

    def parked(self) -> int:
        ((count,),) = self.run("SELECT count(*) FROM cloudsync.pending_events")
        return int(count)

    def end(self) -> None:
        for relay in self._relays:
            relay.signal(signal.SIGCONT)
            relay.kill()
        self.server.stop()


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keyring"
    Keyring.generate().save(file)
    return file


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, valkey: Any, keyring: Path) -> Path:
    """The folder of a server that was fed from, and is stopped now."""
    folder = tmp_path_factory.mktemp("servers") / "stopped"
    with contextlib.closing(redis.Redis.from_url(valkey.url)) as client:
        client.flushall()
        side = Side(folder, valkey.url, keyring)
        side.server.start()
        try:
            migrate(side.server.url(), phase="all")
            side.run("CREATE TABLE rows (id integer PRIMARY KEY, tenant_id text)")
            side.run("SELECT cloudsync.track('rows')")
            relay = side.relay()
            eventually(side.database_id, 20)
            rows = side.insert(1, 20)
            eventually(lambda: fed(client, keyring, str(side.database_id())) == rows, 20)
            eventually(side.stamps)
            relay.stop()
        finally:
            side.end()
    return folder


class Scene:
    """Both servers running, and an empty Redis."""

    def __init__(self, first: Side, second: Side, client: redis.Redis, keyring: Path) -> None:
        self.first, self.second, self.redis, self._keyring = first, second, client, keyring
        self.id = str(first.database_id())
        self._copied = second.stamps()

    def fed(self, database_id: str | None = None) -> set[int]:
        return fed(self.redis, self._keyring, database_id or self.id)

    def lease(self, field: str) -> str:
        value: Any = self.redis.hget(feeder_key(self.id), field)
        return value.decode() if value is not None else ""

    def now_ms(self) -> int:
        seconds, microseconds = self.redis.time()  # type: ignore[misc]
        return int(seconds) * 1000 + int(microseconds) // 1000

    def is_settled(self) -> bool:
        """Whether the first's database has saved which epoch is fed, and a stamp since."""
        ((epoch,),) = self.first.run("SELECT epoch FROM cloudsync.relay_state")
        found: Any = self.epoch()
        saved = self.lease("saved")  # for a part of each second it is the last but one
        return found is not None and epoch == found.decode() and saved in self.first.stamps() - self._copied

    def epoch(self) -> Any:
        return self.redis.get(epoch_key(self.id))


def fed(client: redis.Redis, keyring: Path, database_id: str) -> set[int]:
    """The ids of all rows in the feeds of a database's epoch. None is there twice."""
    epoch: Any = client.get(epoch_key(database_id))
    if epoch is None:
        return set()
    keys, opener = Keys(database_id, epoch.decode()), Keyring.load(keyring)
    found: list[int] = []
    for shard in range(SHARDS):
        entries: Any = client.xrange(keys.feed(shard))
        for entry_id, fields in entries:
            opened = opener.open(fields[b"d"], keys.entry_context(shard, entry_id.decode()))
            found += [int(json.loads(event.key)["id"]) for event in decode_events(opened) if event.key]
    assert len(found) == len(set(found))
    return set(found)


@pytest.fixture
def scene(stopped: Path, redis_url: str, keyring: Path, tmp_path: Path) -> Iterator[Scene]:
    sides = []
    for name in ("first", "second"):
        # With owners: as root the server runs as another user.
        subprocess.run(["cp", "-a", stopped, tmp_path / name], check=True)
        sides.append(Side(tmp_path / name, redis_url, keyring))
    try:
        for side in sides:
            side.server.start()
        with redis.Redis.from_url(redis_url) as client:
            yield Scene(*sides, client, keyring)
    finally:
        for side in sides:
            side.end()
        for log in sorted(tmp_path.glob("*.log")):
            print(log.name, log.read_text()[-3000:])
        for name in ("first", "second"):
            shutil.rmtree(tmp_path / name)


def test_a_copy_feeds_nothing_while_the_other_lives_and_then_under_an_id_of_its_own(scene: Scene) -> None:
    first, second = scene.first, scene.second
    assert first.database_id() == second.database_id()
    relay = first.relay()
    rows = first.insert(101, 150)
    eventually(lambda: scene.fed() == rows, 20)

    copys = second.relay()
    own = second.insert(1001, 1100)
    eventually(lambda: second.mode() == "fenced", 20)
    eventually(lambda: copys.said(CONTESTED), 20)
    assert second.parked() == 100
    with psycopg.connect(second.server.url()) as connection:
        found = {finding.subject: finding for finding in check_relay(connection, SLOT)}
    assert found["relay.state"].state == "failure"
    assert "copy" in found["relay.state"].text

    scene.redis.flushall()  # the one that forgets is Redis: it is the first's database all the same
    rows = first.insert(151, 200)
    eventually(lambda: scene.fed() == rows, 20)
    until = scene.lease("until")
    eventually(lambda: scene.lease("until") != until)
    assert scene.redis.keys("cs:*:epoch") == [f"cs:{scene.id}:epoch".encode()]
    assert (first.database_id(), second.database_id()) == (scene.id, scene.id)
    assert (copys.said(CONTESTED), relay.said(CONTESTED), second.parked()) == (1, 0, 100)

    relay.stop()
    eventually(lambda: second.database_id() not in (None, scene.id), 20)
    eventually(lambda: scene.fed(second.database_id()) == own, 20)
    eventually(lambda: second.mode() == "live")
    assert scene.fed() == rows
    epoch = scene.epoch()
    first.relay()
    rows |= first.insert(201, 250)
    own |= second.insert(1101, 1150)
    eventually(lambda: (scene.fed(), scene.fed(second.database_id())) == (rows, own), 20)
    assert (first.database_id(), scene.epoch()) == (scene.id, epoch)


def test_another_relay_of_the_same_server_does_not_wait_for_the_expiry(scene: Scene) -> None:
    relay = scene.first.relay()
    rows = scene.first.insert(101, 150)
    eventually(lambda: scene.fed() == rows, 20)
    eventually(scene.is_settled)
    standby = scene.first.relay()
    eventually(lambda: standby.said("standing by"), 20)
    holder, epoch = scene.lease("relay"), scene.epoch()
    relay.kill()
    until = scene.lease("until")
    eventually(lambda: scene.lease("relay") != holder, 20)
    assert scene.now_ms() < int(until)
    rows |= scene.first.insert(151, 200)
    eventually(lambda: scene.fed() == rows, 20)
    assert scene.epoch() == epoch


def test_a_server_that_goes_on_with_the_storage_waits_for_the_expiry_and_keeps_the_id(scene: Scene) -> None:
    """As after a failover below PostgreSQL of which the old relay did not hear."""
    first, second = scene.first, scene.second
    relay = first.relay()
    rows = first.insert(101, 150)
    eventually(lambda: scene.fed() == rows, 20)
    epoch = scene.epoch()
    eventually(scene.is_settled)
    relay.kill()
    first.server.stop()
    shutil.rmtree(second.server.data)
    second.server.stop()
    subprocess.run(["cp", "-a", first.server.data, second.server.data], check=True)
    second.server.start()
    successor = second.relay()
    rows |= second.insert(151, 200)
    holder, until = scene.lease("relay"), scene.lease("until")
    eventually(lambda: scene.lease("relay") != holder, 20)
    assert scene.now_ms() >= int(until)
    eventually(lambda: scene.fed() == rows, 20)
    assert (second.database_id(), scene.epoch()) == (scene.id, epoch)
    assert not successor.said(CONTESTED)


def test_a_suspended_relay_appends_nothing_once_another_server_has_taken_over(scene: Scene) -> None:
    first, second = scene.first, scene.second
    relay = first.relay()
    rows = first.insert(101, 150)
    eventually(lambda: scene.fed() == rows, 20)
    eventually(scene.is_settled)
    holder = scene.lease("relay")
    relay.signal(signal.SIGSTOP)
    # As if copied at this moment, WAL and all.
    second.run("SELECT pg_switch_wal()")
    state = first.run("SELECT stamps, epoch FROM cloudsync.relay_state")[0]
    second.run("UPDATE cloudsync.relay_state SET stamps = %s, epoch = %s", *state)
    late = first.insert(2001, 2100)  # on the way to the one that is suspended
    others = second.relay()
    eventually(lambda: scene.lease("relay") != holder, 20)
    assert second.database_id() == scene.id
    rows |= second.insert(1001, 1001)  # in one shard; no other ends elsewhere than the first's relay knows
    eventually(lambda: scene.fed() == rows, 20)
    eventually(lambda: scene.lease("saved") in second.stamps() - first.stamps())

    relay.signal(signal.SIGCONT)
    eventually(lambda: first.parked() == 100, 20)
    eventually(lambda: first.mode() == "fenced", 20)
    assert scene.fed() == rows
    others.stop()
    eventually(lambda: scene.fed(first.database_id()) == late, 20)  # it is another database by now
    assert first.database_id() != scene.id
    assert scene.fed() == rows
