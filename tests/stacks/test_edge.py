"""What the world can reach, and how."""

from __future__ import annotations

import json
from typing import Any

import pytest

from assembly import Assembly


@pytest.mark.parametrize("name", ["dev", "staging", "prod"])
def test_nothing_but_the_load_balancer_is_open_to_the_world(synthesized: Any, name: str) -> None:
    assembly = synthesized(name)
    rules = [
        (group["Stack"], rule)
        for group in assembly.resources("AWS::EC2::SecurityGroup")
        for rule in group["Properties"].get("SecurityGroupIngress", [])
    ]
    rules += [
        (each["Stack"], each["Properties"]) for each in assembly.resources("AWS::EC2::SecurityGroupIngress")
    ]
    world = [(stack, rule["FromPort"], rule["ToPort"]) for stack, rule in rules if _is_world(rule)]
    assert sorted(world) == [("Edge", 80, 80), ("Edge", 443, 443)]
    assert len(rules) > len(world)


def _is_world(rule: dict[str, Any]) -> bool:
    return rule.get("CidrIp", "").endswith("/0") or rule.get("CidrIpv6", "").endswith("/0")


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_clients_come_by_tls_or_are_sent_there(synthesized: Any, name: str) -> None:
    listeners = {
        each["Properties"]["Port"]: each["Properties"]
        for each in synthesized(name).resources("AWS::ElasticLoadBalancingV2::Listener")
    }
    assert set(listeners) == {80, 443}
    assert listeners[443]["Protocol"] == "HTTPS"
    assert "TLS13-1-2" in listeners[443]["SslPolicy"]
    assert listeners[443]["DefaultActions"][0]["FixedResponseConfig"]["StatusCode"] == "404"
    assert listeners[80]["DefaultActions"][0]["RedirectConfig"]["Protocol"] == "HTTPS"


def test_quiet_connections_live_and_odd_headers_do_not(prod: Assembly) -> None:
    attributes = {
        each["Key"]: each["Value"]
        for each in prod.one("AWS::ElasticLoadBalancingV2::LoadBalancer")["Properties"][
            "LoadBalancerAttributes"
        ]
    }
    assert attributes["idle_timeout.timeout_seconds"] == "300"
    assert attributes["routing.http.drop_invalid_header_fields.enabled"] == "true"
    assert attributes["access_logs.s3.enabled"] == "true"
    assert attributes["deletion_protection.enabled"] == "true"


def test_paths_lead_to_the_api_and_to_the_cells(prod: Assembly) -> None:
    rules = {
        each["Properties"]["Priority"]: each["Properties"]["Conditions"][0]["PathPatternConfig"]["Values"]
        for each in prod.resources("AWS::ElasticLoadBalancingV2::ListenerRule")
    }
    assert rules == {
        10: ["/v1/*", "/console", "/console/*", "/openapi.json"],
        **{100 + cell: [f"/ws/{cell}", f"/ws/{cell}/*"] for cell in (1, 2, 3, 4)},
    }


def test_the_firewall_spares_an_office_that_reconnects_and_logs_no_token(prod: Assembly) -> None:
    rules = {rule["Name"]: rule for rule in prod.one("AWS::WAFv2::WebACL")["Properties"]["Rules"]}
    rate = rules["RequestsPerAddress"]["Statement"]["RateBasedStatement"]
    assert rate["Limit"] >= 3 * 12_000  # every client of a gateway behind one address, three requests each
    assert "AWSManagedRulesCommonRuleSet" in rules
    redacted = prod.one("AWS::WAFv2::LoggingConfiguration")["Properties"]["RedactedFields"]
    assert {each["SingleHeader"]["Name"] for each in redacted} == {"authorization", "sec-websocket-protocol"}


def test_dev_has_no_firewall(dev: Assembly) -> None:
    assert not list(dev.resources("AWS::WAFv2::WebACL"))
    assert not list(dev.resources("AWS::S3::Bucket"))


@pytest.mark.parametrize("name", ["dev", "staging", "prod"])
def test_no_secret_is_in_a_template(synthesized: Any, name: str) -> None:
    """Every secret is generated, or is a reference; no literal stands where a password would."""
    assembly = synthesized(name)
    secrets = list(assembly.resources("AWS::SecretsManager::Secret"))
    assert len(secrets) >= 5
    for secret in secrets:
        assert "SecretString" not in secret["Properties"]
        assert secret["Properties"]["GenerateSecretString"][
            "PasswordLength" if "Token" in secret["LogicalId"] else "GenerateStringKey"
        ]
    for instance in assembly.resources("AWS::RDS::DBInstance"):
        password = instance["Properties"].get("MasterUserPassword")
        assert password is None or "{{resolve:secretsmanager:" in json.dumps(password)
