"""The API as a process: starts, stops, and lives through the loss of what it stands on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest

from cloudsync.settings import Settings
from wire import Wire

Serve = Callable[[Settings], AbstractAsyncContextManager[httpx.AsyncClient]]
RUNTIME = Path(__file__).parents[3] / "runtime"


class ApiProcess:
    """`cloudsync api` as a child process on a free port."""

    def __init__(self, settings: Settings, log: Path, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cloudsync", "api"],
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": str(RUNTIME),
                    "CLOUDSYNC_MODE": settings.mode,
                    "CLOUDSYNC_JWT_SECRET": settings.jwt_secret,
                    "CLOUDSYNC_POSTGRES_URL": settings.postgres_url,
                    "CLOUDSYNC_REDIS_EVENTS_URL": settings.redis_events_url,
                    "CLOUDSYNC_KEYRING_FILE": str(settings.keyring_file),
                    "CLOUDSYNC_API_PORT": str(self.port),
                    **environment,
                },
                stdout=output,
                stderr=output,
            )

    def healthy(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/healthz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., ApiProcess]]:
    running: list[ApiProcess] = []

    def start_one(**environment: str) -> ApiProcess:
        running.append(ApiProcess(settings, tmp_path / f"api{len(running)}.log", **environment))
        return running[-1]

    yield start_one
    for process in running:
        process.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_cleanly(
    start: Callable[..., ApiProcess], eventually: Callable[..., Any], number: signal.Signals
) -> None:
    api = start()
    eventually(api.healthy, 30)
    with httpx.Client(base_url=api.url, trust_env=False) as caller:
        caller.get("/healthz")  # an idle connection must not hold it up
        api.process.send_signal(number)
        assert api.process.wait(10) == 0
    log = api.log.read_text()
    assert '"stopped"' in log
    assert "Traceback" not in log


def test_neither_tokens_nor_secrets_are_logged(
    start: Callable[..., ApiProcess], eventually: Callable[..., Any], settings: Settings
) -> None:
    api = start(CLOUDSYNC_LOG_LEVEL="debug")
    eventually(api.healthy, 30)
    token = httpx.post(
        f"{api.url}/v1/dev/token", json={"tenant": "acme", "user": "ada"}, trust_env=False
    ).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{api.url}/v1/clients?token={token}", headers=headers, trust_env=False).is_success
    httpx.get(f"{api.url}/v1/clients", headers={"Authorization": f"Bearer x{token}"}, trust_env=False)
    api.process.send_signal(signal.SIGTERM)
    api.process.wait(10)
    log = api.log.read_text()
    assert "/v1/clients" in log
    assert token[20:] not in log
    assert settings.jwt_secret not in log


def test_a_port_in_use_is_one_sentence(start: Callable[..., ApiProcess]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        api = start(CLOUDSYNC_API_PORT=str(port))
        assert api.process.wait(30) == 1
    lines = api.log.read_text().strip().splitlines()
    assert len(lines) == 1, lines
    assert f"Port {port} on 127.0.0.1 is in use" in lines[0]
    assert "port_in_use" in lines[0]


def test_a_missing_setting_is_one_sentence(start: Callable[..., ApiProcess]) -> None:
    api = start(CLOUDSYNC_POSTGRES_URL="")
    assert api.process.wait(30) == 1
    assert "CLOUDSYNC_POSTGRES_URL must be set" in api.log.read_text()


def through(url: str, port: int) -> str:
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))


async def test_a_lost_database_is_said_quickly_and_found_again(
    settings: Settings,
    serve: Serve,
    bearer: Callable[..., dict[str, str]],
    eventually_async: Callable[..., Any],
) -> None:
    port = urlsplit(settings.postgres_url).port
    assert port
    async with Wire(port=port) as wire:
        wired = settings.model_copy(update={"postgres_url": through(settings.postgres_url, wire.port)})
        async with serve(wired) as api:
            headers = bearer()

            async def answered(status: int) -> bool:
                began = time.monotonic()
                answer = await api.get("/v1/clients", headers=headers)
                assert time.monotonic() - began < 8
                if answer.status_code == 503:
                    assert answer.json()["error"]["code"] == "unavailable"
                    assert answer.headers["retry-after"] == "1"
                    assert "127.0.0.1" not in answer.text
                return answer.status_code == status

            assert await answered(200)
            wire.cut()  # as when a database restarts between two requests
            assert await answered(200), "a connection that died while idle is replaced unseen"

            await wire.refuse()
            assert await answered(503)
            assert (await api.get("/readyz")).json()["checks"] == {"postgres": "unreachable", "redis": "ok"}
            assert (await api.get("/healthz")).status_code == 200, "never depends on the database"
            await wire.restore()
            await eventually_async(lambda: answered(200), 10)

            wire.freeze()  # neither answers nor closes
            assert await answered(503)
            assert (await api.get("/v1/endpoint", headers=headers)).status_code == 200
            wire.thaw()
            await eventually_async(lambda: answered(200), 15)


async def test_a_start_without_a_database_waits_for_it(
    settings: Settings,
    serve: Serve,
    bearer: Callable[..., dict[str, str]],
    eventually_async: Callable[..., Any],
) -> None:
    port = urlsplit(settings.postgres_url).port
    assert port
    async with Wire(port=port) as wire:
        await wire.refuse()
        wired = settings.model_copy(update={"postgres_url": through(settings.postgres_url, wire.port)})
        async with serve(wired) as api:
            headers = bearer()
            assert (await api.get("/v1/clients", headers=headers)).status_code == 503
            await wire.restore()

            async def works() -> bool:
                return (await api.get("/v1/clients", headers=headers)).status_code == 200

            await eventually_async(works, 10)


async def test_without_redis_a_revocation_stands_and_is_to_be_repeated(
    settings: Settings, serve: Serve, bearer: Callable[..., dict[str, str]]
) -> None:
    port = urlsplit(settings.redis_events_url).port
    assert port
    async with Wire(port=port) as wire:
        wired = settings.model_copy(update={"redis_events_url": f"redis://127.0.0.1:{wire.port}/0"})
        async with serve(wired) as api:
            headers = bearer()
            client_id = (await api.post("/v1/clients", headers=headers)).json()["client_id"]
            await wire.refuse()
            answer = await api.delete(f"/v1/clients/{client_id}", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            assert (await api.get("/v1/clients", headers=headers)).json() == {"clients": []}
            assert (await api.get("/readyz")).json()["checks"] == {"postgres": "ok", "redis": "unreachable"}
            await wire.restore()
            answer = await api.delete(f"/v1/clients/{client_id}", headers=headers)
            assert answer.status_code == 204
