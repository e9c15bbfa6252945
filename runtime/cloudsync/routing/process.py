"""The worker and beat processes: Celery started from the settings."""

from __future__ import annotations

from typing import Literal

from cloudsync import logs
from cloudsync.errors import RedisUnreachable
from cloudsync.feeds.connection import connect, plain_errors
from cloudsync.settings import Settings


def run_worker(settings: Settings, queue: Literal["routing", "general"] = "routing") -> None:
    """Run a worker of one queue until SIGTERM or SIGINT. Raises RedisUnreachable at start."""
    settings.require("redis_events_url")
    settings.require_keyring()
    if queue == "general":
        settings.require("postgres_url")
    _check(settings)
    from cloudsync.routing.application import application
    from cloudsync.routing.children import ChildrenStep
    from cloudsync.routing.subscriber import SubscriberStep

    logs.configure(level=settings.log_level, log_format=settings.log_format)
    application.conf.cloudsync_queue = queue
    application.steps["worker"].add(ChildrenStep)
    if queue == "routing":
        application.steps["worker"].add(SubscriberStep)
    elif settings.audit_enabled:
        from cloudsync.routing.auditing import AuditStep

        application.steps["worker"].add(AuditStep)
    application.worker_main(
        [
            "worker",
            "--pool=prefork",
            f"--concurrency={settings.routing_concurrency if queue == 'routing' else 1}",
            f"--queues={queue}",
            f"--hostname={queue}@%h",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
        ]
    )


def run_beat(settings: Settings) -> None:
    """Run the scheduler until SIGTERM or SIGINT. Its state is not worth keeping."""
    settings.require("redis_events_url")
    _check(settings)
    from cloudsync.routing.application import application

    logs.configure(level=settings.log_level, log_format=settings.log_format)
    application.Beat(loglevel="WARNING", max_interval=0.5, quiet=True).run()


def _check(settings: Settings) -> None:
    for url in {settings.redis_events_url, settings.broker_url}:
        with plain_errors(url):
            client = connect(url)
            if not client.ping():
                raise RedisUnreachable
            client.close()
