"""Starts units when their schedules say so: one timer for the next moment of all of them, and what follows from it.

When a run is due and what a missed one means is ``model.due``'s to say, whether a unit can be started now its
life's. Nothing is polled: ``every`` has one timer of the event loop, ``cron`` one of the wall clock that also wakes
when the clock is set; it is there only while a cron schedule is.

Durable steps of a scheduled run, each of which a crash may follow:

1. the agenda says that this due time is served, and is remembered in one write with the new invocation id (store, then
   keeper blob) · 2. the spawn (its own steps: daemon/agent.py). After 1 the next daemon sees a store that is newer than
   the blob, and an invocation that nobody has: that start never left us, so the due time is open again and the policy
   for missed runs decides. Where the keeper is another one too (the host rebooted) nobody knows, and it is not run a
   second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from agentd.daemon.agent import Agent
from agentd.daemon.ports import new_chain
from agentd.host.wallclock import WallClock
from agentd.model import due
from agentd.model.due import ALARM_AT, Agenda, Verdict
from agentd.model.lifecycle import Asked, Now, Phase
from agentd.model.quantity import show_duration
from agentd.model.schedule import Schedule

Json = dict[str, Any]

ACTOR = "schedule"
_IDLE = frozenset({Phase.inactive, Phase.failed})
EARLY = 0.002
"""Seconds that a timer may fire before its moment, by rounding."""


class Fleet(Protocol):
    """What the schedules ask of the supervisor."""

    stopping: bool

    def now(self) -> Now:
        """This moment."""

    def record(self, record: Json) -> None:
        """Append to the journal."""

    def keep(self, agent: Agent) -> None:
        """Remember what is known of a unit, before anything is done about it."""

    def start_alone(self, name: str, asked: Asked) -> None:
        """Start a unit, but nothing that it needs."""


class Schedules:
    """The agendas of all units that have a schedule."""

    def __init__(self, agents: Mapping[str, Agent], fleet: Fleet, remembered: Mapping[str, Json]) -> None:
        self.agendas: dict[str, Agenda] = {}
        self._agents, self._fleet = agents, fleet
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._remembered = dict(remembered)
        """What the store says of each unit, until the unit is there."""
        self._moments: dict[str, tuple[Schedule, int, float | None]] = {}
        """When each unit runs next, as its schedule and the serial of its agenda have it: not worked out twice."""
        self._begun = False
        self._timer: asyncio.TimerHandle | None = None
        self._wall: WallClock | None = None

    # --- the fleet changes --------------------------------------------------------------------------------------------

    def put(self, agent: Agent, before: Schedule | None = None) -> None:
        """The unit is there, or its definition is another than ``before``."""
        asked = schedule_of(agent)
        remembered = self._remembered.pop(agent.name, None)
        if asked is None:
            self.agendas.pop(agent.name, None)
        elif remembered is not None and (found := _read(remembered.get("schedule"))) is not None:
            self.agendas[agent.name] = found
        elif agent.name in self.agendas and asked != before and self.agendas[agent.name].armed:
            self._arm(agent, "its schedule was changed", "agentd")
        self._next()

    def recall(self, agent: Agent, blob: Json, floor: str | None) -> None:
        """What the last daemon left with the keeper. The store may know more: a start that never left the daemon is
        open again. ``floor`` is the newest id that the store knows."""
        left, known = _read(blob.get("schedule")), self.agendas.get(agent.name)
        if left is None or schedule_of(agent) is None:
            return
        if known is None or left.serial >= known.serial:
            self.agendas[agent.name] = left
        elif known.opened and agent.life.invocation != floor:
            self.agendas[agent.name] = due.reopened(known)

    def drop(self, name: str) -> None:
        """The unit is gone."""
        self.agendas.pop(name, None)
        self._moments.pop(name, None)
        self._next()

    def begin(self) -> None:
        """The fleet is up: from now on what is due is started."""
        self._begun = True
        now = self._fleet.now()
        for name, agenda in self.agendas.items():
            self.agendas[name] = due.here(agenda, now, self._boot)
        self._look()

    def close(self) -> None:
        """Start nothing any more."""
        self._begun = False
        self._next()

    # --- what people ask for ------------------------------------------------------------------------------------------

    def enlist(self, agent: Agent, asked: Asked) -> None:
        """The fleet starts: the schedule holds, and what was missed of it since it last did counts."""
        agenda = self.agendas.get(agent.name)
        if agenda is None or not agenda.armed:
            self._arm(agent, asked.reason, asked.actor, asked.correlation)

    def by_hand(self, agent: Agent, asked: Asked) -> None:
        """Somebody starts it now: its schedule goes on from here."""
        if schedule_of(agent) is not None:
            self._arm(agent, asked.reason, asked.actor, asked.correlation)

    def stop(self, agent: Agent, asked: Asked) -> None:
        """Somebody stops it: an operator's word wins over automation."""
        agenda = self.agendas.get(agent.name)
        if agenda is None or not agenda.armed:
            return
        self.agendas[agent.name] = due.disarm(agenda)
        self._keep(agent, "unit.unscheduled", f"stopped {asked}", asked.actor, asked.correlation)

    def _arm(self, agent: Agent, reason: str, actor: str, chain: str | None = None) -> None:
        agenda = due.arm(self.agendas.get(agent.name), self._fleet.now(), self._boot)
        self.agendas[agent.name] = agenda
        text = f"runs {schedule_of(agent)}" + (f": {reason}" if reason else "")
        self._keep(agent, "unit.scheduled", text, actor, chain)

    # --- what is so ---------------------------------------------------------------------------------------------------

    def memo(self, name: str) -> Json:
        """What is to be remembered of a unit beside its life."""
        agenda = self.agendas.get(name)
        return {} if agenda is None else {"schedule": agenda.to_json()}

    def serial(self, name: str) -> int:
        """Another number for each state of its agenda."""
        agenda = self.agendas.get(name)
        return -1 if agenda is None else agenda.serial

    def status(self, agent: Agent) -> Json | None:
        """``schedule`` of UnitStatus; None: it has none."""
        asked, agenda = schedule_of(agent), self.agendas.get(agent.name)
        if asked is None:
            return None
        agenda = agenda or Agenda(0.0, 0.0, armed=False)
        moment = self._moment(agent, agenda) if agenda.armed else None
        return {
            "text": str(asked),
            "timezone": asked.timezone,
            "armed": agenda.armed,
            "next": None if moment is None else round(moment, 3),
            "due": agenda.due,
            "runs": agenda.runs,
            "skipped": agenda.skipped,
            "skipped_in_a_row": agenda.row,
            "missed": agenda.missed,
        }

    def why(self, name: str) -> str | None:
        """Why a unit that never ran does not run; None: it has no schedule."""
        agenda = self.agendas.get(name)
        if agenda is None:
            return None
        return (
            "has not run yet: its schedule says when"
            if agenda.armed
            else "has not run yet, and its schedule is stopped"
        )

    def laments(self, name: str) -> list[str]:
        """What a person should know of its schedule."""
        agenda = self.agendas.get(name)
        if agenda is None or agenda.row < ALARM_AT:
            return []
        return [f"its last {agenda.row} scheduled runs were skipped, because the one before was not over"]

    def _moment(self, agent: Agent, agenda: Agenda) -> float | None:
        """When it runs next, unix seconds."""
        asked, now = schedule_of(agent), self._fleet.now()
        assert asked is not None
        begins = self._begins(agent.name, asked, agenda)
        return begins if begins is None or asked.every is None else now.wall + begins - now.mono

    def _begins(self, name: str, asked: Schedule, agenda: Agenda) -> float | None:
        """The same on the clock of the schedule."""
        known = self._moments.get(name)
        if known is None or known[0] is not asked or known[1] != agenda.serial:
            known = self._moments[name] = (asked, agenda.serial, due.begins(name, asked, agenda))
        return known[2]

    # --- time ---------------------------------------------------------------------------------------------------------

    def _look(self, jumped: bool = False) -> None:
        """Start what is due."""
        now = self._fleet.now()
        moment = replace(now, mono=now.mono + EARLY, wall=now.wall + EARLY)
        for agent, asked in self._armed():
            if self._fleet.stopping:
                return
            if jumped and asked.cron is not None:
                self._jumped(agent, now)
            agenda = self.agendas[agent.name]
            begins = self._begins(agent.name, asked, agenda)
            if begins is None or begins > (moment.wall if asked.every is None else moment.mono):
                continue
            if (verdict := due.judge(agent.name, asked, agenda, moment)) is not None:
                self._due(agent, verdict, now)
        self._next()

    def _armed(self) -> list[tuple[Agent, Schedule]]:
        """The units whose schedules hold."""
        armed = ((self._agents[name], agenda) for name, agenda in self.agendas.items() if name in self._agents)
        return [(agent, asked) for agent, agenda in armed if agenda.armed and (asked := schedule_of(agent))]

    def _jumped(self, agent: Agent, now: Now) -> None:
        """The wall clock was set. What was run is not run again; what it jumped over is as good as missed."""
        agenda = self.agendas[agent.name]
        known = self.agendas[agent.name] = due.here(agenda, now, self._boot)
        if agenda.base > now.wall:
            then = self._moment(agent, known)
            text = f"the wall clock was set back to before the last run ({_clock(agenda.base)}); "
            text += "never again" if then is None else f"the next one is at {_clock(then)}"
            self._tell(agent, "unit.rescheduled", text, ACTOR, None)

    def _due(self, agent: Agent, verdict: Verdict, now: Now) -> None:
        agenda, text = self.agendas[agent.name], f"due at {_clock(verdict.due)}"
        if verdict.late > due.ON_TIME:
            text += f", {show_duration(round(verdict.late))} ago"
        if verdict.missed:
            text += f"; {verdict.missed} {'was' if verdict.missed == 1 else 'were'} missed"
        if not verdict.run:
            self.agendas[agent.name] = due.passed(agenda, verdict)
            self._keep(agent, "unit.missed", f"{text}: not run, missed = skip", ACTOR, new_chain())
        elif (busy := _busy(agent)) is not None:
            self.agendas[agent.name] = due.skipped(agenda, verdict)
            row = self.agendas[agent.name].row
            again = f" ({row} in a row)" if row > 1 else ""
            self._keep(agent, "unit.skipped", f"{text}: skipped, {busy}{again}", ACTOR, new_chain())
        else:
            self.agendas[agent.name] = due.started(agenda, verdict, now)
            self._fleet.start_alone(agent.name, Asked(ACTOR, text, new_chain()))

    def _keep(self, agent: Agent, kind: str, text: str, actor: str, chain: str | None) -> None:
        self._fleet.keep(agent)
        self._tell(agent, kind, text, actor, chain)
        self._next()

    def _tell(self, agent: Agent, kind: str, text: str, actor: str, chain: str | None) -> None:
        record = {"kind": kind, "unit": agent.name, "invocation": agent.life.invocation, "actor": actor}
        self._fleet.record({**record, "reason": text, "correlation": chain})

    def _next(self) -> None:
        """Arm the timers for the next moment, if there is any."""
        every: list[float] = []
        cron: list[float] = []
        armed = self._armed() if self._begun else []
        for agent, asked in armed:
            begins = self._begins(agent.name, asked, self.agendas[agent.name])
            if begins is not None:
                (cron if asked.every is None else every).append(begins)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(min(every), self._look) if every else None
        self._arm_wall(min(cron, default=None), any(asked.cron is not None for _, asked in armed))

    def _arm_wall(self, moment: float | None, needed: bool) -> None:
        if not needed:
            if self._wall is not None:
                self._wall.close()
                self._wall = None
            return
        if self._wall is None:
            self._wall = WallClock(self._look)
        self._wall.arm(moment)


def schedule_of(agent: Agent) -> Schedule | None:
    """The unit's schedule; None: it has none."""
    return None if agent.unit is None else agent.unit.agent.schedule


def _busy(agent: Agent) -> str | None:
    """Why a run cannot begin now; None: it can."""
    life = agent.life
    if life.waiting:
        return f"the last one has not begun: {life.reason}"
    if life.phase not in _IDLE:
        return f"the last one is not over: the unit is {life.phase} ({life.reason})"
    return None


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _read(data: Any) -> Agenda | None:
    """What a daemon remembered; None if it is of a version that we cannot read."""
    try:
        return Agenda.from_json(data)
    except (KeyError, TypeError, AttributeError):
        return None
