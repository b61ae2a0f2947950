"""Invocation ids: 16 lowercase hex digits that name one execution of one unit and only ever grow.

The upper 44 bits are wall-clock milliseconds, the lower 20 a counter. Wall time makes ids grow over lost state; the
floor (the newest id that the unit ever had) makes them grow when the clock stepped back. Compare them as strings.
"""

from __future__ import annotations

WIDTH = 16
_COUNTER_BITS = 20
_LARGEST = (1 << 64) - 1


def mint(wall_ms: int, floor: str | None) -> str:
    """A new id, strictly greater than ``floor``. OverflowError once 64 bits are used up (in the year 2527)."""
    number = wall_ms << _COUNTER_BITS
    if floor is not None:
        number = max(number, int(floor, 16) + 1)
    if not 0 <= number <= _LARGEST:
        raise OverflowError(f"no invocation id is left after {floor} at {wall_ms} ms")
    return f"{number:0{WIDTH}x}"
