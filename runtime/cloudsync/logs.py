"""Structured logs: one line per event. Row data and tokens never go in; callers pass names and positions."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure(*, level: str, log_format: str) -> None:
    """Set up logging of this process once, to standard error."""
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=max(number, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )


def get(name: str) -> Any:
    """A logger whose lines carry `component=name`."""
    return structlog.get_logger().bind(component=name)
