"""What each role may do: nothing open-ended without a written reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from assembly import Assembly

# Actions that have no resource to name, or name one only when it exists; each is bounded otherwise.
_WITHOUT_RESOURCE = {
    "ecr:GetAuthorizationToken",
    "cloudwatch:PutMetricData",  # a condition names the namespace
    "ecs:DescribeTasks",  # a condition names the cluster
}


def _statements(assembly: Assembly) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"):
        for policy in assembly.resources(kind):
            for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
                yield f"{policy['Stack']} {policy['LogicalId']}", statement


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", ["dev", "staging", "prod"])
def test_no_role_may_do_something_to_everything(synthesized: Any, name: str) -> None:
    seen = 0
    for where, statement in _statements(synthesized(name)):
        actions = set(_listed(statement["Action"]))
        assert not [action for action in actions if action.endswith("*")], where
        if "*" in _listed(statement["Resource"]):
            assert actions <= _WITHOUT_RESOURCE, where
            assert "Condition" in statement or actions == {"ecr:GetAuthorizationToken"}, where
        seen += 1
    assert seen > 20


def test_keys_are_used_through_secrets_manager_or_for_sealing(prod: Assembly) -> None:
    for where, statement in _statements(prod):
        if "kms:Decrypt" in _listed(statement["Action"]):
            through = json.dumps(statement.get("Condition", {}))
            sealing = "SealingKey" in json.dumps(statement["Resource"])
            assert sealing or "secretsmanager." in through, where


def test_only_gateways_may_end_their_own_life(prod: Assembly) -> None:
    having = [
        where
        for where, statement in _statements(prod)
        if "autoscaling:CompleteLifecycleAction" in _listed(statement["Action"])
    ]
    assert len(having) == 4
    assert all(where.startswith("Cell-") for where in having)
