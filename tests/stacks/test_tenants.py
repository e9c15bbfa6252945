"""Dedicated tenants: who reaches their databases, who may log in there, and what it costs the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import ValidationError

from assembly import Assembly
from stacks import environments
from stacks.settings import DEDICATED_AT_MOST, EnvironmentSettings

_STACK: Final = "Tenant-acme"
_GATEWAYS: Final = {f"Cell-{number} Host" for number in (1, 2, 3, 4)}
_SERVING: Final = _GATEWAYS | {"Services General", "Services Publisher", "Services Api"}
_INLINE_AT_MOST: Final = 10_240  # characters of a role's inline policies, without white space
_ARN_LENGTH: Final = 115  # of a secret, the longest that is referred to
_RIGHTS: Final = {
    "AWS::IAM::Policy",
    "AWS::EC2::SecurityGroupIngress",
    "AWS::EC2::SecurityGroupEgress",
}
_LASTING: Final = {  # what an update changes in place, if at all
    "AWS::EC2::SecurityGroup", "AWS::EC2::Subnet", "AWS::EC2::VPC", "AWS::ECS::Cluster",
    "AWS::ElastiCache::ReplicationGroup", "AWS::ElasticLoadBalancingV2::Listener",
    "AWS::ElasticLoadBalancingV2::LoadBalancer", "AWS::IAM::Role", "AWS::KMS::Key", "AWS::Lambda::Function",
    "AWS::Logs::LogGroup", "AWS::RDS::DBInstance", "AWS::SecretsManager::Secret",
    "AWS::SecretsManager::SecretTargetAttachment",
}  # fmt: skip


def _names(value: Any, stack: str, resource: str, *, here: str) -> bool:
    """Whether a property, in the template `here`, is that resource of `stack`, or an attribute of it."""
    text = json.dumps(value)
    return resource in text and (here == stack or f"-{stack}:" in text)


def _owner(stack: str, reference: Any, suffix: str) -> str:
    """`Services Api` of what refers to `ApiSecurityGroup1A2B3C4D`."""
    if isinstance(reference, dict):
        reference = reference.get("Ref") or reference["Fn::GetAtt"][0]
    return f"{stack} {str(reference).partition(suffix)[0]}"


@pytest.mark.parametrize(
    ("kind", "of_database", "of_client"),
    [
        ("AWS::EC2::SecurityGroupIngress", "GroupId", "SourceSecurityGroupId"),
        ("AWS::EC2::SecurityGroupEgress", "DestinationSecurityGroupId", "GroupId"),
    ],
)
def test_who_serves_tenants_reaches_the_database_and_nobody_else(
    prod: Assembly, kind: str, of_database: str, of_client: str
) -> None:
    rules = [
        (rule["Stack"], rule["Properties"])
        for rule in prod.resources(kind)
        if _names(rule["Properties"][of_database], _STACK, "DatabaseSecurityGroup", here=rule["Stack"])
    ]
    clients = sorted(_owner(stack, each[of_client], "SecurityGroup") for stack, each in rules)
    assert clients == sorted([*_SERVING, f"{_STACK} Relay", f"{_STACK} Task"])
    assert {(each["FromPort"], each["ToPort"]) for _, each in rules} == {(5432, 5432)}


def _statements(assembly: Assembly) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Stack, role and statement of every policy."""
    for policy in assembly.resources("AWS::IAM::Policy"):
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
            for role in policy["Properties"]["Roles"]:
                yield policy["Stack"], role.get("Ref", "elsewhere"), statement


def _having(assembly: Assembly, action: str, resource: str) -> dict[str, dict[str, Any]]:
    """Roles of other stacks that may do something to a resource of the tenant, and the statement."""
    return {
        f"{stack} {role}": statement
        for stack, role, statement in _statements(assembly)
        if stack != _STACK
        and action in json.dumps(statement["Action"])
        and _names(statement["Resource"], _STACK, resource, here=stack)
    }


def test_they_alone_may_log_in_there(prod: Assembly) -> None:
    reading = _having(prod, "secretsmanager:GetSecretValue", "DatabaseServiceLogin")
    decrypting = _having(prod, "kms:Decrypt", "DatabaseKey")
    for having in (reading, decrypting):
        assert {_owner("", role, "Role").strip() for role in having} == _SERVING
        assert not [role for role in having if "ExecutionRole" in role], "the process itself reads it"
        for statement in having.values():
            assert "*" not in json.dumps(statement["Resource"])
    for statement in decrypting.values():
        assert "secretsmanager." in statement["Condition"]["StringEquals"]["kms:ViaService"]
    for login in ("RelayLogin", "InstanceSecret"):
        assert _having(prod, "secretsmanager:GetSecretValue", login) == {}
    assert _having(prod, "secretsmanager:GetSecretValue", "Database").keys() == reading.keys()


def test_another_tenant_restarts_nothing(dev: Assembly, dev_with_acme: Assembly) -> None:
    """Not a task, not an instance: policies change, and rules are added."""
    seen = set()
    for name in set(dev.templates) - {"Finish"}:
        before, after = (each.templates[name]["Resources"] for each in (dev, dev_with_acme))
        assert not set(before) - set(after), name
        differing = {
            after[logical_id]["Type"] for logical_id in after if after[logical_id] != before.get(logical_id)
        }
        assert differing <= _RIGHTS, name
        assert {after[each]["Type"] for each in set(after) - set(before)} <= _RIGHTS - {"AWS::IAM::Policy"}
        seen |= {name for _ in differing}
    assert seen == {"Cell-1", "Services"}
    user_data = [
        each.one("AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
        for each in (dev, dev_with_acme)
    ]
    assert user_data[0] == user_data[1]


def test_a_tenant_that_comes_or_goes_takes_no_export_of_others(
    dev: Assembly, dev_with_acme: Assembly
) -> None:
    """What its stack imports would be missing in the deploy that leaves it out, while it still stands."""
    for name, template in dev.templates.items():
        assert _exports(template) == _exports(dev_with_acme.templates[name]), name
    imported = json.dumps([dev_with_acme.templates[name] for name in (_STACK, "Directory")])
    assert "CloudSync-dev-Migration:" in imported


def _exports(template: dict[str, Any]) -> set[str]:
    return {each["Export"]["Name"] for each in template.get("Outputs", {}).values() if "Export" in each}


@pytest.mark.parametrize("name", ["dev", "staging", "prod"])
def test_no_export_changes_with_a_release(synthesized: Any, name: str) -> None:
    """CloudFormation changes none that is imported; a task definition is another one with each image."""
    seen = 0
    for stack, template in synthesized(name).templates.items():
        for output in template.get("Outputs", {}).values():
            if "Export" in output:
                value = output["Value"]
                logical_id = value["Ref"] if "Ref" in value else value["Fn::GetAtt"][0]
                assert template["Resources"][logical_id]["Type"] in _LASTING, f"{stack} {logical_id}"
                seen += 1
    assert seen > 20


def _text(value: Any) -> str:
    """A property as text, in which what only CloudFormation knows is the name of its export."""
    if isinstance(value, dict) and "Fn::Join" in value:
        glue, parts = value["Fn::Join"]
        return str(glue).join(_text(part) for part in parts)
    if isinstance(value, dict):
        return str(value["Fn::ImportValue"]).rpartition(":")[2]
    return str(value)


def test_the_directory_is_told_of_each_without_a_password(prod: Assembly) -> None:
    attached = prod.one("Custom::CloudSyncTenant")
    assert attached["Stack"] == "Directory"
    assert attached["Properties"]["Tenant"] == "acme"
    reference = _text(attached["Properties"]["Database"])
    url = urlsplit(reference)
    assert (url.username, url.password, url.path) == ("cloudsync_service", None, "/cloudsync")
    assert "EndpointAddress" in reference
    (secret,) = parse_qs(url.query)["password_secret"]
    assert "DatabaseServiceLogin" in secret
    libpq = conninfo_to_dict(reference.replace(f"&password_secret={secret}", ""))
    assert (libpq["sslmode"], libpq["port"]) == ("verify-full", "5432")
    assert "password" not in libpq
    (migrate,) = prod.resources("AWS::ECS::TaskDefinition", stack="Migration")
    assert attached["Properties"]["TaskDefinition"] == migrate["Properties"]["Family"]


def test_the_directory_goes_by_the_id_that_tokens_have(dev_with_acme: Assembly) -> None:
    assert dev_with_acme.one("Custom::CloudSyncTenant")["Properties"]["Tenant"] == "4c0f7a52-ACME"


def test_an_environment_without_dedicated_tenants_has_no_directory(synthesized: Any) -> None:
    assert "Directory" not in synthesized("staging").templates


def _filled(value: Any) -> Any:
    """A policy with what CloudFormation puts in as long as it may be."""
    if isinstance(value, list):
        return [_filled(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "Fn::Join" in value:
        glue, parts = value["Fn::Join"]
        return str(glue).join(_filled(part) for part in parts)
    if value.keys() & {"Ref", "Fn::GetAtt", "Fn::ImportValue"}:
        return "x" * _ARN_LENGTH
    return {name: _filled(each) for name, each in value.items()}


def test_roles_have_room_for_as_many_as_the_settings_take(prod: Assembly) -> None:
    """A role's inline policies are bounded. prod has one tenant; the others' share is as large as its."""
    sizes: dict[str, list[int]] = {}
    for policy in prod.resources("AWS::IAM::Policy"):
        stack, document = policy["Stack"], policy["Properties"]["PolicyDocument"]
        size = len(json.dumps(_filled(document), separators=(",", ":")))
        (role,) = policy["Properties"]["Roles"]
        if "Ref" in role:
            share = json.dumps(document).count(f"-{_STACK}:") * (_ARN_LENGTH + 3)
            whose = f"{stack} {role['Ref'].partition('Role')[0]}"
        else:  # the tenant's stack gives the migration's function a right
            share, whose = size, "Migration Handler"
        total = sizes.setdefault(whose, [0, 0])
        total[0], total[1] = total[0] + size, total[1] + share
    grown = {role: size + share * (DEDICATED_AT_MOST - 1) for role, (size, share) in sizes.items()}
    assert max(grown.values()) < _INLINE_AT_MOST, grown
    assert grown["Migration Handler"] > _INLINE_AT_MOST / 2, "the bound is not far off"


def test_more_dedicated_tenants_than_roles_have_room_for_are_refused() -> None:
    data = environments.load("dev").model_dump()
    data["tenants"] = [
        {"slug": f"tenant-{number}", "plan": "dedicated", "database": data["database"]}
        for number in range(DEDICATED_AT_MOST + 1)
    ]
    with pytest.raises(ValidationError) as refused:
        EnvironmentSettings.model_validate(data)
    sentence = environments.sentences(refused.value)
    assert sentence.startswith(f"{DEDICATED_AT_MOST + 1} tenants have a database of their own"), sentence
    data["tenants"].pop()
    EnvironmentSettings.model_validate(data)
