"""Small and cheap: one pair of zones, no standby, nothing kept when it is destroyed."""

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
    ServiceSettings,
    TokenSettings,
)

SETTINGS = EnvironmentSettings(
    name="dev",
    account="111111111111",
    region="eu-central-1",
    protected=False,
    network=NetworkSettings(
        cidr="10.40.0.0/16",
        zones=("eu-central-1a", "eu-central-1b"),
        nat_gateways=1,
        interface_endpoints=False,
    ),
    database=DatabaseSettings(
        instance_type="t4g.medium",
        storage_gib=50,
        storage_at_most_gib=100,
        multi_az=False,
        replicas=0,
        backup_days=1,
        slot_wal_keep_gib=10,
    ),
    broker=CacheSettings(node_type="cache.t4g.micro", replicas=0),
    events=EventsSettings(node_type="cache.t4g.small", replicas=0),
    edge=EdgeSettings(
        domain="cloudsync.dev.example.com",
        certificate_arn="arn:aws:acm:eu-central-1:111111111111:certificate/00000000-0000-4000-8000-000000000001",
        waf=False,
        access_logs_days=0,
    ),
    tokens=TokenSettings(
        jwks_url="https://id.dev.example.com/.well-known/jwks.json",
        issuer="https://id.dev.example.com/",
        audience="cloudsync",
    ),
    gateways=GatewaySettings(
        ami_id="ami-0123456789abcdef0",
        instance_type="t4g.small",
        per_cell_at_least=1,
        per_cell_at_most=2,
    ),
    cells=(1,),
    buckets=(Buckets(first=0, last=1023, cell=1),),
    services=ServiceSettings(relays=1, routing_at_least=1, routing_at_most=2, apis_at_least=1, log_days=7),
)
