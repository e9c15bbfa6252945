"""A worker's child that died is followed by another one at once, not at Celery's next look, seconds later.

Celery looks when the pipe of a child closes, which is before the kernel lets anybody wait for the child: as
often as not it finds the child alive, stops listening, and looks again with a timer of five seconds.
"""

from __future__ import annotations

from typing import Any, Final

from celery import bootsteps

_LOOK_EVERY_S: Final = 0.25


class ChildrenStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery is untyped
    """Lets the pool look after its children four times a second."""

    requires = ("celery.worker.components:Pool",)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Called for each connection to the broker; with it Celery takes the timer away."""
        hub.call_repeatedly(_LOOK_EVERY_S, worker.pool.maintain_pool)
