"""Amounts as people write them in unit files: durations, sizes, CPU shares, budgets.

Durations are float seconds inside the model; sizes are bytes; money is integer nano-USD.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from math import inf
from typing import Any, Literal

Window = Literal["minute", "hour", "day", "month", "lifetime"]
WINDOWS: tuple[Window, ...] = ("minute", "hour", "day", "month", "lifetime")
NANO = 1_000_000_000

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_COUNT_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def duration(text: str | float) -> float:
    """Seconds from ``"90s"``, ``"1m30s"``, ``"500ms"``, ``"2h"`` or a bare number of seconds."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError('expected a duration such as "30s", "5m" or "500ms"')
    if isinstance(text, int | float):
        if not 0 <= text < inf:
            raise ValueError("a duration cannot be negative or without end")
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|min|[smhdw])", text.strip())
    if not parts or "".join(a + u for a, u in parts) != text.strip().replace(" ", ""):
        raise ValueError(f'{text!r} is not a duration; write for example "30s", "5m" or "500ms"')
    return sum(float(amount) * _DURATION_UNITS[unit] for amount, unit in parts)


def size(text: str | int) -> int:
    """Bytes from ``"512M"``, ``"2G"``, ``"64KiB"`` or a bare number of bytes (powers of 1024)."""
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise ValueError('expected a size such as "512M" or "2G"')
    if isinstance(text, int):
        if text < 0:
            raise ValueError("a size cannot be negative")
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise ValueError(f'{text!r} is not a size; write for example "512M" or "2G"')
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def cpu(text: str | float) -> float:
    """CPUs from ``"50%"`` (half of one CPU), ``1.5`` or ``"2"``."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError('expected CPUs such as "50%" or 1.5')
    try:
        value = float(text[:-1]) / 100 if isinstance(text, str) and text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f'{text!r} is not a number of CPUs; write for example "50%" or 1.5') from None
    if not 0 < value <= 4096:
        raise ValueError(f"{text!r}: CPUs must be more than 0 and at most 4096")
    return value


@dataclass(frozen=True, slots=True)
class Allowance:
    """An amount per window: tokens, or nano-USD where it came from a ``usd`` key."""

    amount: int
    window: Window

    def __str__(self) -> str:
        return f"{self.amount}/{self.window}"


def _split(text: str) -> tuple[str, Window]:
    amount, slash, window = text.strip().partition("/")
    window = window.strip() if slash else "lifetime"
    if window not in WINDOWS:
        raise ValueError(f"{window!r} is not a budget window; use one of {', '.join(WINDOWS)}")
    return amount.strip(), window


def tokens(text: str | int) -> int:
    """A number of tokens from ``"200k"``, ``"2M"`` or a bare integer (powers of 1000)."""
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise ValueError('expected a number of tokens such as 50000 or "50k"')
    if isinstance(text, int):
        if text < 0:
            raise ValueError("a number of tokens cannot be negative")
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmb]?)", text.strip().lower().replace("_", ""))
    if not match:
        raise ValueError(f'{text!r} is not a number of tokens; write for example "50k" or "2M"')
    return int(Decimal(match[1]) * _COUNT_UNITS[match[2]])


def token_allowance(text: str | int | Allowance | dict[str, Any]) -> Allowance:
    """Tokens per window from ``"200k/day"``; without a window it is for the unit's lifetime."""
    if isinstance(text, Allowance):
        return text
    if isinstance(text, dict):  # the JSON form of an Allowance, as a dumped unit holds it
        return Allowance(**text)
    if not isinstance(text, str):
        return Allowance(tokens(text), "lifetime")
    amount, window = _split(text)
    return Allowance(tokens(amount), window)


def usd(text: str | float) -> int:
    """Nano-USD from ``"5.00"``, ``"$5"`` or a number; exact, never through a float's rounding."""
    try:
        value = Decimal(str(text).strip().lstrip("$"))
    except InvalidOperation:
        raise ValueError(f'{text!r} is not an amount of USD; write for example "5.00"') from None
    if not value.is_finite() or value < 0:
        raise ValueError("an amount of USD cannot be negative")
    return int(value * NANO)


def usd_allowance(text: str | float) -> Allowance:
    """Nano-USD per window from ``"5.00/day"``."""
    amount, window = _split(str(text))
    return Allowance(usd(amount), window)


def show_duration(seconds: float) -> str:
    """A duration for people: ``0.35`` → ``350ms``, ``3725`` → ``1h02m``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    whole = int(seconds + 0.0005)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def show_size(count: float) -> str:
    """A size for people: ``536870912`` → ``512M``."""
    for unit in ("B", "K", "M", "G"):
        if count < 1023.5:
            return f"{count:.0f}{unit}" if unit in "BK" or count >= 10 or count == int(count) else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.1f}T"


def show_count(count: float) -> str:
    """A number of tokens for people: ``1234`` → ``1.2k``."""
    if count < 999.5:
        return f"{count:.0f}"
    for unit in ("k", "M"):
        count /= 1000
        if count < 999.5:
            return f"{count:.0f}{unit}" if count >= 100 or count == int(count) else f"{count:.1f}{unit}"
    return f"{count / 1000:.1f}B"
