"""What a deployment tells each process is what its settings know, all of it and nothing else."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from kombu import Connection

from assembly import Assembly
from cloudsync.cli import app
from cloudsync.settings import Settings, load
from cloudsync.sharding import cell_of
from process_needs import NEEDS
from stacks import environments

_LIBPQ = {"PGPASSWORD"}


class Told(NamedTuple):
    name: str
    command: list[str]
    variables: dict[str, str]
    secrets: set[str]


def text_of(value: Any) -> str:
    """A property as text, with `X` for what only CloudFormation knows."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and "Fn::Join" in value:
        glue, parts = value["Fn::Join"]
        return str(glue).join(text_of(part) for part in parts)
    if isinstance(value, dict) and "Fn::Base64" in value:
        return text_of(value["Fn::Base64"])
    return "X"


def _told(assembly: Assembly) -> Iterator[Told]:
    for definition in assembly.resources("AWS::ECS::TaskDefinition"):
        for container in definition["Properties"]["ContainerDefinitions"]:
            if container["Name"] != "datadog-agent":
                yield Told(
                    container["Name"],
                    container["Command"],
                    {each["Name"]: text_of(each["Value"]) for each in container["Environment"]},
                    {each["Name"] for each in container["Secrets"]},
                )
    for template in assembly.resources("AWS::EC2::LaunchTemplate"):
        script = text_of(template["Properties"]["LaunchTemplateData"]["UserData"])
        files = dict(re.findall(r"/dev/stdin (\S+) <<'END-OF-FILE'\n(.*?)\nEND-OF-FILE", script, re.DOTALL))
        pairs = (line.split("=", 1) for line in files["/etc/cloudsync/gateway.env"].splitlines())
        yield Told(
            "gateway",
            re.findall(r"ExecStart=.* (\w+)\n", files["/etc/systemd/system/cloudsync-gateway.service"]),
            dict(pairs),
            {line.split()[0] for line in files["/etc/cloudsync/secrets"].splitlines()},
        )


@pytest.mark.parametrize("name", ["dev", "staging", "prod"])
def test_every_process_is_told_what_its_settings_know(
    synthesized: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {f"CLOUDSYNC_{field.upper()}" for field in Settings.model_fields}
    told = list(_told(synthesized(name)))
    assert {each.name for each in told} == set(NEEDS)
    for process in told:
        given = set(process.variables) | process.secrets
        assert given <= known | _LIBPQ, process.name
        assert given >= NEEDS[process.name], process.name
        assert not set(process.variables) & process.secrets
        with monkeypatch.context() as environment:
            for variable, value in {**process.variables, **dict.fromkeys(process.secrets, "secret")}.items():
                environment.setenv(variable, value)
            settings = load()
        assert settings.mode == "deployment"
        if process.name not in ("beat", "publisher"):
            settings.require_keyring()
            assert settings.keyring_kms_key, process.name
        if process.name == "gateway":
            assert cell_of("anybody", settings.cells, settings.bucket_map) == settings.cell
        if process.name == "api":
            assert settings.bucket_map
            assert settings.gateway_url_template.startswith("wss://")
        if "CLOUDSYNC_REDIS_EVENTS_URL" in given:
            assert settings.redis_events_url == "rediss://:secret@X:6379/0?ssl_cert_reqs=required"
        if "CLOUDSYNC_REDIS_BROKER_URL" in given:
            assert Connection(settings.broker_url).ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        if "CLOUDSYNC_POSTGRES_URL" in given:
            assert "sslmode=verify-full" in settings.postgres_url


def test_every_command_is_a_verb_of_the_command_line(prod: Assembly) -> None:
    verbs = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    for process in _told(prod):
        assert process.command[0] in verbs


def test_no_two_processes_share_a_role(prod: Assembly) -> None:
    definitions = list(prod.resources("AWS::ECS::TaskDefinition"))
    for kind in ("TaskRoleArn", "ExecutionRoleArn"):
        roles = [(each["Stack"], json.dumps(each["Properties"][kind])) for each in definitions]
        assert len(set(roles)) == len(definitions) == 9


def test_each_process_reaches_only_what_it_needs(prod: Assembly) -> None:
    """The beat has no password of PostgreSQL, and only the migration has the administrator's."""
    secrets = {each.name: each.secrets for each in _told(prod)}
    assert "PGPASSWORD" not in secrets["beat"] | secrets["routing"]
    assert [name for name, found in secrets.items() if "CLOUDSYNC_RELAY_PASSWORD" in found] == ["migrate"]
    assert "CLOUDSYNC_REDIS_BROKER_PASSWORD" not in secrets["gateway"] | secrets["relay"]


def test_another_cell_replaces_no_gateway_of_those_that_there_are(
    prod: Assembly, changed: Callable[..., Assembly]
) -> None:
    *others, last = environments.load("prod").model_dump()["buckets"]
    buckets = (*others, {**last, "last": 900}, {"first": 901, "last": 1023, "cell": 5})
    grown = changed("prod", cells=(1, 2, 3, 4, 5), buckets=buckets)
    for cell in (1, 2, 3, 4):
        before, after = (_without_digests(each.templates[f"Cell-{cell}"]) for each in (prod, grown))
        assert after == before
    assert "CLOUDSYNC_CELL=5" in str(grown.templates["Cell-5"])
    (api,) = (each for each in _told(grown) if each.name == "api")
    assert api.variables["CLOUDSYNC_CELL_BUCKETS"].endswith("767:3 900:4 1023:5")


def _without_digests(template: dict[str, Any]) -> str:
    """Of the image: a file of the checkout may have been written meanwhile."""
    return re.sub(r"[0-9a-f]{64}", "<digest>", json.dumps(template))
