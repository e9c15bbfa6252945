"""The keyring of a deployment: keys wrapped by KMS, all of them in one secret of Secrets Manager.

The secret is JSON: `tag_secret` and each of `keys` hold what KMS answered to GenerateDataKey as its
CiphertextBlob, and a key says from when on it seals (`active_at`, seconds of the Unix epoch). A new key
stands there before it seals, so that every process knows it when the first value sealed with it arrives.
Times are those of Secrets Manager's answers: nobody's own clock matters. Two writers cannot undo one another:
a version becomes the current one only in place of the one that it was made from.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

import msgspec

from cloudsync.errors import ConfigurationError, KeyringUnreachable
from cloudsync.settings import Settings

_PROPOSED: Final = "CLOUDSYNC_PROPOSED"
_ATTEMPTS: Final = 5
_TAGS: Final = "tags"


class WrappedKey(msgspec.Struct):
    """A sealing key as it rests: only KMS can open `wrapped`."""

    id: str
    wrapped: bytes
    active_at: float


class WrappedKeyring(msgspec.Struct):
    """The content of the secret. Before the first key is made, the stacks leave `keys` empty."""

    tag_secret: bytes = b""
    keys: list[WrappedKey] = []


class OpenKeys(NamedTuple):
    """What a keyring is made of; `active` seals now."""

    keys: dict[bytes, bytes]
    active: bytes
    tag_secret: bytes


class _Stored(NamedTuple):
    content: WrappedKeyring
    version: str
    now_s: float


class KeyVault:
    """The secret and the KMS key, as one process may use them. Raises KeyringUnreachable."""

    def __init__(self, *, kms_key: str, secret: str) -> None:
        # Optional: only deployments have boto3, and importing it costs every other process 100 ms.
        import boto3
        from botocore.config import Config

        self._kms_key, self._secret = kms_key, secret
        region = kms_key.split(":")[3]
        config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 4})
        self._kms = boto3.client("kms", region_name=region, config=config)
        self._secrets = boto3.client("secretsmanager", region_name=region, config=config)
        self._opened: dict[bytes, bytes] = {}

    @classmethod
    def of(cls, settings: Settings) -> KeyVault:
        """The vault that the settings name. Raises ConfigurationError."""
        settings.require("keyring_kms_key", "keyring_secret")
        if not re.match(r"arn:[^:]+:kms:[^:]+:\d{12}:key/", settings.keyring_kms_key):
            raise ConfigurationError(
                f"CLOUDSYNC_KEYRING_KMS_KEY {settings.keyring_kms_key} is not the ARN of a KMS key."
            )
        return cls(kms_key=settings.keyring_kms_key, secret=settings.keyring_secret)

    def open(self) -> OpenKeys:
        """Every key, unwrapped; KMS is asked only for those that this process has not opened before.

        Raises ConfigurationError if nobody has made a key yet.
        """
        with _plain_errors():
            stored = self._read()
            active = [key for key in stored.content.keys if key.active_at <= stored.now_s]
            if not active:
                raise ConfigurationError(
                    "The keyring has no key yet.",
                    hint="Run `cloudsync migrate`.",
                )
            return OpenKeys(
                keys={bytes.fromhex(k.id): self._unwrap(k.wrapped, k.id) for k in stored.content.keys},
                active=bytes.fromhex(max(active, key=lambda key: key.active_at).id),
                tag_secret=self._unwrap(stored.content.tag_secret, _TAGS),
            )

    def ensure(self) -> bool:
        """Make the first key, which seals at once; False if there is one. Of several callers one makes it."""
        with _plain_errors():
            for _ in range(_ATTEMPTS):
                stored = self._read()
                if stored.content.keys:
                    return False
                content = WrappedKeyring(self._wrapped(_TAGS), [self._new_key(stored, active_at=0.0)])
                if self._replace(content, stored.version):
                    return True
        raise KeyringUnreachable("The keyring was changed by others all the time.")

    def rotate(self, *, known_for_s: float) -> str:
        """Add a key that seals from `known_for_s` on; returns its id. Old keys stay, to be read with.

        Raises ConfigurationError if there is no keyring: `ensure` makes it.
        """
        with _plain_errors():
            for _ in range(_ATTEMPTS):
                stored = self._read()
                if not stored.content.keys:
                    raise ConfigurationError("There is no key to rotate.", hint="Run `cloudsync migrate`.")
                new = self._new_key(stored, active_at=stored.now_s + known_for_s)
                content = WrappedKeyring(stored.content.tag_secret, [*stored.content.keys, new])
                if self._replace(content, stored.version):
                    return new.id
        raise KeyringUnreachable("The keyring was changed by others all the time.")

    def _read(self) -> _Stored:
        answer = self._secrets.get_secret_value(SecretId=self._secret, VersionStage="AWSCURRENT")
        try:
            content = msgspec.json.decode(answer["SecretString"], type=WrappedKeyring)
        except (msgspec.MsgspecError, KeyError):
            raise ConfigurationError(
                "The secret that CLOUDSYNC_KEYRING_SECRET names is not a keyring.",
                hint="Make its version AWSPREVIOUS the current one.",
            ) from None
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return _Stored(content, answer["VersionId"], now.timestamp())

    def _replace(self, content: WrappedKeyring, version: str) -> bool:
        """Make `content` current if `version` still is: moving a label names where it is taken from."""
        from botocore.exceptions import ClientError

        proposed = self._secrets.put_secret_value(
            SecretId=self._secret,
            SecretString=msgspec.json.encode(content).decode(),
            VersionStages=[_PROPOSED],
        )
        try:
            self._secrets.update_secret_version_stage(
                SecretId=self._secret,
                VersionStage="AWSCURRENT",
                RemoveFromVersionId=version,
                MoveToVersionId=proposed["VersionId"],
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "InvalidParameterException":
                raise
            return False
        return True

    def _new_key(self, stored: _Stored, *, active_at: float) -> WrappedKey:
        taken = {key.id for key in stored.content.keys}
        key_id = secrets.token_hex(4)
        while key_id in taken:
            key_id = secrets.token_hex(4)
        return WrappedKey(key_id, self._wrapped(key_id), active_at)

    def _wrapped(self, name: str) -> bytes:
        answer: Any = self._kms.generate_data_key_without_plaintext(
            KeyId=self._kms_key, KeySpec="AES_256", EncryptionContext=_context(name)
        )
        return bytes(answer["CiphertextBlob"])

    def _unwrap(self, wrapped: bytes, name: str) -> bytes:
        opened = self._opened.get(wrapped)
        if opened is None:
            answer: Any = self._kms.decrypt(
                KeyId=self._kms_key, CiphertextBlob=wrapped, EncryptionContext=_context(name)
            )
            opened = self._opened[wrapped] = bytes(answer["Plaintext"])
        return opened


def _context(name: str) -> dict[str, str]:
    """Bound to what is wrapped: a key that is put in another's place does not open."""
    return {"cloudsync": "keyring", "key": name}


@contextmanager
def _plain_errors() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        reason = error.response["Error"]["Code"]
        raise KeyringUnreachable(f"AWS refused {error.operation_name}: {reason}.") from None
    except BotoCoreError as error:
        raise KeyringUnreachable(f"AWS cannot be reached for the keyring: {error}.") from None
