"""The HTTP API process."""

from __future__ import annotations

import errno
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

import cloudsync
from cloudsync import logs
from cloudsync.api import conflicts, failures, routes
from cloudsync.api.guard import Guard
from cloudsync.api.services import Services
from cloudsync.errors import PlatformError, PortInUse
from cloudsync.metrics import emitter
from cloudsync.metrics.loop import watch_loop
from cloudsync.settings import Settings

_DESCRIPTION = (
    "Where to connect, and which client ids a user has, and which conflicts wait for a decision. Data"
    " travels over the WebSocket endpoint."
)


def create_app(settings: Settings) -> FastAPI:
    """The API as an ASGI application. Raises ConfigurationError if a setting that it needs is missing."""
    services = Services(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch_loop()
        await services.start()
        try:
            yield
        finally:
            await services.stop()

    app = FastAPI(
        title="CloudSync API",
        version=cloudsync.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # the interactive pages would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.services = services
    app.include_router(routes.health)
    app.include_router(routes.public(settings))
    app.include_router(conflicts.router())
    if settings.mode == "development" and settings.jwt_secret:
        app.include_router(routes.development(settings))
    failures.install(app)
    app.add_middleware(Guard)
    if settings.mode == "development":
        app.add_middleware(
            CORSMiddleware,
            allow_origins=["*"],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            allow_credentials=False,
        )
    return app


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The library raises the signal again after a clean stop, which would make the exit status a failure.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises PortInUse, PlatformError or ConfigurationError."""
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    app = create_app(settings)
    listener = _bind(settings.api_host, settings.api_port)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=310,  # longer than the load balancer's 300 s, or it answers 502
        timeout_graceful_shutdown=5,
    )
    emitter.start(settings, "api")
    log = logs.get("api")
    log.info("listening", host=settings.api_host, port=listener.getsockname()[1])
    try:
        _Server(config).run(sockets=[listener])
    finally:
        listener.close()
    log.info("stopped")


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"Port {port} on {host} is in use by another process.",
                hint="Set CLOUDSYNC_API_PORT to a free one.",
            ) from None
        raise PlatformError(
            f"The API cannot listen on {host} port {port}: {error.strerror or error}."
        ) from None
