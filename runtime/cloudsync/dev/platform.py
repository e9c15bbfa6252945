"""The whole platform on this machine: database, Valkey and every process of a deployment, on loopback."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from cloudsync.dev import ports, state
from cloudsync.dev.allocation import Allocation, allocate
from cloudsync.dev.child import ProcessSpec
from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.dev.services import service_specs
from cloudsync.dev.state import PlatformState, ProcessStatus
from cloudsync.dev.supervisor import Supervisor
from cloudsync.dev.valkey import EmbeddedValkey
from cloudsync.dev.workspace import Workspace
from cloudsync.errors import NotRunning, StartFailed
from cloudsync.settings import Settings, load
from cloudsync.tokens import development_token

_PREFIX = "CLOUDSYNC_"


class Platform:
    """A platform that runs while this object is entered (`with` or `async with`).

    `on_change(process, text)` is called from another thread when something happened to a process;
    `cancelled()` ends a start that is under way. Raises AlreadyRunning, PortInUse, StartFailed and, for
    servers that were given, what `checks` raises.
    """

    def __init__(
        self,
        options: PlatformOptions | None = None,
        *,
        on_change: Callable[[str, str], None] | None = None,
        cancelled: Callable[[], bool] = bool,
    ) -> None:
        self.options = options or PlatformOptions()
        self.notices: list[str] = []
        """Sentences worth showing, such as a default port that was in use."""
        self.start_s = 0.0
        """How long the start took."""
        self._report = on_change
        self._cancelled = cancelled
        self._workspace: Workspace | None = None
        self._supervisor: Supervisor | None = None
        self._allocation = Allocation()
        self._postgres: EmbeddedPostgres | None = None
        self._valkey: EmbeddedValkey | None = None
        self._own_roles = False
        self._started_at = ""
        self._ready = False
        self._writing = threading.Lock()

    # Where things are

    def postgres_url(
        self, role: str | None = None, *, database: str | None = None, tenant: str | None = None
    ) -> str:
        """URL of the platform's database, or a dedicated tenant's, as the superuser or as another role.

        A server that is not ours may refuse the roles without password: then it is the URL that was given.
        """
        if self._postgres is not None:
            from cloudsync.dev.databases import DATABASE, tenant_database

            if tenant is not None:
                database = tenant_database(tenant)
            return self._postgres.url(role or "postgres", database or DATABASE)
        given = self.options.postgres_url or ""
        if role is None or not self._own_roles:
            return given
        from cloudsync.dev.databases import as_role

        return as_role(given, role)

    @property
    def redis_url(self) -> str:
        return self._valkey.url if self._valkey is not None else self.options.redis_url or ""

    @property
    def api_url(self) -> str:
        return f"http://{ports.LOOPBACK}:{self._allocation.api}" if self._allocation.api else ""

    @property
    def gateway_urls(self) -> list[str]:
        """One WebSocket URL per gateway process, with its cell."""
        return [gateway.url for gateway in self._allocation.gateways]

    @property
    def data(self) -> Path:
        """Folder of databases, secrets and logs."""
        return self._opened.data

    @property
    def logs(self) -> Path:
        """Folder with one `NAME.log` per process."""
        return self._opened.logs

    @property
    def processes(self) -> dict[str, ProcessStatus]:
        statuses = self._supervisor.statuses() if self._supervisor is not None else []
        return {status.name: status for status in statuses}

    def binary(self, name: str) -> Path:
        """A PostgreSQL program, such as `pgbench` or `psql`."""
        return EmbeddedPostgres.binary(name)

    def environment(self, verb: str = "", *, tenant: str | None = None) -> dict[str, str]:
        """CLOUDSYNC_* variables of the process behind a CLI verb (gateways get their port beside them).

        With a dedicated tenant: of one that works on its database.
        """
        role = {"relay": "cloudsync_relay", "migrate": None, "": None}.get(verb, "cloudsync_service")
        variables = {
            "MODE": "development",
            "POSTGRES_URL": self.postgres_url(role, tenant=tenant),
            "REDIS_EVENTS_URL": self.redis_url,
            "REDIS_BROKER_URL": self._valkey.database_url(1) if self._valkey is not None else "",
            "KEYRING_FILE": str(self._opened.keyring_file),
            "JWT_SECRET": self._opened.secret_file.read_text(),
            "LOG_FORMAT": "console",
            "DRAIN_S": "1",
            "API_PORT": str(self._allocation.api),
            "CELLS": str(self.options.cells),
            "GATEWAY_URL_TEMPLATE": self._allocation.gateway_url_template,
        }
        if tenant is not None:
            from cloudsync.dev.databases import tenant_slot

            variables["SLOT_NAME"] = tenant_slot(tenant)
        return {**{_PREFIX + name: value for name, value in variables.items()}, **self.options.environment}

    def settings(self, verb: str = "", *, tenant: str | None = None) -> Settings:
        """Settings as the process behind a verb has them."""
        variables = self.environment(verb, tenant=tenant) if tenant else self.environment(verb)
        return load(**{name.removeprefix(_PREFIX).lower(): value for name, value in variables.items()})

    def token(self, tenant: str, user: str, *, lifetime_s: int = 12 * 3600) -> str:
        """A development token."""
        return development_token(self.settings("api"), tenant=tenant, user=user, lifetime_s=lifetime_s)

    def state(self) -> PlatformState:
        return PlatformState(
            pid=os.getpid(),
            folder=str(self._opened.data),
            started_at=self._started_at,
            ready=self._ready,
            postgres_url=self.postgres_url(),
            redis_url=self.redis_url,
            api_url=self.api_url,
            gateway_urls=self.gateway_urls,
            keyring_file=str(self._opened.keyring_file),
            secret_file=str(self._opened.secret_file),
            cells=self.options.cells,
            processes=list(self.processes.values()),
            dedicated={slug: self.postgres_url(tenant=slug) for slug in self.options.dedicated},
        )

    # Starting and stopping

    def start(self) -> Self:
        """Start everything and wait until it is ready. What was started is stopped again if it fails."""
        began = time.monotonic()
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self._workspace = Workspace(self.options)
            self._supervisor = Supervisor(self.logs, on_change=self._changed)
            self._check_given_servers()
            self._allocation = allocate(self.options)
            self.notices += self._allocation.notices
            self._start_servers(self._supervisor)
            self._migrate()
            self._start_services(self._supervisor)
            self._ready = True
            self._write_state()
        except BaseException:
            self.stop()
            raise
        self.start_s = time.monotonic() - began
        return self

    def stop(self) -> None:
        """Stop everything in reverse order; returns when nothing is left. May be called again."""
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None
        with self._writing:
            self._ready = False
            workspace, self._workspace = self._workspace, None
            if workspace is not None:
                workspace.close()

    def hurry(self) -> None:
        """Make `stop` kill instead of wait."""
        if self._supervisor is not None:
            self._supervisor.hurry()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    @property
    def _opened(self) -> Workspace:
        if self._workspace is None:
            raise NotRunning("This platform is not running.")
        return self._workspace

    def _check_given_servers(self) -> None:
        if self.options.postgres_url is None and self.options.redis_url is None:
            return
        from cloudsync.dev import checks

        if self.options.postgres_url is not None:
            checks.check_postgres(self.options.postgres_url)
        if self.options.redis_url is not None:
            self.notices += checks.check_redis(self.options.redis_url)

    def _start_servers(self, supervisor: Supervisor) -> None:
        specs: list[ProcessSpec] = []
        if self.options.redis_url is None:
            self._valkey = EmbeddedValkey(
                self.data / "valkey", port=self._allocation.valkey, ephemeral=self.options.ephemeral
            )
            self._valkey.prepare()
            specs.append(self._valkey.spec())
        if self.options.postgres_url is None:
            self._postgres = EmbeddedPostgres(
                self.data / "postgres", port=self._allocation.postgres, durable=self.options.durable
            )
            self._postgres.prepare()
            specs.append(self._postgres.spec())
        supervisor.start(specs)
        self._wait(supervisor)

    def _migrate(self) -> None:
        from cloudsync.capture.migrations import migrate
        from cloudsync.dev import databases

        if self._postgres is not None:
            databases.ensure_database(self._postgres.url())
        migrate(self.postgres_url(), phase="all")
        if self._postgres is not None:
            self.notices += databases.attach_tenants(
                self._postgres, self.options.dedicated, migrate=lambda url: migrate(url, phase="all")
            )
        else:
            self._own_roles = databases.lets_in(databases.as_role(self.postgres_url(), "cloudsync_service"))
            if not self._own_roles:
                self.notices.append(
                    "The server does not let cloudsync_relay and cloudsync_service in without a password, "
                    "so every process connects as the role of --postgres-url."
                )

    def _start_services(self, supervisor: Supervisor) -> None:
        specs = service_specs(
            self.options,
            self._allocation,
            environment=self.environment,
            ready_file=self._opened.ready_file,
            scratch=self._opened.scratch,
            relays={None: self._stream(), **{slug: self._stream(slug) for slug in self.options.dedicated}},
        )
        supervisor.start(specs)
        self._write_state()
        self._wait(supervisor)

    def _stream(self, tenant: str | None = None) -> tuple[str, str]:
        """Database and slot of a relay."""
        return self.postgres_url(tenant=tenant), self.settings("relay", tenant=tenant).slot_name

    def _wait(self, supervisor: Supervisor) -> None:
        if self._cancelled():
            raise StartFailed("The start was cancelled.")
        supervisor.wait_ready(timeout_s=self.options.start_timeout_s, cancelled=self._cancelled)

    def _changed(self, process: str, text: str) -> None:
        self._write_state()
        if self._report is not None:
            self._report(process, text)

    def _write_state(self) -> None:
        with self._writing:
            if self._workspace is not None:
                state.write(self._workspace.folder, self.state())
