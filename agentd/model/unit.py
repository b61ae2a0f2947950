"""The unit: everything that a unit file can say, in one table.

Each field is one setting: its type, default, unit and help text stand here and nowhere else. Validation, ``agentctl
explain`` and the reference are made from it. A key that DESIGN names but this version does not yet honour is
listed in PLANNED and refused by name: no setting is ever accepted and ignored.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from agentd.model import quantity
from agentd.model.grant import Grant
from agentd.model.probe import Probe, probe_table
from agentd.model.schedule import Schedule, schedule_table
from agentd.model.section import Section

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}(@[a-z0-9][a-z0-9_-]{0,62})?")
SYSTEM_UNITS = ("bus", "router", "gateway")

Seconds = Annotated[float, BeforeValidator(quantity.duration)]
Bytes = Annotated[int, BeforeValidator(quantity.size)]
Cpus = Annotated[float, BeforeValidator(quantity.cpu)]
TokenAllowance = Annotated[quantity.Allowance, BeforeValidator(quantity.token_allowance)]


class Agent(Section):
    """What to run."""

    description: str = Field("", description="One line for people.")
    exec: tuple[str, ...] = Field(
        min_length=1,
        description="The program and its arguments, as a list; never a shell line. A bare program name is looked "
        "up on the unit's PATH, which begins with agentd's own environment; a relative path starts at workdir.",
    )
    type: Literal["simple", "notify", "oneshot"] = Field(
        "simple",
        description="simple: running as soon as it is started. notify: running once it says READY=1 on "
        "NOTIFY_SOCKET. oneshot: done when it exits 0; failed otherwise, unless restart.policy is on-failure.",
    )
    workdir: str | None = Field(
        None,
        description="Directory to start in. Relative paths start at the unit file. Default: the unit's state "
        "directory.",
    )
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables, added to agentd's.")
    env_file: str | None = Field(None, description="A file of KEY=VALUE lines, read at each start.")
    user: str | None = Field(
        None,
        description="Run as this user (name or number; needs root). Default as root: a uid of the unit's own.",
    )
    allow_root: bool = Field(False, description="Permit this unit to run as uid 0.")
    after: tuple[str, ...] = Field((), description="Units that must be ready before this one is started.")
    requires: tuple[str, ...] = Field(
        (),
        description="Units that it needs. They are started with it, and it starts once they are ready; while one is "
        "not, it is not started or restarted, and says why. An operator's stop of one stops it too. If one dies, it "
        "goes on as degraded and is told so.",
    )
    binds_to: tuple[str, ...] = Field(
        (),
        description="As requires; and it stops whenever one of them stops or dies, and starts again with it.",
    )
    stop_signal: str = Field("SIGTERM", description="The signal that asks the program to stop.")
    stop_timeout: Seconds = Field(10.0, description="Time from stop_signal until the whole tree is killed.")
    start_timeout: Seconds = Field(30.0, description="Time from the start until READY=1, for type notify.")
    replicas: int | None = Field(
        None,
        ge=0,
        le=10_000,
        description="In a template, NAME@.toml: the units NAME@1 to NAME@N come up with the fleet. Others are "
        "started by name, as NAME@x. Default: none.",
    )
    runtime_max: Seconds | None = Field(
        None,
        description="Longest run. A run that lasts longer is asked to stop and counts as a failure. Default: no limit.",
    )

    may_spawn: Grant | None = Field(
        None,
        description="What it may spawn at run time, over its channel: a table { number = 5, depth = 1, "
        'memory = "4G", cpu = 2, pids = 512, tokens = "500k/day" }. number: descendants that may be there at once. '
        "depth: generations; 1 is children that may not spawn. The others bound the sum of limits.memory, limits.cpu, "
        "limits.pids and budget.tokens over all of them, checked at each spawn; one that names none gets its even "
        "share, sum / number. Without a sum, each has at most the unit's own limit; without tokens, all have together "
        "as much as the unit. Tokens of those that ended count until the window is over. A child has no right that its "
        "parent has not, and ends when the parent's process does: a successor does not know what it was for. "
        "Default: it may not spawn.",
    )
    schedule: Annotated[Schedule, BeforeValidator(schedule_table)] | None = Field(
        None,
        description='Runs it at these times instead of with the fleet. "every 5m" counts from the last start; cron has '
        'five fields, "0 3 * * 1-5", or is "@daily"; or a table { cron = "0 3 * * *", timezone = "Europe/Berlin", '
        'jitter = "30s", missed = "skip" }. The time zone is UTC if none is named; jitter delays each run by up to '
        "that much. What was missed while agentd or the host was down, or the clock jumped over it, is run once "
        "(missed = once) or not at all (skip). A run is over when the program exits, whatever the type; only "
        "restart.policy on-failure tries a failed one again. A run that is due while the last one is not over is "
        "skipped and counted. agentctl start runs it now; agentctl stop ends the run, and the schedule too, until "
        "the next agentctl start.",
    )

    @field_validator("stop_signal")
    @classmethod
    def _known_signal(cls, value: str) -> str:
        import signal

        name = value if value.startswith("SIG") else "SIG" + value
        if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
            raise ValueError(f"{value!r} is not a signal that a program can answer; use for example SIGTERM")
        return name


class Restart(Section):
    """What happens when it ends."""

    policy: Literal["always", "on-failure", "never"] = Field(
        "always",
        description="always: whatever the exit. on-failure: unless it exited 0. never: leave it.",
    )
    delay: Seconds = Field(
        0.5,
        description="Base of the exponential back-off. The first restart after a healthy run is immediate.",
    )
    max_delay: Seconds = Field(60.0, description="Cap of the back-off.")
    burst: int = Field(10, ge=1, description="This many failures within the window park the unit.")
    window: Seconds = Field(120.0, description="The window that burst counts in.")
    healthy_after: Seconds = Field(10.0, description="A run of this length resets the back-off.")
    parked_delay: Seconds = Field(300.0, description="A parked unit is tried again this often, and shown as parked.")
    strategy: Literal["one_for_one", "one_for_all", "rest_for_one"] = Field(
        "one_for_one",
        description="What else is restarted when this unit fails and is restarted: within the group of units that "
        "binds_to joins, all of it (one_for_all), those that start after it (rest_for_one), or nobody but the units "
        "that are bound to it (one_for_one).",
    )
    success: tuple[int | str, ...] = Field(
        (),
        description='Exit statuses and signals that count as exit 0, such as [75, "SIGUSR1"].',
    )

    @field_validator("success")
    @classmethod
    def _known_endings(cls, value: tuple[int | str, ...]) -> tuple[int | str, ...]:
        return tuple(_ending(word) for word in value)


def _ending(word: int | str) -> int | str:
    """An exit status from 1 to 255, or the name of a signal."""
    import signal

    if isinstance(word, int):
        if not 1 <= word <= 255:
            raise ValueError(f"{word} is not an exit status from 1 to 255 (0 is a success anyway)")
        return word
    name = word if word.startswith("SIG") else "SIG" + word
    if name not in signal.Signals.__members__:
        raise ValueError(f"{word!r} is no signal; use an exit status such as 75, or a name such as SIGUSR1")
    return name


class Liveness(Section):
    """How a hang is found."""

    heartbeat: Seconds | None = Field(
        None,
        description="Longest time between two WATCHDOG=1 beats. Longer is hung. Default: no heartbeat asked.",
    )
    progress: Seconds | None = Field(
        None,
        gt=0,
        description="Longest time without progress while it has work. Progress is output, a message begun, moved or "
        "done, or a model call that moves. A unit has work while it holds a message; one without a channel always. "
        "Default: not asked.",
    )
    probe: Annotated[Probe, BeforeValidator(probe_table)] | None = Field(
        None,
        description='Asks the unit itself whether it is well. "http://127.0.0.1:PORT/path" (any status below 400), '
        '"tcp:HOST:PORT", a command as a list ["./ask", "--short"] (exit 0), or a table { tcp = "127.0.0.1:4222", '
        'expect = "INFO", interval = "10s", timeout = "3s", failures = 3 } with tcp, http or exec. So many failures '
        "in a row are a hang; before the first success none counts during agent.start_timeout. A command runs beside "
        "the unit, as its user, with its environment and in its limits, and is killed at its timeout.",
    )
    on_hang: Literal["restart", "abort", "alarm"] = Field(
        "restart",
        description="restart: kill it and start it again. abort: keep a dump of its stacks, send SIGABRT, and kill "
        "what is left after 3 s. alarm: tell it in status, journal and metrics, and leave it alone.",
    )


class Limits(Section):
    """What it may use."""

    memory: Bytes | None = Field(
        None,
        description="Memory of the whole process tree. Default 2G where a cgroup can enforce it.",
    )
    cpu: Cpus | None = Field(None, description="CPUs, as a number or a percentage of one.")
    pids: int | None = Field(None, ge=1, description="Processes and threads. Default 512 where a cgroup enforces it.")
    open_files: int | None = Field(None, ge=16, description="Open files per process (RLIMIT_NOFILE).")


class Isolation(Section):
    """How it is kept apart."""

    level: Literal["none", "rlimit", "cgroup"] | None = Field(
        None,
        description="A level that is named and cannot be had refuses to start. Default: cgroup where this host "
        "allows it, else rlimit, and status says so.",
    )


class Bus(Section):
    """Its inbox and what it may send."""

    may_send: tuple[str, ...] | None = Field(None, description="Units it may send to. Default: any unit.")
    inbox_max: int = Field(10_000, ge=1, description="Messages that may wait; more are refused to the sender.")
    in_flight: int = Field(1, ge=1, le=256, description="Messages it may hold at once. Order holds at 1.")
    deadline: Seconds = Field(
        300.0,
        description="Longest time for one message without a result or progress; then the reader counts as hung.",
    )
    max_deliver: int = Field(5, ge=1, description="Attempts (by cause) until a message is dead-lettered.")
    poison_after: int = Field(3, ge=1, description="Unexplained exits of its reader until a message is dead-lettered.")
    backoff: tuple[Seconds, ...] = Field(
        (1.0, 5.0, 30.0),
        description="Delays before the redelivery of a message that its reader refused with retry.",
    )


class Budget(Section):
    """What it may spend on models."""

    tokens: TokenAllowance = Field(
        quantity.Allowance(2_000_000, "day"),
        description='Tokens per window, such as "200k/day"; without a window, for good.',
    )
    on_exhausted: Literal["hold", "refuse", "stop"] = Field(
        "hold",
        description="hold: the unit rests as held until the window rolls over or the budget is raised. "
        "refuse: each call gets 402. stop: the unit is stopped for good.",
    )


class Llm(Section):
    """Its model calls."""

    silence: Seconds = Field(
        120.0,
        description="A model call that moved no byte for this long is stuck and no longer counts as thinking.",
    )


class Unit(Section):
    """A unit: one supervised agent."""

    name: str = Field(description="From the file name: [a-z0-9][a-z0-9_-]{0,62}.")
    file: str | None = Field(None, description="Where it was read from; relative paths start there.")
    dropins: tuple[str, ...] = Field((), description="Drop-ins that were merged over the file, in their order.")
    origins: dict[str, str] = Field(
        default_factory=dict, description="section.key → the file that says it, where that is not ``file``."
    )
    agent: Agent
    restart: Restart = Restart()
    liveness: Liveness = Liveness()
    limits: Limits = Limits()
    isolation: Isolation = Isolation()
    bus: Bus = Bus()
    budget: Budget = Budget()
    llm: Llm = Llm()

    def origin(self, section: str, key: str) -> str | None:
        """The file that says this; the unit's own file where none does."""
        return self.origins.get(f"{section}.{key}", self.file)

    def means_the_same(self, other: Unit) -> bool:
        """Whether both would run alike, whichever files say so."""
        ours, theirs = (str(unit.file or "").rpartition("/")[0] for unit in (self, other))  # relative paths start there
        return ours == theirs and all(getattr(self, name) == getattr(other, name) for name in ("name", *SECTIONS))


SECTIONS: tuple[str, ...] = ("agent", "restart", "liveness", "limits", "isolation", "bus", "budget", "llm")

PLANNED: dict[str, tuple[str, ...]] = {
    "agent": ("entry", "preload", "capabilities", "tier"),
    "liveness": ("respond_within",),
    "recycle": ("after_tasks", "after_memory", "after_age"),
    "limits": ("memory_warn",),
    "isolation": ("fallback", "network", "read", "write"),
    "bus": ("topics", "accepts", "returns"),
    "conversation": ("max_hops", "max_rounds", "silence", "tokens"),
    "budget": ("usd", "per_message", "per_conversation", "alert_rate"),
    "llm": ("models", "fallback", "template_answer", "max_concurrency", "max_calls_per_message", "telemetry"),
    "guard": ("input", "output"),
}
"""Keys with a reserved meaning that this version does not honour yet: refused, and the error says so."""
