"""The command line: a verb per process, and what a developer does by hand.

Verbs import what they need when they run, so that each process loads only its own stage.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cloudsync
from cloudsync.errors import CloudSyncError, ConfigurationError

if TYPE_CHECKING:
    from cloudsync.settings import Settings

app = typer.Typer(
    name="cloudsync",
    help=cloudsync.__doc__,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

audit = typer.Typer(help="The audit log: whether it is as it was written, and what it says.")
app.add_typer(audit, name="audit", rich_help_panel="Audit")
keyring = typer.Typer(help="The keys that seal what rests in Redis, where KMS wraps them.")
app.add_typer(keyring, name="keyring", rich_help_panel="Processes of a deployment")

env = typer.Typer(help="The environments that stacks/ deploys, as data; in a checkout.")
app.add_typer(env, name="env", rich_help_panel="Processes of a deployment")
tenant = typer.Typer(help="Tenants: plans, partitions of their own, and who is let in.")
app.add_typer(tenant, name="tenant", rich_help_panel="Tables")

_PROCESSES = "Processes of a deployment"
_DEVELOPMENT = "Development"
_TABLES = "Tables"

Folder = Annotated[
    Path,
    typer.Option("--data", metavar="DIR", help="Folder of the platform that is meant.", show_default=True),
]
PostgresUrl = Annotated[
    str | None,
    typer.Option(
        "--postgres-url",
        metavar="URL",
        help="The database; else CLOUDSYNC_POSTGRES_URL, else that of the platform running in this folder.",
    ),
]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        metavar="URL",
        help="Else CLOUDSYNC_REDIS_EVENTS_URL, else that of the platform running in this folder.",
    ),
]
Dedicated = Annotated[
    str | None,
    typer.Option(
        "--dedicated", metavar="TENANT", help="The database that `dev --dedicated` made for this tenant."
    ),
]
TableName = Annotated[str, typer.Argument(metavar="TABLE", help="schema.table, or a table of public.")]
_FOLDER = Path(".cloudsync")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"cloudsync {cloudsync.__version__}")
        raise typer.Exit


# Processes


def _process() -> Settings:
    """Settings of this process, with its logs set up."""
    from cloudsync import logs
    from cloudsync.settings import current

    settings = current()
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    return settings


@app.command(rich_help_panel=_PROCESSES)
def migrate(
    phase: Annotated[str, typer.Option(metavar="pre|post|all", help="Which migrations.")] = "all",
    plan: Annotated[bool, typer.Option("--plan", help="Print what would run, and change nothing.")] = False,
    postgres_url: PostgresUrl = None,
    data: Folder = _FOLDER,
) -> None:
    """Bring the database to this version: `pre` before new code runs, `post` after the old code is gone."""
    from cloudsync.capture import logins, migrations
    from cloudsync.dev import connections
    from cloudsync.settings import load

    chosen = _choice("--phase", phase, ("pre", "post", "all"))
    url, settings = connections.postgres_url(postgres_url, data), load()
    applied = migrations.migrate(url, phase=chosen, plan_only=plan)
    passwords = {
        "cloudsync_relay": settings.relay_password,
        "cloudsync_service": settings.service_password,
    }
    if settings.keyring_kms_key and not plan:
        from cloudsync.vault import KeyVault

        if KeyVault.of(settings).ensure():
            typer.echo("made the first sealing key")
    if any(passwords.values()) and not plan:
        with _database(url, data) as connection:
            logins.set_passwords(connection, {role: each for role, each in passwords.items() if each})
    for migration in applied:
        typer.echo(f"{'would apply' if plan else 'applied'} {migration.name}")
    if not applied:
        typer.echo("Nothing to apply.")


@app.command(rich_help_panel=_PROCESSES)
def relay() -> None:
    """Publish committed changes from PostgreSQL's WAL to the feeds in Redis."""
    from cloudsync.relay import process

    process.run(_process())


@app.command(rich_help_panel=_PROCESSES)
def worker(
    queue: Annotated[str, typer.Option(metavar="routing|general", help="Which tasks it runs.")] = "routing",
) -> None:
    """Run Celery tasks: `routing` matches changes to gateways, `general` does the rest."""
    chosen: Any = _choice("--queue", queue, ("routing", "general"))
    settings = _process()
    from celery.signals import worker_ready

    from cloudsync.routing import process

    worker_ready.connect(_announce, weak=False)
    process.run_worker(settings, queue=chosen)


@app.command(rich_help_panel=_PROCESSES)
def beat() -> None:
    """Start periodic tasks: the sweep, partitions, upkeep."""
    settings = _process()
    from celery.signals import beat_init

    from cloudsync.routing import process

    beat_init.connect(_announce, weak=False)
    process.run_beat(settings)


@app.command(rich_help_panel=_PROCESSES)
def gateway() -> None:
    """Serve WebSocket clients."""
    from cloudsync.gateway import server

    server.run(_process())


@app.command(rich_help_panel=_PROCESSES)
def drain(
    gateway: Annotated[str, typer.Argument(metavar="GATEWAY", help="Its id: CLOUDSYNC_GATEWAY_ID.")],
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for it.")] = 120.0,
    redis_url: RedisUrl = None,
    data: Folder = _FOLDER,
) -> None:
    """Have a gateway send its clients elsewhere and end; returns when it has left."""
    from cloudsync.dev import connections
    from cloudsync.feeds.connection import connect
    from cloudsync.registry.draining import drain_gateway

    client = connect(connections.redis_url(redis_url, data))
    took_s = drain_gateway(client, gateway, timeout_s=timeout)
    typer.echo(f"{gateway} has left after {took_s:.1f} s.")


@app.command(rich_help_panel=_PROCESSES)
def api() -> None:
    """Serve the HTTP API."""
    from cloudsync.api import server

    server.run(_process())


@app.command(rich_help_panel=_PROCESSES)
def publisher() -> None:
    """Write to CloudWatch what scaling and alarms read: backlog, connections, and how the relay is."""
    from cloudsync.metrics import cloudwatch

    cloudwatch.run(_process())


@keyring.command("rotate")
def keyring_rotate(
    known_for: Annotated[
        float,
        typer.Option("--known-for", metavar="SECONDS", help="Until it seals; all know it before."),
    ] = 900.0,
) -> None:
    """Add a sealing key that takes over after a while; older ones stay, to be read with."""
    from cloudsync.vault import KeyVault

    settings = _process()
    least_s = 3 * settings.keyring_refresh_s
    if known_for < least_s:
        raise ConfigurationError(
            f"--known-for {known_for:g} is too short: processes read the keys every"
            f" {settings.keyring_refresh_s:g} s; give it {least_s:g} s or more."
        )
    key_id = KeyVault.of(settings).rotate(known_for_s=known_for)
    typer.echo(f"Key {key_id} seals in {known_for:g} s.")


def _announce(**_: Any) -> None:
    from cloudsync.dev.readiness import announce

    announce()


# The platform on this machine


@app.command(rich_help_panel=_DEVELOPMENT)
def dev(
    data: Folder = _FOLDER,
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


@app.command(rich_help_panel=_DEVELOPMENT)
def status(data: Folder = _FOLDER) -> None:
    """Show what runs in this folder."""
    from cloudsync.dev import command

    command.show_status(data)


@app.command(rich_help_panel=_PROCESSES)
def doctor(
    postgres_url: PostgresUrl = None,
    redis_url: RedisUrl = None,
    broker_url: Annotated[
        str | None,
        typer.Option(
            "--broker-url", metavar="URL", help="Else CLOUDSYNC_REDIS_BROKER_URL, if it is another."
        ),
    ] = None,
    api_url: Annotated[
        str | None,
        typer.Option("--api-url", metavar="URL", help="Else CLOUDSYNC_API_URL, else the folder's."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every finding as JSON.")] = False,
    all_of_them: Annotated[bool, typer.Option("--all", help="Show what is in order, too.")] = False,
    data: Folder = _FOLDER,
) -> None:
    """Look at an environment from outside: what is wrong, what to do. Exit status 1 if something is."""
    from rich.console import Console

    from cloudsync.dev import connections
    from cloudsync.doctor import command
    from cloudsync.settings import load

    settings = load()
    findings = command.examine(
        postgres_url=connections.postgres_url(postgres_url, data),
        redis_url=redis_url or settings.redis_events_url or connections.redis_url(None, data),
        broker_url=broker_url or settings.redis_broker_url,
        api_url=api_url or connections.known_api_url(data),
        slot=settings.slot_name,
    )
    _exit_with(command.report(list(findings), Console(), as_json=as_json, all_of_them=all_of_them))


@app.command(rich_help_panel=_DEVELOPMENT)
def url(
    environment: Annotated[
        str | None, typer.Argument(metavar="[ENV]", help="An environment of stacks/; else the folder's.")
    ] = None,
    data: Folder = _FOLDER,
) -> None:
    """Print where things are: of the platform of this folder, or of a deployed environment."""
    if environment is not None:
        from cloudsync.dev import deployment

        _exit_with(deployment.run("url", environment))
        return
    from cloudsync.dev import state, status

    for name, address in status.addresses(state.require(data)):
        typer.echo(f"{name}  {address}")


@env.command("show")
def env_show(environment: Annotated[str, typer.Argument(metavar="ENV")]) -> None:
    """Print the settings of an environment as JSON."""
    from cloudsync.dev import deployment

    _exit_with(deployment.run("show", environment))


@env.command("diff")
def env_diff(
    one: Annotated[str, typer.Argument(metavar="ENV")], other: Annotated[str, typer.Argument(metavar="ENV")]
) -> None:
    """Print in which settings two environments differ; exit status 1 if they do."""
    from cloudsync.dev import deployment

    _exit_with(deployment.run("diff", one, other))


@app.command(rich_help_panel=_DEVELOPMENT)
def stop(data: Folder = _FOLDER) -> None:
    """Stop what runs in this folder."""
    from cloudsync.dev import command

    command.stop(data)


@app.command(rich_help_panel=_DEVELOPMENT)
def token(
    tenant: Annotated[str, typer.Option(help="The token's tenant.")],
    user: Annotated[str, typer.Option(help="The token's user.")],
    hours: Annotated[float, typer.Option(help="How long it is good for.")] = 12.0,
    data: Folder = _FOLDER,
) -> None:
    """Print a development token."""
    from cloudsync.dev import connections
    from cloudsync.tokens import development_token

    settings = connections.token_settings(data)
    typer.echo(development_token(settings, tenant=tenant, user=user, lifetime_s=int(hours * 3600)))


@app.command(
    rich_help_panel=_DEVELOPMENT,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def psql(context: typer.Context, dedicated: Dedicated = None, data: Folder = _FOLDER) -> None:
    """Open psql on the platform's database; what follows is psql's own, such as `-c "SELECT 1"`."""
    from cloudsync.dev import command, connections

    command.psql(connections.postgres_url(None, data, dedicated=dedicated), context.args)


# Tables


@app.command(rich_help_panel=_TABLES)
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
    data: Folder = _FOLDER,
) -> None:
    """Capture every change of a table from now on."""
    from cloudsync.capture import tracking

    with _database(postgres_url, data, dedicated=dedicated) as connection:
        tracked = tracking.track(
            connection,
            table,
            tenant_column=tenant_column,
            tenant=tenant,
            owner_column=owner_column,
            audience=audience,
            audience_depends_on=_json_object("--audience-depends-on", audience_depends_on or "{}"),
            conflict=conflict,
            columns=dict(_pair("--column", each) for each in column or []),
            checked=checked,
        )
    typer.echo(f"Tracking {tracked.name}.")


@app.command(rich_help_panel=_TABLES)
def untrack(
    table: TableName,
    dedicated: Dedicated = None,
    postgres_url: PostgresUrl = None,
    data: Folder = _FOLDER,
) -> None:
    """Stop capturing a table and remove what `track` made."""
    from cloudsync.capture import tracking

    with _database(postgres_url, data, dedicated=dedicated) as connection:
        tracking.untrack(connection, table)
    typer.echo(f"No longer tracking {table}.")


@app.command(rich_help_panel=_TABLES)
def touch(
    table: TableName,
    key: Annotated[str, typer.Argument(metavar="KEY", help='The row\'s key as JSON, such as {"id": 7}.')],
    dedicated: Dedicated = None,
    postgres_url: PostgresUrl = None,
    data: Folder = _FOLDER,
) -> None:
    """Send a row to its readers once more."""
    from cloudsync.capture import tracking

    with _database(postgres_url, data, dedicated=dedicated) as connection:
        tracking.touch(connection, table, _json_object("KEY", key))
    typer.echo(f"Touched {table} {key}.")


@app.command(rich_help_panel=_TABLES)
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
    data: Folder = _FOLDER,
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


# Tenants

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
    data: Folder = _FOLDER,
) -> None:
    """Record a tenant. One that is only `shared` needs no record: its tokens name it."""
    from cloudsync.tenants import command
    from cloudsync.tenants.records import PLANS

    with _database(postgres_url, data, autocommit=True) as connection:
        for line in command.create(connection, tenant_id, name=name, plan=_choice("--plan", plan, PLANS)):
            typer.echo(line)


@tenant.command("move")
def tenant_move(
    tenant_id: TenantId, plan: PlanOption, postgres_url: PostgresUrl = None, data: Folder = _FOLDER
) -> None:
    """Put a tenant's rows where another plan has them; repeat it for tables that were tracked since."""
    from cloudsync.tenants import command
    from cloudsync.tenants.records import PLANS

    with _database(postgres_url, data, autocommit=True) as connection:
        for line in command.move(connection, tenant_id, plan=_choice("--plan", plan, PLANS)):
            typer.echo(line)


@tenant.command("list")
def tenant_list(postgres_url: PostgresUrl = None, data: Folder = _FOLDER) -> None:
    """Show the tenants that were recorded."""
    from rich.console import Console

    from cloudsync.tenants import command

    with _database(postgres_url, data) as connection:
        command.show_all(connection, Console())


@tenant.command("show")
def tenant_show(tenant_id: TenantId, postgres_url: PostgresUrl = None, data: Folder = _FOLDER) -> None:
    """Show a tenant and where its rows are."""
    from cloudsync.tenants import command

    with _database(postgres_url, data) as connection:
        for line in command.show(connection, tenant_id):
            typer.echo(line)


@tenant.command("attach")
def tenant_attach(
    tenant_id: TenantId,
    database: Annotated[
        str,
        typer.Option(
            "--database",
            metavar="REFERENCE",
            help="postgresql://cloudsync_service@HOST:PORT/DATABASE?password_secret=ARN, no password.",
        ),
    ],
    postgres_url: PostgresUrl = None,
    data: Folder = _FOLDER,
) -> None:
    """Have a tenant served from a database of its own, from now on and without a restart; may be repeated."""
    from cloudsync.settings import load
    from cloudsync.tenants import command

    within_s = load().tenant_refresh_s + 1
    with _database(postgres_url, data, autocommit=True) as connection:
        said, warnings = command.attach(connection, tenant_id, database, within_s=within_s)
    typer.echo(said)
    for warning in warnings:
        typer.echo(f"Warning: {warning}", err=True)


@tenant.command("detach")
def tenant_detach(tenant_id: TenantId, postgres_url: PostgresUrl = None, data: Folder = _FOLDER) -> None:
    """Have a tenant served from the shared database again; the rows of its own stay where they are."""
    from cloudsync.settings import load
    from cloudsync.tenants import command

    with _database(postgres_url, data, autocommit=True) as connection:
        typer.echo(command.detach(connection, tenant_id, within_s=load().tenant_refresh_s + 1))


@tenant.command("disable")
def tenant_disable(tenant_id: TenantId, postgres_url: PostgresUrl = None, data: Folder = _FOLDER) -> None:
    """Close a tenant's connections, and let nobody of it in until it is enabled again."""
    from cloudsync.settings import load
    from cloudsync.tenants import command

    with _database(postgres_url, data) as connection:
        typer.echo(command.disable(connection, tenant_id, within_s=load().tenant_refresh_s + 1))


@tenant.command("enable")
def tenant_enable(tenant_id: TenantId, postgres_url: PostgresUrl = None, data: Folder = _FOLDER) -> None:
    """Let a tenant's users in again."""
    from cloudsync.tenants import command

    with _database(postgres_url, data) as connection:
        typer.echo(command.enable(connection, tenant_id))


# What is measured and shown

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(rich_help_panel=_DEVELOPMENT, context_settings=_PASS_ON)
def bench(context: typer.Context) -> None:
    """Measure: `cloudsync bench SCENARIO …`; `cloudsync bench --help` says more."""
    from cloudsync.bench import command

    _exit_with(command.main(context.args))


@app.command(rich_help_panel=_DEVELOPMENT, context_settings=_PASS_ON)
def demo(context: typer.Context) -> None:
    """Start the platform, run a real workload, and check every client's view against SQL."""
    from cloudsync.dev import demo as demonstration

    _exit_with(demonstration.main(context.args))


@app.command(rich_help_panel=_DEVELOPMENT, context_settings=_PASS_ON)
def verify(context: typer.Context) -> None:
    """Prove on a running environment that nothing is lost and nobody sees too much; `verify --help`."""
    from cloudsync.verify import command

    _exit_with(command.main(context.args))


@app.command(rich_help_panel=_DEVELOPMENT, context_settings=_PASS_ON)
def soak(context: typer.Context) -> None:
    """Kill processes of a platform for minutes while clients watch, then check every view against SQL."""
    from cloudsync.verify import soak as endurance

    _exit_with(endurance.main(context.args))


# The audit log


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
    data: Folder = _FOLDER,
) -> None:
    """Compute every chain again and name the first row of each that is wrong; then exit with status 1."""
    from cloudsync.audit import command
    from cloudsync.dev import connections
    from cloudsync.keyring import Keyring

    keys = Keyring.load(keyring or connections.keyring_file(data))
    url = connections.postgres_url(postgres_url, data)
    _exit_with(command.verify(url, keys, since=since, expect=expect or []))


@audit.command("export")
def audit_export(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's rows.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Recorded from then on, ISO 8601.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Recorded before then.")] = None,
    postgres_url: PostgresUrl = None,
    data: Folder = _FOLDER,
) -> None:
    """Print the log as JSON lines."""
    from cloudsync.audit import command
    from cloudsync.dev import connections

    url = connections.postgres_url(postgres_url, data)
    command.export_lines(url, tenant=tenant, since=since, until=until)


@app.command(rich_help_panel=_DEVELOPMENT, hidden=True)
def reference(
    folder: Annotated[Path, typer.Argument(metavar="DIR")] = Path("runbooks/reference"),
) -> None:
    """Write the pages of metrics, settings and codes from their registries."""
    from cloudsync.dev import reference as made

    for file in made.write(folder):
        typer.echo(f"wrote {file}")


# Arguments and errors


def _exit_with(status: int | None) -> None:
    if status:
        raise typer.Exit(status)


def _choice(option: str, value: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise typer.BadParameter(f"{option} must be one of {', '.join(allowed)}, not {value!r}.")
    return value


def _json_object(what: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{what} must be a JSON object, not {text!r}.")
    return value


def _pair(option: str, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise typer.BadParameter(f"{option} must look like NAME=POLICY, not {text!r}.")
    return name, value


def _database(
    url: str | None, folder: Path, *, autocommit: bool = False, dedicated: str | None = None
) -> Any:
    import psycopg

    from cloudsync.dev import connections

    found = connections.postgres_url(url, folder, dedicated=dedicated)
    return psycopg.connect(found, connect_timeout=10, autocommit=autocommit)


_UNREACHABLE = ("08", "28", "3D", "57P")  # classes: connection, authorization, no such database, shutdown


def registered(error: Exception) -> CloudSyncError | None:
    """The registered error that a driver's connection error means, if it is one."""
    psycopg, redis = sys.modules.get("psycopg"), sys.modules.get("redis")
    if isinstance(error, CloudSyncError):
        return error
    if psycopg is not None and isinstance(error, psycopg.OperationalError):
        state = error.sqlstate
        if state is None or state.startswith(_UNREACHABLE):
            from cloudsync.dev.checks import unreachable_postgres

            return unreachable_postgres(error)
    if psycopg is not None and isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        return ConfigurationError(f"The PostgreSQL URL is not usable: {str(error).strip()}.")
    if redis is not None and isinstance(error, redis.RedisError):
        from cloudsync.dev.checks import unusable_redis

        return unusable_redis(error)
    return None


def main() -> None:
    """Run the command line: exit status 1 for an error that has a code, 2 for wrong usage."""
    try:
        app(prog_name="cloudsync")
    except Exception as error:
        known = registered(error)
        if known is None:
            raise
        sentence = " ".join(str(known).split())  # some drivers break their lines
        sys.stderr.write(f"cloudsync: {sentence} [{known.code}]\n")
        sys.exit(1)


__all__ = ["app", "main", "registered"]
