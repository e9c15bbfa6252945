"""The processes of a deployment: what each runs, whom it talks to, and the variables that tell it.

One table for Fargate and EC2. Variables are those of `cloudsync.settings.Settings`; a password is never
among them but comes by reference, as a secret that is resolved where the process starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager

from stacks.constructs.database import ADMIN, RELAY, SERVICE, Database
from stacks.constructs.database import PORT as POSTGRES_PORT
from stacks.constructs.redis import PORT as REDIS_PORT
from stacks.constructs.redis import Redis
from stacks.settings import BUCKETS, EnvironmentSettings

API_PORT: Final = 8080
GATEWAY_PORT: Final = 8081
DRAIN_HOOK: Final = "drain"


@dataclass(frozen=True, kw_only=True)
class Process:
    """A verb of the command line, with the least that it needs."""

    name: str
    command: tuple[str, ...]
    role: str | None = None
    events: bool = True
    broker: bool = False
    keyring: bool = True
    makes_keys: bool = False
    tenants: bool = False
    """Whether it opens the databases of dedicated tenants, besides the shared one."""
    tokens: bool = False
    port: int | None = None


MIGRATE: Final = Process(
    name="migrate", command=("migrate", "--phase", "pre"), role=ADMIN, events=False, makes_keys=True
)
RELAY_PROCESS: Final = Process(name="relay", command=("relay",), role=RELAY)
ROUTING: Final = Process(name="routing", command=("worker", "--queue", "routing"), broker=True)
GENERAL: Final = Process(
    name="general", command=("worker", "--queue", "general"), role=SERVICE, broker=True, tenants=True
)
BEAT: Final = Process(name="beat", command=("beat",), broker=True, keyring=False)
PUBLISHER: Final = Process(
    name="publisher", command=("publisher",), role=SERVICE, keyring=False, tenants=True
)
API: Final = Process(name="api", command=("api",), role=SERVICE, tenants=True, tokens=True, port=API_PORT)
GATEWAY: Final = Process(
    name="gateway", command=("gateway",), role=SERVICE, tenants=True, tokens=True, port=GATEWAY_PORT
)


@dataclass(frozen=True, kw_only=True)
class SecretField:
    """A secret, or one field of it, and the key that it is encrypted with."""

    secret: secretsmanager.ISecret
    key: kms.IKey
    field: str | None = None


@dataclass(frozen=True, kw_only=True)
class Backends:
    """The databases and the Redis roles that a process talks to."""

    database: Database
    tenants: tuple[Database, ...] = ()
    """Those of dedicated tenants. No variable names them: processes read of them in `cloudsync.tenants`, so
    that another one restarts nothing."""
    events: Redis
    broker: Redis
    redis_key: kms.IKey
    sealing_key: kms.IKey
    keyring: secretsmanager.ISecret

    def variables(self, process: Process) -> dict[str, str]:
        found = {}
        if process.role:
            found["CLOUDSYNC_POSTGRES_URL"] = self.database.url(process.role)
        if process.events:
            found["CLOUDSYNC_REDIS_EVENTS_URL"] = self.events.url
        if process.broker:
            found["CLOUDSYNC_REDIS_BROKER_URL"] = self.broker.url
        if process.keyring:
            found["CLOUDSYNC_KEYRING_KMS_KEY"] = self.sealing_key.key_arn
            found["CLOUDSYNC_KEYRING_SECRET"] = self.keyring_arn
        return found

    def secrets(self, process: Process) -> dict[str, SecretField]:
        """By the variable that each fills. PGPASSWORD is libpq's own."""
        found = {}
        if process.role:
            found["PGPASSWORD"] = _password(self.database, process.role)
        if process.role == ADMIN:
            found["CLOUDSYNC_RELAY_PASSWORD"] = _password(self.database, RELAY)
            found["CLOUDSYNC_SERVICE_PASSWORD"] = _password(self.database, SERVICE)
        if process.events:
            found["CLOUDSYNC_REDIS_EVENTS_PASSWORD"] = SecretField(
                secret=self.events.secret, key=self.redis_key
            )
        if process.broker:
            found["CLOUDSYNC_REDIS_BROKER_PASSWORD"] = SecretField(
                secret=self.broker.secret, key=self.redis_key
            )
        return found

    def logins(self, process: Process) -> list[SecretField]:
        """What the process reads while it runs, to log in to the databases of dedicated tenants."""
        if not process.tenants:
            return []
        return [_password(tenant, SERVICE) for tenant in self.tenants]

    @property
    def keyring_arn(self) -> str:
        return self.keyring.secret_full_arn or ""

    def keyring_rights(self, process: Process) -> list[iam.PolicyStatement]:
        """Every process of the path reads keys and unwraps them; one writes new ones, wrapped."""
        if not process.keyring:
            return []
        on_key, on_secret = ["kms:Decrypt"], ["secretsmanager:GetSecretValue"]
        if process.makes_keys:
            # The first of the two for Secrets Manager, which encrypts the secret with the same key.
            on_key += ["kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext"]
            on_secret += ["secretsmanager:PutSecretValue", "secretsmanager:UpdateSecretVersionStage"]
        return [
            iam.PolicyStatement(actions=on_key, resources=[self.sealing_key.key_arn]),
            iam.PolicyStatement(actions=on_secret, resources=[self.keyring_arn]),
        ]

    def connect(self, process: Process, client: ec2.IConnectable) -> None:
        """Open the way from a client to what its process talks to, from the client's side."""
        groups = [
            (process.role is not None, self.database.security_group, POSTGRES_PORT, "PostgreSQL"),
            (process.events, self.events.security_group, REDIS_PORT, "Redis, events"),
            (process.broker, self.broker.security_group, REDIS_PORT, "Redis, broker"),
            *(
                (process.tenants, tenant.security_group, POSTGRES_PORT, "PostgreSQL of a dedicated tenant")
                for tenant in self.tenants
            ),
        ]
        for needed, group, port, what in groups:
            if needed:
                client.connections.allow_to(group, ec2.Port.tcp(port), what)


def _password(database: Database, role: str) -> SecretField:
    return SecretField(secret=database.secrets[role], key=database.key, field="password")


def variables(
    process: Process,
    settings: EnvironmentSettings,
    backends: Backends,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment of a process, without its secrets."""
    found = {
        "CLOUDSYNC_MODE": "deployment",
        "CLOUDSYNC_LOG_FORMAT": "json",
        "CLOUDSYNC_ENVIRONMENT": settings.name,
        **backends.variables(process),
    }
    if process.tokens:
        found |= {
            "CLOUDSYNC_JWKS_URL": settings.tokens.jwks_url,
            "CLOUDSYNC_JWT_ISSUER": settings.tokens.issuer,
            "CLOUDSYNC_JWT_AUDIENCE": settings.tokens.audience,
            "CLOUDSYNC_JWT_TENANT_CLAIM": settings.tokens.tenant_claim,
        }
    if process is API:
        found |= {
            "CLOUDSYNC_API_HOST": "0.0.0.0",  # noqa: S104 - its security group lets in the load balancer alone
            "CLOUDSYNC_API_PORT": str(API_PORT),
            "CLOUDSYNC_GATEWAY_URL_TEMPLATE": f"wss://{settings.edge.domain}/ws/{{cell}}",
            "CLOUDSYNC_CELLS": str(max(settings.cells)),
            "CLOUDSYNC_CELL_BUCKETS": _buckets(settings),
        }
    if process in (RELAY_PROCESS, ROUTING, GENERAL, API, GATEWAY):
        found["CLOUDSYNC_EMBEDDED_METRICS"] = "true"
    if process is GATEWAY:
        found |= {
            "CLOUDSYNC_GATEWAY_HOST": "0.0.0.0",  # noqa: S104 - as above
            "CLOUDSYNC_GATEWAY_PORT": str(GATEWAY_PORT),
            "CLOUDSYNC_HEARTBEAT_S": str(settings.gateways.ping_s),
            "CLOUDSYNC_CONNECTIONS_PER_GATEWAY": str(settings.gateways.connections_at_most),
            "CLOUDSYNC_DRAIN_S": str(settings.gateways.drain_s),
            "CLOUDSYNC_LIFECYCLE_HOOK": DRAIN_HOOK,
        }
    return found | dict(extra or {})


def of_cell(cell: int) -> dict[str, str]:
    """What makes a gateway one of a cell. It takes whoever the API sends there.

    Gateways that knew the map would be replaced in every cell with each change of it, and refuse users whom
    the API still sends to them while a deploy is half through.
    """
    return {
        "CLOUDSYNC_CELL": str(cell),
        "CLOUDSYNC_CELLS": str(cell),
        "CLOUDSYNC_CELL_BUCKETS": f"{BUCKETS - 1}:{cell}",
    }


def _buckets(settings: EnvironmentSettings) -> str:
    """As `255:1 1023:2`: up to which bucket goes to which cell."""
    ranges = sorted(settings.buckets, key=lambda each: each.first)
    return " ".join(f"{each.last}:{each.cell}" for each in ranges)
