"""The audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloudsync.cli.application import audit
from cloudsync.cli.arguments import FOLDER, Folder, PostgresUrl, exit_with


@audit.command("verify")
def audit_verify(
    since: Annotated[str | None, typer.Option(metavar="DATE", help="First day, UTC; else all kept.")] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option(metavar="HEAD", help="A head from the auditor's logs: rows up to it must be there."),
    ] = None,
    keyring: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Else CLOUDSYNC_KEYRING_FILE, else the folder's.")
    ] = None,
    postgres_url: PostgresUrl = None,
    data: Folder = FOLDER,
) -> None:
    """Compute every chain again and name the first row of each that is wrong; then exit with status 1."""
    from cloudsync.audit import command
    from cloudsync.dev import connections
    from cloudsync.keyring import Keyring

    keys = Keyring.load(keyring or connections.keyring_file(data))
    url = connections.postgres_url(postgres_url, data)
    exit_with(command.verify(url, keys, since=since, expect=expect or []))


@audit.command("export")
def audit_export(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's rows.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Recorded from then on, ISO 8601.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Recorded before then.")] = None,
    postgres_url: PostgresUrl = None,
    data: Folder = FOLDER,
) -> None:
    """Print the log as JSON lines."""
    from cloudsync.audit import command
    from cloudsync.dev import connections

    url = connections.postgres_url(postgres_url, data)
    command.export_lines(url, tenant=tenant, since=since, until=until)
