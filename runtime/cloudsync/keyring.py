"""Sealing: AES-256-GCM for everything that rests in Redis, and keyed tags that hide names.

A sealed value is `version(1) key id(4) salt(16) counter(12) ciphertext`. Each `Sealer` draws a salt and
derives its own subkey (HKDF-SHA256), so that counters of different processes can never meet; after 2**32
values it draws a new salt. The associated data says where a value was written: an entry that is moved
elsewhere does not open.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloudsync.errors import ConfigurationError, SealBroken

_VERSION: Final = b"\x01"
_SALT: Final = slice(5, 21)
_NONCE: Final = slice(21, 33)
_BODY: Final = 33
_ROTATE_AFTER: Final = 2**32
_CACHED_SUBKEYS: Final = 4096


class Keyring:
    """Master keys by id, one of them active, and the secret behind the keyed tags."""

    def __init__(self, *, keys: Mapping[bytes, bytes], active: bytes, tag_secret: bytes) -> None:
        if active not in keys:
            raise ConfigurationError("The keyring's active key is not among its keys.")
        if not tag_secret or any(len(k) != 4 or len(v) != 32 for k, v in keys.items()):
            # Key derivation would take any length, also a cut-off key or none at all.
            raise ConfigurationError("The keyring's keys do not have the right size.", hint="Restore it.")
        self._keys = dict(keys)
        self._sealing = (active, keys[active])
        self._tag_secret = tag_secret
        self._openers: dict[bytes, AESGCM] = {}

    @classmethod
    def generate(cls) -> Keyring:
        """A keyring with one fresh key, as a private platform uses it."""
        active = secrets.token_bytes(4)
        return cls(keys={active: secrets.token_bytes(32)}, active=active, tag_secret=secrets.token_bytes(32))

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """From the file that `save` wrote. Raises ConfigurationError with what to do."""
        try:
            content = json.loads(path.read_text())
            return cls(
                keys={bytes.fromhex(k): base64.b64decode(v) for k, v in content["keys"].items()},
                active=bytes.fromhex(content["active"]),
                tag_secret=base64.b64decode(content["tag_secret"]),
            )
        except FileNotFoundError:
            raise ConfigurationError(
                f"There is no keyring at {path}.",
                hint="Set CLOUDSYNC_KEYRING_FILE to the file with the keys.",
            ) from None
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ConfigurationError(f"{path} is not a keyring.", hint="Restore it, or start over.") from None

    def save(self, path: Path) -> None:
        """Write the keyring readable by its owner alone."""
        content = {
            "keys": {k.hex(): base64.b64encode(v).decode() for k, v in self._keys.items()},
            "active": self._sealing[0].hex(),
            "tag_secret": base64.b64encode(self._tag_secret).decode(),
        }
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file)

    @property
    def active(self) -> tuple[bytes, bytes]:
        """Id and key that seal now."""
        return self._sealing

    def renew(self, *, keys: Mapping[bytes, bytes], active: bytes) -> bool:
        """Take over keys that were added, from any thread; returns whether another one seals from now on.

        Keys at hand stay, to be read with. Sealers follow with their next value.
        """
        self._keys = {**self._keys, **keys}
        changed = active != self._sealing[0]
        if changed:
            self._sealing = (active, self._keys[active])
        return changed

    def sealer(self) -> Sealer:
        return Sealer(self)

    def open(self, sealed: bytes, associated: bytes) -> bytes:
        """The sealed value's content. Raises SealBroken."""
        head = sealed[: _SALT.stop]
        opener = self._openers.get(head)
        if opener is None:
            key = self._keys.get(sealed[1:5])
            if key is None or sealed[:1] != _VERSION:
                raise SealBroken("A sealed value names a key that this keyring does not hold.")
            if len(self._openers) >= _CACHED_SUBKEYS:
                self._openers.clear()
            opener = self._openers[head] = AESGCM(_subkey(key, sealed[_SALT]))
        try:
            return opener.decrypt(sealed[_NONCE], sealed[_BODY:], associated)
        except (InvalidTag, ValueError):
            raise SealBroken from None

    def tag(self, purpose: str, *parts: str, size_bytes: int = 16) -> str:
        """A keyed hash that names something without showing it, hexadecimal."""
        message = "\x00".join((purpose, *parts)).encode()
        return hmac.digest(self._tag_secret, message, hashlib.sha256)[:size_bytes].hex()


class Sealer:
    """Seals under subkeys of its own, drawn from the active key; not shared between processes or threads."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._draw()

    def _draw(self) -> None:
        self._active = self._keyring.active
        key_id, key = self._active
        salt = secrets.token_bytes(16)
        self._head = _VERSION + key_id + salt
        self._cipher = AESGCM(_subkey(key, salt))
        self._count = 0

    def seal(self, content: bytes, associated: bytes) -> bytes:
        if self._count >= _ROTATE_AFTER or self._active is not self._keyring.active:
            self._draw()
        self._count += 1
        nonce = self._count.to_bytes(12, "big")
        return self._head + nonce + self._cipher.encrypt(nonce, content, associated)


def _subkey(key: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"cloudsync seal").derive(key)
