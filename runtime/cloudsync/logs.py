"""Structured logs: one line per event. Row data and tokens never go in; callers pass names and positions."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

_REPEATED_AFTER_S: Final = 30.0
_COMPLAINTS: Final = 1000


class Repeats(logging.Filter):
    """Lets what a library complains of through once in half a minute, with the number of times in between.

    A pool that cannot connect would write two lines a second, for each database.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        about = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        complaint = (record.name, str(record.msg), about)
        now = self._clock()
        until, missed = self._seen.get(complaint, (0.0, 0))
        if now < until:
            self._seen[complaint] = (until, missed + 1)
            return False
        if len(self._seen) >= _COMPLAINTS:
            self._seen.clear()
        self._seen[complaint] = (now + _REPEATED_AFTER_S, 0)
        if missed:
            record.msg, record.args = f"{record.getMessage()} ({missed} times more until now)", ()
        return True


def configure(*, level: str, log_format: str) -> None:
    """Set up logging of this process once, to standard error; what libraries log takes the same form."""
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    )
    marks: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *marks,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Repeats())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*marks, _component],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler])


def get(name: str) -> Any:
    """A logger whose lines carry `component=name`."""
    return structlog.get_logger().bind(component=name)


def _component(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The library that a line is of."""
    event["component"] = event["_record"].name
    return event
