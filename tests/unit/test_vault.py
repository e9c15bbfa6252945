"""The keyring from KMS: known before it seals, two writers at once, and what a process sees while it runs."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

boto3 = pytest.importorskip("boto3", reason="the extra `aws` is not installed")
moto_server = pytest.importorskip("moto.server", reason="the extra `deploy` is not installed")
typer_testing = pytest.importorskip("typer.testing")

from cloudsync import unlocking  # noqa: E402
from cloudsync.cli import app  # noqa: E402
from cloudsync.errors import ConfigurationError, KeyringUnreachable, SealBroken  # noqa: E402
from cloudsync.keyring import Keyring  # noqa: E402
from cloudsync.settings import Settings, current  # noqa: E402
from cloudsync.unlocking import open_keyring  # noqa: E402
from cloudsync.vault import KeyVault  # noqa: E402

_REGION = "eu-central-1"


class Account:
    """The KMS key and the secret as the stacks leave them."""

    def __init__(self) -> None:
        self.kms = boto3.client("kms", region_name=_REGION)
        self.secrets = boto3.client("secretsmanager", region_name=_REGION)
        self.key = self.kms.create_key()["KeyMetadata"]["Arn"]
        text = json.dumps({"keys": [], "made": "X"})
        self.secret = self.secrets.create_secret(Name=self.key, SecretString=text)["ARN"]

    def vault(self) -> KeyVault:
        return KeyVault(kms_key=self.key, secret=self.secret)

    def settings(self, **more: Any) -> Settings:
        return Settings(keyring_kms_key=self.key, keyring_secret=self.secret, **more)

    def content(self) -> Any:
        return json.loads(self._current()["SecretString"])

    def write(self, content: Any) -> None:
        """As an operator would put an older version back: by moving the label."""
        before = self._current()["VersionId"]
        text = content if isinstance(content, str) else json.dumps(content)
        put = self.secrets.put_secret_value(SecretId=self.secret, SecretString=text, VersionStages=["HAND"])
        self.secrets.update_secret_version_stage(
            SecretId=self.secret,
            VersionStage="AWSCURRENT",
            RemoveFromVersionId=before,
            MoveToVersionId=put["VersionId"],
        )

    def _current(self) -> Any:
        return self.secrets.get_secret_value(SecretId=self.secret, VersionStage="AWSCURRENT")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def account(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Account:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return Account()


def _keyring(vault: KeyVault) -> Keyring:
    opened = vault.open()
    return Keyring(keys=opened.keys, active=opened.active, tag_secret=opened.tag_secret)


def test_two_processes_have_the_same_keys_and_none_rests_in_the_clear(account: Account) -> None:
    assert account.vault().ensure()
    assert not account.vault().ensure()
    one, other = _keyring(account.vault()), _keyring(account.vault())
    assert other.open(one.sealer().seal(b"row", b"x"), b"x") == b"row"
    assert one.tag("topic", "a") == other.tag("topic", "a")
    opened, text = account.vault().open(), json.dumps(account.content()).encode()
    for secret in (*opened.keys.values(), opened.tag_secret):
        assert len(secret) == 32
        assert secret.hex().encode() not in text
        assert base64.b64encode(secret) not in text


def test_before_the_first_key_a_process_says_what_to_do(account: Account) -> None:
    with pytest.raises(ConfigurationError, match="cloudsync migrate"):
        account.vault().open()
    with pytest.raises(ConfigurationError, match="cloudsync migrate"):
        account.vault().rotate(known_for_s=0)


def test_a_new_key_is_known_before_it_seals(account: Account) -> None:
    vault = account.vault()
    vault.ensure()
    before = vault.open()
    new = bytes.fromhex(vault.rotate(known_for_s=900))
    waiting = vault.open()
    assert set(waiting.keys) == {*before.keys, new}
    assert waiting.active == before.active
    assert waiting.tag_secret == before.tag_secret, "topics, cursors and the audit chain hang on it"
    content = account.content()
    content["keys"][-1]["active_at"] = time.time() - 1
    account.write(content)
    assert vault.open().active == new
    assert set(vault.open().keys) == set(waiting.keys)


def test_of_two_writers_none_undoes_the_other(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    account.vault().ensure()
    slow, quick = account.vault(), account.vault()
    read, added = slow._read, []

    def overtaken() -> Any:
        stored = read()
        if not added:
            added.append(quick.rotate(known_for_s=60))
        return stored

    monkeypatch.setattr(slow, "_read", overtaken)
    own = slow.rotate(known_for_s=60)
    assert {own, *added} <= {key["id"] for key in account.content()["keys"]}
    assert len(account.content()["keys"]) == 3


def test_a_wrapped_key_in_the_place_of_another_does_not_open(account: Account) -> None:
    account.vault().ensure()
    account.vault().rotate(known_for_s=0)
    content = account.content()
    first, second = content["keys"]
    first["wrapped"], second["wrapped"] = second["wrapped"], first["wrapped"]
    account.write(content)
    with pytest.raises(KeyringUnreachable, match="Decrypt"):
        account.vault().open()


@pytest.mark.parametrize("text", ["", "hello", "[]", '{"keys": [{"id": 5}]}', '{"keys": "x"}'])
def test_a_secret_that_is_no_keyring_gives_one_sentence(account: Account, text: str) -> None:
    account.write(text or " ")
    with pytest.raises(ConfigurationError, match="CLOUDSYNC_KEYRING_SECRET"):
        account.vault().open()


def test_a_secret_that_is_not_there_or_refused_is_named_by_its_operation(account: Account) -> None:
    with pytest.raises(KeyringUnreachable, match="GetSecretValue"):
        KeyVault(kms_key=account.key, secret="nowhere").open()


def test_a_running_process_takes_a_new_key_without_a_restart(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the vault was out of order; sealers that were made before seal with the new key."""
    noticed = threading.Event()
    monkeypatch.setattr(
        unlocking, "_log", SimpleNamespace(warning=lambda *_, **__: noticed.set(), info=lambda *_, **__: None)
    )
    account.vault().ensure()
    keyring = open_keyring(account.settings(keyring_refresh_s=0.05))
    sealer = keyring.sealer()
    old = sealer.seal(b"row", b"x")
    good = account.content()
    account.write("out of order")
    assert noticed.wait(30), "the thread never read the broken secret"
    account.write(good)
    new = bytes.fromhex(account.vault().rotate(known_for_s=0))
    assert new != old[1:5]
    deadline = time.monotonic() + 30
    while (sealed := sealer.seal(b"row", b"x"))[1:5] != new:
        assert time.monotonic() < deadline, "the new key never sealed"
        time.sleep(0.02)
    assert keyring.open(sealed, b"x") == b"row"
    assert keyring.open(old, b"x") == b"row"
    late = open_keyring(account.settings())
    assert late.open(old, b"x") == late.open(sealed, b"x") == b"row"
    with pytest.raises(SealBroken):
        Keyring.generate().open(sealed, b"x")


def test_the_command_line_rotates_and_refuses_a_key_that_nobody_could_know_in_time(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.vault().ensure()
    monkeypatch.setenv("CLOUDSYNC_KEYRING_KMS_KEY", account.key)
    monkeypatch.setenv("CLOUDSYNC_KEYRING_SECRET", account.secret)
    current.cache_clear()
    runner = typer_testing.CliRunner()
    try:
        hasty = runner.invoke(app, ["keyring", "rotate", "--known-for", "100"])
        assert isinstance(hasty.exception, ConfigurationError)
        assert len(account.content()["keys"]) == 1
        done = runner.invoke(app, ["keyring", "rotate"])
    finally:
        current.cache_clear()
    first, second = account.content()["keys"]
    assert second["id"] in done.output
    assert second["active_at"] > time.time() + 600 > first["active_at"]


def test_without_a_keyring_from_kms_nothing_of_aws_is_imported() -> None:
    program = "import sys, cloudsync.unlocking, cloudsync.cli; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({}, "CLOUDSYNC_KEYRING_FILE"),
        ({"keyring_kms_key": "alias/x", "keyring_secret": "s"}, "alias/x is not the ARN"),
        ({"keyring_kms_key": "arn:aws:kms:eu-central-1:111111111111:key/1"}, "CLOUDSYNC_KEYRING_SECRET"),
    ],
)
def test_what_is_missing_is_named(variables: dict[str, str], names: str) -> None:
    with pytest.raises(ConfigurationError, match=names):
        open_keyring(Settings(**variables))  # type: ignore[arg-type]
