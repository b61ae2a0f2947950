"""When agentd's processes do what they do again and again: at the same moments, so that an idle host is woken once a
second and not five times."""

from __future__ import annotations

import time


def to_next(period: float) -> float:
    """Seconds until the next multiple of this period on the monotonic clock, which all processes share.

    At least a tenth of the period, so that a timer that fired a little early is not asked for twice.
    """
    left = period - time.monotonic() % period
    return left if left >= period / 10 else left + period
