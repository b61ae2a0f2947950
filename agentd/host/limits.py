"""Limits as the kernel takes them: cgroup settings and rlimits. Decides a unit's isolation level; writes nothing."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Literal

from agentd.errors import HostCannot
from agentd.host.capability import CONTROLLERS, Capabilities
from agentd.keeper.plan import Cgroup, Rlimit
from agentd.model.quantity import show_size
from agentd.model.unit import Limits, Unit

DEFAULT_MEMORY = 2 << 30
DEFAULT_PIDS = 512
DEFAULT_OPEN_FILES = 65_536
PERIOD = 100_000
"""Microseconds over which a cpu limit is counted."""

Level = Literal["none", "rlimit", "cgroup"]


@dataclass(frozen=True, slots=True)
class Isolated:
    """The level a unit gets and what follows from it."""

    level: Level
    cgroups: tuple[Cgroup, ...]
    rlimits: tuple[Rlimit, ...]
    warnings: tuple[str, ...]


def isolate(unit: Unit, capabilities: Capabilities) -> Isolated:
    """Level and limits of a unit; HostCannot for what was asked for by name and cannot be had."""
    level, warnings = _level(unit, capabilities)
    _refuse_unenforceable(unit, level, capabilities)
    return Isolated(
        level,
        cgroups(unit.name, unit.limits, level, capabilities),
        _rlimits(unit, level),
        warnings,
    )


def _level(unit: Unit, capabilities: Capabilities) -> tuple[Level, tuple[str, ...]]:
    named = unit.isolation.level
    if named == "cgroup" and not capabilities.cgroup:
        raise HostCannot(
            f'{_place(unit)}[isolation] level = "cgroup": this host cannot give it: {capabilities.why_not}',
            hint="Give the keeper's unit Delegate=yes or run agentd as root; or leave the level out, "
            "and the unit runs at level rlimit with a warning.",
            key="isolation.level",
        )
    if named is not None:
        return named, ()
    if capabilities.cgroup:
        return "cgroup", ()
    return "rlimit", (weaker(capabilities),)


def weaker(capabilities: Capabilities) -> str:
    """The warning of what runs at level rlimit for want of a cgroup. One text for all, so that it is told once."""
    return f"isolation level rlimit instead of cgroup, so no memory or process limit holds: {capabilities.why_not}"


def _refuse_unenforceable(unit: Unit, level: Level, capabilities: Capabilities) -> None:
    asked = {
        "memory": unit.limits.memory and show_size(unit.limits.memory),
        "cpu": unit.limits.cpu,
        "pids": unit.limits.pids,
    }
    for controller, value in asked.items():
        if value is None or (level == "cgroup" and controller in capabilities.parents):
            continue
        if unit.isolation.level not in (None, "cgroup"):
            why = f"only a cgroup can, and the level is {level}"
        else:
            why = capabilities.missing.get(controller) or capabilities.why_not
        raise HostCannot(
            f"{_place(unit)}[limits] {controller} = {value}: this limit cannot be enforced: {why}",
            hint=f"Drop the {controller} limit, or let the unit have the level cgroup"
            " (root, or Delegate=yes in the keeper's unit).",
            key=f"limits.{controller}",
        )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = unit.limits.open_files
    if wanted and not capabilities.can_switch_user and hard != resource.RLIM_INFINITY and wanted > hard:
        raise HostCannot(
            f"{_place(unit)}[limits] open_files = {wanted}: uid {capabilities.uid} may have {hard} at most",
            hint="Lower it, or raise LimitNOFILE (ulimit -Hn) for agentd.",
            key="limits.open_files",
        )


def cgroups(name: str, limits: Limits, level: Level, capabilities: Capabilities, parts: int = 1) -> tuple[Cgroup, ...]:
    """The cgroups of a unit: one on v2; on v1 one per controller, and one on the v2 mount by which its tree is killed.

    At level rlimit only the latter remains, where it can be had: it limits nothing and kills surely. Where processors
    are short it gets so many ``parts`` of them, an ordinary unit one.
    """
    if level == "none":
        return ()
    named = {
        controller: (capabilities.parents[controller] / name, _settings(controller, limits, capabilities, parts))
        for controller in CONTROLLERS
        if level == "cgroup" and controller in capabilities.parents
    }
    kill = capabilities.parents.get("kill")
    if capabilities.mode == "v2" and kill is not None:
        merged = tuple(setting for _, settings in named.values() for setting in settings)
        return (Cgroup(str(kill / name), merged, kill=True),)
    made = [Cgroup(str(path), settings) for path, settings in named.values()]
    if kill is not None:
        made.append(Cgroup(str(kill / name), kill=True))
    return tuple(made)


def _settings(controller: str, limits: Limits, capabilities: Capabilities, parts: int) -> tuple[tuple[str, str], ...]:
    v2 = capabilities.mode == "v2"
    match controller:
        case "memory":
            return _memory(str(limits.memory or DEFAULT_MEMORY), v2, capabilities.swap)
        case "cpu":
            quota = None if limits.cpu is None else max(1000, int(limits.cpu * PERIOD))
            weight = () if parts == 1 else (_weight(parts, v2),)
            if v2:
                return (("cpu.max", f"{quota or 'max'} {PERIOD}"), *weight)
            return (("cpu.cfs_period_us", str(PERIOD)), ("cpu.cfs_quota_us", str(quota or -1)), *weight)
        case _:
            return (("pids.max", str(limits.pids or DEFAULT_PIDS)),)


def _weight(parts: int, v2: bool) -> tuple[str, str]:
    """So many times what a cgroup has that is told nothing."""
    return ("cpu.weight", str(100 * parts)) if v2 else ("cpu.shares", str(1024 * parts))


def _memory(limit: str, v2: bool, swap: bool) -> tuple[tuple[str, str], ...]:
    if v2:
        # One out of memory, all out: a half-dead agent is worse than a restarted one. No swap: the limit is the limit.
        settings = (("memory.max", limit), ("memory.oom.group", "1"))
        return (*settings, ("memory.swap.max", "0")) if swap else settings
    if not swap:
        return (("memory.limit_in_bytes", limit),)
    # A kept cgroup has the limits of last time, and memory may never exceed memory plus swap: open it first.
    return (
        ("memory.memsw.limit_in_bytes", "-1"),
        ("memory.limit_in_bytes", limit),
        ("memory.memsw.limit_in_bytes", limit),
    )


def _rlimits(unit: Unit, level: Level) -> tuple[Rlimit, ...]:
    wanted = unit.limits.open_files
    if level == "none":
        return (Rlimit("RLIMIT_NOFILE", wanted, wanted),) if wanted else ()
    return (Rlimit("RLIMIT_CORE", 0, 0), open_files(wanted))


def open_files(wanted: int | None) -> Rlimit:
    """The limit of open files: as asked, else 65536 or what we may have at most."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if wanted is None:
        wanted = DEFAULT_OPEN_FILES if hard == resource.RLIM_INFINITY else min(DEFAULT_OPEN_FILES, hard)
    return Rlimit("RLIMIT_NOFILE", wanted, wanted)


def _place(unit: Unit) -> str:
    return f"{unit.file or unit.name}: "
