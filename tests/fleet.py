"""A real fleet for the length of a with block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from chaos.fleet import CONFIG, DRY_RUN, Fleet

__all__ = ["Fleet", "fleet"]


@contextlib.contextmanager
def fleet(base: Path, units: dict[str, str] | None = None, config: str = CONFIG + DRY_RUN) -> Iterator[Fleet]:
    """A running fleet. Leaving the block stops it, and fails if it left anything behind."""
    running = Fleet(base, units, config)
    try:
        yield running.start()
    finally:
        running.stop()
