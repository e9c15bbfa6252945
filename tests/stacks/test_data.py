"""What must survive: the databases and the two Redis roles."""

from __future__ import annotations

import json
from typing import Any

import pytest

from assembly import Assembly


def _parameters(assembly: Assembly) -> dict[str, str]:
    found: dict[str, str] = assembly.one("AWS::RDS::DBParameterGroup", stack="Data")["Properties"][
        "Parameters"
    ]
    return found


def test_postgres_can_be_replicated_and_its_wal_is_bounded(prod: Assembly) -> None:
    parameters = _parameters(prod)
    assert parameters["rds.logical_replication"] == "1"
    assert parameters["rds.force_ssl"] == "1"
    assert int(parameters["max_slot_wal_keep_size"]) == 100 * 1024
    assert 0 < int(parameters["idle_in_transaction_session_timeout"]) <= 60_000
    assert 0 < int(parameters["transaction_timeout"]) <= 900_000
    assert parameters["wal_sender_timeout"] == "5000"


def test_prod_keeps_its_database(prod: Assembly) -> None:
    (primary,) = (
        each
        for each in prod.resources("AWS::RDS::DBInstance", stack="Data")
        if "SourceDBInstanceIdentifier" not in each["Properties"]
    )
    properties = primary["Properties"]
    assert properties["MultiAZ"] is True
    assert properties["DeletionProtection"] is True
    assert properties["BackupRetentionPeriod"] == 35
    assert properties["DeleteAutomatedBackups"] is False
    assert (primary["DeletionPolicy"], primary["UpdateReplacePolicy"]) == ("Snapshot", "Snapshot")
    assert prod.artifacts["Data"]["properties"]["terminationProtection"] is True
    for key in prod.resources("AWS::KMS::Key"):
        assert key["DeletionPolicy"] == "Retain"
        assert key["Properties"]["EnableKeyRotation"] is True
    replicas = [
        each
        for each in prod.resources("AWS::RDS::DBInstance", stack="Data")
        if "SourceDBInstanceIdentifier" in each["Properties"]
    ]
    assert len(replicas) == 2
    assert all("StorageEncrypted" not in each["Properties"] for each in replicas)  # RDS refuses it


def test_dev_leaves_nothing(dev: Assembly) -> None:
    for name, template in dev.templates.items():
        for logical_id, resource in template["Resources"].items():
            assert resource.get("DeletionPolicy", "Delete") == "Delete", f"{name} {logical_id}"
    instance = dev.one("AWS::RDS::DBInstance", stack="Data")["Properties"]
    assert instance["DeletionProtection"] is False
    assert instance["DeleteAutomatedBackups"] is True
    assert "EnableCloudwatchLogsExports" not in instance  # RDS would make the group, and nothing remove it


@pytest.mark.parametrize("name", ["dev", "staging", "prod"])
def test_no_database_is_public_or_plain(synthesized: Any, name: str) -> None:
    assembly = synthesized(name)
    instances = list(assembly.resources("AWS::RDS::DBInstance"))
    assert instances
    for instance in instances:
        assert instance["Properties"]["PubliclyAccessible"] is False
        if "SourceDBInstanceIdentifier" not in instance["Properties"]:
            assert instance["Properties"]["StorageEncrypted"] is True
    for group in assembly.resources("AWS::ElastiCache::ReplicationGroup"):
        properties = group["Properties"]
        assert properties["TransitEncryptionEnabled"] is True
        assert properties["AtRestEncryptionEnabled"] is True
        assert "resolve:secretsmanager" in json.dumps(properties["AuthToken"])


def test_redis_evicts_nothing(prod: Assembly) -> None:
    groups = list(prod.resources("AWS::ElastiCache::ParameterGroup"))
    assert len(groups) == 2
    for group in groups:
        assert group["Properties"]["Properties"]["maxmemory-policy"] == "noeviction"
    for group in prod.resources("AWS::ElastiCache::ReplicationGroup"):
        assert group["Properties"]["AutomaticFailoverEnabled"] is True
        assert group["Properties"]["MultiAZEnabled"] is True


def test_data_rests_in_isolated_subnets(prod: Assembly) -> None:
    isolated = {
        subnet["LogicalId"]
        for subnet in prod.resources("AWS::EC2::Subnet")
        if {"Key": "aws-cdk:subnet-type", "Value": "Isolated"} in subnet["Properties"]["Tags"]
    }
    assert len(isolated) == 3
    exported = {
        output["Export"]["Name"]
        for output in prod.templates["Network"]["Outputs"].values()
        if output["Value"].get("Ref") in isolated
    }
    groups = [
        *prod.resources("AWS::RDS::DBSubnetGroup", stack="Data"),
        *prod.resources("AWS::ElastiCache::SubnetGroup", stack="Data"),
    ]
    assert len(groups) >= 2
    for group in groups:
        assert {each["Fn::ImportValue"] for each in group["Properties"]["SubnetIds"]} == exported
