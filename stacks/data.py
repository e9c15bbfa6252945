"""Data: PostgreSQL, the two Redis roles, and the keys that seal what rests in them."""

from __future__ import annotations

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_elasticache as elasticache
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stacks.constructs.alarms import DatabaseAlarms
from stacks.constructs.database import Database
from stacks.constructs.findings import accept
from stacks.constructs.redis import Redis
from stacks.network import NetworkStack
from stacks.settings import EnvironmentSettings
from stacks.stack import EnvironmentStack, removal_policy


class DataStack(EnvironmentStack):
    """What must survive everything else."""

    def __init__(self, scope: Construct, *, settings: EnvironmentSettings, network: NetworkStack) -> None:
        super().__init__(
            scope, "Data", settings=settings, description="PostgreSQL, Redis, keys", stateful=True
        )
        self.database = Database(
            self,
            "Database",
            settings=settings.database,
            network=settings.network,
            vpc=network.vpc,
            protected=settings.protected,
        )
        DatabaseAlarms(self, "Alarms", database=self.database, what="the shared database", settings=settings)
        # An alarm of the stack Monitoring imported it, one release ago: runbooks/remove-an-export.md.
        self.export_value(self.database.instance.instance_identifier)
        self.sealing_key = self._key("SealingKey", "Wraps the keys that seal events in Redis.")
        self.keyring = self._keyring()
        self.redis_key = self._key("RedisKey", "Encrypts Redis at rest, and its passwords.")
        subnets = elasticache.CfnSubnetGroup(
            self,
            "RedisSubnets",
            description="Isolated subnets",
            subnet_ids=network.vpc.select_subnets(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED).subnet_ids,
        )
        self.broker, self.events = (
            Redis(
                self,
                name,
                settings=each,
                engine=settings.cache_engine,
                vpc=network.vpc,
                subnets=subnets,
                key=self.redis_key,
                description=name.lower(),
                shards=shards,
            )
            for name, each, shards in (
                ("Broker", settings.broker, 0),
                ("Events", settings.events, settings.events.shards),
            )
        )

    def _keyring(self) -> secretsmanager.Secret:
        """Where the wrapped keys are kept; empty until the first migration makes one."""
        secret = secretsmanager.Secret(
            self,
            "Keyring",
            description="The keys that seal events in Redis, each wrapped by the sealing key",
            encryption_key=self.sealing_key,
            generate_secret_string=secretsmanager.SecretStringGenerator(
                secret_string_template='{"keys": []}',  # noqa: S106 - there is no key yet
                generate_string_key="made",
            ),
            removal_policy=removal_policy(self.settings),
        )
        accept(secret, {"SMG4": "`cloudsync keyring rotate` does it, when somebody means it"})
        return secret

    def _key(self, construct_id: str, description: str) -> kms.Key:
        return kms.Key(
            self,
            construct_id,
            description=description,
            enable_key_rotation=True,
            removal_policy=removal_policy(self.settings),
        )
