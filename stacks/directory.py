"""Directory: which database is whose, told to every process that serves tenants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aws_cdk import CustomResource
from constructs import Construct

from stacks.constructs.database import SERVICE
from stacks.migration import MigrationStack
from stacks.settings import EnvironmentSettings
from stacks.stack import EnvironmentStack
from stacks.tenant import TenantStack

RESOURCE: Final = "Custom::CloudSyncTenant"


class DirectoryStack(EnvironmentStack):
    """`cloudsync tenant attach` for each dedicated tenant, in the shared database.

    It stands behind cells and services: whoever reads of a database there has the way to it and the right to
    its login by then. Nothing is taken back when a tenant leaves the settings: without its reference its
    clients would be served by the shared database, and write there (runbooks/add-a-tenant.md).
    """

    def __init__(
        self,
        scope: Construct,
        *,
        settings: EnvironmentSettings,
        migration: MigrationStack,
        tenants: Sequence[TenantStack],
    ) -> None:
        super().__init__(scope, "Directory", settings=settings, description="databases of dedicated tenants")
        for tenant in tenants:
            CustomResource(
                Construct(self, tenant.slug),
                "Attached",
                resource_type=RESOURCE,
                service_token=migration.provider.service_token,
                properties={
                    "Tenant": tenant.tenant_id,
                    "Database": tenant.database.reference(SERVICE),
                    "TaskDefinition": migration.migration.family,
                    "SecurityGroup": migration.task.security_group.security_group_id,
                    "LogGroup": migration.task.log_group.log_group_name,
                },
            )
