"""The platform's database on an embedded or a given server."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

DATABASE: Final = "cloudsync"


def ensure_database(url: str, name: str = DATABASE) -> None:
    """Create the database if the server lacks it."""
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def as_role(url: str, role: str) -> str:
    """The same database as a role without password; a URL stays a URL."""
    if "://" in url:
        parts = urlsplit(url)
        query = "&".join(
            pair for pair in parts.query.split("&") if not pair.lower().startswith(("user=", "password="))
        )
        place = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{quote(role, safe='')}@{place}", query=query))
    parameters = {**conninfo_to_dict(url), "user": role}
    parameters.pop("password", None)
    return make_conninfo("", **parameters)


def lets_in(url: str) -> bool:
    """Whether the server accepts a connection with this URL."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
