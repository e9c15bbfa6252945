"""What one environment is made of: a frozen literal in `environments/`, checked before synth begins.

Units are in the names. Rules across fields speak in sentences, and `environments.load` hands them to the
person at the terminal.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

BUCKETS: Final = 1024
PATH_TIMEOUT_S: Final = 350  # network load balancers and NAT gateways forget an idle connection after this
CELLS_AT_MOST: Final = 80  # listener rules of one load balancer, less those of the API
DEDICATED_AT_MOST: Final = 10  # a role's inline policies hold 10,240 characters: tests/stacks/test_tenants.py

Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,29}$")]
Cidr = Annotated[str, Field(pattern=r"^[0-9.]+/[0-9]{1,2}$")]
Arn = Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:[a-z0-9-]+:[a-z0-9-]*:[0-9]{12}:.+$")]
InstanceType = Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9]+$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSettings(_Frozen):
    """The VPC. Zones are named, because a look-up would need the account at synth."""

    cidr: Cidr
    zones: tuple[str, ...] = Field(min_length=2, max_length=4)
    nat_gateways: int = Field(ge=1)
    interface_endpoints: bool = Field(
        description="Reach AWS without the NAT; each endpoint costs by the hour."
    )
    analytics_cidrs: tuple[Cidr, ...] = Field(
        default=(), description="Peered networks that may read from the replicas."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nat_gateways > len(self.zones):
            raise ValueError(
                f"{self.nat_gateways} NAT gateways do not fit {len(self.zones)} zones; one a zone is enough."
            )
        try:
            own = ipaddress.ip_network(self.cidr)
            others = [ipaddress.ip_network(each) for each in self.analytics_cidrs]
        except ValueError as error:
            raise ValueError(f"A network is not well formed: {error}.") from None
        if own.prefixlen > 20:
            raise ValueError(f"{own} is too small for the subnets; take a /20 or larger.")
        for one, other in itertools.combinations([own, *others], 2):
            if one.overlaps(other):
                raise ValueError(
                    f"The networks {one} and {other} overlap; routes between them would be lost."
                )
        return self


class DatabaseSettings(_Frozen):
    """RDS for PostgreSQL: one instance, a standby in another zone if `multi_az`, replicas for analytics."""

    instance_type: InstanceType
    storage_gib: int = Field(ge=20)
    storage_at_most_gib: int = Field(ge=22)
    multi_az: bool
    replicas: int = Field(ge=0, le=5)
    backup_days: int = Field(ge=1, le=35)
    version: str = Field(default="18.3", pattern=r"^\d+\.\d+$")
    slot_wal_keep_gib: int = Field(
        default=20, ge=1, description="WAL that a replication slot may hold before it is given up."
    )
    idle_in_transaction_s: int = Field(default=60, ge=1)
    transaction_s: int = Field(default=900, ge=1, description="The longest transaction of an application.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if int(self.version.split(".")[0]) < 17:
            raise ValueError(
                f"PostgreSQL {self.version} has no transaction_timeout, which keeps the slot's WAL bounded;"
                " deploy 17 or newer."
            )
        if self.storage_at_most_gib < self.storage_gib * 1.1:
            raise ValueError(
                "storage_at_most_gib must exceed storage_gib by at least a tenth, as RDS demands."
            )
        if self.slot_wal_keep_gib * 2 > self.storage_gib:
            raise ValueError(
                f"A slot that may hold {self.slot_wal_keep_gib} GiB of WAL needs storage of twice that;"
                f" storage_gib is {self.storage_gib}."
            )
        return self


class CacheSettings(_Frozen):
    """One ElastiCache replication group."""

    node_type: Annotated[str, Field(pattern=r"^cache\.[a-z0-9-]+\.[a-z0-9]+$")]
    replicas: int = Field(ge=0, le=5)


class EventsSettings(CacheSettings):
    """Redis for feeds, registry and deliveries."""

    shards: int = Field(default=0, ge=0, le=16, description="0: without cluster mode.")


class EdgeSettings(_Frozen):
    """The load balancer and what stands before it."""

    domain: Annotated[str, Field(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$")]
    certificate_arn: Arn
    hosted_zone_id: Annotated[str, Field(pattern=r"^Z[A-Z0-9]+$")] | None = None
    hosted_zone_name: str | None = None
    idle_timeout_s: int = Field(default=300, ge=60, le=4000)
    waf: bool
    requests_per_address_5min: int = Field(
        default=100_000,
        ge=10_000,
        description="Beyond it an address is blocked; an office of clients that reconnect is one address.",
    )
    access_logs_days: int = Field(ge=0, description="0: none are kept.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.hosted_zone_id is None) != (self.hosted_zone_name is None):
            raise ValueError("hosted_zone_id and hosted_zone_name go together: set both or neither.")
        if self.hosted_zone_name and not f".{self.domain}".endswith(f".{self.hosted_zone_name}"):
            raise ValueError(f"{self.domain} is not in the hosted zone {self.hosted_zone_name}.")
        return self


class TokenSettings(_Frozen):
    """Whose tokens are accepted."""

    jwks_url: Annotated[str, Field(pattern=r"^https://.+$")]
    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    tenant_claim: str = "tenant"


class Buckets(_Frozen):
    """A range of user buckets, both ends included, and the cell that serves it."""

    first: int = Field(ge=0, lt=BUCKETS)
    last: int = Field(ge=0, lt=BUCKETS)
    cell: int


class GatewaySettings(_Frozen):
    """The fleet of every cell."""

    ami_id: str
    instance_type: InstanceType
    per_cell_at_least: int = Field(ge=1)
    per_cell_at_most: int = Field(ge=1)
    connections_target: int = Field(
        default=8000, ge=100, description="Active connections of one instance that scaling aims at."
    )
    connections_at_most: int = Field(default=12_000, ge=100)
    ping_s: int = Field(default=20, ge=5)
    drain_s: int = Field(default=300, ge=60, le=7200)
    warm_pool: int = Field(default=0, ge=0)

    @field_validator("ami_id")
    @classmethod
    def _well_formed(cls, value: str) -> str:
        if not re.fullmatch(r"ami-([0-9a-f]{8}|[0-9a-f]{17})", value):
            raise ValueError(
                f"{value!r} is not an AMI id; one looks like ami-0123456789abcdef0"
                " (Amazon Linux 2023 of the environment's region and architecture)."
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.per_cell_at_least > self.per_cell_at_most:
            raise ValueError("per_cell_at_least is above per_cell_at_most.")
        if self.connections_target >= self.connections_at_most:
            raise ValueError(
                f"connections_target ({self.connections_target}) must stay below connections_at_most"
                f" ({self.connections_at_most}), or instances refuse clients before the fleet grows."
            )
        return self


class TaskSize(_Frozen):
    """CPU and memory of one Fargate task."""

    cpu: Literal[256, 512, 1024, 2048, 4096]
    memory_mib: int = Field(ge=512)

    @model_validator(mode="after")
    def _a_combination_of_fargate(self) -> Self:
        least, most = {256: (512, 2048), 512: (1024, 4096)}.get(self.cpu, (self.cpu * 2, self.cpu * 8))
        if not least <= self.memory_mib <= most or self.memory_mib % (512 if self.cpu == 256 else 1024):
            raise ValueError(
                f"Fargate has no task with {self.cpu} CPU units and {self.memory_mib} MiB; take {least} to"
                f" {most} MiB in whole GiB."
            )
        return self


class ServiceSettings(_Frozen):
    """The Fargate services."""

    relay: TaskSize = TaskSize(cpu=512, memory_mib=1024)
    relays: int = Field(default=2, ge=1, le=3, description="One works, the others stand by.")
    worker: TaskSize = TaskSize(cpu=512, memory_mib=1024)
    routing_at_least: int = Field(default=2, ge=1)
    routing_at_most: int = Field(default=16, ge=1, le=16)
    general_at_least: int = Field(default=1, ge=1)
    general_at_most: int = Field(default=4, ge=1)
    api: TaskSize = TaskSize(cpu=512, memory_mib=1024)
    apis_at_least: int = Field(default=2, ge=1)
    apis_at_most: int = Field(default=8, ge=1)
    small: TaskSize = Field(
        default=TaskSize(cpu=256, memory_mib=512), description="Beat, publisher, migrate."
    )
    acceptable_delay_ms: float = Field(
        default=50.0, gt=0, description="How long an event may wait in a feed; scaling aims at it."
    )
    event_cost_ms: float = Field(default=0.05, gt=0, description="Mean routing time of one event.")
    log_days: Literal[1, 3, 7, 14, 30, 60, 90, 180, 365] = 30

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("routing", "general", "apis"):
            if getattr(self, f"{name}_at_least") > getattr(self, f"{name}_at_most"):
                raise ValueError(f"{name}_at_least is above {name}_at_most.")
        return self

    @property
    def backlog_per_task(self) -> float:
        """Events waiting in the feeds that one routing task may have before another is started."""
        return self.acceptable_delay_ms / self.event_cost_ms


class DatadogSettings(_Frozen):
    """Metrics and logs to Datadog. `resources` needs its types activated in the CloudFormation registry."""

    site: str = "datadoghq.com"
    api_key_secret_arn: Arn
    resources: bool = Field(default=False, description="Also make the monitors and the dashboard.")


class TenantSettings(_Frozen):
    """An enterprise tenant: its own partitions, or its own database."""

    slug: Slug
    tenant_id: Annotated[str, Field(pattern=r"^[^\s-]\S*$", max_length=200)] | None = Field(
        default=None, description="As its tokens have it, where that is not the slug."
    )
    plan: Literal["partitioned", "dedicated"]
    database: DatabaseSettings | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.plan == "dedicated") != (self.database is not None):
            raise ValueError(
                f"The tenant {self.slug} is {self.plan}: a dedicated tenant has a database, a partitioned one"
                " has none of its own."
            )
        return self

    @property
    def id(self) -> str:
        """As tokens, and the tables, have it."""
        return self.tenant_id or self.slug


class EnvironmentSettings(_Frozen):
    """Everything that differs between environments."""

    name: Slug
    account: Annotated[str, Field(pattern=r"^[0-9]{12}$")]
    region: Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]$")]
    protected: bool = Field(description="Data outlives a mistake: no deletion, final snapshots, backups.")
    architecture: Literal["arm64", "x86_64"] = "arm64"
    base_image: str = Field(
        default="public.ecr.aws/docker/library/python:3.11-slim-bookworm",
        description="What the image is built on.",
    )
    network: NetworkSettings
    database: DatabaseSettings
    cache_engine: Literal["redis", "valkey"] = "redis"
    broker: CacheSettings
    events: EventsSettings
    edge: EdgeSettings
    tokens: TokenSettings
    gateways: GatewaySettings
    cells: tuple[int, ...] = Field(min_length=1)
    buckets: tuple[Buckets, ...] = Field(min_length=1)
    services: ServiceSettings = ServiceSettings()
    datadog: DatadogSettings | None = None
    alarm_topic_arn: Arn | None = Field(default=None, description="SNS topic that alarms notify.")
    tenants: tuple[TenantSettings, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_cells()
        self._check_timeouts()
        self._check_tenants()
        if not all(zone.startswith(self.region) for zone in self.network.zones):
            raise ValueError(f"The zones {', '.join(self.network.zones)} are not all in {self.region}.")
        if self.events.shards:
            raise ValueError("The processes do not speak to a Redis Cluster yet; leave events.shards at 0.")
        if self.protected:
            self._check_protection()
        return self

    def _check_cells(self) -> None:
        if len(set(self.cells)) != len(self.cells):
            raise ValueError("A cell is named twice.")
        if len(self.cells) > CELLS_AT_MOST or not all(1 <= cell <= CELLS_AT_MOST for cell in self.cells):
            raise ValueError(
                f"Cells are numbered 1 to {CELLS_AT_MOST}: one load balancer has rules for no more."
            )
        following = 0
        for each in sorted(self.buckets, key=lambda buckets: buckets.first):
            if each.cell not in self.cells:
                raise ValueError(
                    f"The buckets {each.first} to {each.last} map to cell {each.cell}, which does not exist;"
                    " map them to another cell before you remove one."
                )
            if each.first != following or each.last < each.first:
                raise ValueError(
                    f"The buckets must cover 0 to {BUCKETS - 1} once each; see those from {following} on."
                )
            following = each.last + 1
        if following != BUCKETS:
            raise ValueError(f"The buckets from {following} to {BUCKETS - 1} map to no cell.")

    def _check_timeouts(self) -> None:
        ping_s, idle_s = self.gateways.ping_s, self.edge.idle_timeout_s
        if ping_s >= idle_s:
            raise ValueError(
                f"gateways.ping_s ({ping_s}) must be below edge.idle_timeout_s ({idle_s}), or the load"
                " balancer closes connections that are only quiet."
            )
        if ping_s >= PATH_TIMEOUT_S:
            raise ValueError(
                f"gateways.ping_s ({ping_s}) must be below {PATH_TIMEOUT_S} s, after which NAT gateways on a"
                " client's way forget it."
            )

    def _check_tenants(self) -> None:
        slugs = [tenant.slug for tenant in self.tenants]
        ids = [tenant.id for tenant in self.tenants]
        for names in (slugs, ids):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"The tenant {twice[0]} is there twice.")
        dedicated = sum(tenant.database is not None for tenant in self.tenants)
        if dedicated > DEDICATED_AT_MOST:
            raise ValueError(
                f"{dedicated} tenants have a database of their own, and the roles of one environment have"
                f" room for {DEDICATED_AT_MOST}; put the others into another environment."
            )

    def _check_protection(self) -> None:
        if len(self.network.zones) < 3:
            raise ValueError(
                f"A protected environment spans three zones, and {self.name} names only"
                f" {len(self.network.zones)}: with two, losing one leaves no majority to fail over to."
            )
        if not self.database.multi_az or not self.broker.replicas or not self.events.replicas:
            raise ValueError(
                "A protected environment has a standby of everything: database.multi_az, and replicas of"
                " broker and events."
            )
        if self.gateways.per_cell_at_least < 2:
            raise ValueError("A protected environment has at least two gateways in each cell.")
        if self.database.backup_days < 7:
            raise ValueError("A protected environment keeps backups for at least seven days.")
