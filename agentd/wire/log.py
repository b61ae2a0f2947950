"""Setting up structlog: JSON lines when a machine reads, short lines on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def setup(process: str) -> None:
    """Configure logging of this process, to stderr. Call it once, from a main."""
    terminal = sys.stderr.isatty()
    render: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)


def logger() -> Any:
    """The process's logger: ``logger().info("event", key=value)``."""
    return structlog.get_logger()
