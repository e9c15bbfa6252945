"""`cloudsync verify`: random programs in a scratch tenant of a deployed environment, then a report."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psycopg
from rich.console import Console

from cloudsync.client.rest import Rest
from cloudsync.dev import connections
from cloudsync.errors import ConfigurationError, TokenRefused
from cloudsync.settings import load
from cloudsync.tenants import records
from cloudsync.tokens import development_token
from cloudsync.verify import choose
from cloudsync.verify.chooser import Seeded
from cloudsync.verify.ledger import User
from cloudsync.verify.program import USERS, Program, decode, encode
from cloudsync.verify.runner import Report, Runner
from cloudsync.verify.scratch import drop_schema, leftovers
from cloudsync.verify.target import Target

_TOKEN_LIFETIME_S: Final = 300
_SHOWN: Final = 20
_TENANT: Final = "cloudsync-verify"


def main(arguments: Sequence[str]) -> int:
    """0 if nothing was lost or leaked, 1 if something was, 130 after Ctrl-C; the scratch schema is gone."""
    parsed = _parser().parse_args(list(arguments))
    console = Console(highlight=False, soft_wrap=True)
    parsed.tenant = parsed.tenant or parsed.dedicated or _TENANT
    url = connections.postgres_url(parsed.postgres_url, parsed.data, dedicated=parsed.dedicated)
    _report_leftovers(url, console, drop=parsed.clean)
    if parsed.clean:
        return 0
    _refuse_elsewhere(url, (parsed.tenant, parsed.other_tenant))
    target = Target(
        postgres_url=url,
        api_url=connections.api_url(parsed.url, parsed.data),
        token=_signer(parsed),
        tenants=(parsed.tenant, parsed.other_tenant or f"{parsed.tenant}-other"),
        users=_users(parsed),
        token_lifetime_s=_TOKEN_LIFETIME_S,
    )
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        report = asyncio.run(_verify(target, parsed, console))
    except KeyboardInterrupt:
        console.print("Stopped; the scratch schema is gone.", style="dim")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    show(report, console)
    return 0 if report.good else 1


def show(report: Report, console: Console) -> None:
    """The verdict, for people."""
    failed = f"{len(report.failed):,} subscriptions failed, " if report.failed else ""
    ways = ", ".join(f"{count:,} by {way}" for way, count in sorted(report.resumed.items())) or "none"
    console.print(
        f"{report.images:,} row images written, {report.events:,} events received on {report.connections:,} "
        f"connections; came back: {ways}."
    )
    for finding in report.findings[:_SHOWN]:
        console.print(f"✗ {finding}", style="red", markup=False)
    if len(report.findings) > _SHOWN:
        console.print(f"… and {len(report.findings) - _SHOWN:,} more", style="red")
    verdict = (
        f"{failed}lost {len(report.lost):,}, leaked {len(report.leaked):,}, "
        f"otherwise wrong {len(report.wrong):,}"
    )
    console.print(verdict, style="bold green" if report.good else "bold red")


async def _verify(target: Target, parsed: argparse.Namespace, console: Console) -> Report:
    # First of all, so that a wrong URL or token is one sentence and not a program in which nothing works.
    token = await asyncio.to_thread(target.token, target.users[0], target.token_lifetime_s)
    await Rest(target.api_url).endpoint(token)
    total = Report()
    deadline_s = time.monotonic() + parsed.minutes * 60
    seed = parsed.seed if parsed.seed is not None else secrets.randbelow(1_000_000)
    while True:
        program = _program(parsed, seed)
        report = await Runner(target, program, settle_s=parsed.patience).run()
        mark = "✓" if report.good else "✗"
        console.print(
            f"{mark} {parsed.program or f'seed {seed}'}: {len(program.tables)} tables, "
            f"{len(program.steps)} steps, {report.images:,} images, {report.events:,} events"
        )
        if not report.good and parsed.keep is not None:
            parsed.keep.mkdir(parents=True, exist_ok=True)
            (parsed.keep / f"seed-{seed}.json").write_bytes(encode(program))
        total.add(report)
        seed += 1
        if parsed.program is not None or time.monotonic() > deadline_s:
            return total


def _program(parsed: argparse.Namespace, seed: int) -> Program:
    if parsed.program is not None:
        return decode(parsed.program.read_bytes())
    return choose.program(Seeded(seed), steps=parsed.steps)


def _users(parsed: argparse.Namespace) -> list[User]:
    """Those for whom a token can be had: of the other tenant only where it is named, or with a secret."""
    tenants = (parsed.tenant, parsed.other_tenant or f"{parsed.tenant}-other")
    # Clients of the other one would be sent to the shared database, where the scratch tables are not.
    alone = parsed.token_command is not None or parsed.dedicated is not None
    both = parsed.other_tenant is not None or not alone
    return [User(tenants[tenant], user) for tenant, user in USERS if both or tenant == 0]


def _signer(parsed: argparse.Namespace) -> Callable[[User, int], str]:
    if parsed.token_command is not None:
        words = shlex.split(parsed.token_command)

        def ask(user: User, lifetime_s: int) -> str:
            values = {"tenant": user.tenant, "user": user.user, "seconds": str(lifetime_s)}
            try:
                argv = [word.format(**values) for word in words]
                done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30)  # noqa: S603
            except (OSError, KeyError, IndexError, ValueError, subprocess.SubprocessError) as error:
                raise TokenRefused(
                    f"The token command did not give a token: {type(error).__name__}.",
                    hint="It must print one JWT; {tenant}, {user} and {seconds} are filled in.",
                ) from None
            return done.stdout.strip()

        return ask
    if parsed.jwt_secret_file is not None:
        try:
            settings = load(mode="development", jwt_secret=parsed.jwt_secret_file.read_text().strip())
        except OSError as error:
            raise ConfigurationError(f"{parsed.jwt_secret_file} cannot be read: {error.strerror}.") from None
    else:
        settings = connections.token_settings(parsed.data)
    return lambda user, lifetime_s: development_token(
        settings, tenant=user.tenant, user=user.user, lifetime_s=lifetime_s
    )


def _refuse_elsewhere(url: str, tenants: Sequence[str | None]) -> None:
    """Tables in the shared database are none to clients of a tenant that has one of its own."""
    with (
        contextlib.suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable),
        psycopg.connect(url, connect_timeout=10) as connection,
    ):
        for tenant in records.list_tenants(connection):
            if tenant.id in tenants and tenant.database is not None:
                raise ConfigurationError(
                    f"The tenant {tenant.id} has a database of its own, and this is the shared one.",
                    hint=f"Name it with --dedicated {tenant.id} if `cloudsync dev --dedicated` made it, else"
                    " with --postgres-url and --tenant.",
                )


def _report_leftovers(url: str, console: Console, *, drop: bool) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        found = leftovers(connection)
        for schema in found:
            if drop:
                drop_schema(connection, schema)
                console.print(f"Dropped {schema}.")
    if drop and not found:
        console.print("No scratch schemas are there.")
    if found and not drop:
        console.print(
            f"{len(found)} scratch schemas of other runs are there. "
            "If none is running now: cloudsync verify --clean",
            style="yellow",
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloudsync verify",
        description="Prove on a running environment that nothing is lost and nobody sees too much: random "
        "writes, rights, filters, slow and returning clients in a scratch schema, compared with SQL.",
    )
    parser.add_argument("--url", help="the API; else CLOUDSYNC_API_URL, else this folder's platform")
    parser.add_argument(
        "--postgres-url", metavar="URL",
        help="the database, as a role that may create and track tables; else CLOUDSYNC_POSTGRES_URL, "
        "else this folder's platform",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, default=Path(".cloudsync"), metavar="DIR", help="that folder")
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument(
        "--token-command", metavar="COMMAND",
        help="prints a JWT; {tenant}, {user} and {seconds} are filled in. Default: the development secret",
    )  # fmt: skip
    tokens.add_argument("--jwt-secret-file", type=Path, metavar="FILE", help="the development secret")
    parser.add_argument(
        "--dedicated", metavar="TENANT", help="in the database that `dev --dedicated` made for this tenant"
    )
    parser.add_argument("--tenant", help=f"the scratch tenant ({_TENANT}, or that of --dedicated)")
    parser.add_argument(
        "--other-tenant", help="a second one that tokens can be had for: isolation is tried both ways"
    )
    parser.add_argument("--minutes", type=float, default=1.0, metavar="N", help="how long (%(default)g)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the first program; default: any")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="steps of a program at most (30)")
    parser.add_argument(
        "--patience", type=float, default=30.0, metavar="S", help="how long views may take to be right (30 s)"
    )
    parser.add_argument("--program", type=Path, metavar="FILE", help="run this one program instead")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write programs that fail here")
    parser.add_argument(
        "--clean", action="store_true", help="only drop the scratch schemas of runs that were killed"
    )
    return parser
