"""Servers that we did not start: each unsuitable one gets one sentence with a code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cloudsync.dev import ports
from cloudsync.dev.checks import check_postgres, check_redis
from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.dev.valkey import EmbeddedValkey
from cloudsync.errors import (
    ConfigurationError,
    DatabaseUnreachable,
    DatabaseUnsuitable,
    RedisUnauthorized,
    RedisUnreachable,
)


@pytest.fixture(scope="module")
def guarded_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    folder = tmp_path_factory.mktemp("guarded")
    with EmbeddedValkey(folder, password="open sesame", ephemeral=True) as server:
        yield server


def test_a_server_without_logical_wal(tmp_path: Path) -> None:
    with (
        EmbeddedPostgres(tmp_path, durable=False, settings={"wal_level": "replica"}) as server,
        pytest.raises(DatabaseUnsuitable, match="wal_level = replica; CloudSync needs logical") as refused,
    ):
        Platform(PlatformOptions.private(postgres_url=server.url(), services=())).start()
    assert refused.value.code == "database_unsuitable"


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(DatabaseUnreachable, match="Connection refused") as refused:
        check_postgres(f"postgresql://postgres@127.0.0.1:{ports.free_port()}/postgres")
    assert "\n" not in str(refused.value)
    with pytest.raises(RedisUnreachable, match="Connection refused"):
        check_redis(f"redis://127.0.0.1:{ports.free_port()}")


def test_a_database_that_does_not_exist(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(DatabaseUnreachable, match='database "nowhere" does not exist'):
        check_postgres(postgres.url(database="nowhere"))


@pytest.mark.parametrize("wrong", ["mysql://x", "postgresql://[::1", "nonsense"])
def test_what_is_no_url(wrong: str) -> None:
    with pytest.raises((ConfigurationError, DatabaseUnreachable)):
        check_postgres(wrong)
    with pytest.raises(ConfigurationError):
        check_redis(wrong)


def test_a_role_that_may_not_replicate(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE ROLE mere_user LOGIN")
        try:
            with pytest.raises(DatabaseUnsuitable, match=r"mere_user may not replicate\. ALTER ROLE"):
                check_postgres(postgres.url("mere_user"))
            connection.execute("ALTER ROLE mere_user REPLICATION")
            check_postgres(postgres.url("mere_user"))
        finally:
            connection.execute("DROP ROLE mere_user")


def test_a_redis_with_a_password(guarded_valkey: EmbeddedValkey) -> None:
    place = f"127.0.0.1:{guarded_valkey.port}"
    with pytest.raises(RedisUnauthorized, match="asks for a password") as refused:
        check_redis(f"redis://{place}")
    assert refused.value.code == "redis_unauthorized"
    with pytest.raises(RedisUnauthorized, match="refused the password") as refused:
        check_redis(f"redis://:wrong@{place}")
    assert "wrong@" not in str(refused.value)
    assert check_redis(guarded_valkey.url) == []


def test_a_refused_platform_leaves_nothing_running(tmp_path: Path, guarded_valkey: EmbeddedValkey) -> None:
    platform = Platform(
        PlatformOptions.private(data=tmp_path / "state", redis_url=f"redis://127.0.0.1:{guarded_valkey.port}")
    )
    with pytest.raises(RedisUnauthorized):
        platform.start()
    assert platform.processes == {}
    assert not (tmp_path / "state").exists()


def test_a_platform_on_given_servers(database: str, guarded_valkey: EmbeddedValkey) -> None:
    options = PlatformOptions.private(
        postgres_url=database, redis_url=guarded_valkey.url, services=("relay",)
    )
    with Platform(options) as platform:
        assert list(platform.processes) == ["relay"]
        assert platform.notices == []
        assert platform.redis_url == guarded_valkey.url
        assert platform.settings("relay").broker_url == guarded_valkey.url
        with psycopg.connect(platform.postgres_url("cloudsync_service")) as connection:
            row = connection.execute("SELECT current_user, current_database()").fetchone()
        assert row == ("cloudsync_service", database.rpartition("/")[2])
