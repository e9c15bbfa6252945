"""What verbs have in common: options that name servers and folders, and what is made of their texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

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
FOLDER: Final = Path(".cloudsync")


def exit_with(status: int | None) -> None:
    if status:
        raise typer.Exit(status)


def choice(option: str, value: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise typer.BadParameter(f"{option} must be one of {', '.join(allowed)}, not {value!r}.")
    return value


def json_object(what: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{what} must be a JSON object, not {text!r}.")
    return value


def pair(option: str, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise typer.BadParameter(f"{option} must look like NAME=POLICY, not {text!r}.")
    return name, value


def database(url: str | None, folder: Path, *, autocommit: bool = False, dedicated: str | None = None) -> Any:
    import psycopg

    from cloudsync.dev import connections

    found = connections.postgres_url(url, folder, dedicated=dedicated)
    return psycopg.connect(found, connect_timeout=10, autocommit=autocommit)
