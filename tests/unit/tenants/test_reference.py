"""References of tenants' databases: what they may say, and what is refused with a sentence."""

from __future__ import annotations

import pytest

from cloudsync.errors import TenantRefused
from cloudsync.tenants.reference import parse

_ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:Tenant-acme/Service-AbCdEf"
_URL = "postgresql://cloudsync_service@db.example:5433/cloudsync"


def test_the_secret_is_taken_out_before_libpq_sees_the_url() -> None:
    quoted = _ARN.replace(":", "%3A").replace("/", "%2F")
    for arn in (_ARN, quoted):
        reference = parse(f"{_URL}?sslmode=verify-full&password_secret={arn}&sslrootcert=/etc/rds.pem")
        assert reference.url == f"{_URL}?sslmode=verify-full&sslrootcert=/etc/rds.pem"
        assert reference.secret == _ARN
    assert parse(_URL) == (_URL, None)


def test_two_references_to_one_place_are_known_as_such() -> None:
    assert parse(f"{_URL}?sslmode=require").place == parse(_URL.replace("db.", "DB.")).place
    assert parse("postgresql://cloudsync_service@h/d").place == ("h", "5432", "d")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "begin with postgresql://"),
        ("db.example", "begin with postgresql://"),
        ("mysql://cloudsync_service@h/d", "begin with postgresql://"),
        ("postgresql://cloudsync_service@[h/d", "libpq does not understand"),
        (f" {_URL}", "blanks"),
        (f"{_URL}\n", "blanks"),
        (_URL + "x" * 2000, "too long"),
        ("postgresql://postgres@h/d", "user is not cloudsync_service"),
        ("postgresql://h/d", "user is not cloudsync_service"),
        ("postgresql:///d?user=cloudsync_service", "no host"),
        ("postgresql://cloudsync_service@h", "no host or no database"),
        (f"{_URL}?sslmoed=require", "libpq does not understand"),
        (f"{_URL}?service=other", "a service says more"),
        (f"{_URL}?password_secret=my-secret", "password_secret"),
        (f"{_URL}?password_secret=", "password_secret"),
        (f"{_URL}?password_secret={_ARN}&password_secret={_ARN}", "password_secret"),
        (f"{_URL}?password_secret=arn:aws:kms:eu-central-1:123456789012:key/x", "password_secret"),
    ],
)
def test_what_is_wrong_is_said(text: str, reason: str) -> None:
    with pytest.raises(TenantRefused) as caught:
        parse(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://cloudsync_service:hunter2@h/d",
        f"{_URL}?password=hunter2",
        f"{_URL}?sslpassword=hunter2",
        f"{_URL}?oauth_client_secret=hunter2",
        f"{_URL}?scram_client_key=hunter2",
        f"{_URL}?pass%77ord=hunter2",
    ],
)
def test_a_password_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(TenantRefused, match="has a password in it") as caught:
        parse(text)
    assert "hunter2" not in str(caught.value)
