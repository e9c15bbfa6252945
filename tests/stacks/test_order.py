"""Stacks depend on one another in one direction, and what is stateful keeps its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assembly import Assembly

_ORDER = ("Network", "Data", "Migration", "Tenant", "Edge", "Cell", "Services", "Directory", "Monitoring")
_STATEFUL = (
    "AWS::RDS::DBInstance",
    "AWS::KMS::Key",
    "AWS::ElastiCache::ReplicationGroup",
    "AWS::SecretsManager::Secret",
    "AWS::S3::Bucket",
    "AWS::EC2::VPC",
)
_FROZEN = Path(__file__).parent / "frozen_ids.json"
_NAMED = {  # the properties by which these types take a physical name
    "AWS::RDS::DBInstance": "DBInstanceIdentifier",
    "AWS::ElastiCache::ReplicationGroup": "ReplicationGroupId",
    "AWS::SecretsManager::Secret": "Name",
    "AWS::S3::Bucket": "BucketName",
}


def _place(stack: str) -> int:
    return _ORDER.index(stack.split("-")[0])


def test_dependencies_point_one_way(prod: Assembly) -> None:
    by_artifact = {
        artifact_id: name
        for name, artifact in prod.artifacts.items()
        for artifact_id in [artifact["properties"]["templateFile"].removesuffix(".template.json")]
    }
    seen = 0
    for name, artifact in prod.artifacts.items():
        for dependency in artifact.get("dependencies", []):
            if dependency in by_artifact:
                seen += 1
                assert _place(by_artifact[dependency]) < _place(name), f"{name} → {by_artifact[dependency]}"
    assert seen >= len(_ORDER) - 1
    needed = {
        name: {by_artifact.get(each) for each in prod.artifacts[name]["dependencies"]}
        for name in ("Cell-1", "Services", "Directory")
    }
    for name in ("Cell-1", "Services"):
        assert needed[name] >= {"Migration", "Tenant-acme", "Edge"}, "new code runs on the new schema"
    assert needed["Directory"] >= {"Cell-1", "Cell-4", "Services"}


def test_phase_post_is_not_deployed_with_the_rest(prod: Assembly) -> None:
    names = {artifact["properties"]["stackName"] for artifact in prod.artifacts.values()}
    assert "CloudSync-prod-after-Finish" in names
    stage = {folder.name for folder in prod.folders.values()}
    assert stage == {"assembly-CloudSync-prod", "assembly-CloudSync-prod-after"}
    resources = [
        each for each in prod.resources("Custom::CloudSyncMigration") if each["Stack"].endswith("Finish")
    ]
    assert {each["Properties"]["Phase"] for each in resources} == {"post"}
    assert len(resources) == 2  # the shared database and that of the dedicated tenant


def test_logical_ids_of_what_is_stateful_are_frozen(prod: Assembly) -> None:
    """A new id is a new resource: the old one, with its data, would be replaced."""
    found = {
        f"{resource['Stack']} {resource['Type']} {resource['LogicalId']}"
        for kind in _STATEFUL
        for resource in prod.resources(kind)
    }
    frozen = set(json.loads(_FROZEN.read_text()))
    assert not frozen - found, "these would be replaced by a deploy"
    assert not found - frozen, f"new: add them to {_FROZEN.name}"


@pytest.mark.parametrize("kind", sorted(_NAMED))
def test_nothing_stateful_has_a_physical_name(prod: Assembly, kind: str) -> None:
    resources = list(prod.resources(kind))
    assert resources
    assert not [each["LogicalId"] for each in resources if _NAMED[kind] in each["Properties"]]
