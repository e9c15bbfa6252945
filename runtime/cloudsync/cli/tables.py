"""Tables: what is captured of them, and a look at their changes."""

from __future__ import annotations

from typing import Annotated

import typer

from cloudsync.cli.application import TABLES, app
from cloudsync.cli.arguments import (
    FOLDER,
    Dedicated,
    Folder,
    PostgresUrl,
    TableName,
    database,
    json_object,
    pair,
)


@app.command(rich_help_panel=TABLES)
def track(
    table: TableName,
    tenant_column: Annotated[str, typer.Option(help="Column with the row's tenant.")] = "tenant_id",
    tenant: Annotated[str | None, typer.Option(help="One tenant for all rows, instead of a column.")] = None,
    owner_column: Annotated[str | None, typer.Option(help="Column with the row's only reader.")] = None,
    audience: Annotated[str | None, typer.Option(help="Function from a row to the users who see it.")] = None,
    audience_depends_on: Annotated[
        str | None, typer.Option(metavar="JSON", help='As {"public.members": {"project_id": "project_id"}}.')
    ] = None,
    conflict: Annotated[str, typer.Option(metavar="lww|ot|manual", help="Policy of conflicts.")] = "lww",
    column: Annotated[
        list[str] | None, typer.Option(metavar="NAME=POLICY", help="Policy of one column; may be repeated.")
    ] = None,
    checked: Annotated[bool, typer.Option("--checked", help="Re-read rows before delivery.")] = False,
    dedicated: Dedicated = None,
    postgres_url: PostgresUrl = None,
    data: Folder = FOLDER,
) -> None:
    """Capture every change of a table from now on."""
    from cloudsync.capture import tracking

    with database(postgres_url, data, dedicated=dedicated) as connection:
        tracked = tracking.track(
            connection,
            table,
            tenant_column=tenant_column,
            tenant=tenant,
            owner_column=owner_column,
            audience=audience,
            audience_depends_on=json_object("--audience-depends-on", audience_depends_on or "{}"),
            conflict=conflict,
            columns=dict(pair("--column", each) for each in column or []),
            checked=checked,
        )
    typer.echo(f"Tracking {tracked.name}.")


@app.command(rich_help_panel=TABLES)
def untrack(
    table: TableName,
    dedicated: Dedicated = None,
    postgres_url: PostgresUrl = None,
    data: Folder = FOLDER,
) -> None:
    """Stop capturing a table and remove what `track` made."""
    from cloudsync.capture import tracking

    with database(postgres_url, data, dedicated=dedicated) as connection:
        tracking.untrack(connection, table)
    typer.echo(f"No longer tracking {table}.")


@app.command(rich_help_panel=TABLES)
def touch(
    table: TableName,
    key: Annotated[str, typer.Argument(metavar="KEY", help='The row\'s key as JSON, such as {"id": 7}.')],
    dedicated: Dedicated = None,
    postgres_url: PostgresUrl = None,
    data: Folder = FOLDER,
) -> None:
    """Send a row to its readers once more."""
    from cloudsync.capture import tracking

    with database(postgres_url, data, dedicated=dedicated) as connection:
        tracking.touch(connection, table, json_object("KEY", key))
    typer.echo(f"Touched {table} {key}.")


@app.command(rich_help_panel=TABLES)
def tail(
    table: TableName,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="As 'done=false' or 'n>=3'; may be repeated."),
    ] = None,
    columns: Annotated[str | None, typer.Option(metavar="A,B", help="Only these columns.")] = None,
    tenant: Annotated[str, typer.Option(help="Tenant of the development token.")] = "demo",
    user: Annotated[str, typer.Option(help="User of the development token.")] = "me",
    token: Annotated[str | None, typer.Option(help="A token, instead of tenant and user.")] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="The API; else that of this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    limit: Annotated[int | None, typer.Option(help="End after this many changes.")] = None,
    data: Folder = FOLDER,
) -> None:
    """Print a table's changes as they happen."""
    from cloudsync.client import tail as client_tail
    from cloudsync.dev import connections

    client_tail.run(
        connections.api_url(url, data),
        table,
        where=where or [],
        columns=[name.strip() for name in columns.split(",")] if columns else None,
        token=token,
        tenant=tenant,
        user=user,
        as_json=as_json,
        limit=limit,
    )
