"""Composes the stacks of one environment, in dependency order."""

from __future__ import annotations

import dataclasses

from aws_cdk import Stage, Tags
from constructs import Construct

from stacks.cell import CellStack
from stacks.data import DataStack
from stacks.directory import DirectoryStack
from stacks.edge import EdgeStack
from stacks.migration import FinishStack, MigrationStack
from stacks.monitoring import MonitoringStack
from stacks.network import NetworkStack
from stacks.processes import Backends
from stacks.services import ServicesStack
from stacks.settings import EnvironmentSettings
from stacks.tenant import TenantStack


class CloudSyncStage(Stage):
    """`CloudSync-{environment}`: everything that one `cdk deploy` brings up."""

    def __init__(self, scope: Construct, *, settings: EnvironmentSettings) -> None:
        super().__init__(scope, f"CloudSync-{settings.name}")
        Tags.of(self).add("cloudsync:environment", settings.name)
        network = NetworkStack(self, settings=settings)
        data = DataStack(self, settings=settings, network=network)
        backends = Backends(
            database=data.database,
            events=data.events,
            broker=data.broker,
            redis_key=data.redis_key,
            sealing_key=data.sealing_key,
            keyring=data.keyring,
        )
        migration = MigrationStack(self, settings=settings, network=network, backends=backends)
        tenants = [
            TenantStack(
                self,
                slug=tenant.slug,
                tenant_id=tenant.id,
                database=tenant.database,
                settings=settings,
                network=network,
                backends=backends,
                migration=migration,
            )
            for tenant in settings.tenants
            if tenant.database is not None
        ]
        served = dataclasses.replace(backends, tenants=tuple(tenant.database for tenant in tenants))
        edge = EdgeStack(self, settings=settings, network=network)
        cells = [
            CellStack(self, cell=cell, settings=settings, network=network, backends=served, edge=edge)
            for cell in settings.cells
        ]
        services = ServicesStack(
            self,
            settings=settings,
            network=network,
            backends=served,
            cluster=migration.cluster,
            edge=edge,
        )
        migrating: tuple[MigrationStack | TenantStack, ...] = (migration, *tenants)
        for stack in (*cells, services):  # new code runs on the new schema, in every database
            for schema in migrating:
                stack.add_stack_dependency(schema)
        if tenants:
            directory = DirectoryStack(self, settings=settings, migration=migration, tenants=tenants)
            for stack in (*cells, services):  # which by then reach what it names
                directory.add_stack_dependency(stack)
        MonitoringStack(self, settings=settings, data=data, edge=edge)
        self.migrating = {stack.stack_name: stack.migration for stack in migrating}
        self.provider = migration.stack_name


class FinishStage(Stage):
    """`CloudSync-{environment}-after`: deployed by itself, when no old code runs any more."""

    def __init__(self, scope: Construct, *, settings: EnvironmentSettings, main: CloudSyncStage) -> None:
        super().__init__(scope, f"CloudSync-{settings.name}-after")
        Tags.of(self).add("cloudsync:environment", settings.name)
        FinishStack(self, settings=settings, migrating=main.migrating, provider=main.provider)
