"""Waiting for a condition with a deadline, where there is no event to await."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

STEP = 0.005


def wait_until(predicate: Callable[[], object], timeout: float = 5.0, what: str = "") -> None:
    """Return as soon as predicate() is true; fail after timeout seconds."""
    end = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < end, f"not within {timeout} s: {what or predicate}"
        time.sleep(STEP)


async def until(predicate: Callable[[], object], timeout: float = 5.0, what: str = "") -> None:
    """The same for async tests."""
    end = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < end, f"not within {timeout} s: {what or predicate}"
        await asyncio.sleep(STEP)
