"""The gateway process: FastAPI for health, the WebSocket handler beside it, uvicorn under both."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from cloudsync import __version__, logs
from cloudsync.errors import PortInUse
from cloudsync.gateway.databases import Databases
from cloudsync.gateway.drain import close_all
from cloudsync.gateway.handler import WebSocketHandler
from cloudsync.gateway.termination import Termination
from cloudsync.lifetime import keep_heap
from cloudsync.metrics import emitter
from cloudsync.metrics.loop import watch_loop
from cloudsync.settings import Settings
from cloudsync.tokens import TokenVerifier
from cloudsync.unlocking import open_keyring

_log = logs.get("gateway")


class Application:
    """WebSockets go straight to their handler: what a framework keeps per request would stay with each."""

    def __init__(self, databases: Databases, verifier: TokenVerifier) -> None:
        self._http = _health(databases)
        self._websocket = WebSocketHandler(databases, verifier)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._http(scope, receive, send)


def _health(databases: Databases) -> FastAPI:
    app = FastAPI(
        title="CloudSync gateway", version=__version__, docs_url=None, redoc_url=None, openapi_url=None
    )

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Alive and not draining; an outage of Redis or PostgreSQL must not replace the fleet."""
        if databases.draining:
            return JSONResponse({"status": "draining"}, status_code=503)
        return JSONResponse({"status": "ok", "connections": len(databases.connections)})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        problem = await databases.ready()
        if problem is not None:
            return JSONResponse({"status": "not ready", "reason": problem}, status_code=503)
        return JSONResponse({"status": "ready", "degraded": databases.degraded})

    return app


class _Server(uvicorn.Server):
    """Leaves signals to `serve`, which drains first."""

    def install_signal_handlers(self) -> None:
        return

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT, `cloudsync drain` or the end of the instance, then drain and end.

    A second signal ends at once. A process whose instance is taken back lets it go and stays until it is
    stopped with it: what runs it would start another. Raises PortInUse.
    """
    settings.require("postgres_url", "redis_events_url")
    keyring = await asyncio.to_thread(open_keyring, settings)
    listener = _listen(settings)
    gateway_id = settings.gateway_id or f"{socket.gethostname()}-{listener.getsockname()[1]}"
    databases = Databases(settings, keyring, gateway_id)
    server = _Server(
        uvicorn.Config(
            Application(databases, TokenVerifier(settings)),
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            ws_max_size=settings.inbound_frame_bytes,
            ws_ping_interval=settings.ping_interval_s,
            ws_ping_timeout=settings.ping_timeout_s,
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=5,
        )
    )
    emitter.start(settings, "gateway")
    watch_loop()
    keep_heap()
    stopping, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (at_once if stopping.is_set() else stopping).set())
    running = loop.create_task(databases.run())
    serving = loop.create_task(server.serve(sockets=[listener]))
    termination = Termination(settings) if settings.lifecycle_hook else None
    taken_back = loop.create_task(termination.begun() if termination else asyncio.Event().wait())
    asked = {loop.create_task(stopping.wait()), loop.create_task(databases.drain_asked.wait()), taken_back}
    await asyncio.wait({running, serving, *asked}, return_when=asyncio.FIRST_COMPLETED)
    stopping.set()  # also if it was asked otherwise: a signal now means at once
    hurry = loop.create_task(at_once.wait())
    draining = loop.create_task(databases.drain())
    left: asyncio.Future[None] = loop.create_future()
    letting_go = None
    if termination is not None and taken_back.done():
        letting_go = loop.create_task(termination.complete_after(left))
    await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
    if at_once.is_set():
        draining.cancel()
        close_all(lambda: databases.connections)
        server.force_exit = True
    server.should_exit = True
    await serving
    for task in asked:
        task.cancel()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    if letting_go is not None:
        left.set_result(None)
        await asyncio.wait({letting_go, hurry}, return_when=asyncio.FIRST_COMPLETED)
        await hurry
        letting_go.cancel()
    hurry.cancel()


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.gateway_host, settings.gateway_port
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":
        # Accepted sockets take it over. A peer that takes nothing for as long as a pong may take is gone;
        # else a socket that is closed with frames unsent would live on until the kernel gives them up.
        lost_ms = int((settings.ping_interval_s + settings.ping_timeout_s) * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, lost_ms)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"The gateway cannot listen on {host}:{port}: {error.strerror}.",
            hint="Set CLOUDSYNC_GATEWAY_PORT.",
        ) from None
    listener.listen(4096)
    return listener


def run(settings: Settings) -> None:
    """Run the gateway until SIGTERM or SIGINT."""
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    uvloop.run(serve(settings))
