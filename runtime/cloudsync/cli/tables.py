"""Tables: what is captured of them, and a look at their changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

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
from cloudsync.errors import CaptureError

_OPTIONS: Final = {
    "with tenant_column,": "with --tenant-column,",
    ": tenant => 'acme'": ": --tenant acme",
    ": SELECT cloudsync.track(...)": ": `cloudsync track`",
    "audience => 'schema.function'": "--audience schema.function",
    "Leave checked out": "Leave --checked out",
    ", owner_column and audience.": ", --owner-column and --audience.",
}
"""What the database's hints say in SQL, as it is said here."""


@app.command(rich_help_panel=TABLES)
def track(
    table: TableName,
    tenant_column: Annotated[
        str | None, typer.Option(help="Column with the row's tenant.", show_default="tenant_id")
    ] = None,
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
    replace: Annotated[
        bool, typer.Option("--replace", help="Of a tracked table: take away the rules that are not given.")
    ] = False,
    dedicated: Dedicated = None,
    postgres_url: PostgresUrl = None,
    data: Folder = FOLDER,
) -> None:
    """Capture every change of a table from now on."""
    from cloudsync.capture import tracking

    if tenant is not None and tenant_column is not None:
        raise typer.BadParameter(
            "--tenant gives every row to one tenant, --tenant-column names the column that says whose a row"
            " is: give one of them."
        )
    with _hints_of_options(), database(postgres_url, data, dedicated=dedicated) as connection:
        tracked = tracking.track(
            connection,
            table,
            tenant_column=tenant_column or "tenant_id",
            tenant=tenant,
            owner_column=owner_column,
            audience=audience,
            audience_depends_on=json_object("--audience-depends-on", audience_depends_on or "{}"),
            conflict=conflict,
            columns=dict(pair("--column", each) for each in column or []),
            checked=checked,
            replace=replace,
        )
    typer.echo(f"Tracking {tracked.name}: {tracked.rules}.")


@app.command(rich_help_panel=TABLES)
def untrack(
    table: TableName,
    dedicated: Dedicated = None,
    postgres_url: PostgresUrl = None,
    data: Folder = FOLDER,
) -> None:
    """Stop capturing a table and remove what `track` made."""
    from cloudsync.capture import tracking

    with _hints_of_options(), database(postgres_url, data, dedicated=dedicated) as connection:
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

    with _hints_of_options(), database(postgres_url, data, dedicated=dedicated) as connection:
        tracking.touch(connection, table, json_object("KEY", key))
    typer.echo(f"Touched {table} {key}.")


@app.command(rich_help_panel=TABLES)
def tail(
    table: TableName,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="As 'done=false' or 'n>=3', with = (or ==), != (or <>), <, <=, >, >=, `is null`,"
            " `is not null` or `in (…)`; may be repeated.",
        ),
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

    api_url = connections.api_url(url, data)
    if token is None and not as_json:  # whose view it is: of no row the reason may be that
        typer.echo(f"-- as user {user} of tenant {tenant}", err=True)
    client_tail.run(
        api_url,
        table,
        where=where or [],
        columns=[name.strip() for name in columns.split(",")] if columns else None,
        token=token,
        tenant=tenant,
        user=user,
        as_json=as_json,
        limit=limit,
    )


@contextmanager
def _hints_of_options() -> Iterator[None]:
    """Have what the database advises be said in options of the command line."""
    try:
        yield
    except CaptureError as error:
        for in_sql, here in _OPTIONS.items():
            error.hint = error.hint and error.hint.replace(in_sql, here)
        raise
