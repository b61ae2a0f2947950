"""The values that the lifecycle is made of: where a unit stands, what can happen to it, what is to be done.

No rule lives here: ``lifecycle`` says what an event does, ``restart`` when a failed unit runs again. Times named
``since``, ``started``, ``beat``, ``deadline`` and ``failures`` are CLOCK_MONOTONIC seconds of this host boot, so they
stay true over a restart of the daemon, not over a reboot (after one, begin with ``Life.new(mono, floor=...)``).
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

from agentd.model.unit import Unit


class Phase(StrEnum):
    """Where a unit stands; the state that ``status`` shows."""

    inactive = "inactive"
    starting = "starting"
    running = "running"
    stopping = "stopping"
    backoff = "backoff"
    parked = "parked"
    held = "held"
    failed = "failed"


LIVE = frozenset({Phase.starting, Phase.running, Phase.stopping})
"""An invocation exists, or is being spawned."""
DOWN = frozenset({Phase.inactive, Phase.parked, Phase.held, Phase.failed})
"""Not about to come back by itself: the router takes back what it held."""


class Cause(StrEnum):
    """How an invocation came to its end."""

    failed = "failed"
    crashed = "crashed"
    hung = "hung"
    timed_out = "timed_out"
    """It made no progress on its message in time, though it may have been alive."""
    left = "left"
    stopped = "stopped"
    held = "held"
    unstarted = "unstarted"
    done = "done"


INNOCENT = frozenset({Cause.stopped, Cause.held, Cause.unstarted, Cause.done})
"""Causes that are nobody's fault: no attempt of a message is counted."""


class Purpose(StrEnum):
    """Why a unit is stopping."""

    stop = "stop"
    restart = "restart"
    hold = "hold"
    hang = "hang"
    timed_out = "timed_out"
    start_timeout = "start_timeout"
    overrun = "overrun"
    follow = "follow"


HANGS = frozenset({Purpose.hang, Purpose.timed_out})
"""What ``on_hang`` says is done."""
BLAMED = HANGS | {Purpose.start_timeout}
"""The unit is killed for its own fault: the end counts as a failure, and ``Life.reason`` says which."""
AT_FAULT = BLAMED | {Purpose.overrun}
"""The end counts as a failure, though one that only ran too long is asked to stop first."""


@dataclass(frozen=True, slots=True)
class Now:
    """The moment of an event."""

    mono: float
    """CLOCK_MONOTONIC seconds."""
    wall: float
    """Unix seconds."""
    luck: float
    """A random number in [0, 1) for the jitter of the back-off."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one invocation."""

    invocation: str
    cause: Cause
    exit: int | None
    """Exit code, or minus the signal number; None where nobody knows."""
    at: float
    """Unix seconds."""
    ran: float
    """Seconds."""
    text: str
    """In words: ``exited 1``, ``killed by SIGKILL``, ``no heartbeat for 3.0s``."""


@dataclass(frozen=True, slots=True)
class Life:
    """Where one unit stands. Made by ``step`` only, apart from ``new``, ``found`` and ``from_json``."""

    phase: Phase
    wanted: bool
    """It should run, as far as it can: the operator's word."""
    since: float
    """When it came into this phase."""
    invocation: str | None = None
    """The one that lives, or is being spawned or stopped."""
    floor: str | None = None
    """The newest id ever minted."""
    started: float | None = None
    """When the process was spawned; None while the keeper has not said so."""
    ready: bool = False
    beat: float | None = None
    deadline: float | None = None
    """The one moment at which a Deadline event is due; None: nothing is due."""
    failures: tuple[float, ...] = ()
    """When it failed, within the window."""
    attempt: int = 0
    """Failures since it last was healthy: the exponent of the back-off."""
    probation: bool = False
    """It was parked and has not been healthy since: the next failure parks it at once. (Not a phase, because it holds
    through starting, running, stopping and held.)"""
    restarts: int = 0
    """Automatic ones since the operator's last start or restart."""
    purpose: Purpose | None = None
    """Why it began to stop."""
    again: bool = False
    """The operator asked for a start while it was stopping: it is spawned at the end of the stop, whatever the
    policy says. (Not a purpose, because that one still says how the end is accounted.)"""
    hold: str | None = None
    """Why it may not run just now; a level that outlives phases."""
    awaits: str | None = None
    """Whom it has to wait for before it is spawned again; a level that outlives phases, and stops nothing that runs."""
    alarm: str | None = None
    """Why it counts as hung, where ``on_hang`` is alarm: told once, until it recovers."""
    mute: bool = False
    """The alarm is about missing beats: the next one ends it."""
    interval: float | None = None
    """The heartbeat limit that the process asked for itself (WATCHDOG_USEC=), instead of the policy's."""
    last: Ending | None = None
    reason: str = ""
    """Why it is in this phase."""

    @classmethod
    def new(cls, mono: float, floor: str | None = None) -> Life:
        """A unit that is not to run yet."""
        return cls(phase=Phase.inactive, wanted=False, since=mono, floor=floor, reason="never started")

    @classmethod
    def found(cls, invocation: str, mono: float) -> Life:
        """The life of a process of which the daemon remembers nothing, to be followed by its Spawned event."""
        return cls(
            phase=Phase.starting,
            wanted=True,
            since=mono,
            invocation=invocation,
            floor=invocation,
            reason="found running, without a record of it",
        )

    @property
    def satisfied(self) -> bool:
        """Units that depend on this one may start: it is ready, or a oneshot that is done."""
        done = self.phase is Phase.inactive and self.last is not None and self.last.cause is Cause.done
        return (self.phase is Phase.running and self.ready) or done

    @property
    def waiting(self) -> bool:
        """It is to run and waits for others (``awaits``)."""
        return self.phase is Phase.inactive and self.wanted

    @property
    def down(self) -> bool:
        """It is not about to come back by itself."""
        return self.phase in DOWN

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads again. Written at each change, so without ``asdict``'s deep copies."""
        row: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.last is not None:
            row["last"] = {name: getattr(self.last, name) for name in Ending.__dataclass_fields__}
        return row

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Life:
        """Read what ``to_json`` of this or a neighbouring version wrote; else ValueError, TypeError or KeyError."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        last = known.get("last")
        if last is not None:
            ending = {f.name: last[f.name] for f in fields(Ending)}
            known["last"] = Ending(**{**ending, "cause": Cause(ending["cause"])})
        purpose = known.get("purpose")
        known["purpose"] = None if purpose is None else Purpose(purpose)
        known["failures"] = tuple(known.get("failures", ()))
        return cls(**{**known, "phase": Phase(data["phase"])})


@dataclass(frozen=True, slots=True)
class Policy:
    """The part of a unit that its lifecycle depends on. Durations are seconds."""

    type: Literal["simple", "notify", "oneshot"] = "simple"
    restart: Literal["always", "on-failure", "never"] = "always"
    delay: float = 0.5
    max_delay: float = 60.0
    burst: int | None = 10
    """None: never parked."""
    window: float = 120.0
    healthy_after: float = 10.0
    parked_delay: float = 300.0
    stop_signal: str = "SIGTERM"
    stop_timeout: float = 10.0
    start_timeout: float = 30.0
    heartbeat: float | None = None
    runtime_max: float | None = None
    """Longest run, from the spawn."""
    success: frozenset[int] = frozenset()
    """Exit codes, and negative signal numbers, that count as exit 0."""
    on_hang: Literal["restart", "abort", "alarm"] = "restart"
    eager: bool = True
    """The first failure restarts at once, however short the run was."""
    jitter: bool = True
    """Full jitter: the delay is drawn evenly from nothing up to the back-off."""

    @classmethod
    def of(cls, unit: Unit) -> Policy:
        """The policy that a unit file asks for."""
        return cls(
            type=unit.agent.type,
            restart=_restarted(unit),
            delay=unit.restart.delay,
            max_delay=unit.restart.max_delay,
            burst=unit.restart.burst,
            window=unit.restart.window,
            healthy_after=unit.restart.healthy_after,
            parked_delay=unit.restart.parked_delay,
            stop_signal=unit.agent.stop_signal,
            stop_timeout=unit.agent.stop_timeout,
            start_timeout=unit.agent.start_timeout,
            heartbeat=unit.liveness.heartbeat,
            runtime_max=unit.agent.runtime_max,
            success=frozenset(map(_status, unit.restart.success)),
            on_hang=unit.liveness.on_hang,
        )

    @classmethod
    def system(
        cls,
        *,
        type: Literal["simple", "notify"] = "notify",  # noqa: A002 - the word of the unit file
        stop_signal: str = "SIGTERM",
        stop_timeout: float = 10.0,
        start_timeout: float = 30.0,
        heartbeat: float | None = None,
    ) -> Policy:
        """Bus, router and gateway: at once if it lived a second, else after 100 ms doubling to 2 s, never parked."""
        return cls(
            type=type,
            delay=0.1,
            max_delay=2.0,
            burst=None,
            healthy_after=1.0,
            stop_signal=stop_signal,
            stop_timeout=stop_timeout,
            start_timeout=start_timeout,
            heartbeat=heartbeat,
            eager=False,
            jitter=False,
        )


def _restarted(unit: Unit) -> Literal["always", "on-failure", "never"]:
    """A run of a schedule is over when it ends: what is always there has no schedule."""
    scheduled = unit.agent.schedule is not None and unit.restart.policy == "always"
    return "never" if scheduled else unit.restart.policy


def _status(word: int | str) -> int:
    """An exit status as the keeper tells it: ``75``, or ``-10`` for SIGUSR1."""
    return word if isinstance(word, int) else -signal.Signals[word]


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody asks for it."""

    actor: str
    reason: str = ""
    correlation: str | None = field(default=None, compare=False)
    """The request that it belongs to: carried along, never looked at here."""

    def __str__(self) -> str:
        return f"by {self.actor}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Start(Asked):
    """Run it. Ends back-off, parking and failure; a unit that is held stays held, and runs once released."""


@dataclass(frozen=True, slots=True)
class Stop(Asked):
    """Do not run it any more. Always wins."""


@dataclass(frozen=True, slots=True)
class Restart(Asked):
    """Stop it if it runs, and run it."""


@dataclass(frozen=True, slots=True)
class Hold:
    """It may not run until Release: its budget is used up."""

    text: str


@dataclass(frozen=True, slots=True)
class Release:
    """The hold is over."""

    text: str


@dataclass(frozen=True, slots=True)
class Await:
    """It may not be spawned until Proceed: what it needs is not ready. Nothing that runs is stopped."""

    text: str


@dataclass(frozen=True, slots=True)
class Proceed:
    """What it waited for is ready."""

    text: str


@dataclass(frozen=True, slots=True)
class Follow:
    """What it is bound to ended: it is stopped, remains wanted, and runs again once it need not wait (``awaits``)."""

    text: str


@dataclass(frozen=True, slots=True)
class Deadline:
    """``Life.deadline`` may be due. One that comes early or late changes nothing."""


@dataclass(frozen=True, slots=True)
class Of:
    """An event of one invocation; of any other than the present one it changes nothing."""

    invocation: str


@dataclass(frozen=True, slots=True)
class Hang(Of):
    """The daemon found that it hangs; ``late``: over a message on which it made no progress in time."""

    text: str
    late: bool = False


@dataclass(frozen=True, slots=True)
class Recovered(Of):
    """What it was found to hang over is gone: ends an alarm."""

    text: str


@dataclass(frozen=True, slots=True)
class Extend(Of):
    """EXTEND_TIMEOUT_USEC=: its start or stop takes longer; at least until this moment (monotonic)."""

    until: float


@dataclass(frozen=True, slots=True)
class Interval(Of):
    """WATCHDOG_USEC=: from now on its heartbeat limit is this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Spawned(Of):
    """The keeper runs it: the answer to Spawn, or what the snapshot says at adoption."""

    pid: int
    at: float | None = None
    """When it was forked (monotonic); None: now."""


@dataclass(frozen=True, slots=True)
class Refused(Of):
    """The keeper could not execute the plan: nothing runs."""

    text: str
    retry: bool = False
    """The same plan may work later (no memory, too many processes, remains of the last run)."""


@dataclass(frozen=True, slots=True)
class Ready(Of):
    """READY=1."""


@dataclass(frozen=True, slots=True)
class Beat(Of):
    """The keeper's stamp of the last WATCHDOG=1."""

    at: float


@dataclass(frozen=True, slots=True)
class Excused(Of):
    """It does not beat, but waits for a model that moves (``liveness``: thinking): its heartbeat begins anew."""


@dataclass(frozen=True, slots=True)
class Ended(Of):
    """It is dead, with its whole tree."""

    exit: int | None
    """Exit code, or minus the signal number; None where nobody knows."""
    at: float | None = None
    """When (monotonic); None: now."""


Event = (
    Start | Stop | Restart | Hold | Release | Await | Proceed | Follow | Deadline
    | Hang | Spawned | Refused | Ready | Beat | Excused | Ended | Recovered | Extend | Interval
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spawn:
    """Persist the life, then ask the keeper to execute the plan under this id."""

    invocation: str


@dataclass(frozen=True, slots=True)
class Signal:
    """Send this signal to the main process."""

    invocation: str
    signal: str


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL the whole tree."""

    invocation: str


@dataclass(frozen=True, slots=True)
class Abort:
    """Keep a dump of its stacks, then send SIGABRT to the main process."""

    invocation: str


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the journal: what happened, and why in words. ``kind`` is ``unit.<phase>`` for a change of phase, else
    one of ``unit.ended spawned adopted killed wanted unwanted hold release waiting hung recovered extended``."""

    kind: str
    text: str
    actor: str = "agentd"
    invocation: str | None = None


Effect = Spawn | Signal | Kill | Abort | Note
