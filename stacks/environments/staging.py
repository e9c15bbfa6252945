"""Prod's shape at a smaller size: what a release passes through before prod."""

from __future__ import annotations

from stacks.settings import (
    Buckets,
    CacheSettings,
    DatabaseSettings,
    EdgeSettings,
    EnvironmentSettings,
    EventsSettings,
    GatewaySettings,
    NetworkSettings,
    TenantSettings,
    TokenSettings,
)

SETTINGS = EnvironmentSettings(
    name="staging",
    account="222222222222",
    region="eu-central-1",
    protected=False,
    network=NetworkSettings(
        cidr="10.41.0.0/16",
        zones=("eu-central-1a", "eu-central-1b", "eu-central-1c"),
        nat_gateways=1,
        interface_endpoints=False,
    ),
    database=DatabaseSettings(
        instance_type="m7g.large",
        storage_gib=100,
        storage_at_most_gib=500,
        multi_az=True,
        replicas=1,
        backup_days=7,
    ),
    broker=CacheSettings(node_type="cache.t4g.small", replicas=1),
    events=EventsSettings(node_type="cache.m7g.large", replicas=1),
    edge=EdgeSettings(
        domain="cloudsync.staging.example.com",
        certificate_arn="arn:aws:acm:eu-central-1:222222222222:certificate/00000000-0000-4000-8000-000000000002",
        hosted_zone_id="Z0STAGING0000",
        hosted_zone_name="staging.example.com",
        waf=True,
        access_logs_days=14,
    ),
    tokens=TokenSettings(
        jwks_url="https://id.staging.example.com/.well-known/jwks.json",
        issuer="https://id.staging.example.com/",
        audience="cloudsync",
    ),
    gateways=GatewaySettings(
        ami_id="ami-0123456789abcdef0",
        instance_type="c7g.large",
        per_cell_at_least=2,
        per_cell_at_most=4,
    ),
    cells=(1, 2),
    buckets=(Buckets(first=0, last=511, cell=1), Buckets(first=512, last=1023, cell=2)),
    tenants=(TenantSettings(slug="rehearsal", plan="partitioned"),),
)
