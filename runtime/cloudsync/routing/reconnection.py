"""Celery through an outage of its broker: workers and beat come back within a second, and say little.

Beat goes on, too, when its clock is set back. By themselves a worker waits up to half a minute between
attempts and gives up after a hundred, and beat prints two stack traces for every task that it could not send.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any, Final

from celery.beat import Scheduler as CeleryScheduler
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown
from kombu.message import Message

from cloudsync import logs

_RETRY_S: Final = 0.5
_TELL_EVERY: Final = 60

_log = logs.get("routing")


class Consumer(CeleryConsumer):  # type: ignore[misc]  # celery is untyped
    """The worker's connection to its broker: tried twice a second, for ever."""

    def ensure_connected(self, conn: Any) -> Any:
        """A connection that works; returns only with one."""
        attempts = 0

        def failed(error: Exception, _interval_s: float) -> None:
            nonlocal attempts
            if attempts % _TELL_EVERY == 0:
                _log.warning("the broker cannot be reached, trying again", reason=type(error).__name__)
            attempts += 1

        conn.ensure_connection(
            failed, None, interval_start=_RETRY_S, interval_step=0, interval_max=_RETRY_S,
            callback=maybe_shutdown,
        )  # fmt: skip
        self.first_connection_attempt = False
        self.broker_connection_retry_attempt = 0
        return conn

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Celery's own, but an acknowledgement that fails is the loss of the connection that it is.

        Celery only logs it. The message then counts as unacknowledged for ever, and with a prefetch of one
        the worker asks the broker for nothing more, nor notices that the connection is gone: it never takes
        another task.
        """
        message = p.__self__ if isinstance(p, MethodType) else None
        if isinstance(message, Message) and p == message.ack_log_error:
            return super().call_soon_ack(message.ack)
        return super().call_soon_ack(p, *args, **kwargs)


class Scheduler(CeleryScheduler):  # type: ignore[misc]  # celery is untyped
    """Beat's schedule: a task that cannot be sent is sent the next time.

    In memory alone: Celery's default writes it to a file, which a beat that is killed leaves behind.
    """

    _failed = 0
    _looked_s = -math.inf

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send the next task if it is due. Returns for how long there is nothing to do.

        After a clock that was set back everything is due in one interval; or nothing would be sent until the
        clock has caught up with the times that were noted.
        """
        now_s = self.app.now().timestamp()
        if now_s < self._looked_s:
            for entry in self.schedule.values():
                now = entry.default_now()
                entry.last_run_at = min(entry.last_run_at or now, now)
            self._heap = None
        self._looked_s = now_s
        return float(super().tick(*args, **kwargs))

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send one task that is due."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:  # noqa: BLE001 - whatever it is, beat goes on
            if self._failed % _TELL_EVERY == 0:
                _log.warning("a task cannot be sent", task=entry.task, detail=str(error)[:200])
            self._failed += 1
        else:
            if self._failed:
                _log.info("tasks can be sent again", failed=self._failed)
            self._failed = 0
