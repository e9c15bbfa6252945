"""What a platform is started with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from cloudsync.errors import ConfigurationError

DEFAULT_PORTS: Final[Mapping[str, int]] = {"api": 8080, "postgres": 54320, "valkey": 63790, "gateway": 8081}
SERVICES: Final = ("relay", "routing", "general", "beat", "gateway", "api")
_MOST_CELLS: Final = 9  # the last digit of a gateway's port is its cell's number
_MOST_GATEWAYS: Final = 20


@dataclass(frozen=True, kw_only=True)
class PlatformOptions:
    """Options of `cloudsync dev`, and of a platform inside a test or a benchmark.

    A port is a number, 0 for any free one, or None for the default one or the next free after it. `gateways`
    counts per cell. `ephemeral` keeps nothing; then without `data` even the state file is temporary.
    `dedicated` names tenants that get a database and a relay of their own, on the same server. `services`
    chooses which processes run; `environment` is added to that of each (CLOUDSYNC_* variables).
    """

    data: Path | None = None
    ephemeral: bool = False
    fresh: bool = False
    durable: bool = True
    postgres_url: str | None = None
    redis_url: str | None = None
    cells: int = 1
    gateways: int = 1
    api_port: int | None = None
    postgres_port: int | None = None
    valkey_port: int | None = None
    gateway_port: int | None = None
    standby: bool = False
    dedicated: tuple[str, ...] = ()
    services: tuple[str, ...] = SERVICES
    environment: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 60.0

    @classmethod
    def private(cls, **changes: Any) -> Self:
        """For a test or a benchmark: any free ports, nothing kept, no waiting for the disk."""
        settings: dict[str, Any] = {
            "ephemeral": True,
            "durable": False,
            "api_port": 0,
            "postgres_port": 0,
            "valkey_port": 0,
            "gateway_port": 0,
        }
        return cls(**{**settings, **changes})

    def __post_init__(self) -> None:
        if not 1 <= self.cells <= _MOST_CELLS:
            raise ConfigurationError(f"--cells must be 1 to {_MOST_CELLS} here, not {self.cells}.")
        if not 1 <= self.gateways <= _MOST_GATEWAYS:
            raise ConfigurationError(f"--gateways must be 1 to {_MOST_GATEWAYS} here, not {self.gateways}.")
        if self.cells > 1 and self.gateway_port and self.gateway_port % 10 != 1:
            raise ConfigurationError(
                f"With several cells --gateway-port must end in 1 (as 8081), not {self.gateway_port}: "
                "the last digit of a gateway's port is its cell."
            )
        for name in DEFAULT_PORTS:
            port = getattr(self, f"{name}_port")
            if port is not None and not 0 <= port <= 65535:
                raise ConfigurationError(f"--{name}-port must be 0 to 65535, not {port}.")
        self.asked_ports()
        if unknown := [name for name in self.services if name not in SERVICES]:
            raise ConfigurationError(f"There is no service {unknown[0]}; there are {', '.join(SERVICES)}.")
        if self.dedicated and self.postgres_url is not None:
            raise ConfigurationError(
                "--dedicated makes databases on the embedded server; on that of --postgres-url make one"
                " yourself, and `cloudsync tenant attach` the tenant."
            )
        for slug in self.dedicated:
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,29}", slug) or self.dedicated.count(slug) > 1:
                raise ConfigurationError(
                    "--dedicated is a tenant's id of small letters, digits and hyphens, each once, not"
                    f" {slug[:40]!r}."
                )
        if self.fresh and self.postgres_url is not None:
            raise ConfigurationError(
                "--fresh wipes the embedded server's data; it does not touch the one of --postgres-url."
            )

    def asked_ports(self) -> dict[int, str]:
        """Ports that were given by number, each with its option.

        Raises ConfigurationError for one that two would take: both find it free until the other listens.
        """
        asked: dict[int, str] = {}
        given = {"postgres": self.postgres_url, "valkey": self.redis_url}
        for name in DEFAULT_PORTS:
            first = getattr(self, f"{name}_port")
            if not first or given.get(name) is not None:
                continue
            for port in self._gateway_ports(first) if name == "gateway" else (first,):
                option = f"--{name}-port"
                if port in asked:
                    raise ConfigurationError(
                        f"{asked[port]} and {option} would both take port {port}: give each one of its own."
                    )
                asked[port] = option
        return asked

    def _gateway_ports(self, first: int) -> Iterator[int]:
        """One cell: one after the other. Several: ten for each gateway of a cell, the last digit the cell."""
        for number in range(self.gateways):
            if self.cells == 1:
                yield first + number
            else:
                yield from range(first + 10 * number, first + 10 * number + self.cells)
