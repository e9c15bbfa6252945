"""Tenants."""

from __future__ import annotations

from typing import Annotated

import typer

from cloudsync.cli.application import tenant
from cloudsync.cli.arguments import FOLDER, Folder, PostgresUrl, choice, database

TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="Its id, as tokens have it.")]
PlanOption = Annotated[
    str,
    typer.Option(
        "--plan",
        metavar="shared|partitioned",
        help="`partitioned`: partitions of its own of every table that is partitioned by its tenant column.",
    ),
]


@tenant.command("create")
def tenant_create(
    tenant_id: TenantId,
    name: Annotated[str | None, typer.Option(help="For people; else the id.")] = None,
    plan: PlanOption = "shared",
    postgres_url: PostgresUrl = None,
    data: Folder = FOLDER,
) -> None:
    """Record a tenant. One that is only `shared` needs no record: its tokens name it."""
    from cloudsync.tenants import command
    from cloudsync.tenants.records import PLANS

    with database(postgres_url, data, autocommit=True) as connection:
        for line in command.create(connection, tenant_id, name=name, plan=choice("--plan", plan, PLANS)):
            typer.echo(line)


@tenant.command("move")
def tenant_move(
    tenant_id: TenantId, plan: PlanOption, postgres_url: PostgresUrl = None, data: Folder = FOLDER
) -> None:
    """Put a tenant's rows where another plan has them; repeat it for tables that were tracked since."""
    from cloudsync.tenants import command
    from cloudsync.tenants.records import PLANS

    with database(postgres_url, data, autocommit=True) as connection:
        for line in command.move(connection, tenant_id, plan=choice("--plan", plan, PLANS)):
            typer.echo(line)


@tenant.command("list")
def tenant_list(postgres_url: PostgresUrl = None, data: Folder = FOLDER) -> None:
    """Show the tenants that were recorded."""
    from rich.console import Console

    from cloudsync.tenants import command

    with database(postgres_url, data) as connection:
        command.show_all(connection, Console())


@tenant.command("show")
def tenant_show(tenant_id: TenantId, postgres_url: PostgresUrl = None, data: Folder = FOLDER) -> None:
    """Show a tenant and where its rows are."""
    from cloudsync.tenants import command

    with database(postgres_url, data) as connection:
        for line in command.show(connection, tenant_id):
            typer.echo(line)


@tenant.command("attach")
def tenant_attach(
    tenant_id: TenantId,
    reference: Annotated[
        str,
        typer.Option(
            "--database",
            metavar="REFERENCE",
            help="postgresql://cloudsync_service@HOST:PORT/DATABASE?password_secret=ARN, no password.",
        ),
    ],
    postgres_url: PostgresUrl = None,
    data: Folder = FOLDER,
) -> None:
    """Have a tenant served from a database of its own, from now on and without a restart; may be repeated."""
    from cloudsync.settings import load
    from cloudsync.tenants import command

    within_s = load().tenant_refresh_s + 1
    with database(postgres_url, data, autocommit=True) as connection:
        said, warnings = command.attach(connection, tenant_id, reference, within_s=within_s)
    typer.echo(said)
    for warning in warnings:
        typer.echo(f"Warning: {warning}", err=True)


@tenant.command("detach")
def tenant_detach(tenant_id: TenantId, postgres_url: PostgresUrl = None, data: Folder = FOLDER) -> None:
    """Have a tenant served from the shared database again; the rows of its own stay where they are."""
    from cloudsync.settings import load
    from cloudsync.tenants import command

    with database(postgres_url, data, autocommit=True) as connection:
        typer.echo(command.detach(connection, tenant_id, within_s=load().tenant_refresh_s + 1))


@tenant.command("disable")
def tenant_disable(tenant_id: TenantId, postgres_url: PostgresUrl = None, data: Folder = FOLDER) -> None:
    """Close a tenant's connections, and let nobody of it in until it is enabled again."""
    from cloudsync.settings import load
    from cloudsync.tenants import command

    with database(postgres_url, data) as connection:
        typer.echo(command.disable(connection, tenant_id, within_s=load().tenant_refresh_s + 1))


@tenant.command("enable")
def tenant_enable(tenant_id: TenantId, postgres_url: PostgresUrl = None, data: Folder = FOLDER) -> None:
    """Let a tenant's users in again."""
    from cloudsync.tenants import command

    with database(postgres_url, data) as connection:
        typer.echo(command.enable(connection, tenant_id))
