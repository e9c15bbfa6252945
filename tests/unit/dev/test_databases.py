"""Connection strings of the platform's roles."""

from __future__ import annotations

import pytest

from cloudsync.dev.databases import as_role


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://admin:hush@db.example:5433/shop", "postgresql://relay@db.example:5433/shop"),
        (
            "postgresql://db.example/shop?sslmode=require",
            "postgresql://relay@db.example/shop?sslmode=require",
        ),
        ("postgresql://h/d?user=a&password=b&sslmode=require", "postgresql://relay@h/d?sslmode=require"),
        ("host=db.example user=admin password=hush dbname=shop", "user=relay dbname=shop host=db.example"),
    ],
)
def test_a_role_comes_without_the_password_of_another(given: str, expected: str) -> None:
    assert as_role(given, "relay") == expected
