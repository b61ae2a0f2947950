"""The laws of schedules, for test_schedule.py and, on broken copies of the module, for test_mutants.py.

A world is simulated: two clocks, a host that reboots, a wall clock that is set, and a daemon that looks, or does not
look for a while. Beside it stands a naive account: a cron schedule's due times are found by trying every minute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from agentd.model.life import Now

BEGIN = datetime(2026, 3, 27, 22, 30, tzinfo=UTC).timestamp()
"""Two days before Europe's clocks go forward."""

CRONS = ("*/7 * * * *", "0 3 * * 1-5", "30 2 * * *", "15 0,12 * * *", "0 */6 * * *", "@daily", "5 4 1 * *")
PAUSES = (0.5, 20.0, 59.0, 61.0, 600.0, 3600.0, 9000.0, 86400.0, 200_000.0)
JUMPS = (-86400.0, -3600.0, -45.0, 45.0, 3600.0, 86400.0)
Table = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """Some time passes, the wall clock is set by ``jump``, the host reboots; then the daemon looks."""

    pause: float
    jump: float = 0.0
    reboot: bool = False
    busy: bool = False
    lost: bool = False
    """The daemon dies between remembering a start and doing it."""


def tables() -> st.SearchStrategy[Table]:
    """What a unit file says."""
    common = {"jitter": st.sampled_from((0, 5, 40, 7000)), "missed": st.sampled_from(("once", "skip"))}
    zones = st.sampled_from(("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"))
    cron = st.fixed_dictionaries({"cron": st.sampled_from(CRONS), "timezone": zones, **common})
    every = st.fixed_dictionaries({"every": st.sampled_from((1, 30, 300, 86400)), **common})
    return st.one_of(cron, every)


def worlds() -> st.SearchStrategy[tuple[Table, list[Turn]]]:
    """A schedule and what happens."""
    rare = st.sampled_from((False, False, False, True))
    jumps = st.sampled_from((0.0, 0.0, 0.0, *JUMPS))
    turn = st.builds(Turn, st.sampled_from(PAUSES), jumps, rare, rare, rare)
    return st.tuples(tables(), st.lists(turn, min_size=3, max_size=25))


def schedule_law(module: ModuleType, world: tuple[Table, list[Turn]]) -> None:
    """Due times only grow, none is served twice, what is missed is counted, and no run begins before its time."""
    table, turns = world
    asked = module.Schedule(**table)
    now, boot, started = Now(1000.0, BEGIN, 0.5), 0, []
    agenda = module.arm(None, now, "boot 0")
    jumped = False
    for turn in turns:
        now = replace(now, mono=now.mono + turn.pause, wall=now.wall + turn.pause + turn.jump)
        jumped = jumped or turn.jump != 0
        if turn.reboot:
            boot, now = boot + 1, replace(now, mono=50.0)
        agenda = module.here(agenda, now, f"boot {boot}")
        assert agenda.mono <= now.mono, "a moment of another boot"
        agenda = module.Agenda.from_json(agenda.to_json())
        begins = module.begins("unit", asked, agenda)
        verdict = module.judge("unit", asked, agenda, now)
        clock = now.mono if asked.every else now.wall
        assert (verdict is not None) == (begins is not None and begins <= clock), "the timer and the verdict disagree"
        if verdict is None:
            continue
        before = agenda
        _verdict_law(module, table, asked, before, verdict, now)
        agenda = _act(module, before, verdict, now, turn)
        assert agenda.serial > before.serial, "a change that looks like no change"
        if turn.lost and verdict.run and not turn.busy:
            again = module.reopened(agenda)
            assert (again.base, again.mono, again.runs) == (before.base, before.mono, before.runs)
            agenda = again
            continue
        again = module.judge("unit", asked, agenda, now)
        assert again is None, "one due time is served twice"
        if verdict.run and not turn.busy:
            started.append(verdict.due)
            assert agenda.row == 0
        if asked.cron is not None:
            assert started == sorted(set(started)), "due times do not grow"
    assert agenda.runs == len(started), "runs are counted wrongly"


def _act(module: ModuleType, agenda: Any, verdict: Any, now: Now, turn: Turn) -> Any:
    if not verdict.run:
        return module.passed(agenda, verdict)
    if turn.busy:
        done = module.skipped(agenda, verdict)
        assert (done.skipped, done.row, done.opened) == (agenda.skipped + 1, agenda.row + 1, False)
        return done
    done = module.started(agenda, verdict, now)
    assert done.opened
    assert done.mono == now.mono, "every does not count from the start"
    return done


def _verdict_law(module: ModuleType, table: Table, asked: Any, agenda: Any, verdict: Any, now: Now) -> None:
    assert verdict.late >= 0, "a run begins before its time"
    run = verdict.late <= 60 or table["missed"] == "once"
    assert verdict.run == run, "the policy for missed runs is not kept"
    if asked.every is not None:
        whole = (now.mono - agenda.mono) / asked.every
        assert whole >= 1
        assert verdict.missed + verdict.run <= whole + 1e-6, "more runs than there was time for"
        assert verdict.missed + verdict.run + 1 >= whole - 1 - 1e-6, "missed runs are not counted"
        return
    assert agenda.base < verdict.due <= now.wall, "a due time that was served before, or is to come"
    if now.wall - agenda.base < 30 * 3600:
        due = naive(asked, agenda.base, now.wall)
        dues = [d for d in due if d <= verdict.due]
        assert verdict.due == dues[-1], "no due time of that schedule"
        assert verdict.missed == min(len(dues), module.COUNTED + 1) - verdict.run, "missed runs are not counted"
        assert len(due) - len(dues) <= 1, "a newer one is due"
        if not asked.jitter:
            assert dues == due, "a newer one is due"


def naive(asked: Any, after: float, until: float) -> list[float]:
    """All due times in (after, until], minute by minute: the wall clock reads them, and a fixed one that a day does not
    have is due when the gap is over, one that it has twice the first time only."""
    zone, fields = ZoneInfo(asked.timezone), _fields(asked.cron)
    fixed = not (fields[0].startswith("*") or fields[1].startswith("*")) and asked.timezone != "UTC"
    found = set()
    minute = datetime.fromtimestamp(after - 7200, UTC).replace(second=0, microsecond=0)
    while minute.timestamp() <= until:
        local = minute.astimezone(zone)
        gap = local.replace(tzinfo=None) - (minute - timedelta(minutes=1)).astimezone(zone).replace(tzinfo=None)
        spoken = [local]
        if fixed and local.fold:
            spoken = []
        if fixed and gap > timedelta(minutes=1):
            spoken += [local - timedelta(minutes=n) for n in range(1, int(gap.total_seconds() // 60))]
        if any(_names(fields, moment) for moment in spoken):
            found.add(minute.timestamp())
        minute += timedelta(minutes=1)
    return sorted(due for due in found if after < due <= until)


def _fields(cron: str) -> list[str]:
    return {"@daily": "0 0 * * *"}.get(cron, cron).split()


def _names(fields: list[str], local: datetime) -> bool:
    spoken = (local.minute, local.hour, local.day, local.month, local.isoweekday() % 7)
    return all(_matches(field, value) for field, value in zip(fields, spoken, strict=True))


def _matches(field: str, value: int) -> bool:
    if field.startswith("*"):
        return value % int(field.partition("/")[2] or 1) == 0
    if "-" in field:
        low, high = map(int, field.split("-"))
        return low <= value <= high
    return value in map(int, field.split(","))
