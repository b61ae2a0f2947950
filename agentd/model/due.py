"""Which run of a schedule is due at a moment, which were missed, and what is remembered of them.

Pure: the moment, the unit's name and what was done before (``Agenda``) are arguments. Two clocks are used as they are
meant: ``every`` counts monotonic seconds since the last start and does not see the wall clock; ``cron`` is about the
wall clock of its time zone.

Due times of a cron schedule only grow: ``Agenda.base`` is the last one that was dealt with, and none at or before it
is ever due again, wherever the clock is set to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from itertools import pairwise
from typing import Any

from agentd.model.life import Now
from agentd.model.schedule import Schedule, cron_due, cron_from, cron_last

ON_TIME = 60.0
"""Seconds that a run may begin after its time without being a missed one."""
WRONG_CLOCK = 2 * 86400.0
"""A run that was dealt with more than this much after the present moment belongs to a clock that was wrong."""
COUNTED = 1000
"""Missed runs are counted up to here."""
ALARM_AT = 3
"""So many skipped runs in a row are an alarm."""


@dataclass(frozen=True, slots=True)
class Agenda:
    """What was done about a schedule so far. Remembered before a run is started."""

    base: float
    """The last due time that was dealt with, or the moment since which the schedule holds: unix seconds."""
    mono: float
    """For ``every``: the start from which the next one is counted, monotonic seconds of this boot of the host."""
    boot: str = ""
    """The boot that ``mono`` belongs to."""
    armed: bool = True
    """False: an operator stopped it."""
    serial: int = 0
    """Grows with every change: of two, the higher is newer."""
    opened: bool = False
    """The last thing that was done was a start."""
    before: float = 0.0
    """``base`` before that start; a start that never happened is taken back to it."""
    before_mono: float = 0.0
    due: float | None = None
    """When the last run that was started by it was due: unix seconds."""
    runs: int = 0
    skipped: int = 0
    """Due runs that found the last one unfinished."""
    missed: int = 0
    """Runs whose time went by while nobody could start them."""
    row: int = 0
    """Skipped ones since the last start."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads again."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Agenda:
        """Read what ``to_json`` of this or a neighbouring version wrote; else TypeError."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is due at this moment."""

    due: float
    """The newest due time that has come: unix seconds."""
    mono: float
    """The same on the monotonic clock."""
    late: float
    """Seconds that it should have begun ago."""
    missed: int
    """Due times that went by unserved; with ``run`` false the newest is one of them."""
    run: bool


def arm(agenda: Agenda | None, now: Now, boot: str) -> Agenda:
    """The schedule holds from now on; what was due until now is nobody's any more."""
    if agenda is None:
        return Agenda(now.wall, now.mono, boot)
    base = now.wall if agenda.base - now.wall > WRONG_CLOCK else max(agenda.base, now.wall)
    return replace(_next(agenda), armed=True, base=base, mono=now.mono, boot=boot, row=0)


def disarm(agenda: Agenda) -> Agenda:
    """It is not to be started by its schedule."""
    return replace(_next(agenda), armed=False)


def here(agenda: Agenda, now: Now, boot: str) -> Agenda:
    """The same on the clocks of this boot; and a clock that was wrong by days is forgotten."""
    if agenda.boot != boot:
        mono = now.mono - max(0.0, now.wall - agenda.base)
        agenda = replace(_next(agenda), mono=mono, boot=boot)
    if agenda.base - now.wall > WRONG_CLOCK:
        agenda = replace(_next(agenda), base=now.wall)
    return agenda


def started(agenda: Agenda, verdict: Verdict, now: Now) -> Agenda:
    """The run is about to be started."""
    return replace(
        _next(agenda), opened=True, before=agenda.base, before_mono=agenda.mono, base=verdict.due, mono=now.mono,
        due=verdict.due, runs=agenda.runs + 1, missed=agenda.missed + verdict.missed, row=0,
    )  # fmt: skip


def skipped(agenda: Agenda, verdict: Verdict) -> Agenda:
    """The run that is due is not started, because the last one is not over."""
    moved = passed(agenda, verdict)
    return replace(moved, skipped=agenda.skipped + 1, row=agenda.row + 1)


def passed(agenda: Agenda, verdict: Verdict) -> Agenda:
    """What was due is not started."""
    missed = agenda.missed + verdict.missed
    return replace(_next(agenda), base=verdict.due, mono=verdict.mono, missed=missed)


def reopened(agenda: Agenda) -> Agenda:
    """The last start never happened: it is due again."""
    return replace(_next(agenda), base=agenda.before, mono=agenda.before_mono, runs=agenda.runs - 1, due=None)


def _next(agenda: Agenda) -> Agenda:
    return replace(agenda, serial=agenda.serial + 1, opened=False)


# --- what is due ------------------------------------------------------------------------------------------------------


def jitter(name: str, due: float, most: float) -> float:
    """How much later than ``due`` a run begins: in [0, most), always the same for the same unit and time."""
    drawn = int.from_bytes(sha256(f"{name} {due:.3f}".encode()).digest()[:6], "big")
    return drawn / (1 << 48) * most


def begins(name: str, schedule: Schedule, agenda: Agenda) -> float | None:
    """When the next run begins: monotonic seconds for ``every``, unix seconds for ``cron``; None: never again."""
    if schedule.every is not None:
        return agenda.mono + schedule.every + _lag(name, schedule, agenda)
    due = cron_due(schedule, agenda.base)
    return None if due is None else due + _cron_lag(name, schedule, due, cron_due(schedule, due))


def judge(name: str, schedule: Schedule, agenda: Agenda, now: Now) -> Verdict | None:
    """What is due now; None: nothing yet."""
    found = _every_due(name, schedule, agenda, now) if schedule.every else _cron_dues(name, schedule, agenda, now)
    if found is None:
        return None
    due, late, before = found
    run = late <= ON_TIME or schedule.missed == "once"
    return Verdict(due, now.mono - (now.wall - due), late, before + (not run), run)


def _lag(name: str, schedule: Schedule, agenda: Agenda) -> float:
    assert schedule.every is not None
    return jitter(name, agenda.base, min(schedule.jitter, schedule.every))


def _every_due(name: str, schedule: Schedule, agenda: Agenda, now: Now) -> tuple[float, float, int] | None:
    """The newest due time (unix seconds), how late it is, and how many came before it."""
    assert schedule.every is not None
    over = now.mono - agenda.mono - schedule.every - _lag(name, schedule, agenda)
    if over < 0:
        return None
    before = int(over // schedule.every)
    late = over - before * schedule.every
    return now.wall - late, late, before


def _cron_dues(name: str, schedule: Schedule, agenda: Agenda, now: Now) -> tuple[float, float, int] | None:
    """The same for cron. The first ones are counted one by one; of very many only the newest is looked up."""
    found, base = None, agenda.base
    for before, (due, following) in enumerate(pairwise(cron_from(schedule, base))):
        late = now.wall - due - _cron_lag(name, schedule, due, following)
        if late < 0:
            return found
        found = (due, late, before)
        if before == COUNTED:
            newest = cron_last(schedule, now.wall)
            return (newest, max(0.0, now.wall - newest), before) if newest > due else found
    return found


def _cron_lag(name: str, schedule: Schedule, due: float, following: float | None) -> float:
    """Never as long as to meet the next one."""
    return jitter(name, due, schedule.jitter if following is None else min(schedule.jitter, following - due))
