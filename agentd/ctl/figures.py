"""Facts of a unit as people read them: ages, sizes, tokens, endings, tones. Takes the API's JSON; prints nothing."""

from __future__ import annotations

import time
from typing import Any

from agentd.ctl.paint import Tone, line
from agentd.model.quantity import show_count, show_duration, show_size

Json = dict[str, Any]
_STATE_TONES: dict[str, Tone] = {"failed": "red", "parked": "red", "held": "yellow", "backoff": "yellow"}
_ACTIVITY_TONES: dict[str, Tone] = {"hung": "red", "frozen": "yellow"}
ACTIVE = ("running", "starting", "stopping")
NEARLY_SPENT = 0.9


def state_tone(unit: Json) -> Tone:
    """Red: somebody should look. Yellow: it waits for something. Nothing: all is well."""
    return _STATE_TONES.get(unit["state"], "")


def activity_tone(unit: Json) -> Tone:
    """The same for what a running unit does."""
    return _ACTIVITY_TONES.get(unit.get("activity") or "", "")


def troubled(unit: Json) -> bool:
    """Whether its reason belongs on the first screen."""
    return bool(state_tone(unit) or activity_tone(unit) or unit.get("waits"))


def span(seconds: float) -> str:
    """A duration in a word: ``4s``, ``3m10s``, ``45m``, ``2h14m``, ``14h``, ``3d``."""
    if seconds < 1:
        return "0s" if seconds <= 0 else "<1s"
    for unit in (60, 3600, 86_400):  # from ten of a unit on, what is smaller says nothing
        if seconds >= 10 * unit:
            seconds -= seconds % unit
    text = show_duration(int(seconds))
    return text[:-3] if text[-3:] in ("00s", "00m", "00h") and len(text) > 3 else text


def age(at: float | None, now: float) -> str:
    """How long ago, or an empty string."""
    return "" if at is None else span(max(0.0, now - at))


def coarse(at: float, now: float) -> str:
    """How long ago, in one unit: ``4s``, ``3m``, ``2h``."""
    text = age(at, now)
    return text[: next(i for i, letter in enumerate(text) if letter.isalpha()) + 1]


def ahead(at: float, now: float) -> str:
    """How far in the future, such as ``in 4m10s``."""
    return "now" if at <= now else f"in {span(at - now)}"


def clock(at: float, now: float) -> str:
    """The time of day here; with the date where it is not about today."""
    then = time.localtime(at)
    near = time.strftime("%F", then) == time.strftime("%F", time.localtime(now))
    return time.strftime("%H:%M:%S" if near else "%F %H:%M:%S", then)


def clock_utc(at: float, now: float) -> str:
    """The time of day in UTC, which schedules are in unless they say otherwise; with the date where it is not near."""
    form = "%H:%M" if at % 60 < 1 else "%H:%M:%S"
    return time.strftime(form if abs(at - now) < 86_400 else f"%F {form}", time.gmtime(at)) + " UTC"


def size(count: float | None) -> str:
    """Bytes, or an empty string."""
    return "" if count is None else show_size(count)


def tokens(budget: Json | None, between: str = " of ") -> str:
    """Tokens used and their limit: ``1.2k of 200k``."""
    if not budget:
        return ""
    used = show_count(budget["used"])
    return used if budget.get("limit") is None else f"{used}{between}{show_count(budget['limit'])}"


def share(budget: Json | None) -> str:
    """Tokens used as a share of their limit: ``95%``."""
    if not budget:
        return ""
    limit = budget.get("limit")
    return f"{min(999, 100 * budget['used'] // limit)}%" if limit else show_count(budget["used"])


def tokens_tone(budget: Json | None) -> Tone:
    """Yellow where nine tenths are used."""
    if not budget or not budget.get("limit"):
        return ""
    return "yellow" if budget["used"] >= NEARLY_SPENT * budget["limit"] else ""


def ending(last: Json | None) -> str:
    """Why it last ended, in a word or two: ``SIGKILL``, ``exit 1``, ``hung``."""
    if not last:
        return ""
    cause = line(last.get("cause") or "")
    if cause == "timed_out":
        return "timed out"
    if cause in ("hung", "stopped", "held", "unstarted"):
        return cause
    if last.get("signal"):
        return line(last["signal"])
    return f"exit {last['exit']}" if last.get("exit") is not None else cause


def next_step(unit: Json, now: float) -> str:
    """What happens by itself, and when."""
    if unit.get("next") is None:
        return ""
    if unit["state"] == "held":
        return f"a new window {ahead(unit['next'], now)}"
    if unit["state"] in ("backoff", "parked"):
        return f"next try {ahead(unit['next'], now)}"
    if unit.get("schedule"):
        return f"next run {ahead(unit['next'], now)}, at {clock_utc(unit['next'], now)}"
    return f"next step {ahead(unit['next'], now)}"


def advice(unit: Json) -> str:
    """The command that a person would want next."""
    name = unit["name"]
    if stood_down(unit):
        return f"agentctl start {name}"
    if unit["state"] == "held":
        return f"agentctl budget raise {name} 50k"
    if unit["state"] == "failed" and (unit.get("last") or {}).get("cause") == "unstarted" and unit.get("file"):
        return f"mend it, then agentctl deploy {line(unit['file'])}"
    if unit["state"] in ("failed", "parked"):
        return f"agentctl logs {name}"
    return f"agentctl status {name}" if activity_tone(unit) else ""


def stood_down(unit: Json) -> bool:
    """Its schedule was stopped by hand."""
    schedule = unit.get("schedule") or {"armed": True}
    return not schedule["armed"] and unit["state"] == "inactive"


def warning(item: object) -> str:
    """A warning as one line, whether the API sent a text or a text with a hint."""
    if isinstance(item, dict):
        parts = (item.get("text") or item.get("message") or "", item.get("hint") or "")
        return line(" ".join(p for p in parts if p))
    return line(item)
