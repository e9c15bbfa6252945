"""The platform on this machine, and what is measured and shown with one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Final

import typer

from cloudsync.cli.application import DEVELOPMENT, app, env
from cloudsync.cli.arguments import FOLDER, Dedicated, Folder, exit_with

_MOST_HOURS: Final = 100 * 366 * 24
PASS_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(rich_help_panel=DEVELOPMENT)
def dev(
    data: Folder = FOLDER,
    fresh: Annotated[bool, typer.Option("--fresh", help="Wipe the folder's data first.")] = False,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Keep nothing.")] = False,
    postgres_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Use this PostgreSQL instead of the embedded one.")
    ] = None,
    redis_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Use this Redis instead of the embedded Valkey.")
    ] = None,
    cells: Annotated[int, typer.Option(help="Cells, 1 to 9.")] = 1,
    gateways: Annotated[int, typer.Option(help="Gateways in each cell.")] = 1,
    api_port: Annotated[int | None, typer.Option(help="Default 8080, or the next free; 0: any free.")] = None,
    postgres_port: Annotated[int | None, typer.Option(help="Default 54320, as above.")] = None,
    valkey_port: Annotated[int | None, typer.Option(help="Default 63790, as above.")] = None,
    gateway_port: Annotated[int | None, typer.Option(help="Default 8081, as above.")] = None,
    standby: Annotated[bool, typer.Option("--standby", help="Run a second relay that stands by.")] = False,
    dedicated: Annotated[
        list[str] | None,
        typer.Option(
            "--dedicated", metavar="TENANT", help="A tenant with a database of its own; may be repeated."
        ),
    ] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="Print without colours.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the table, not the logs.")] = False,
) -> None:
    """Run the whole platform here: PostgreSQL, Valkey and every process, until Ctrl-C."""
    from cloudsync.dev import command
    from cloudsync.dev.options import PlatformOptions

    options = PlatformOptions(
        data=data,
        ephemeral=ephemeral,
        fresh=fresh,
        postgres_url=postgres_url,
        redis_url=redis_url,
        cells=cells,
        gateways=gateways,
        api_port=api_port,
        postgres_port=postgres_port,
        valkey_port=valkey_port,
        gateway_port=gateway_port,
        standby=standby,
        dedicated=tuple(dedicated or ()),
    )
    command.run(options, colour=not no_color, quiet=quiet)


@app.command(rich_help_panel=DEVELOPMENT)
def status(data: Folder = FOLDER) -> None:
    """Show what runs in this folder."""
    from cloudsync.dev import command

    command.show_status(data)


@app.command(rich_help_panel=DEVELOPMENT)
def url(
    environment: Annotated[
        str | None, typer.Argument(metavar="[ENV]", help="An environment of stacks/; else the folder's.")
    ] = None,
    data: Folder = FOLDER,
) -> None:
    """Print where things are: of the platform of this folder, or of a deployed environment."""
    if environment is not None:
        from cloudsync.dev import deployment

        exit_with(deployment.run("url", environment))
        return
    from cloudsync.dev import state, status

    for name, address in status.addresses(state.require(data)):
        typer.echo(f"{name}  {address}")


@env.command("show")
def env_show(environment: Annotated[str, typer.Argument(metavar="ENV")]) -> None:
    """Print the settings of an environment as JSON."""
    from cloudsync.dev import deployment

    exit_with(deployment.run("show", environment))


@env.command("diff")
def env_diff(
    one: Annotated[str, typer.Argument(metavar="ENV")], other: Annotated[str, typer.Argument(metavar="ENV")]
) -> None:
    """Print in which settings two environments differ; exit status 1 if they do."""
    from cloudsync.dev import deployment

    exit_with(deployment.run("diff", one, other))


@app.command(rich_help_panel=DEVELOPMENT)
def stop(data: Folder = FOLDER) -> None:
    """Stop what runs in this folder."""
    from cloudsync.dev import command

    command.stop(data)


@app.command(rich_help_panel=DEVELOPMENT)
def token(
    tenant: Annotated[str, typer.Option(help="The token's tenant.")],
    user: Annotated[str, typer.Option(help="The token's user.")],
    hours: Annotated[float, typer.Option(help="How long it is good for.")] = 12.0,
    data: Folder = FOLDER,
) -> None:
    """Print a development token."""
    from cloudsync.dev import connections
    from cloudsync.tokens import development_token

    for option, value in (("--tenant", tenant), ("--user", user)):
        if not value.strip():
            raise typer.BadParameter(f"{option} is empty.")
    if not 0 < hours <= _MOST_HOURS:
        raise typer.BadParameter(f"--hours must be more than 0 and at most {_MOST_HOURS:,}, not {hours:g}.")
    settings = connections.token_settings(data)
    typer.echo(development_token(settings, tenant=tenant, user=user, lifetime_s=math.ceil(hours * 3600)))


@app.command(
    rich_help_panel=DEVELOPMENT,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def psql(context: typer.Context, dedicated: Dedicated = None, data: Folder = FOLDER) -> None:
    """Open psql on the platform's database; what follows is psql's own, such as `-c "SELECT 1"`."""
    from cloudsync.dev import command, connections

    command.psql(connections.postgres_url(None, data, dedicated=dedicated), context.args)


@app.command(rich_help_panel=DEVELOPMENT, context_settings=PASS_ON)
def bench(context: typer.Context) -> None:
    """Measure: `cloudsync bench SCENARIO …`; `cloudsync bench --help` says more."""
    from cloudsync.bench import command

    exit_with(command.main(context.args))


@app.command(rich_help_panel=DEVELOPMENT, context_settings=PASS_ON)
def demo(context: typer.Context) -> None:
    """Start the platform, run a real workload, and check every client's view against SQL."""
    from cloudsync.dev import demo as demonstration

    exit_with(demonstration.main(context.args))


@app.command(rich_help_panel=DEVELOPMENT, context_settings=PASS_ON)
def verify(context: typer.Context) -> None:
    """Prove on a running environment that nothing is lost and nobody sees too much; `verify --help`."""
    from cloudsync.verify import command

    exit_with(command.main(context.args))


@app.command(rich_help_panel=DEVELOPMENT, context_settings=PASS_ON)
def soak(context: typer.Context) -> None:
    """Kill processes of a platform for minutes while clients watch, then check every view against SQL."""
    from cloudsync.verify import soak as endurance

    exit_with(endurance.main(context.args))


@app.command(rich_help_panel=DEVELOPMENT, hidden=True)
def reference(
    folder: Annotated[Path, typer.Argument(metavar="DIR")] = Path("runbooks/reference"),
) -> None:
    """Write the pages of metrics, settings and codes from their registries."""
    from cloudsync.dev import reference as made

    for file in made.write(folder):
        typer.echo(f"wrote {file}")
