"""Tenant-{slug}: a dedicated tenant's own database, with its key, its logins, its schema and its relay."""

from __future__ import annotations

import dataclasses

from constructs import Construct

from stacks.constructs.alarms import DatabaseAlarms
from stacks.constructs.database import Database
from stacks.constructs.fargate import FargateTask
from stacks.constructs.image import runtime_image
from stacks.constructs.migration import Migration
from stacks.constructs.service import FargateService
from stacks.migration import MigrationStack, sql_digest
from stacks.network import NetworkStack
from stacks.processes import MIGRATE, RELAY_PROCESS, Backends
from stacks.settings import DatabaseSettings, EnvironmentSettings
from stacks.stack import EnvironmentStack


class TenantStack(EnvironmentStack):
    """Stands behind Migration, whose provider brings its schema up before its relay starts, and before cells
    and services, whose new code meets this schema, too.
    """

    def __init__(
        self,
        scope: Construct,
        *,
        slug: str,
        tenant_id: str,
        database: DatabaseSettings,
        settings: EnvironmentSettings,
        network: NetworkStack,
        backends: Backends,
        migration: MigrationStack,
    ) -> None:
        super().__init__(
            scope,
            f"Tenant-{slug}",
            settings=settings,
            description=f"database of the tenant {slug}",
            stateful=True,
        )
        self.slug = slug
        self.tenant_id = tenant_id
        self.database = Database(
            self,
            "Database",
            settings=database,
            network=settings.network,
            vpc=network.vpc,
            protected=settings.protected,
        )
        DatabaseAlarms(
            self,
            "Alarms",
            database=self.database,
            what=f"the database of the tenant {slug}",
            settings=settings,
        )
        backends = dataclasses.replace(backends, database=self.database)
        image = runtime_image(self, settings)
        migrate, relay = (
            FargateTask(
                self,
                name,
                process=process,
                settings=settings,
                backends=backends,
                image=image,
                size=size,
                vpc=network.vpc,
            )
            for name, process, size in (
                ("Task", MIGRATE, settings.services.small),
                ("Relay", RELAY_PROCESS, settings.services.relay),
            )
        )
        self.migration = Migration(
            self,
            "Migration",
            task=migrate,
            cluster=migration.cluster,
            provider=migration.provider,
            handler_role=migration.handler_role,
            digest=sql_digest(),
        )
        service = FargateService(
            relay, "Service", task=relay, cluster=migration.cluster, count=settings.services.relays
        )
        service.node.add_dependency(self.migration.resource)
