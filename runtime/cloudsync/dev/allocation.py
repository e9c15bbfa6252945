"""Which ports the processes of a platform get."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from cloudsync.dev import ports
from cloudsync.dev.options import DEFAULT_PORTS, PlatformOptions
from cloudsync.errors import PortInUse

_LOOK_AHEAD = 100


@dataclass(frozen=True)
class Gateway:
    name: str
    cell: int
    port: int

    @property
    def url(self) -> str:
        return f"ws://{ports.LOOPBACK}:{self.port}/ws/{self.cell}"


@dataclass
class Allocation:
    """Ports by process; `notices` tells where a default was in use."""

    api: int = 0
    postgres: int = 0
    valkey: int = 0
    gateways: list[Gateway] = field(default_factory=list)
    gateway_url_template: str = ""
    notices: list[str] = field(default_factory=list)


def allocate(options: PlatformOptions) -> Allocation:
    """Ports that are free now. Raises PortInUse for one that was asked for by number."""
    chosen = Allocation()
    taken = set(options.asked_ports())  # no default may take what another process was promised

    def choose(name: str, owner: str) -> int:
        wanted: int | None = getattr(options, f"{name}_port")
        port = _one(wanted, DEFAULT_PORTS[name], owner, f"--{name}-port", taken, chosen.notices)
        taken.add(port)
        return port

    if options.postgres_url is None:
        chosen.postgres = choose("postgres", "PostgreSQL")
    if options.redis_url is None:
        chosen.valkey = choose("valkey", "Valkey")
    if "gateway" in options.services:
        _allocate_gateways(options, chosen, taken)
    if "api" in options.services:
        chosen.api = choose("api", "the API")
    return chosen


def _one(
    wanted: int | None, default: int, owner: str, option: str, taken: set[int], notices: list[str]
) -> int:
    if wanted == 0:
        while (port := ports.free_port()) in taken:
            pass
        return port
    if wanted is not None:
        ports.require_free(wanted, owner=owner, option=option)
        return wanted
    for port in range(default, default + _LOOK_AHEAD):
        if port not in taken and ports.is_free(port):
            if port != default:
                notices.append(f"Port {default} is in use, so {owner} listens on {port} ({option} chooses).")
            return port
    raise PortInUse(f"No port from {default} on is free for {owner}.", hint=f"Choose one with {option}.")


def _allocate_gateways(options: PlatformOptions, chosen: Allocation, taken: set[int]) -> None:
    """One cell: any ports. Several: the last digit is the cell, so that one URL template serves them all."""
    templates = []
    for number in range(1, options.gateways + 1):
        if options.cells == 1:
            first = options.gateway_port
            wanted = first + number - 1 if first else first
            owner = "the gateway" if options.gateways == 1 else f"gateway {number}"
            port = _one(
                wanted, DEFAULT_PORTS["gateway"], owner, "--gateway-port", taken, _quiet(number, chosen)
            )
            taken.add(port)
            chosen.gateways.append(Gateway(_name(options, number, 1), 1, port))
            templates.append(f"ws://{ports.LOOPBACK}:{port}/ws/{{cell}}")
            continue
        tens = _tens(options, number, taken)
        for cell in range(1, options.cells + 1):
            taken.add(tens * 10 + cell)
            chosen.gateways.append(Gateway(_name(options, number, cell), cell, tens * 10 + cell))
        templates.append(f"ws://{ports.LOOPBACK}:{tens}{{cell}}/ws/{{cell}}")
    chosen.gateway_url_template = " ".join(templates)


def _quiet(number: int, chosen: Allocation) -> list[str]:
    return chosen.notices if number == 1 else []  # further gateways take the next ports anyway


def _name(options: PlatformOptions, number: int, cell: int) -> str:
    if options.cells == 1:
        return "gateway" if options.gateways == 1 else f"gateway-{number}"
    return f"gateway-{cell}" if options.gateways == 1 else f"gateway-{cell}-{number}"


def _tens(options: PlatformOptions, number: int, taken: set[int]) -> int:
    cells = range(1, options.cells + 1)
    if options.gateway_port:
        tens = options.gateway_port // 10 + number - 1
        for cell in cells:
            ports.require_free(tens * 10 + cell, owner=f"the gateway of cell {cell}", option="--gateway-port")
        return tens
    if options.gateway_port == 0:
        draw = Random()  # noqa: S311 - a port, not a secret
        candidates = [draw.randint(ports.FIRST // 10, ports.LAST // 10 - 1) for _ in range(_LOOK_AHEAD)]
    else:
        candidates = list(range(DEFAULT_PORTS["gateway"] // 10, DEFAULT_PORTS["gateway"] // 10 + _LOOK_AHEAD))
    for tens in candidates:
        if all(tens * 10 + cell not in taken and ports.is_free(tens * 10 + cell) for cell in cells):
            return tens
    raise PortInUse("No ten ports in a row are free for the gateways.", hint="Choose with --gateway-port.")
