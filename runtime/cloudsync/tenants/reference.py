"""The reference of a tenant's own database: where it is and who logs in, never the password itself."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from cloudsync.errors import TenantRefused

ROLE: Final = "cloudsync_service"
_SECRET: Final = "password_secret"  # noqa: S105 - a parameter's name
_ARN: Final = re.compile(r"arn:[^:\s]+:secretsmanager:[a-z0-9-]+:\d{12}:secret:[^:\s]+\Z")
_FORM: Final = f"postgresql://{ROLE}@HOST:PORT/DATABASE?sslmode=verify-full&{_SECRET}=ARN"
_LENGTH: Final = 2000
_PASSWORDS: Final = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


class DatabaseReference(NamedTuple):
    """`url` is for libpq, without a password; `secret` is the ARN of the secret that has it, if any."""

    url: str
    secret: str | None = None

    @property
    def place(self) -> tuple[str, str, str]:
        """Host, port and database: two references to one place have the same."""
        parts: dict[str, Any] = {**conninfo_to_dict(self.url)}
        return str(parts["host"]).lower(), str(parts.get("port", "5432")), str(parts["dbname"])


def parse(text: str) -> DatabaseReference:
    """A reference as it is recorded. Raises TenantRefused with what is wrong, without repeating the text."""
    if len(text) > _LENGTH or text != text.strip() or not text.isprintable():
        raise _refused("it is too long, or has blanks or control characters in it")
    if not text.startswith(("postgresql://", "postgres://")):
        raise _refused("it does not begin with postgresql://")
    secrets, kept = [], []
    address, _, query = text.partition("?")
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if unquote(name) == _SECRET:
            secrets.append(unquote(value))
        else:
            kept.append(pair)
    url = f"{address}?{'&'.join(kept)}" if kept else address
    try:
        known: dict[str, Any] = {**conninfo_to_dict(url)}
    except (psycopg.ProgrammingError, UnicodeError):
        raise _refused("libpq does not understand it") from None
    if not known.keys().isdisjoint(_PASSWORDS):
        raise TenantRefused(
            "The reference has a password in it.",
            hint=f"Put it into a secret as its field `password`, and name that: {_SECRET}=ARN.",
        )
    if "service" in known:
        raise _refused("a service says more than it does")
    if known.get("user") != ROLE:
        raise _refused(f"its user is not {ROLE}")
    if not known.get("host") or not known.get("dbname"):
        raise _refused("it names no host or no database")
    if len(secrets) > 1 or any(not _ARN.match(secret) for secret in secrets):
        raise _refused(f"{_SECRET} is not the ARN of one secret of Secrets Manager")
    return DatabaseReference(url, secrets[0] if secrets else None)


def _refused(reason: str) -> TenantRefused:
    return TenantRefused(f"The reference of the database is not usable: {reason}.", hint=f"It is {_FORM}.")
