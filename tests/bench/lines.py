"""What a measure is: one JSON line. Knows the arithmetic of gates and nothing of what is measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

__all__ = ["median", "p99", "print_line", "report"]


def print_line(name: str, value: float, unit: str, reference: float | None, target: str, ok: bool | None) -> bool:
    """Print one measure; whether it may pass. ``ok`` None: reported, no gate."""
    ratio = None if not reference else round(value / reference, 2)
    row = {"measure": name, "value": round(value, 3), "unit": unit}
    row |= {"reference": None if reference is None else round(reference, 3), "ratio": ratio, "target": target, "ok": ok}
    print(json.dumps(row), flush=True)
    return ok is not False


def report(name: str, value: float, unit: str, reference: float | None = None, target: str = "reported") -> bool:
    """Print one measure that has no gate."""
    return print_line(name, value, unit, reference, target, None)


def median(values: Sequence[float]) -> float:
    """The 50th percentile."""
    return statistics.median(values)


def p99(values: Sequence[float]) -> float:
    """The 99th percentile: of 200 values the third largest, of less than 100 the largest."""
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]
