"""The one configuration model: every process reads it from `CLOUDSYNC_*` environment variables."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cloudsync.errors import ConfigurationError
from cloudsync.sharding import BUCKETS

Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Settings of one process. Units are in the names; URLs may carry credentials and are never logged."""

    model_config = SettingsConfigDict(env_prefix="CLOUDSYNC_", frozen=True, extra="ignore")

    mode: Literal["development", "deployment"] = Field(
        default="deployment", description="`development` allows HS256 tokens and the token route."
    )
    postgres_url: str = Field(
        default="",
        repr=False,
        description="The shared database, of a dedicated tenant's relay its own, as this process's role.",
    )
    redis_events_url: str = Field(default="", repr=False, description="Feeds, registry, deliveries.")
    redis_broker_url: str = Field(
        default="", repr=False, description="Celery's broker; empty: the events URL."
    )
    redis_events_password: str = Field(
        default="", repr=False, description="Put into the events URL, where it comes by itself."
    )
    redis_broker_password: str = Field(
        default="", repr=False, description="Put into the broker's URL, where it comes by itself."
    )
    relay_password: str = Field(
        default="", repr=False, description="What `migrate` gives the role cloudsync_relay to log in with."
    )
    service_password: str = Field(
        default="", repr=False, description="What `migrate` gives the role cloudsync_service."
    )
    keyring_file: Path | None = Field(default=None, description="File with the sealing keys (mode 600).")
    keyring_kms_key: str = Field(
        default="",
        description="ARN of the KMS key that wraps the sealing keys; instead of a file.",
    )
    keyring_secret: str = Field(
        default="", description="The secret of Secrets Manager with the wrapped keys, in the same region."
    )
    keyring_refresh_s: float = Field(
        default=60.0, gt=0, description="How often the wrapped keys are read again; a new one waits longer."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    statsd_host: str = Field(default="", description="A DogStatsD agent; empty: no metrics are sent.")
    statsd_port: Port = 8125
    environment: str = Field(default="", description="Its name, as CloudWatch's metrics carry it.")
    embedded_metrics: bool = Field(
        default=False, description="Write what alarms look at into the log, for CloudWatch to take out."
    )
    publish_interval_s: float = Field(default=30.0, gt=0, description="How often CloudWatch is written to.")
    canary_interval_s: float = Field(default=5.0, gt=0, description="How often readiness sends its canary.")

    # Tokens
    jwks_url: str = Field(default="", description="Where RS256/ES256 keys are published.")
    jwt_secret: str = Field(default="", repr=False, description="HS256 secret, development only.")
    jwt_issuer: str = "cloudsync"
    jwt_audience: str = "cloudsync"
    jwt_tenant_claim: str = "tenant"
    jwt_leeway_s: int = Field(default=5, ge=0, le=60)

    # Relay
    slot_name: str = Field(default="cloudsync", pattern=r"^[a-z0-9_]{1,63}$")
    publication: str = "cloudsync_changes"
    relay_batch_events: int = Field(default=1000, ge=1, description="Events sealed into one append at most.")
    relay_batch_bytes: int = Field(default=256 * 1024, ge=1024)
    relay_patience_s: float = Field(
        default=2.0,
        ge=0,
        le=60,
        description="How long Redis may fail until events are parked.",
    )
    relay_ring_bytes: int = Field(
        default=32 * 1024 * 1024,
        ge=0,
        description="Kept in case Redis loses what it had taken.",
    )
    feed_keep_s: int = Field(default=3600, ge=1)
    feed_budget_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024, description="Per shard.")

    # Routing
    routing_lease_ms: int = Field(default=2000, ge=500)
    routing_idle_s: float = Field(
        default=10.0, gt=0, description="A lingering task returns after this long idle."
    )
    routing_slice_s: float = Field(
        default=60.0, gt=0, description="A lingering task returns after this long."
    )
    routing_read_events: int = Field(default=2000, ge=1, description="Events taken into one batch, about.")
    routing_concurrency: int = Field(default=1, ge=1)
    realtime_limit: int = Field(default=20, ge=1, description="More events than this for one topic: a batch.")
    gateway_stream_budget_bytes: int = Field(default=64 * 1024 * 1024, ge=1024 * 1024)

    canary_write_s: float = Field(
        default=15.0,
        gt=0,
        description="How often each shard's canary row is written.",
    )

    # Gateway
    gateway_id: str = Field(
        default="", pattern=r"^[A-Za-z0-9._-]{0,64}$", description="Empty: host and port."
    )
    gateway_host: str = "127.0.0.1"
    gateway_port: Port = 8081
    cell: int = Field(default=1, ge=1, le=80)
    heartbeat_s: float = Field(default=20.0, gt=0)
    ping_interval_s: float = Field(default=10.0, gt=0)
    ping_timeout_s: float = Field(
        default=18.0, gt=0, description="A slow client's pong comes behind a whole window of frames."
    )
    hello_timeout_s: float = Field(default=10.0, gt=0)
    ack_timeout_s: float = Field(default=30.0, gt=0)
    window_frames: int = Field(default=256, ge=1)
    window_bytes: int = Field(default=1024 * 1024, ge=1024)
    backlog_bytes: int = Field(
        default=8 * 1024 * 1024, ge=0, description="Waiting behind a full window; then 4002."
    )
    latest_after_s: float = Field(
        default=2.0,
        ge=0,
        description="Events that wait longer behind a full window become the newest state per row.",
    )
    batch_interval_s: float = Field(
        default=0.5, gt=0, description="How long events gather for subscriptions in `batch` mode."
    )
    drain_s: float = Field(
        default=10.0,
        ge=0,
        description="Over how long a leaving gateway closes its sockets; it may take 10 s more to end.",
    )
    lifecycle_hook: str = Field(
        default="",
        description="The auto-scaling hook that the gateway completes when it has drained; empty: none.",
    )
    lifecycle_poll_s: float = Field(
        default=5.0, gt=0, description="How often the instance's metadata are asked whether it is to go."
    )
    lifecycle_heartbeat_s: float = Field(
        default=30.0, gt=0, description="How often the hook is told that the gateway still drains."
    )
    instance_metadata_url: str = Field(
        default="http://169.254.169.254", description="The metadata service of the EC2 instance."
    )
    inbound_frame_bytes: int = Field(default=2 * 1024 * 1024, ge=1024)
    batch_bytes: int = Field(default=100 * 1000, ge=1024)
    subscriptions_per_connection: int = Field(default=100, ge=1)
    connections_per_user: int = Field(default=20, ge=1)
    connections_per_gateway: int = Field(default=12000, ge=1)
    spool_bytes: int = Field(
        default=1024 * 1024 * 1024,
        ge=0,
        description="Disk for snapshots that clients do not take at once; beyond it PostgreSQL waits.",
    )
    snapshots_at_once: int = Field(default=4, ge=1, description="Snapshots and differentials together.")
    writes_at_once: int = Field(default=8, ge=1, description="Clients' changes being applied, per gateway.")
    changes_per_s: int = Field(default=50, ge=1, description="`change` frames per connection.")
    changes_burst: int = Field(default=100, ge=1, description="So many of them at once.")
    texts_per_s: int = Field(default=2000, ge=1, description="`text` frames per connection, also at once.")
    text_bytes: int = Field(
        default=4 * 1024 * 1024, ge=1024, description="A text may not grow beyond it by clients' operations."
    )
    replay_bytes: int = Field(
        default=32 * 1024 * 1024,
        ge=0,
        description="Sealed bytes that a replay may read and a gateway keeps for it; more is a differential.",
    )

    checksum_interval_s: float = Field(
        default=30.0,
        gt=0,
        description="How often a gateway compares one of its subscriptions with the database.",
    )

    tenant_refresh_s: float = Field(
        default=2.0,
        gt=0,
        description="How often processes read which tenants are disabled, and which have a database.",
    )

    # Audit
    audit_enabled: bool = Field(default=True, description="Write the audit log; the same for every process.")
    audit_stream_budget_bytes: int = Field(
        default=8 * 1024 * 1024, ge=64 * 1024, description="Routed and not yet in the audit log, per shard."
    )

    # API
    api_host: str = "127.0.0.1"
    api_port: Port = 8080
    gateway_url_template: str = Field(
        default="ws://127.0.0.1:8081/ws/{cell}",
        description="What /v1/endpoint answers; several separated by blanks are handed out in turn.",
    )
    cells: int = Field(default=1, ge=1, le=80)
    cell_buckets: str = Field(
        default="",
        pattern=r"^(\d+:\d+( \d+:\d+)*)?$",
        description="`255:1 1023:2`: users' buckets up to 255 in cell 1, to 1023 in cell 2; empty: evenly.",
    )

    @model_validator(mode="before")
    @classmethod
    def _complete_urls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name in ("redis_events", "redis_broker"):
            url, password = values.get(f"{name}_url"), values.get(f"{name}_password")
            if url and password:
                scheme, _, rest = str(url).partition("://")
                if "@" in urlsplit(str(url)).netloc:
                    raise ValueError(
                        f"CLOUDSYNC_{name.upper()}_URL has a password of its own; leave out"
                        f" CLOUDSYNC_{name.upper()}_PASSWORD"
                    )
                values[f"{name}_url"] = f"{scheme}://:{quote(str(password), safe='')}@{rest}"
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "deployment" and self.jwt_secret:
            raise ValueError(
                "CLOUDSYNC_JWT_SECRET is for development mode only; a deployment sets CLOUDSYNC_JWKS_URL"
            )
        for name in ("redis_events_url", "redis_broker_url"):
            value = getattr(self, name)
            if value and urlsplit(value).scheme not in ("redis", "rediss", "unix"):
                raise ValueError(f"CLOUDSYNC_{name.upper()} must start with redis:// or rediss://")
        last = -1
        for upto, cell in self.bucket_map:
            if not last < upto < BUCKETS or not 1 <= cell <= self.cells:
                raise ValueError(
                    f"CLOUDSYNC_CELL_BUCKETS {self.cell_buckets} does not rise to {BUCKETS - 1}, or names"
                    f" a cell beyond CLOUDSYNC_CELLS {self.cells}"
                )
            last = upto
        if self.bucket_map and last != BUCKETS - 1:
            raise ValueError(f"CLOUDSYNC_CELL_BUCKETS {self.cell_buckets} ends before {BUCKETS - 1}")
        if self.keyring_file is not None and self.keyring_kms_key:
            raise ValueError("Set CLOUDSYNC_KEYRING_FILE or CLOUDSYNC_KEYRING_KMS_KEY, not both")
        if self.cell > self.cells:
            raise ValueError(f"CLOUDSYNC_CELL {self.cell} is beyond CLOUDSYNC_CELLS {self.cells}")
        return self

    @property
    def broker_url(self) -> str:
        return self.redis_broker_url or self.redis_events_url

    @property
    def bucket_map(self) -> tuple[tuple[int, int], ...]:
        """Last bucket and cell of each range; empty if buckets are spread evenly."""
        pairs = (each.split(":") for each in self.cell_buckets.split())
        return tuple((int(upto), int(cell)) for upto, cell in pairs)

    def require(self, *names: str) -> None:
        """Raise ConfigurationError naming each variable that this process needs and does not have."""
        missing = [f"CLOUDSYNC_{name.upper()}" for name in names if not getattr(self, name)]
        if missing:
            raise ConfigurationError(f"{', '.join(missing)} must be set for this process.")

    def require_keyring(self) -> None:
        """Raise ConfigurationError if the process has no keyring, or half of one from KMS."""
        if self.keyring_kms_key:
            self.require("keyring_secret")
        elif self.keyring_file is None:
            raise ConfigurationError(
                "CLOUDSYNC_KEYRING_FILE, or CLOUDSYNC_KEYRING_KMS_KEY with CLOUDSYNC_KEYRING_SECRET, must be"
                " set for this process."
            )


def load(**overrides: Any) -> Settings:
    """Settings from the environment. Raises ConfigurationError with one sentence per problem."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        problems = "; ".join(
            f"{'CLOUDSYNC_' + '_'.join(map(str, e['loc'])).upper() + ': ' if e['loc'] else ''}"
            f"{e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_url=False, include_input=False)
        )
        raise ConfigurationError(problems + ".") from None


@cache
def current() -> Settings:
    """The settings of this process, read once."""
    return load()
