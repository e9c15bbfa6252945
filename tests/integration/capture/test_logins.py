"""The roles that processes log in with get their passwords from the migration."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
import sys

import psycopg


def _matches(verifier: str, password: str) -> bool:
    """Whether a SCRAM-SHA-256 verifier (RFC 5803) is that of a password."""
    scheme, iterations, keys = verifier.split("$")
    count, salt = iterations.split(":")
    stored, _ = keys.split(":")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(count))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return scheme == "SCRAM-SHA-256" and base64.b64decode(stored) == hashlib.sha256(client_key).digest()


def _verifiers(database: str) -> dict[str, str]:
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT rolname, rolpassword FROM pg_authid WHERE rolname ~ '^cloudsync_(relay|service)$'"
        ).fetchall()
    return dict(rows)


def test_migrate_gives_the_roles_their_passwords(database: str) -> None:
    def migrate(*arguments: str, **passwords: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cloudsync", "migrate", "--phase", "pre", *arguments],
            env={"PYTHONPATH": ":".join(sys.path), "CLOUDSYNC_POSTGRES_URL": database, **passwords},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    before = _verifiers(database)
    migrate("--plan", CLOUDSYNC_RELAY_PASSWORD="unused")
    migrate()
    assert _verifiers(database) == before

    said = migrate(CLOUDSYNC_RELAY_PASSWORD="it's a \\ relay", CLOUDSYNC_SERVICE_PASSWORD="and a service")
    after = _verifiers(database)
    assert _matches(after["cloudsync_relay"], "it's a \\ relay")
    assert _matches(after["cloudsync_service"], "and a service")
    assert not _matches(after["cloudsync_service"], "it's a \\ relay")
    assert "service" not in said

    with psycopg.connect(database) as connection:  # roles belong to the server, which other tests share
        connection.execute(
            "ALTER ROLE cloudsync_relay PASSWORD NULL; ALTER ROLE cloudsync_service PASSWORD NULL"
        )
