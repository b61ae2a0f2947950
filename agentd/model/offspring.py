"""May this unit spawn that one? One pure function, ``admit``: the child's unit, or the refusal with its reason.

A child's full name is its parent's, ``~`` and a name of its own: no unit file can have such a name, nobody else's child
can, and it says whose child it is, so that parentage needs no other record. Every ancestor's grant bounds the sum over
all of *its* descendants; beyond that no child has more than its parent in any respect (MAY lists what it may say at
all, the bounds below what of it). What a child leaves open and a sum bounds, is its even share: sum / number.

This file knows no process and no clock: time is an argument.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentd.errors import AgentdError, BadInput, Denied, OverBudget, UnitFileError
from agentd.model import reading, verify
from agentd.model.grant import Grant
from agentd.model.ledger import period_of
from agentd.model.quantity import WINDOWS, Allowance, Window, show_count, show_duration, show_size
from agentd.model.unit import NAME, SECTIONS, Budget, Unit

Json = dict[str, Any]

MARK = "~"
"""Between a parent's name and its child's. Not a letter of any unit file's name."""
OWN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
LONGEST = 127
"""Characters of a full name, as of a template's instance."""
MEMORY, PIDS, OPEN_FILES = 2 << 30, 512, 65_536
"""What a unit that names none is given by the host room, at most."""
LEAST_CPU = 0.01
"""The kernel gives no less: a smaller limit counts as this."""

MAY: dict[str, tuple[str, ...]] = {
    "agent": (
        "description", "exec", "type", "workdir", "env", "user", "allow_root", "may_spawn",
        "stop_signal", "stop_timeout", "start_timeout", "runtime_max",
    ),
    "restart": ("policy", "delay", "max_delay", "burst", "window", "healthy_after", "parked_delay", "success"),
    "liveness": ("heartbeat", "progress", "on_hang"),
    "limits": ("memory", "cpu", "pids", "open_files"),
    "isolation": ("level",),
    "bus": ("may_send", "inbox_max", "in_flight", "deadline", "max_deliver", "poison_after", "backoff"),
    "budget": ("tokens", "on_exhausted"),
    "llm": ("silence",),
}  # fmt: skip
"""What a child's tables may say; a key that is not listed is refused. Not listed are keys by which agentd would read a
file (env_file) or knock at a port (probe) on the child's behalf, and those that move other units (requires, …)."""
AT_MOST = (
    ("agent", "stop_timeout"), ("agent", "start_timeout"), ("restart", "burst"), ("bus", "inbox_max"),
    ("bus", "in_flight"), ("bus", "max_deliver"),
)  # fmt: skip
"""A child has at most its parent's: what others would wait for, or store."""
AT_LEAST = (
    ("restart", "delay"), ("restart", "max_delay"), ("restart", "window"), ("restart", "healthy_after"),
    ("restart", "parked_delay"),
)  # fmt: skip
"""And at least its parent's: what keeps a crash loop slow."""
LEAST_BEAT = 0.1
"""Seconds: a shorter heartbeat or progress limit of a child would keep the daemon busy."""
LEVELS = ("none", "rlimit", "cgroup")


@dataclass(frozen=True, slots=True)
class Past:
    """What a child that has ended spent in its window, and when that was known (unix seconds)."""

    tokens: int
    at: float
    window: Window


# --- names ------------------------------------------------------------------------------------------------------------


def full_name(parent: str, name: Any) -> str:
    """The name of ``parent``'s child ``name``; BadInput where it cannot be one."""
    if not isinstance(name, str) or not OWN_NAME.fullmatch(name):
        raise BadInput(f"name: {_quoted(name)} is no name: 1 to 63 characters a-z 0-9 _ -, a letter or digit first")
    full = f"{parent}{MARK}{name}"
    if len(full) > LONGEST:
        raise BadInput(f"name: {full!r} is longer than {LONGEST} characters", hint="Choose a shorter one.")
    return full


def is_name(name: str) -> bool:
    """Whether a unit, or a child of one, can have this name."""
    root, *rest = name.split(MARK)
    return len(name) <= LONGEST and bool(NAME.fullmatch(root)) and all(map(OWN_NAME.fullmatch, rest))


def parent_of(name: str) -> str | None:
    """Whose child it is; None for a unit of its own."""
    return name.rpartition(MARK)[0] or None


def ancestors(name: str) -> list[str]:
    """Its parent, the parent of that, and so on."""
    found = []
    while (parent := parent_of(name)) is not None:
        found.append(name := parent)
    return found


def descends(name: str, ancestor: str) -> bool:
    """Whether it is a child of this unit, or of one of its descendants."""
    return name.startswith(ancestor + MARK)


# --- admission --------------------------------------------------------------------------------------------------------


def admit(
    parent: str, name: Any, tables: Any, fleet: Mapping[str, Unit], past: Mapping[str, Past], level: str, now: float
) -> Unit:
    """The unit of a new child, whole.

    ``fleet`` holds at least the parent, its ancestors and all of their descendants that are there; ``past`` what those
    spent that are not; ``level`` is the isolation that the parent has in fact. Raises BadInput for what is wrong by
    itself, Denied for more than the parent has, OverBudget where a grant has no room left.
    """
    full = full_name(parent, name)
    line = [parent, *ancestors(parent)]
    room(parent, fleet)
    wanted = _read(str(name), tables)
    above = fleet[parent]
    unit = _tied(_bounded(_identity(wanted, above, level), above), full, above)
    unit = _limited(unit, line, fleet)
    unit = _funded(unit, line, fleet, past, now)
    _may_spawn(unit, line, fleet)
    for finding in verify.verify({full: unit, parent: above}, only=[full]):
        if finding.severity == "error":
            raise UnitFileError(f"{finding.key}: {finding.message}", hint=finding.hint)
    return unit


def grant_of(unit: Unit) -> Grant:
    """What a unit may spawn; Denied if nothing."""
    grant = unit.agent.may_spawn
    if grant is None:
        hint = "Its unit file grants it: may_spawn = { number = 3 } under [agent]."
        raise Denied(f"{unit.name} may not spawn: its unit has no may_spawn.", hint=hint)
    return grant


def left(name: str, fleet: Mapping[str, Unit], past: Mapping[str, Past], now: float) -> Json:
    """What is left of a unit's own grant, as far as its own sums go."""
    grant = grant_of(fleet[name])
    known: Json = {"number": grant.number - len(_descendants(name, fleet))}
    for key in ("memory", "cpu", "pids"):
        if (bound := getattr(grant, key)) is not None:
            known[key] = max(0, round(bound - _sum(key, name, fleet), 3))
    allowed = allowance(fleet[name])
    known["tokens"] = max(0, allowed.amount - _spent(name, allowed, fleet, past, now))
    return known


def allowance(unit: Unit) -> Allowance:
    """What a unit's descendants may spend together: as much as itself, unless its grant says otherwise."""
    granted = grant_of(unit).tokens
    return unit.budget.tokens if granted is None else granted


def room(parent: str, fleet: Mapping[str, Unit]) -> None:
    """Number and depth, the cheap questions: Denied or OverBudget if no child of this parent fits."""
    line = [parent, *ancestors(parent)]
    for distance, ancestor in enumerate(line, 1):
        grant = grant_of(fleet[ancestor])
        if distance > grant.depth:
            what = f"{line[0]} may not spawn: {ancestor} may have {grant.depth} generations of descendants"
            raise Denied(what, hint=_raise("depth", ancestor))
        there = len(_descendants(ancestor, fleet))
        if there >= grant.number:
            what = f"{ancestor} may have {grant.number} descendants at once, and has {there}: none is left"
            raise OverBudget(what, hint=f"Stop one, wait for an end, or: {_raise('number', ancestor)}")


def _raise(key: str, unit: str) -> str:
    return f"raise {key} of [agent] may_spawn in the unit file of {unit.partition(MARK)[0]}."


def _descendants(name: str, fleet: Mapping[str, Unit]) -> list[Unit]:
    return [unit for other, unit in fleet.items() if descends(other, name)]


def _read(name: str, tables: Any) -> Unit:
    """The tables as a unit by itself: only what a child may say, read as a unit file would be."""
    if not isinstance(tables, Mapping):
        raise BadInput('unit: tables as in a unit file, such as {"agent": {"exec": ["python", "scout.py"]}}')
    for section, table in tables.items():
        for key in table if isinstance(table, Mapping) else ():
            if section in SECTIONS and key not in MAY.get(section, ()) and _exists(section, key):
                hint = "A child may not say this: leave it out."
                raise Denied(f"[{section}] {key}: not for a unit that is spawned by another", hint=hint)
    return reading.from_dict(name, tables)


def _exists(section: str, key: str) -> bool:
    return key in getattr(Unit.model_fields[section].annotation, "model_fields", {})


def _named(unit: Unit, section: str, key: str) -> bool:
    return section in unit.model_fields_set and key in getattr(unit, section).model_fields_set


def _with(unit: Unit, section: str, **values: Any) -> Unit:
    return unit.model_copy(update={section: getattr(unit, section).model_copy(update=values)})


# --- no more than the parent ------------------------------------------------------------------------------------------


def _identity(unit: Unit, above: Unit, level: str) -> Unit:
    """User and isolation: its parent's, or a uid of its own."""
    agent, theirs = unit.agent, above.agent
    if agent.allow_root and not theirs.allow_root:
        raise Denied(f"[agent] allow_root: {above.name} itself may not run as root")
    if agent.user is not None and agent.user != theirs.user:
        hint = "Leave user out: it gets a uid of its own."
        raise Denied(f"[agent] user = {agent.user!r}: a child runs under its own uid or its parent's user", hint=hint)
    if agent.user is None and not theirs.allow_root:
        unit = _with(unit, "agent", user=theirs.user)
    floor = level if level in LEVELS else theirs_level(above)
    named = unit.isolation.level
    if named is None:
        return _with(unit, "isolation", level=above.isolation.level)
    if LEVELS.index(named) < LEVELS.index(floor):
        raise Denied(f"[isolation] level = {named!r} is weaker than that of {above.name}, which is {floor!r}")
    return unit


def theirs_level(unit: Unit) -> str:
    """The level that a unit names, the strongest where it names none."""
    return unit.isolation.level or LEVELS[-1]


def _bounded(unit: Unit, above: Unit) -> Unit:
    """What is named must keep the bound, what is not is made to."""
    for section, key in AT_MOST:
        unit = _bound(unit, above, section, key, most=True)
    for section, key in AT_LEAST:
        unit = _bound(unit, above, section, key, most=False)
    for key in ("heartbeat", "progress"):
        limit = getattr(unit.liveness, key)
        if limit is not None and limit < LEAST_BEAT:
            raise Denied(f"[liveness] {key} = {show_duration(limit)}: at least {show_duration(LEAST_BEAT)} for a child")
    files, most = unit.limits.open_files, above.limits.open_files or OPEN_FILES
    if files is not None and files > most:
        raise Denied(f"[limits] open_files = {files}: {above.name} itself has {most}")
    return unit if files is not None else _with(unit, "limits", open_files=above.limits.open_files)


def _bound(unit: Unit, above: Unit, section: str, key: str, *, most: bool) -> Unit:
    value, limit = getattr(getattr(unit, section), key), getattr(getattr(above, section), key)
    if (value <= limit) if most else (value >= limit):
        return unit
    if _named(unit, section, key):
        word = "at most" if most else "at least"
        raise Denied(f"[{section}] {key} = {value:g}: {word} {limit:g} as its parent {above.name} has")
    return _with(unit, section, **{key: limit})


def _tied(unit: Unit, full: str, above: Unit) -> Unit:
    """Its name, whom it may send to, and whom it cannot be without."""
    allowed = above.bus.may_send
    if allowed is not None:
        allowed = tuple(dict.fromkeys((*allowed, above.name)))
        wider = [to for to in unit.bus.may_send or () if to not in allowed]
        if wider:
            raise Denied(f"[bus] may_send: {above.name} itself may not send to {wider[0]}")
        if unit.bus.may_send is None:
            unit = _with(unit, "bus", may_send=allowed)
    return _with(unit, "agent", requires=(above.name,)).model_copy(update={"name": full})


def _may_spawn(unit: Unit, line: list[str], fleet: Mapping[str, Unit]) -> None:
    """What it grants in its turn lies within what its parent was granted; the sums of all ancestors hold anyway."""
    grant = unit.agent.may_spawn
    if grant is None:
        return
    for distance, ancestor in enumerate(line, 1):
        deepest = grant_of(fleet[ancestor]).depth - distance
        if grant.depth > deepest:
            what = f"[agent] may_spawn: depth = {grant.depth}, and {ancestor} leaves {deepest} below this unit"
            raise Denied(what, hint=_raise("depth", ancestor))
    theirs = grant_of(fleet[line[0]])
    for key in ("number", "memory", "cpu", "pids"):
        mine, bound = getattr(grant, key), getattr(theirs, key)
        if mine is not None and (bound is None or mine > bound):
            raise Denied(f"[agent] may_spawn: {key} = {mine:g}, and {line[0]} was granted {bound or 'none'}")
    mine, bound = allowance(unit), allowance(fleet[line[0]])
    if mine.amount > bound.amount or _shorter(mine, bound):
        raise Denied(f"[agent] may_spawn: tokens = {mine}, and {line[0]} was granted {bound}")


# --- sums -------------------------------------------------------------------------------------------------------------

_USUAL = {"memory": MEMORY, "pids": PIDS, "cpu": None}


def _limited(unit: Unit, line: list[str], fleet: Mapping[str, Unit]) -> Unit:
    for key in _USUAL:
        unit = _within(unit, key, line, fleet)
    return unit


def _within(unit: Unit, key: str, line: list[str], fleet: Mapping[str, Unit]) -> Unit:
    """One resource: at most what its parent has itself or was granted, and within the sum of each that was granted."""
    bounds = {name: bound for name in line if (bound := getattr(grant_of(fleet[name]), key)) is not None}
    own = getattr(fleet[line[0]].limits, key)
    most = bounds.get(line[0], own if own is not None else _USUAL[key])
    value = getattr(unit.limits, key)
    if value is None and not bounds:
        return _with(unit, "limits", **{key: own})
    if value is None:
        value = _even(key, most, [bound / grant_of(fleet[name]).number for name, bound in bounds.items()])
    if most is not None and value > most:
        hint = _raise(key, line[0])
        raise Denied(f"[limits] {key} = {_shown(key, value)}: {line[0]} has {_shown(key, most)}", hint=hint)
    for name, bound in bounds.items():
        used = _sum(key, name, fleet)
        if used + _charge(key, value) > bound + 1e-9:
            raise _over(key, f"limits.{key}", _shown(key, value), _shown(key, max(0, bound - used)), name)
    return _with(unit, "limits", **{key: value})


def _even(key: str, most: float | None, shares: list[float]) -> float:
    """The share of one who names none: never more than a unit has that names none."""
    amounts = [*shares, *(bound for bound in (most, _USUAL[key]) if bound is not None)]
    if key == "cpu":
        return max(LEAST_CPU, math.floor(min(amounts) * 1000) / 1000)
    return max(1, math.floor(min(amounts)))


def _charge(key: str, value: float) -> float:
    return max(LEAST_CPU, value) if key == "cpu" else value


def _sum(key: str, name: str, fleet: Mapping[str, Unit]) -> float:
    """What a unit's descendants have of a resource. One without a limit of its own has what the host gives at most."""
    limits = (getattr(unit.limits, key) for unit in _descendants(name, fleet))
    return sum(_charge(key, value if value is not None else _USUAL[key] or math.inf) for value in limits)


def _over(key: str, asked_key: str, asked: str, there: str, name: str) -> AgentdError:
    what = f"{asked_key} = {asked}, and {there} is left of what {name} was granted for all its descendants"
    return OverBudget(what, hint=f"Ask for less, stop one, or: {_raise(key, name)}")


# --- tokens -----------------------------------------------------------------------------------------------------------


def _funded(unit: Unit, line: list[str], fleet: Mapping[str, Unit], past: Mapping[str, Past], now: float) -> Unit:
    """Its allowance, within the sum of each ancestor's descendants: those that ended in this window count too."""
    if not _named(unit, "budget", "tokens"):
        unit = _with(unit, "budget", tokens=_even_allowance(unit.name, line, fleet, past, now))
    mine = unit.budget.tokens
    gone = past.get(unit.name)
    if gone is not None and gone.window != mine.window and _counts(unit.name, gone, fleet, now):
        what = f"[budget] tokens = {mine}: {unit.name} was there before, with tokens per {gone.window}"
        raise Denied(what, hint="Keep the window, or choose another name.")
    for name in line:
        granted = allowance(fleet[name])
        if _shorter(mine, granted):
            hint = f'Say it per {granted.window}, such as tokens = "{granted.amount}/{granted.window}".'
            raise Denied(f"[budget] tokens = {mine}: {name} was granted tokens per {granted.window}", hint=hint)
        used = _spent(name, granted, fleet, past, now, without=unit.name)
        need = max(mine.amount, _remembered(unit.name, granted, past, now))
        if used + need > granted.amount:
            there = f"{show_count(max(0, granted.amount - used))} per {granted.window}"
            raise _over("tokens", "budget.tokens", str(mine), there, name)
    return unit


def _even_allowance(
    full: str, line: list[str], fleet: Mapping[str, Unit], past: Mapping[str, Past], now: float
) -> Allowance:
    """An even share, or what is left where that is less: what was spent does not come back within the window."""
    granted = allowance(fleet[line[0]])
    shares = [allowance(fleet[name]).amount // grant_of(fleet[name]).number for name in line]
    for name in line:
        whole = allowance(fleet[name])
        there = whole.amount - _spent(name, whole, fleet, past, now, without=full)
        if there <= 0 < whole.amount:
            raise _over("tokens", "budget.tokens", "its share", f"none per {whole.window}", name)
        shares.append(there)
    usual = Budget().tokens
    if usual.window == granted.window:
        shares.append(usual.amount)
    return Allowance(min(shares), granted.window)


def _shorter(one: Allowance, other: Allowance) -> bool:
    """Whether its window comes round more often: then its sum over the other's window has no bound that is its own."""
    return WINDOWS.index(one.window) < WINDOWS.index(other.window)


def _spent(
    name: str, granted: Allowance, fleet: Mapping[str, Unit], past: Mapping[str, Past], now: float, without: str = ""
) -> int:
    """What the descendants of a unit may spend in this window, or have spent in it and are gone."""
    there = {unit.name: unit.budget.tokens.amount for unit in _descendants(name, fleet) if unit.name != without}
    names = {*there, *(other for other in past if descends(other, name) and other != without)}
    return sum(max(there.get(one, 0), _remembered(one, granted, past, now)) for one in names)


def _remembered(name: str, granted: Allowance, past: Mapping[str, Past], now: float) -> int:
    """What one that ended spent in the present window. A clock that was set back opens none again."""
    gone = past.get(name)
    if gone is None or period_of(granted.window, gone.at) < period_of(granted.window, now):
        return 0
    return gone.tokens


def _shown(key: str, value: float) -> str:
    return show_size(value) if key == "memory" else f"{value:g}"


def _quoted(value: Any) -> str:
    return repr(value if not isinstance(value, str) else value[:80])[:100]


def fold(past: Mapping[str, Past], fleet: Mapping[str, Unit], now: float, keep: int) -> dict[str, Past]:
    """What is still worth remembering of those that ended: of each family the newest ``keep`` by name, the older ones
    of one parent as one sum under its name and ``~*``; what no window of an ancestor counts any more is forgotten."""
    counted = {name: gone for name, gone in past.items() if _counts(name, gone, fleet, now)}
    families: dict[str, list[str]] = {}
    for name in sorted(counted, key=lambda name: counted[name].at):
        if not name.endswith(f"{MARK}*"):
            families.setdefault(name.partition(MARK)[0], []).append(name)
    for names in families.values():
        for name in names[: max(0, len(names) - keep)]:
            gone, heap = counted.pop(name), f"{parent_of(name)}{MARK}*"
            before = counted.get(heap, Past(0, 0.0, gone.window))
            counted[heap] = Past(before.tokens + gone.tokens, max(before.at, gone.at), gone.window)
    return counted


def _counts(name: str, gone: Past, fleet: Mapping[str, Unit], now: float) -> bool:
    windows = [allowance(unit).window for one in ancestors(name) if (unit := fleet.get(one)) and unit.agent.may_spawn]
    return any(period_of(window, gone.at) >= period_of(window, now) for window in windows)
