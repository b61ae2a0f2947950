"""The gateway's wall clock: unix time that advances with the monotonic clock, so that a jump refills no budget."""

from __future__ import annotations

import time


class Clock:
    """Wall time as it was at the start, plus the time that really passed (sleep of the host included)."""

    def __init__(self) -> None:
        self._offset = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> float:
        """Unix seconds. A step of the wall clock takes effect when the gateway is next started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) + self._offset
