"""The file that a client keeps: whose it is, who may open it, and that a batch is all or nothing."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudsync.client import store as module
from cloudsync.client.errors import StoreFailed, StoreInUse, StoreRefused
from cloudsync.client.store import Batch, Store, StoredRow, StoredSubscription

URL = "http://127.0.0.1:8080"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "client.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    found = Store(path)
    found.belong(url=URL)
    yield found
    found.close()


def subscription(
    id_: str = "s1", *, replica: int | None = 1, used_at: int | None = None
) -> StoredSubscription:
    at = int(time.time()) if used_at is None else used_at
    return StoredSubscription(id_, '{"table":"t"}', None, "every", replica, True, True, at)


def test_a_batch_is_there_after_opening_again(path: Path, store: Store) -> None:
    batch = Batch()
    batch.rows = [StoredRow(1, "[1]", 3, '{"id":1}', None), StoredRow(1, "[2]", 4, None, 5)]
    batch.subscriptions = [subscription()]
    batch.cursor = "k7"
    batch.changes = [(1, "{}"), (2, "[]")]
    batch.counters = (3, 1000, 2)
    store.commit(batch)
    store.close()
    again = Store(path)
    assert again.rows(1) == batch.rows
    assert again.subscriptions() == batch.subscriptions
    assert (again.cursor, again.changes(), again.counters) == ("k7", batch.changes, (3, 1000, 2))
    assert again.last_replica() == 1
    batch = Batch()
    batch.rows_gone, batch.changes_gone, batch.subscriptions_gone = [(1, "[1]")], [1], ["s1"]
    again.commit(batch, durable=True)
    assert [row.key for row in again.rows(1)] == ["[2]"]
    assert again.changes() == [(2, "[]")]
    assert again.cursor == "k7", "what a batch does not name stays"
    again.close()


def test_a_batch_that_fails_changes_nothing(store: Store) -> None:
    batch = Batch()
    batch.rows = [StoredRow(1, "[1]", 3, "{}", None)]
    batch.cursor = "k7"
    batch.changes = [(1, {})]  # type: ignore[list-item]
    with pytest.raises(StoreFailed, match="failed"):
        store.commit(batch)
    assert (store.rows(1), store.cursor) == ([], None)


def test_rows_that_no_complete_subscription_holds_are_forgotten_at_opening(path: Path, store: Store) -> None:
    batch = Batch()
    batch.rows = [StoredRow(1, "[1]", 1, "{}", None), StoredRow(2, "[1]", 1, "{}", None)]
    batch.subscriptions = [subscription()]
    store.commit(batch)
    store.close()
    again = Store(path)
    assert len(again.rows(1)) == 1
    assert again.rows(2) == []
    again.close()


def test_subscriptions_that_nobody_asked_for_in_a_week_are_forgotten(path: Path, store: Store) -> None:
    batch = Batch()
    batch.subscriptions = [
        subscription("s1", used_at=int(time.time()) - module.UNUSED_KEPT_S - 5),
        subscription("s2", replica=2),
    ]
    batch.rows = [StoredRow(1, "[1]", 1, "{}", None)]
    store.commit(batch)
    store.close()
    again = Store(path)
    assert [s.id for s in again.subscriptions()] == ["s2"]
    assert again.rows(1) == []
    again.close()


def test_only_its_owner_may_read_it(path: Path) -> None:
    path.touch(mode=0o644)
    store = Store(path)
    store.belong(url=URL)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    store.close()


def test_a_second_opening_is_refused_here_and_in_another_process(path: Path, store: Store) -> None:
    with pytest.raises(StoreInUse, match="open in another client or process"):
        Store(path)
    code = (
        "import sys\nfrom cloudsync.client.store import Store, StoreInUse\n"
        "try: Store(sys.argv[1])\n"
        "except StoreInUse as e: print(e)"
    )
    told = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "open in another client" in told.stdout
    store.close()
    Store(path).close()


def test_another_platform_user_or_client_is_refused(path: Path, store: Store) -> None:
    store.belong_to_user("ada")
    store.register("c_1")
    store.belong(url=URL, client_id="c_1")
    store.belong_to_user("ada")
    with pytest.raises(StoreRefused, match=r"belongs to http://127.0.0.1:8080, not to https://x"):
        store.belong(url="https://x")
    with pytest.raises(StoreRefused, match="another user"):
        store.belong_to_user("eve")
    with pytest.raises(StoreRefused, match="another client id"):
        store.belong(url=URL, client_id="c_2")
    assert (store.user, store.client_id) == ("ada", "c_1")


def test_what_is_not_a_store_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("x" * 5000)
    with pytest.raises(StoreRefused, match="not a client's store"):
        Store(text)
    assert text.read_text() == "x" * 5000
    other = tmp_path / "other.db"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE mine (a)")
    database.close()
    with pytest.raises(StoreRefused, match="not a client's store"):
        Store(other)
    with pytest.raises(StoreFailed, match="cannot be used"):
        Store(tmp_path / "missing" / "client.db")


def test_another_schema_is_refused(path: Path, store: Store) -> None:
    store.close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreRefused, match="has schema 99"):
        Store(path)
