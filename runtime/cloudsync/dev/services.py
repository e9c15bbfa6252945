"""The processes of a deployment as they run on one machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cloudsync
from cloudsync.dev import readiness
from cloudsync.dev.allocation import Allocation
from cloudsync.dev.child import ProcessSpec
from cloudsync.dev.options import PlatformOptions
from cloudsync.errors import PortInUse


def service_specs(
    options: PlatformOptions,
    allocation: Allocation,
    *,
    environment: Callable[..., Mapping[str, str]],
    ready_file: Callable[[str], Path],
    scratch: Path,
    relays: Mapping[str | None, tuple[str, str]],
) -> list[ProcessSpec]:
    """Specs in the order of start.

    `environment(verb)`, with `tenant` for a dedicated tenant's, gives a process its CLOUDSYNC_* variables.
    `scratch` is their temporary folder: a worker makes one of its own in it, which stays if it is killed.
    `relays` has the database and the slot of each relay by tenant, None for that of the shared database.
    """
    specs: list[ProcessSpec] = []

    def add(
        name: str,
        verb: str,
        *arguments: str,
        port: int | None = None,
        ready: Callable[[Any], bool] | None = None,
        tenant: str | None = None,
        **variables: str,
    ) -> None:
        if ready is None:
            variables["CLOUDSYNC_READY_FILE"] = str(ready_file(name))
            ready = readiness.has_announced(ready_file(name))
        specs.append(
            ProcessSpec(
                name=name,
                argv=(sys.executable, "-P", "-m", "cloudsync", verb, *arguments),
                env={
                    **os.environ,
                    **_import_path(),
                    "PYTHONUNBUFFERED": "1",
                    "TMPDIR": str(scratch),
                    **(environment(verb) if tenant is None else environment(verb, tenant=tenant)),
                    **variables,
                },
                ready=ready,
                port=port,
                port_lost=f"[{PortInUse.code}]" if port else "",
                port_option=f"--{verb}-port" if port else "",
            )
        )

    if "relay" in options.services:
        for tenant, (database_url, slot_name) in relays.items():
            name = "relay" if tenant is None else f"relay-{tenant}"
            streaming = readiness.streams_from_slot(database_url, slot_name)
            add(name, "relay", ready=streaming, tenant=tenant)
            if options.standby:
                add(f"{name}-standby", "relay", ready=streaming, tenant=tenant)
    for queue in ("routing", "general"):
        if queue in options.services:
            add(queue, "worker", "--queue", queue)
    if "beat" in options.services:
        add("beat", "beat")
    for gateway in allocation.gateways:
        add(
            gateway.name,
            "gateway",
            port=gateway.port,
            ready=readiness.answers_healthz(gateway.port),
            CLOUDSYNC_GATEWAY_PORT=str(gateway.port),
            CLOUDSYNC_GATEWAY_ID=gateway.name,
            CLOUDSYNC_CELL=str(gateway.cell),
        )
    if "api" in options.services:
        add("api", "api", port=allocation.api, ready=readiness.answers_healthz(allocation.api))
    return specs


def _import_path() -> dict[str, str]:
    """So that children find this very package, also where it is not installed."""
    root = Path(cloudsync.__file__).resolve().parents[1]
    if root.name in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))}
