"""The auditor's place: a thread of the general worker, which has the database and the keys at hand."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from celery import bootsteps

from cloudsync import logs
from cloudsync.audit.auditor import Auditor
from cloudsync.settings import Settings, current
from cloudsync.tenants.login import Login
from cloudsync.unlocking import open_keyring

_log = logs.get("audit")
_STOP_S = 5.0


class AuditStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery is untyped
    """Runs an auditor while the worker consumes. Of several workers one audits, the others stand by."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, worker: Any) -> None:
        self._thread = threading.Thread(target=self._run, args=(current(),), name="audit", daemon=True)
        self._thread.start()

    def stop(self, worker: Any) -> None:
        self._halt.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _run(self, settings: Settings) -> None:
        auditor = Auditor(
            login=Login(settings.postgres_url),
            redis_url=settings.redis_events_url,
            keyring=open_keyring(settings),
            stopping=self._halt.is_set,
        )
        try:
            asyncio.run(auditor.run())
        except Exception:
            _log.exception("the auditor ended: nothing is audited until this worker is started again")
            raise
