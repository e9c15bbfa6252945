"""One PostgreSQL database of the platform: the shared one, or that of a dedicated tenant."""

from __future__ import annotations

from typing import Final

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stacks.constructs.findings import accept, accept_managed_policy, accept_of_checkov
from stacks.settings import DatabaseSettings, NetworkSettings

ADMIN: Final = "cloudsync_admin"
RELAY: Final = "cloudsync_relay"
SERVICE: Final = "cloudsync_service"
NAME: Final = "cloudsync"
PORT: Final = 5432


class Database(Construct):
    """An RDS instance, not a DB cluster: its standby applies the primary's WAL synchronously, so that a
    replication slot and everything confirmed to the relay survive a fail-over.

    `secrets` holds the credentials by role: the admin's, which migrates, and those of the two roles that
    processes log in with; the migration gives them their passwords.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: DatabaseSettings,
        network: NetworkSettings,
        vpc: ec2.IVpc,
        protected: bool,
    ) -> None:
        super().__init__(scope, construct_id)
        self.settings = settings
        kept = RemovalPolicy.RETAIN if protected else RemovalPolicy.DESTROY
        self.key = kms.Key(
            self,
            "Key",
            description="Encrypts the database, its backups and its credentials.",
            enable_key_rotation=True,
            removal_policy=kept,
        )
        self.security_group = ec2.SecurityGroup(
            self,
            "SecurityGroup",
            vpc=vpc,
            description="PostgreSQL; each client opens its own way in.",
            allow_all_outbound=False,
        )
        engine = rds.DatabaseInstanceEngine.postgres(
            version=rds.PostgresEngineVersion.of(settings.version, settings.version.split(".")[0])
        )
        instance_type = ec2.InstanceType(settings.instance_type)
        subnets = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
        parameters = rds.ParameterGroup(
            self,
            "Parameters",
            engine=engine,
            description="Logical replication, TLS, and bounds on what can pin WAL.",
            parameters=_parameters(settings),
            removal_policy=kept,
        )
        accept(
            self,
            {
                "RDS11": "security groups, not an unusual port, keep others out",
                "SMG4": "rotating a password restarts every process; runbooks/rotate-keys.md",
            },
        )
        monitoring = iam.Role(
            self,
            "MonitoringRole",
            assumed_by=iam.ServicePrincipal("monitoring.rds.amazonaws.com"),
            managed_policies=[
                iam.ManagedPolicy.from_aws_managed_policy_name("service-role/AmazonRDSEnhancedMonitoringRole")
            ],
        )
        accept_managed_policy(monitoring, "service-role/AmazonRDSEnhancedMonitoringRole")
        self.instance = rds.DatabaseInstance(
            self,
            "Instance",
            engine=engine,
            instance_type=instance_type,
            vpc=vpc,
            vpc_subnets=subnets,
            security_groups=[self.security_group],
            parameter_group=parameters,
            credentials=rds.Credentials.from_generated_secret(
                ADMIN, encryption_key=self.key, exclude_characters=_NOT_IN_PASSWORDS
            ),
            database_name=NAME,
            port=PORT,
            allocated_storage=settings.storage_gib,
            max_allocated_storage=settings.storage_at_most_gib,
            storage_type=rds.StorageType.GP3,
            storage_encrypted=True,
            storage_encryption_key=self.key,
            multi_az=settings.multi_az,
            publicly_accessible=False,
            ca_certificate=rds.CaCertificate.RDS_CA_RSA2048_G1,
            backup_retention=Duration.days(settings.backup_days),
            delete_automated_backups=not protected,
            copy_tags_to_snapshot=True,
            deletion_protection=protected,
            removal_policy=RemovalPolicy.SNAPSHOT if protected else RemovalPolicy.DESTROY,
            auto_minor_version_upgrade=False,  # a minor upgrade restarts the server: when you say so
            database_insights_mode=rds.DatabaseInsightsMode.STANDARD,
            enable_performance_insights=True,
            performance_insight_encryption_key=self.key,
            monitoring_interval=Duration.seconds(60),
            monitoring_role=monitoring,
            # RDS makes the log group itself, and nothing would remove it.
            cloudwatch_logs_exports=["postgresql"] if protected else None,
        )
        admin = self.instance.secret
        assert admin is not None  # noqa: S101 - generated above
        self.secrets: dict[str, secretsmanager.ISecret] = {
            ADMIN: admin,
            RELAY: self._login("RelayLogin", RELAY),
            SERVICE: self._login("ServiceLogin", SERVICE),
        }
        replica_group = self._replica_security_group(vpc, network) if settings.replicas else None
        self.replicas = [
            rds.DatabaseInstanceReadReplica(
                self,
                f"Replica{number}",
                source_database_instance=self.instance,
                instance_type=instance_type,
                vpc=vpc,
                vpc_subnets=subnets,
                security_groups=[replica_group] if replica_group else None,
                parameter_group=parameters,
                publicly_accessible=False,
                ca_certificate=rds.CaCertificate.RDS_CA_RSA2048_G1,
                deletion_protection=protected,
                removal_policy=RemovalPolicy.DESTROY,  # a copy
                auto_minor_version_upgrade=False,
                enable_performance_insights=True,
                performance_insight_encryption_key=self.key,
                monitoring_interval=Duration.seconds(60),
                monitoring_role=monitoring,
                cloudwatch_logs_exports=["postgresql"] if protected else None,
            )
            for number in range(1, settings.replicas + 1)
        ]
        accept_of_checkov(
            self.instance,
            {"CKV_AWS_161": "passwords of Secrets Manager; IAM's tokens open no replication"},
        )
        for replica in self.replicas:
            accept_of_checkov(
                replica,
                {
                    "CKV_AWS_16": "a replica is encrypted as its source is, and must not say so itself",
                    "CKV_AWS_157": "a copy for analytics; its source has the standby",
                },
            )
            accept(
                replica,
                {
                    "RDS2": "a replica is encrypted as its source is, and must not say so itself",
                    "RDS3": "a copy for analytics; its source has the standby",
                },
            )
        if not settings.multi_az:
            reason = "this environment has no standby, by its settings"
            accept(self.instance, {"RDS3": reason})
            accept_of_checkov(self.instance, {"CKV_AWS_157": reason})
        for each in () if protected else (self.instance, *self.replicas):
            accept(each, {"RDS10": "this environment is not protected, by its settings"})

    def _replica_security_group(self, vpc: ec2.IVpc, network: NetworkSettings) -> ec2.SecurityGroup:
        group = ec2.SecurityGroup(
            self,
            "ReplicaSecurityGroup",
            vpc=vpc,
            description="Read replicas; open to the analytics networks.",
            allow_all_outbound=False,
        )
        for cidr in network.analytics_cidrs:
            group.add_ingress_rule(ec2.Peer.ipv4(cidr), ec2.Port.tcp(PORT), "analytics")
        return group

    def url(self, role: str) -> str:
        """Connection URL of a role, without its password: that comes as PGPASSWORD, by reference."""
        host = self.instance.db_instance_endpoint_address
        return (
            f"postgresql://{role}@{host}:{PORT}/{NAME}"
            "?sslmode=verify-full&sslrootcert=/app/certificates/rds.pem"
        )

    def reference(self, role: str) -> str:
        """The URL with the secret that its password is in, as `cloudsync.tenants.database` has it.

        The colons of an ARN stand in a query as they are.
        """
        return f"{self.url(role)}&password_secret={self.secrets[role].secret_full_arn}"

    def _login(self, construct_id: str, role: str) -> secretsmanager.Secret:
        return secretsmanager.Secret(
            self,
            construct_id,
            description=f"Login of {role}",
            encryption_key=self.key,
            generate_secret_string=secretsmanager.SecretStringGenerator(
                secret_string_template=f'{{"username": "{role}"}}',
                generate_string_key="password",
                password_length=40,
                exclude_punctuation=True,
            ),
        )


_NOT_IN_PASSWORDS: Final = " %+~`#$&*()|[]{}:;<>?!'/@\"\\,=^"


def _parameters(settings: DatabaseSettings) -> dict[str, str]:
    return {
        "rds.logical_replication": "1",
        "rds.force_ssl": "1",
        "max_slot_wal_keep_size": str(settings.slot_wal_keep_gib * 1024),
        "idle_in_transaction_session_timeout": str(settings.idle_in_transaction_s * 1000),
        "transaction_timeout": str(settings.transaction_s * 1000),
        "wal_sender_timeout": "5000",  # a dead relay's slot is free for the standby this soon
        "max_replication_slots": "20",
        "max_wal_senders": "25",
    }
