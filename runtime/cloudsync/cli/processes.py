"""The processes of a deployment, and what is done to all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloudsync.cli.application import PROCESSES, app, keyring
from cloudsync.cli.arguments import FOLDER, Folder, PostgresUrl, RedisUrl, choice, database, exit_with
from cloudsync.errors import ConfigurationError

if TYPE_CHECKING:
    from cloudsync.settings import Settings


@app.command(rich_help_panel=PROCESSES)
def migrate(
    phase: Annotated[str, typer.Option(metavar="pre|post|all", help="Which migrations.")] = "all",
    plan: Annotated[bool, typer.Option("--plan", help="Print what would run, and change nothing.")] = False,
    postgres_url: PostgresUrl = None,
    data: Folder = FOLDER,
) -> None:
    """Bring the database to this version: `pre` before new code runs, `post` after the old code is gone."""
    from cloudsync.capture import logins, migrations
    from cloudsync.dev import connections
    from cloudsync.settings import load

    chosen = choice("--phase", phase, ("pre", "post", "all"))
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
        with database(url, data) as connection:
            logins.set_passwords(connection, {role: each for role, each in passwords.items() if each})
    for migration in applied:
        typer.echo(f"{'would apply' if plan else 'applied'} {migration.name}")
    if not applied:
        typer.echo("Nothing to apply.")


@app.command(rich_help_panel=PROCESSES)
def relay() -> None:
    """Publish committed changes from PostgreSQL's WAL to the feeds in Redis."""
    from cloudsync.relay import process

    process.run(_process())


@app.command(rich_help_panel=PROCESSES)
def worker(
    queue: Annotated[str, typer.Option(metavar="routing|general", help="Which tasks it runs.")] = "routing",
) -> None:
    """Run Celery tasks: `routing` matches changes to gateways, `general` does the rest."""
    chosen: Any = choice("--queue", queue, ("routing", "general"))
    settings = _process()
    from celery.signals import worker_ready

    from cloudsync.routing import process

    worker_ready.connect(_announce, weak=False)
    process.run_worker(settings, queue=chosen)


@app.command(rich_help_panel=PROCESSES)
def beat() -> None:
    """Start periodic tasks: the sweep, partitions, upkeep."""
    settings = _process()
    from celery.signals import beat_init

    from cloudsync.routing import process

    beat_init.connect(_announce, weak=False)
    process.run_beat(settings)


@app.command(rich_help_panel=PROCESSES)
def gateway() -> None:
    """Serve WebSocket clients."""
    from cloudsync.gateway import server

    server.run(_process())


@app.command(rich_help_panel=PROCESSES)
def drain(
    gateway: Annotated[str, typer.Argument(metavar="GATEWAY", help="Its id: CLOUDSYNC_GATEWAY_ID.")],
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for it.")] = 120.0,
    redis_url: RedisUrl = None,
    data: Folder = FOLDER,
) -> None:
    """Have a gateway send its clients elsewhere and end; returns when it has left."""
    from cloudsync.dev import connections
    from cloudsync.feeds.connection import connect
    from cloudsync.registry.draining import drain_gateway

    client = connect(connections.redis_url(redis_url, data))
    took_s = drain_gateway(client, gateway, timeout_s=timeout)
    typer.echo(f"{gateway} has left after {took_s:.1f} s.")


@app.command(rich_help_panel=PROCESSES)
def api() -> None:
    """Serve the HTTP API."""
    from cloudsync.api import server

    server.run(_process())


@app.command(rich_help_panel=PROCESSES)
def publisher() -> None:
    """Write to CloudWatch what scaling and alarms read: backlog, connections, and how the relay is."""
    from cloudsync.metrics import cloudwatch

    cloudwatch.run(_process())


@app.command(rich_help_panel=PROCESSES)
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
    data: Folder = FOLDER,
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
    exit_with(command.report(list(findings), Console(), as_json=as_json, all_of_them=all_of_them))


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


def _process() -> Settings:
    """Settings of this process, with its logs set up."""
    from cloudsync import logs
    from cloudsync.settings import current

    settings = current()
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    return settings


def _announce(**_: Any) -> None:
    from cloudsync.dev.readiness import announce

    announce()
