"""Four cells over three zones; everything has a standby, and data outlives a mistake."""

from __future__ import annotations

from stacks.settings import (
    Buckets,
    CacheSettings,
    DatabaseSettings,
    DatadogSettings,
    EdgeSettings,
    EnvironmentSettings,
    EventsSettings,
    GatewaySettings,
    NetworkSettings,
    ServiceSettings,
    TaskSize,
    TenantSettings,
    TokenSettings,
)

SETTINGS = EnvironmentSettings(
    name="prod",
    account="333333333333",
    region="eu-central-1",
    protected=True,
    network=NetworkSettings(
        cidr="10.42.0.0/16",
        zones=("eu-central-1a", "eu-central-1b", "eu-central-1c"),
        nat_gateways=3,
        interface_endpoints=True,
        analytics_cidrs=("10.60.0.0/16",),
    ),
    database=DatabaseSettings(
        instance_type="r7g.2xlarge",
        storage_gib=500,
        storage_at_most_gib=4000,
        multi_az=True,
        replicas=2,
        backup_days=35,
        slot_wal_keep_gib=100,
    ),
    broker=CacheSettings(node_type="cache.m7g.large", replicas=1),
    events=EventsSettings(node_type="cache.r7g.xlarge", replicas=2),
    edge=EdgeSettings(
        domain="cloudsync.example.com",
        certificate_arn="arn:aws:acm:eu-central-1:333333333333:certificate/00000000-0000-4000-8000-000000000003",
        hosted_zone_id="Z0PROD0000000",
        hosted_zone_name="example.com",
        waf=True,
        access_logs_days=90,
    ),
    tokens=TokenSettings(
        jwks_url="https://id.example.com/.well-known/jwks.json",
        issuer="https://id.example.com/",
        audience="cloudsync",
    ),
    gateways=GatewaySettings(
        ami_id="ami-0123456789abcdef0",
        instance_type="c7g.large",
        per_cell_at_least=2,
        per_cell_at_most=12,
        warm_pool=1,
    ),
    cells=(1, 2, 3, 4),
    buckets=(
        Buckets(first=0, last=255, cell=1),
        Buckets(first=256, last=511, cell=2),
        Buckets(first=512, last=767, cell=3),
        Buckets(first=768, last=1023, cell=4),
    ),
    services=ServiceSettings(
        relay=TaskSize(cpu=1024, memory_mib=2048),
        worker=TaskSize(cpu=1024, memory_mib=2048),
        log_days=90,
    ),
    datadog=DatadogSettings(
        api_key_secret_arn="arn:aws:secretsmanager:eu-central-1:333333333333:secret:datadog-api-key-AbCdEf",  # noqa: S106 - where it is, not what it is
    ),
    alarm_topic_arn="arn:aws:sns:eu-central-1:333333333333:cloudsync-alarms",
    tenants=(
        TenantSettings(slug="globex", plan="partitioned"),
        TenantSettings(
            slug="acme",
            plan="dedicated",
            database=DatabaseSettings(
                instance_type="r7g.large",
                storage_gib=100,
                storage_at_most_gib=1000,
                multi_az=True,
                replicas=1,
                backup_days=35,
            ),
        ),
    ),
)
