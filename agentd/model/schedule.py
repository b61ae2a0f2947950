"""A unit's schedule as its file has it: ``every``, or ``cron`` and the moments that it names.

cronsim reads cron's language and knows its days of daylight saving as Debian's cron does: a fixed time that a day does
not have runs right after the gap, one that a day has twice runs the first time only. What is due now, and what was
missed, stands in ``due``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import BeforeValidator, Field, model_validator

from agentd.model import quantity
from agentd.model.section import Section

Seconds = Annotated[float, BeforeValidator(quantity.duration)]
FORMS = (
    '"every 5m", "0 3 * * 1-5", "@daily", or a table such as { cron = "0 3 * * *", timezone = "Europe/Berlin", '
    'jitter = "30s", missed = "skip" }'
)

ALIASES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
CRON_FIELDS = (
    ("minute", "0-59, such as 30 or */15"),
    ("hour", "0-23, such as 3 or 8-18"),
    ("day-of-month", "1-31 or L (the last), in a month that has it, such as 1 or 1,15"),
    ("month", "1-12 or JAN-DEC, such as 6 or */3"),
    ("day-of-week", "0-7 or SUN-SAT (0 and 7 are Sunday), such as 1-5 or MON#1"),
)
_TRIAL = datetime(2000, 1, 1, tzinfo=UTC)


class Schedule(Section):
    """Exactly one of ``cron`` and ``every`` is set."""

    cron: str | None = Field(None, description="Minute, hour, day of month, month, day of week; or @daily.")
    every: Seconds | None = Field(None, description="From one start to the next.", ge=1)
    timezone: str = Field("UTC", description="The time zone that cron is about.")
    jitter: Seconds = Field(0.0, description="Each run begins up to this much later, spread evenly.", le=86400)
    missed: Literal["once", "skip"] = Field("once", description="What becomes of runs whose time went by unserved.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError(f"a schedule has either cron or every: {FORMS}")
        if self.cron is not None:
            _check_cron(self.cron)
        elif self.timezone != "UTC":
            raise ValueError("timezone belongs to cron: every counts from the last start, on no clock")
        _zone(self.timezone)
        return self

    def __str__(self) -> str:
        if self.every is not None:
            return f"every {quantity.show_duration(self.every)}"
        return f"{self.cron} {self.timezone}"


def schedule_table(value: Any) -> Any:
    """The table that the short form stands for."""
    if isinstance(value, str):
        word, _, rest = value.strip().partition(" ")
        return {"every": _every(rest.strip())} if word == "every" else {"cron": value.strip()}
    if isinstance(value, Mapping):
        return value if value.get("every") is None else {**value, "every": _every(value["every"])}
    raise ValueError(f"{value!r} is no schedule; write {FORMS}")


def _every(value: str | float) -> float:
    seconds = quantity.duration(value)
    if seconds < 1:
        raise ValueError(f'every {value} is too often: a second at least, such as "every 5m"')
    return seconds


def _check_cron(text: str) -> None:
    if text.startswith("@"):
        if text.lower() not in ALIASES:
            raise ValueError(f"{text!r} is none of {', '.join(ALIASES)}")
        return
    parts = text.split()
    if len(parts) != len(CRON_FIELDS):
        names = ", ".join(name for name, _ in CRON_FIELDS)
        raise ValueError(f'{text!r} has {len(parts)} fields; cron has five ({names}), such as "0 3 * * 1-5"')
    try:
        found = next(CronSim(text, _TRIAL), None)
    except CronSimError as error:
        raise ValueError(_explain(text, parts, str(error))) from None
    if found is None:
        raise ValueError(f"{text!r} names no moment in fifty years")


def _explain(text: str, parts: list[str], said: str) -> str:
    """The field that the library refuses, and what it takes."""
    for (name, takes), part in zip(CRON_FIELDS, parts, strict=True):
        if said.endswith(f" {name}"):
            return f"{text!r}: the {name} {part!r} is not right; it takes {takes}"
    return f"{text!r}: {said}"


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f'{name!r} is no time zone of this host; write for example "Europe/Berlin" (Debian package tzdata)'
        ) from None


# --- the moments that cron names --------------------------------------------------------------------------------------


def cron_due(schedule: Schedule, after: float) -> float | None:
    """The first moment later than ``after`` that the cron text names: unix seconds."""
    return next(cron_from(schedule, after), None)


def cron_from(schedule: Schedule, after: float) -> Iterator[float]:
    """The moments later than ``after``, in order."""
    last = after
    for moment in CronSim(_expression(schedule), datetime.fromtimestamp(after, _clock(schedule))):
        due = moment.timestamp()
        if due > last:  # of an hour that a day has twice, what the library begins with may be over
            last = due
            yield due


def cron_last(schedule: Schedule, until: float) -> float:
    """The newest moment that is not later than ``until``."""
    backwards = CronSim(_expression(schedule), datetime.fromtimestamp(until + 1, _clock(schedule)), reverse=True)
    return next(due for moment in backwards if (due := moment.timestamp()) <= until)


def _expression(schedule: Schedule) -> str:
    assert schedule.cron is not None
    return ALIASES.get(schedule.cron.lower(), schedule.cron)


def _clock(schedule: Schedule) -> tzinfo:
    return UTC if schedule.timezone == "UTC" else _zone(schedule.timezone)
