"""Which keyring a process seals and opens with, and how it learns of new keys while it runs."""

from __future__ import annotations

import threading
import time
import weakref

from cloudsync import logs
from cloudsync.errors import CloudSyncError
from cloudsync.keyring import Keyring
from cloudsync.settings import Settings
from cloudsync.vault import KeyVault

_log = logs.get("keyring")


def open_keyring(settings: Settings) -> Keyring:
    """The keyring that the settings name. One from KMS is read again every `keyring_refresh_s`, in a thread.

    Raises ConfigurationError, and KeyringUnreachable at start; later a vault that is away is only logged.
    """
    settings.require_keyring()
    if settings.keyring_file is not None:
        return Keyring.load(settings.keyring_file)
    vault = KeyVault.of(settings)
    opened = vault.open()
    keyring = Keyring(keys=opened.keys, active=opened.active, tag_secret=opened.tag_secret)
    threading.Thread(
        target=_refresh,
        args=(vault, weakref.ref(keyring), settings.keyring_refresh_s),
        name="keyring",
        daemon=True,
    ).start()
    return keyring


def _refresh(vault: KeyVault, reference: weakref.ref[Keyring], every_s: float) -> None:
    """Until nobody has the keyring any more."""
    while True:
        time.sleep(every_s)
        keyring = reference()
        if keyring is None:
            return
        try:
            opened = vault.open()
        except CloudSyncError as error:
            # The keys at hand stay good until one that is not among them becomes active.
            _log.warning("the keyring was not read", reason=error.code, detail=str(error))
            del keyring
            continue
        if keyring.renew(keys=opened.keys, active=opened.active):
            _log.info("another key seals now", key=opened.active.hex(), keys=len(opened.keys))
        del keyring
