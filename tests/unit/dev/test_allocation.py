"""Ports: defaults fall forward, chosen ones do not."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cloudsync.dev import allocation, ports
from cloudsync.dev.allocation import allocate
from cloudsync.dev.options import PlatformOptions
from cloudsync.errors import ConfigurationError, PortInUse


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        yield server.getsockname()[1]


def test_a_chosen_port_in_use_is_refused_with_its_option(taken_port: int) -> None:
    with pytest.raises(PortInUse, match=rf"Port {taken_port}, wanted for the API, .*--api-port") as refused:
        allocate(PlatformOptions.private(api_port=taken_port))
    assert refused.value.code == "port_in_use"


def test_a_default_port_in_use_falls_forward_and_says_so(
    taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "DEFAULT_PORTS", {**allocation.DEFAULT_PORTS, "api": taken_port})
    chosen = allocate(PlatformOptions.private(api_port=None))
    assert chosen.api > taken_port
    assert chosen.notices == [
        f"Port {taken_port} is in use, so the API listens on {chosen.api} (--api-port chooses)."
    ]


def test_one_cell_has_one_url_per_gateway() -> None:
    chosen = allocate(PlatformOptions.private(gateways=2))
    assert [gateway.name for gateway in chosen.gateways] == ["gateway-1", "gateway-2"]
    assert chosen.gateway_url_template == " ".join(
        f"ws://127.0.0.1:{gateway.port}/ws/{{cell}}" for gateway in chosen.gateways
    )


@pytest.mark.parametrize("port", [0, None])
def test_several_cells_share_a_template_that_leads_to_the_right_port(port: int | None) -> None:
    chosen = allocate(PlatformOptions.private(cells=3, gateways=2, gateway_port=port))
    urls = {
        template.replace("{cell}", str(cell))
        for template in chosen.gateway_url_template.split()
        for cell in (1, 2, 3)
    }
    assert urls == {gateway.url for gateway in chosen.gateways}
    assert len(urls) == 6


def test_every_port_is_another_one() -> None:
    chosen = allocate(PlatformOptions.private(cells=4, gateways=2))
    given = [chosen.api, chosen.postgres, chosen.valkey, *(gateway.port for gateway in chosen.gateways)]
    assert len(set(given)) == len(given) == 11


def test_servers_that_are_given_need_no_port() -> None:
    chosen = allocate(PlatformOptions.private(postgres_url="postgresql://x", redis_url="redis://x"))
    assert (chosen.postgres, chosen.valkey) == (0, 0)


@pytest.mark.parametrize(
    ("both", "options"),
    [
        ({"api_port": 9999, "gateway_port": 9999}, "--api-port and --gateway-port would both take port 9999"),
        ({"postgres_port": 9999, "valkey_port": 9999}, "--postgres-port and --valkey-port"),
        ({"api_port": 9999, "gateway_port": 9998, "gateways": 2}, "--api-port and --gateway-port"),
        ({"valkey_port": 9993, "gateway_port": 9981, "gateways": 2, "cells": 3}, "--valkey-port and --gate"),
    ],
)
def test_two_processes_do_not_get_one_port(both: dict[str, int], options: str) -> None:
    with pytest.raises(ConfigurationError, match=options):
        PlatformOptions(**both)  # type: ignore[arg-type]


def test_a_port_is_free_for_another_where_the_server_is_given() -> None:
    given = {"postgres_url": "postgresql://x", "redis_url": "redis://x", "postgres_port": 9999}
    assert PlatformOptions(**given, valkey_port=9999, api_port=9999).asked_ports() == {9999: "--api-port"}  # type: ignore[arg-type]


def test_a_default_port_makes_way_for_one_that_was_asked_for() -> None:
    wanted = ports.free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "DEFAULT_PORTS", {**allocation.DEFAULT_PORTS, "gateway": wanted})
        chosen = allocate(PlatformOptions.private(api_port=wanted, gateway_port=None))
    assert chosen.api == wanted
    assert chosen.gateways[0].port > wanted


@pytest.mark.parametrize(
    "wrong",
    [
        {"cells": 0},
        {"cells": 10},
        {"gateways": 0},
        {"api_port": 70000},
        {"cells": 2, "gateway_port": 9000},
        {"services": ("relay", "typo")},
        {"dedicated": ("Acme Inc.",)},
        {"dedicated": ("acme", "acme")},
        {"dedicated": ("acme",), "postgres_url": "postgresql://x"},
        {"fresh": True, "postgres_url": "postgresql://x"},
    ],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        PlatformOptions(**wrong)  # type: ignore[arg-type]
