"""Moments as people name them: ``03:14``, ``yesterday 03:14``, ``10m``, an ISO date. Knows the local time zone only."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from agentd.ctl.paint import line
from agentd.errors import BadInput

FORMS = '"10m" (ago), "03:14" (the last one), "yesterday 03:14", "2026-03-01 03:14" or "@<unix seconds>"'
LATEST = 1e11
"""Unix seconds; what is later is no moment that anybody means."""
_CLOCK = re.compile(r"(?:(today|yesterday)\s*)?(?:(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?)?", re.IGNORECASE)


def moment(option: str, text: str | None, now: float) -> float | None:
    """Unix seconds; None for None. ``03:14`` is the last one that has been; BadInput names the option."""
    if text is None:
        return None
    try:
        found = _read(text.strip(), now)
    except (ValueError, OverflowError, OSError):
        found = None
    if found is None or not 0 <= found < LATEST:
        raise BadInput(f"{option}: {line(text)!r} is not a moment.", hint=f"Write {FORMS}.")
    return found


def _read(text: str, now: float) -> float | None:
    from agentd.model.quantity import duration

    if text == "now":
        return now
    if text.startswith("@"):
        return float(text[1:])
    match = _CLOCK.fullmatch(text)
    if match and text:
        return _on_the_clock(match, datetime.fromtimestamp(now)).timestamp()  # noqa: DTZ006 - local time is meant
    if re.fullmatch(r"\d{4}-.*", text):
        return datetime.fromisoformat(text).timestamp()
    return now - duration(text.removesuffix("ago").strip())


def _on_the_clock(match: re.Match[str], now: datetime) -> datetime:
    day, hour, minute, second = match.groups()
    whole, _, part = (second or "0").partition(".")
    at = now.replace(
        hour=int(hour or 0), minute=int(minute or 0), second=int(whole), microsecond=int((part + "000000")[:6])
    )
    if (day or "").lower() == "yesterday" or (day is None and at > now):
        at -= timedelta(days=1)
    return at
