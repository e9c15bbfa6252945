"""One Redis (or Valkey) of the platform, on ElastiCache."""

from __future__ import annotations

from typing import Final

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_elasticache as elasticache
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stacks.constructs.findings import accept
from stacks.settings import CacheSettings

PORT: Final = 6379
_ENGINES: Final = {"redis": ("7.1", "redis7"), "valkey": ("8.1", "valkey8")}


class Redis(Construct):
    """A replication group that evicts nothing: the default policy would drop locks and feeds."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: CacheSettings,
        engine: str,
        vpc: ec2.IVpc,
        subnets: elasticache.CfnSubnetGroup,
        key: kms.IKey,
        description: str,
        shards: int = 0,
    ) -> None:
        super().__init__(scope, construct_id)
        version, family = _ENGINES[engine]
        self.security_group = ec2.SecurityGroup(
            self,
            "SecurityGroup",
            vpc=vpc,
            description=f"Redis, {description}; each client opens its own way in.",
            allow_all_outbound=False,
        )
        self.secret = secretsmanager.Secret(
            self,
            "Token",
            description=f"Password of Redis, {description}",
            encryption_key=key,
            generate_secret_string=secretsmanager.SecretStringGenerator(
                exclude_punctuation=True, password_length=64
            ),
        )
        parameters = elasticache.CfnParameterGroup(
            self,
            "Parameters",
            cache_parameter_group_family=family,
            description=f"Redis, {description}: nothing is evicted.",
            properties={
                "maxmemory-policy": "noeviction",
                **({"cluster-enabled": "yes"} if shards else {}),
            },
        )
        standby = settings.replicas > 0
        self.group = elasticache.CfnReplicationGroup(
            self,
            "Group",
            replication_group_description=f"CloudSync, {description}",
            engine=engine,
            engine_version=version,
            cache_node_type=settings.node_type,
            num_node_groups=max(shards, 1),
            replicas_per_node_group=settings.replicas,
            automatic_failover_enabled=standby or shards > 0,
            multi_az_enabled=standby,
            cache_parameter_group_name=parameters.ref,
            cache_subnet_group_name=subnets.ref,
            security_group_ids=[self.security_group.security_group_id],
            port=PORT,
            transit_encryption_enabled=True,
            at_rest_encryption_enabled=True,
            kms_key_id=key.key_arn,
            auth_token=self.secret.secret_value.unsafe_unwrap(),  # stays a dynamic reference
            auto_minor_version_upgrade=False,
            # Nothing in it outlives PostgreSQL, and a restored old state would only have to be thrown away.
            snapshot_retention_limit=0,
        )
        self._clustered = shards > 0
        accept(
            self,
            {
                "AEC5": "security groups and TLS, not an unusual port, keep others out",
                "SMG4": "rotating the password restarts every process; runbooks/rotate-keys.md",
            },
        )
        if not standby:
            accept(self, {"AEC4": "this environment has no standby, by its settings"})

    @property
    def url(self) -> str:
        """URL without the password, which comes by reference. Unasked, Celery would not verify the server."""
        host = (
            self.group.attr_configuration_end_point_address
            if self._clustered
            else self.group.attr_primary_end_point_address
        )
        return f"rediss://{host}:{PORT}/0?ssl_cert_reqs=required"
