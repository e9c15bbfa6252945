"""Passwords of the roles that processes log in with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import Connection, sql


def set_passwords(conn: Connection[Any], passwords: Mapping[str, str]) -> None:
    """Give each role its password; a repeat changes nothing but the salt.

    The server receives the SCRAM verifier, so that no password can appear in its log.
    """
    for role, password in passwords.items():
        verifier = conn.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
        conn.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier.decode()))
        )
