"""Logging in with a password from Secrets Manager: fetched, kept, and fetched anew when it was rotated."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

boto3 = pytest.importorskip("boto3", reason="the extra `aws` is not installed")
moto = pytest.importorskip("moto", reason="the extra `deploy` is not installed")

from cloudsync.dev.postgres import EmbeddedPostgres  # noqa: E402
from cloudsync.tenants import login  # noqa: E402
from cloudsync.tenants.login import Login, PasswordUnavailable  # noqa: E402
from cloudsync.tenants.reference import parse  # noqa: E402

_REGION = "eu-central-1"


class Guarded:
    """A server that asks cloudsync_service for its password, and the secret with it."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._secrets = boto3.client("secretsmanager", region_name=_REGION)
        self.secret = self._secrets.create_secret(Name="Service", SecretString="{}")["ARN"]

    @property
    def url(self) -> str:
        return self._server.url("cloudsync_service")

    def login(self) -> Login:
        return Login.of(parse(f"{self.url}?password_secret={self.secret}"))

    def write(self, text: str) -> None:
        self._secrets.put_secret_value(SecretId=self.secret, SecretString=text)

    def rotate(self, password: str) -> None:
        with psycopg.connect(self._server.url(), autocommit=True) as connection:
            connection.execute(f"ALTER ROLE cloudsync_service PASSWORD '{password}'")
        self.write(json.dumps({"username": "cloudsync_service", "password": password}))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("guarded"), durable=False) as running:
        with psycopg.connect(running.url(), autocommit=True) as connection:
            connection.execute("CREATE ROLE cloudsync_service LOGIN")
            rules = Path(running.data) / "pg_hba.conf"
            rules.write_text(f"host all cloudsync_service all scram-sha-256\n{rules.read_text()}")
            connection.execute("SELECT pg_reload_conf()")
        yield running


@pytest.fixture
def guarded(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    monkeypatch.setattr(login, "_FRESH_S", 0.0)
    with moto.mock_aws():
        yield Guarded(server)


def _who(connection: psycopg.Connection[Any]) -> Any:
    with connection:
        return connection.execute("SELECT current_user::text").fetchone()


def test_the_password_is_read_and_read_again_after_a_rotation(guarded: Guarded) -> None:
    guarded.rotate("first")
    opened = guarded.login()
    assert _who(opened.connect()) == ("cloudsync_service",)
    guarded.rotate("second")
    assert _who(opened.connect()) == ("cloudsync_service",)


async def test_a_pool_goes_on_after_a_rotation(guarded: Guarded) -> None:
    guarded.rotate("first")
    opened = guarded.login()
    async with AsyncConnectionPool("", connection_class=opened.connection_class, min_size=1) as pool:
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
            guarded.rotate("second")
            await connection.close()
        async with pool.connection(timeout=10) as connection:
            await connection.execute("SELECT 1")
    async with await opened.connect_async() as connection:
        await connection.execute("SELECT 1")


def test_a_wrong_password_is_refused_and_not_told(guarded: Guarded) -> None:
    guarded.rotate("first")
    guarded.write('{"password": "hunter2"}')
    with pytest.raises(psycopg.OperationalError) as caught:
        guarded.login().connect()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "no JSON", "[]", '{"password": 7}', '{"password": ""}'])
def test_a_secret_without_a_password_is_a_server_that_is_away(guarded: Guarded, text: str) -> None:
    guarded.write(text)
    with pytest.raises(PasswordUnavailable, match="field `password`"):
        guarded.login().connect()


def test_a_secret_that_does_not_exist_is_a_server_that_is_away(guarded: Guarded) -> None:
    guarded.secret = guarded.secret.replace("secret:Service", "secret:Nothing")
    with pytest.raises(PasswordUnavailable, match="ResourceNotFoundException"):
        guarded.login().connect()


def test_a_database_without_a_secret_is_not_offered_the_shared_ones_password(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded.rotate("of the shared one")
    monkeypatch.setenv("PGPASSWORD", "of the shared one")
    monkeypatch.setenv("PGPASSFILE", "/nowhere")
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        Login.of(parse(guarded.url)).connect().close()


async def test_secrets_that_do_not_come_keep_nobody_else_from_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AWS takes the question and says nothing, and many connections wait for it."""
    secret = f"arn:aws:secretsmanager:{_REGION}:123456789012:secret:Silent"
    silent = Login.of(parse(f"postgresql://cloudsync_service@localhost:1/x?password_secret={secret}"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with socket.create_server(("127.0.0.1", 0)) as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{aws.getsockname()[1]}")
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(4))
        waiting = [asyncio.create_task(silent.connect_async()) for _ in range(8)]
        aws.setblocking(False)
        asked, _ = await asyncio.wait_for(loop.sock_accept(aws), 10)
        try:
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 2) == "free"
        finally:
            for each in waiting:
                each.cancel()
            asked.close()
            aws.close()
            await asyncio.wait(waiting)
