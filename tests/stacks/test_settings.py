"""Settings that contradict themselves are refused with a sentence."""

from __future__ import annotations

import ipaddress
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stacks import environments
from stacks.settings import EnvironmentSettings

_ROOT = Path(__file__).parents[2]


def _changed(environment: str, /, **changes: Any) -> dict[str, Any]:
    """The settings of an environment as data, with `a__b=value` replaced."""
    data = environments.load(environment).model_dump()
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = data
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return data


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"network__zones": ("eu-central-1a", "eu-central-1b"), "network__nat_gateways": 2},
            "spans three zones",
        ),
        ({"network__analytics_cidrs": ("10.42.8.0/24",)}, "10.42.0.0/16 and 10.42.8.0/24 overlap"),
        ({"network__cidr": "10.42.1.0/16"}, "not well formed: 10.42.1.0/16 has host bits set"),
        ({"network__cidr": "10.42.0.0/24"}, "too small"),
        ({"network__nat_gateways": 4}, "4 NAT gateways do not fit 3 zones"),
        ({"gateways__ping_s": 300}, "ping_s (300) must be below edge.idle_timeout_s (300)"),
        ({"gateways__ping_s": 400, "edge__idle_timeout_s": 4000}, "must be below 350 s"),
        ({"gateways__ami_id": "ami-latest"}, "'ami-latest' is not an AMI id"),
        ({"gateways__per_cell_at_least": 1}, "at least two gateways in each cell"),
        ({"gateways__connections_target": 12000}, "must stay below connections_at_most"),
        ({"database__multi_az": False}, "a standby of everything"),
        ({"database__backup_days": 3}, "at least seven days"),
        ({"database__version": "16.9"}, "no transaction_timeout"),
        ({"database__slot_wal_keep_gib": 400}, "needs storage of twice that"),
        ({"broker__replicas": 0}, "a standby of everything"),
        ({"cells": (1, 2, 3)}, "buckets 768 to 1023 map to cell 4, which does not exist"),
        ({"cells": tuple(range(1, 82))}, "numbered 1 to 80"),
        ({"cells": (1, 2, 3, 4, 4)}, "A cell is named twice"),
        ({"buckets": ({"first": 0, "last": 1000, "cell": 1},)}, "buckets from 1001 to 1023 map to no cell"),
        (
            {"buckets": ({"first": 0, "last": 600, "cell": 1}, {"first": 600, "last": 1023, "cell": 2})},
            "once each; see those from 601 on",
        ),
        (
            {"tenants": ({"slug": "acme", "plan": "partitioned"}, {"slug": "acme", "plan": "partitioned"})},
            "The tenant acme is there twice",
        ),
        (
            {
                "tenants": (
                    {"slug": "acme", "plan": "partitioned"},
                    {"slug": "initech", "tenant_id": "acme", "plan": "partitioned"},
                )
            },
            "The tenant acme is there twice",
        ),
        (
            {"tenants": ({"slug": "acme", "tenant_id": "--acme", "plan": "partitioned"},)},
            "tenants.0.tenant_id: String should match pattern",
        ),
        ({"tenants": ({"slug": "acme", "plan": "dedicated"},)}, "a dedicated tenant has a database"),
        ({"region": "us-east-1"}, "are not all in us-east-1"),
        ({"edge__hosted_zone_name": "example.org"}, "is not in the hosted zone"),
        ({"edge__hosted_zone_id": None}, "set both or neither"),
        ({"services__small": {"cpu": 256, "memory_mib": 4096}}, "no task with 256 CPU units and 4096 MiB"),
        ({"services__routing_at_least": 17, "services__routing_at_most": 16}, "routing_at_least is above"),
        ({"events__shards": 4}, "do not speak to a Redis Cluster yet"),
        ({"name": "Prod"}, "name: String should match pattern"),
        ({"gateway": {}}, "gateway: Extra inputs are not permitted"),
    ],
)
def test_contradictions_are_sentences(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        EnvironmentSettings.model_validate(_changed("prod", **changes))
    text = environments.sentences(refused.value)
    assert sentence in text
    assert text.endswith(".")
    assert "\n" not in text


def test_every_environment_is_sound_and_their_networks_can_be_peered() -> None:
    assert environments.names() == ["dev", "prod", "staging"]
    networks = [ipaddress.ip_network(environments.load(name).network.cidr) for name in environments.names()]
    assert not [pair for pair in itertools.combinations(networks, 2) if pair[0].overlaps(pair[1])]


def test_what_prod_is_to_show() -> None:
    prod = environments.load("prod")
    assert prod.cells == (1, 2, 3, 4)
    assert prod.database.multi_az
    assert prod.database.replicas == 2
    assert prod.edge.waf
    assert prod.datadog is not None
    assert sorted(tenant.plan for tenant in prod.tenants) == ["dedicated", "partitioned"]
    dev = environments.load("dev")
    assert not dev.edge.waf
    assert len(dev.network.zones) == 2


@pytest.mark.parametrize(
    ("arguments", "context", "sentence"),
    [
        (["nowhere"], "", "There is no environment 'nowhere'; there are dev, prod, staging."),
        ([], "", "Say which environment"),
        ([], '{"env": "../prod"}', "There is no environment '../prod'"),
    ],
)
def test_the_entry_point_says_a_sentence(arguments: list[str], context: str, sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "app.py", *arguments],
        cwd=_ROOT,
        env={**os.environ, "CDK_CONTEXT_JSON": context},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("cloudsync: ")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
