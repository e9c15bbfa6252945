"""The Celery application: two queues, routing apart from everything else.

Lingering routing tasks would starve ordinary ones, so they have their own queue and their own workers.
Tasks are acknowledged early: what recovers a lost one is the sweep, not the broker's visibility time-out.
"""

from __future__ import annotations

import multiprocessing
from typing import Any, Final

from celery import Celery
from celery.signals import worker_process_init, worker_shutting_down

from cloudsync import logs
from cloudsync.metrics import emitter
from cloudsync.settings import Settings, current

ROUTING: Final = "routing"
GENERAL: Final = "general"
SWEEP_EVERY_S: Final = 1.0
MAINTAIN_EVERY_S: Final = 3600.0
MEASURE_EVERY_S: Final = 5.0

# Shared before the fork: children do not hear the parent's SIGTERM, they look at this.
stopping: Final = multiprocessing.get_context("fork").Value("b", 0, lock=False)


def _make(settings: Settings) -> Celery:
    application = Celery("cloudsync", broker=settings.broker_url or "redis://127.0.0.1:6379")
    application.conf.update(
        task_default_queue=GENERAL,
        task_routes={"cloudsync.route": {"queue": ROUTING}},
        task_ignore_result=True,
        task_acks_late=False,
        task_store_errors_even_if_ignored=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_consumer="cloudsync.routing.reconnection:Consumer",
        beat_scheduler="cloudsync.routing.reconnection:Scheduler",
        broker_transport_options={
            "socket_keepalive": True,
            "socket_connect_timeout": 2,
            "socket_timeout": 10,
            "visibility_timeout": 3600,
        },
        include=["cloudsync.routing.tasks", "cloudsync.routing.vitals"],
        cloudsync_queue=GENERAL,
        beat_schedule={
            "sweep": {
                "task": "cloudsync.sweep",
                "schedule": SWEEP_EVERY_S,
            },
            "measure": {
                "task": "cloudsync.measure",
                "schedule": MEASURE_EVERY_S,
            },
            "write-canaries": {
                "task": "cloudsync.write_canaries",
                "schedule": settings.canary_write_s,
            },
            "maintain": {
                "task": "cloudsync.maintain",
                "schedule": MAINTAIN_EVERY_S,
            },
        },
    )
    return application


application: Final = _make(current())


@worker_shutting_down.connect
def _stop(**_: Any) -> None:
    stopping.value = 1


@worker_process_init.connect
def _child(**_: Any) -> None:
    settings = current()
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    emitter.start(settings, application.conf.cloudsync_queue)
