"""The program and its groups of verbs, in the order in which its help shows them."""

from __future__ import annotations

from typing import Annotated, Final

import typer

import cloudsync

app = typer.Typer(
    name="cloudsync",
    help=cloudsync.__doc__,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PROCESSES: Final = "Processes of a deployment"
DEVELOPMENT: Final = "Development"
TABLES: Final = "Tables"

audit = typer.Typer(help="The audit log: whether it is as it was written, and what it says.")
app.add_typer(audit, name="audit", rich_help_panel="Audit")
keyring = typer.Typer(help="The keys that seal what rests in Redis, where KMS wraps them.")
app.add_typer(keyring, name="keyring", rich_help_panel=PROCESSES)
env = typer.Typer(help="The environments that stacks/ deploys, as data; in a checkout.")
app.add_typer(env, name="env", rich_help_panel=PROCESSES)
tenant = typer.Typer(help="Tenants: plans, partitions of their own, and who is let in.")
app.add_typer(tenant, name="tenant", rich_help_panel=TABLES)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"cloudsync {cloudsync.__version__}")
        raise typer.Exit
