"""Units that other units spawn: asked for over the channel, admitted by ``model.offspring``, ended with their parent.

The router says who asks (each channel is one unit's) and of which invocation; this room decides and is the one owner. A
child is a unit like any other, apart from its end: it is stopped when its parent's invocation ends, whatever the cause,
and once it rests for good it is forgotten. Its parent is told how it ended, until its own end; its log stays a while.

Durable steps of a spawn: 1. admitted · 2. the keeper has its blob, with whose child it is · 3. it is started, and the
asker answered. After 1 nothing happened, the asker repeats. After 2 the next daemon finds the blob and starts it; a
repeat of the same name and unit answers ``duplicate``.
Of an end: 1. its life rests · 2. what it spent is asked for, and its parent's blob says how it ended · 3. it is
dropped, and the store has what it spent. After 1 or 2 the next daemon finds it at rest and begins anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentd.daemon.ports import new_chain
from agentd.errors import (
    AgentdError,
    BadInput,
    Conflict,
    Denied,
    Full,
    NoSuchUnit,
    NotActive,
    Unavailable,
    UnitFileError,
)
from agentd.model import offspring
from agentd.model.lifecycle import Asked, Life, Phase, Policy
from agentd.model.offspring import MARK, Past, descends, parent_of
from agentd.model.unit import Unit
from agentd.wire.log import logger

if TYPE_CHECKING:
    from agentd.daemon.agent import Agent
    from agentd.daemon.supervisor import Supervisor

Json = dict[str, Any]

REQUEST_MAX = 65_536
"""Bytes of a child's tables: the keeper keeps them for as long as it is there."""
TOLD_ENDS = 64
"""Ends of children that a parent is told of, the newest."""
KEPT_LOGS = 64
"""Logs of ended children that are kept for each family."""
KEPT_PAST = 256
"""Ended children of a family whose spending is known one by one."""
A_SECOND, AT_ONCE = 5.0, 20
"""Spawns of a family that are looked at: so many a second in the long run, and so many beyond that at once (or twice
its number)."""
SPENT_WITHIN = 2.0
"""Seconds in which the gateway is to say what a child has spent; else it counts as all that it was allowed."""


@dataclass(frozen=True, slots=True)
class Child:
    """What a unit's own definition does not say of it as a child."""

    invocation: str
    """The parent's: it lives as long as that."""
    digest: str
    """Of what was asked for: a repeat is known by it."""
    key: str | None = None
    slot: int | None = None
    """Which of the family's uids it has."""


class Offspring:
    """All units of this fleet that units have spawned."""

    def __init__(self, fleet: Supervisor, remembered: Mapping[str, Json]) -> None:
        self._fleet = fleet
        self._children: dict[str, Child] = {}
        self._ended: dict[str, dict[str, Json]] = {}
        """By parent: how children of its present invocation ended."""
        self._leaving: dict[str, Child] = {}
        """Children that are being forgotten."""
        self._past = {name: Past(*blob["spent"]) for name, blob in remembered.items() if "spent" in blob}
        self._latest = max((past.at for past in self._past.values()), default=0.0)
        self._logs = _logs(fleet.spawning.log(MARK).parent)
        """By family: children of which there is a log, oldest first."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._pace: dict[str, tuple[float, float]] = {}

    def table(self) -> dict[str, Callable[[Json], Awaitable[Any]]]:
        """What the router may ask (wire/FACTS.md)."""
        return {"offspring.spawn": self.spawn, "offspring.stop": self.stop, "offspring.list": self.listed}

    # --- what agents ask for ------------------------------------------------------------------------------------------

    async def spawn(self, params: Json) -> Json:
        """A child of the asker. Answers once it is remembered and on its way; a repeat answers ``duplicate``."""
        parent = self._asker(params)
        tables, key = params.get("spec"), params.get("key")
        full, digest = offspring.full_name(parent.name, params.get("name")), _digest(tables, key)
        root = full.partition(MARK)[0]
        async with self._locks.setdefault(root, asyncio.Lock()):
            parent = self._asker(params)
            if (known := self._again(parent, full, key, digest)) is not None:
                return known
            unit, slot = self._lend(self._admitted(parent, params, root), root)
            await self._possible(unit)
            parent = self._asker(params)
            await self._begin(unit, parent, Child(str(parent.life.invocation), digest, key, slot))
        return {"unit": full, "duplicate": False}

    async def stop(self, params: Json) -> Json:
        """Stop one of the asker's descendants; answers once that has begun."""
        parent, name = self._asker(params), str(params.get("unit"))
        if name in self._ended.get(parent_of(name) or "", {}) or name in self._leaving:
            return {"unit": name, "state": "ended"}
        if not descends(name, parent.name) or name not in self._children:
            raise NoSuchUnit(f"unit: {parent.name} has no child {name!r}", hint="list names them.")
        self._end(name, Asked(parent.name, "as its parent asks", new_chain()))
        return {"unit": name, "state": "stopping"}

    async def listed(self, params: Json) -> Json:
        """The asker's descendants, those whose end it was told of, and what is left of its grant."""
        parent = self._asker(params)
        there = [name for name in self._children if descends(name, parent.name)]
        children = [{"unit": name, **self._state(name)} for name in sorted(there)]
        ended = [{"unit": name, **_told(end)} for name, end in self._ended.get(parent.name, {}).items()]
        family = self._family(parent.name.partition(MARK)[0])
        granted = parent.unit is not None and parent.unit.agent.may_spawn is not None
        left = offspring.left(parent.name, family, self._past, self._now()) if granted else None
        return {"children": [*children, *ended], "left": left}

    # --- what the supervisor asks and tells ---------------------------------------------------------------------------

    def adopt(self, name: str, blob: Json) -> None:
        """What the blob of the last daemon says of this unit, before it is added."""
        if isinstance(ended := blob.get("ended"), dict):
            self._ended[name] = ended
        if parent_of(name) is not None:
            self._children[name] = _child(blob.get("child"))

    def wake(self) -> None:
        """All units are known: children without their parent's invocation end, those at rest are forgotten."""
        for name, child in list(self._children.items()):
            parent, agent = self._fleet.agents.get(parent_of(name) or ""), self._fleet.agents.get(name)
            if agent is None:
                self._children.pop(name)
            elif parent is None or parent.life.invocation != child.invocation or parent.life.phase is Phase.stopping:
                self._end(name, Asked("agentd", f"{parent_of(name)}, whose child it is, has ended", new_chain()))
            elif agent.life.phase is Phase.inactive and agent.life.last is None and not agent.life.wanted:
                self._fleet.start(name, Asked(parent.name, f"spawned by {child.invocation}", new_chain()), turn=True)
            elif _rests(agent.life):
                self._bury(name)
        for name in [name for name in self._ended if name not in self._fleet.agents]:
            del self._ended[name]

    def changed(self, agent: Agent, before: Life) -> None:
        """A life is another: its children may have to end, or its parent be told."""
        name, life = agent.name, agent.life
        if before.invocation is not None and (life.invocation != before.invocation or life.phase is Phase.stopping):
            self._end_children(agent, before.invocation)
        if name not in self._children:
            return
        if (parent := self._fleet.agents.get(parent_of(name) or "")) is not None:
            self._fleet.told(parent)
        if _rests(life):
            self._bury(name)

    def blob(self, name: str) -> Json:
        """What the next daemon needs to know of a unit as a child and as a parent."""
        child, ended = self._children.get(name), self._ended.get(name)
        return {**({"child": asdict(child)} if child else {}), **({"ended": ended} if ended else {})}

    def remains(self, name: str) -> Json:
        """What the store remembers of one that is dropped."""
        past = self._past.get(name)
        return {} if past is None else {"spent": [past.tokens, past.at, past.window]}

    def fact(self, name: str, fact: Json) -> None:
        """Add what router and gateway are told of a unit's children, and whom it may send to for them."""
        unit = self._fleet.agents[name].unit
        if unit is None or (unit.agent.may_spawn is None and name not in self._children):
            return
        if name in self._children:
            fact["parent"] = parent_of(name)
        mine = [child for child in self._children if parent_of(child) == name]
        fact["children"] = {child: self._state(child) for child in sorted(mine)}
        fact["children"] |= {child: _told(end) for child, end in self._ended.get(name, {}).items()}
        if fact["bus"]["may_send"] is not None:
            fact["bus"]["may_send"] = [*fact["bus"]["may_send"], *sorted(mine)]

    def known(self, name: str) -> bool:
        """Whether this was a child, of which a log may be left."""
        return name in self._logs.get(name.partition(MARK)[0], ())

    def status(self, name: str) -> Json:
        """For UnitStatus: whose child it is, and how many descendants it has of how many that it may."""
        unit = self._fleet.agents[name].unit if name in self._fleet.agents else None
        grant = unit.agent.may_spawn if unit is not None else None
        there = sum(descends(other, name) for other in self._children) if grant or self._children else 0
        return {"parent": parent_of(name), "children": there, "children_max": grant.number if grant else 0}

    # --- a spawn ------------------------------------------------------------------------------------------------------

    def _asker(self, params: Json) -> Agent:
        """The unit that asks, if it is this very invocation of it that still runs."""
        name, invocation = str(params.get("parent")), params.get("invocation")
        agent = self._fleet.agents.get(name)
        if agent is None or agent.unit is None:
            raise NoSuchUnit(f"there is no unit {name!r}")
        live = agent.life.phase in (Phase.starting, Phase.running)
        if self._fleet.stopping or not live or agent.life.invocation != invocation:
            raise Denied(f"{name}: invocation {invocation} is over, or about to be stopped")
        return agent

    def _family(self, root: str) -> dict[str, Unit]:
        agents = self._fleet.agents
        names = [root, *(name for name in self._children if descends(name, root))]
        return {name: unit for name in names if name in agents and (unit := agents[name].unit) is not None}

    def _admitted(self, parent: Agent, params: Json, root: str) -> Unit:
        family = self._family(root)
        offspring.room(parent.name, family)
        self._not_too_fast(root, family)
        tables, now = params.get("spec"), self._now()
        return offspring.admit(parent.name, params["name"], tables, family, self._past, parent.level, now)

    def _again(self, parent: Agent, full: str, key: str | None, digest: str) -> Json | None:
        """The answer to what was asked for before."""
        child = self._children.get(full)
        if child is not None and child.digest == digest and child.invocation == parent.life.invocation:
            return {"unit": full, "duplicate": True}
        ended = self._ended.get(parent.name, {}).get(full)
        if child is None and key is not None and ended is not None and ended["key"] == key:
            if ended["digest"] == digest:
                return {"unit": full, "duplicate": True}
            raise Conflict(f"key: {key!r} was used for another unit")
        if full in self._leaving:
            raise Full(f"name: {full} is just ending", hint="Try again in a moment, or choose another name.")
        if child is not None:
            raise Conflict(f"name: {full} is there already, with another unit", hint="Stop it, or choose another name.")
        return None

    def _not_too_fast(self, root: str, family: Mapping[str, Unit]) -> None:
        """So many a second: whoever spawns and stops without end is held up, and nobody else with it."""
        most = float(max(AT_ONCE, 2 * offspring.grant_of(family[root]).number))
        now = time.monotonic()
        left, at = self._pace.get(root, (most, now))
        left = min(most, left + (now - at) * A_SECOND)
        self._pace[root] = (max(0.0, left - 1.0) if left >= 1.0 else left, now)
        if left < 1.0:
            raise Full(f"{root} and its descendants spawn too fast: {A_SECOND:g} a second are looked at")

    def _lend(self, unit: Unit, root: str) -> tuple[Unit, int | None]:
        """One of the family's own uids, where units have uids of their own: no other family ever gets it."""
        if unit.agent.user is not None:
            return unit, None
        taken = {child.slot for child in (*self._of(root, self._children), *self._of(root, self._leaving))}
        slot = next(number for number in range(len(taken) + 1) if number not in taken)
        user = self._fleet.spawning.lend(f"{root}{MARK}#{slot}")
        if user is None:
            return unit, None
        return unit.model_copy(update={"agent": unit.agent.model_copy(update={"user": user})}), slot

    def _of(self, root: str, children: Mapping[str, Child]) -> list[Child]:
        return [child for name, child in children.items() if descends(name, root)]

    async def _possible(self, unit: Unit) -> None:
        """What this host has against it; beside the loop, because paths of the agent's choice are looked at."""
        for problem in await asyncio.to_thread(self._fleet.spawning.check, unit.name, unit, {}):
            if problem["severity"] == "error":
                raise UnitFileError(str(problem["message"]), hint=problem.get("hint"))

    async def _begin(self, unit: Unit, parent: Agent, child: Child) -> None:
        """Remember it, then start it."""
        fleet, name = self._fleet, unit.name
        if not fleet.keeper.connected:
            raise Unavailable("the keeper is away, and nobody else can start units", hint="Try again in a moment.")
        self._children[name] = child
        self._ended.get(parent.name, {}).pop(name, None)
        fleet.spawning.transient.add(name)
        life = Life.new(time.monotonic(), floor=fleet.spawning.floor(name))
        agent = fleet.add(unit, name, Policy.of(unit), life)
        fleet.told(parent)
        asked = Asked(parent.name, f"spawned by {child.invocation}", new_chain())
        record = {"kind": "unit.added", "unit": name, "actor": parent.name, "causation": child.invocation}
        fleet.record({**record, "reason": asked.reason, "correlation": asked.correlation})
        try:
            await fleet.keeper.blob(name, json.dumps(fleet.blob(agent), separators=(",", ":")))
        except AgentdError as error:
            self._bury(name)
            raise Unavailable(f"{name} cannot be remembered: {error.message}", hint="Try again.") from error
        if name in self._leaving or fleet.agents.get(name) is not agent:
            raise NotActive(f"{parent.name} ended meanwhile")
        fleet.start(name, asked, turn=True)

    # --- an end -------------------------------------------------------------------------------------------------------

    def _end_children(self, parent: Agent, invocation: str) -> None:
        """The invocation that they belong to has ended, or is about to: they end too, each with its own first."""
        if parent.life.invocation != invocation:
            self._ended.pop(parent.name, None)
        mine = [name for name, child in self._children.items()
                if parent_of(name) == parent.name and child.invocation == invocation]  # fmt: skip
        reason = f"{parent.name}, whose child it is, is {parent.life.phase}: {parent.life.reason}"
        for name in mine:
            asked = Asked("agentd", reason, parent.correlation)
            self._fleet.dependencies.cancel(name)
            asyncio.get_running_loop().call_soon(self._end, name, asked)

    def _end(self, name: str, asked: Asked) -> None:
        agent = self._fleet.agents.get(name)
        if agent is None or name in self._leaving:
            return
        self._fleet.stop(name, asked)
        if _rests(agent.life):
            self._bury(name)

    def _bury(self, name: str) -> None:
        """It rests for good: forget it, once."""
        if name not in self._leaving and name in self._children:
            self._leaving[name] = self._children[name]
            self._fleet.background(self._forget(name))

    async def _forget(self, name: str) -> None:
        agent, child = self._fleet.agents.get(name), self._children[name]
        if agent is not None and agent.unit is not None:
            await self._write_off(agent, agent.unit, child)
        self._children.pop(name, None)  # without an agent: an operator removed it meanwhile
        await self._clean(name)
        self._leaving.pop(name, None)
        if (parent := self._fleet.agents.get(parent_of(name) or "")) is not None:
            self._fleet.told(parent)

    async def _write_off(self, agent: Agent, unit: Unit, child: Child) -> None:
        """What it spent and how it ended are noted; then it is no unit any more."""
        name = agent.name
        allowed = unit.budget.tokens
        spent = await self._spent(agent, allowed.amount)
        forgotten = self._remember(name, Past(spent, self._now(), allowed.window))
        self._tell_end(agent, child)
        self._children.pop(name, None)
        try:
            await self._fleet.drop(name)
            self._fleet.forget_past(forgotten)
        except AgentdError as error:
            logger().warning("a child is not forgotten in full", unit=name, error=str(error))

    def _now(self) -> float:
        """Unix seconds that never step back: a window that was left is not entered again."""
        self._latest = max(self._latest, time.time())
        return self._latest

    def _remember(self, name: str, past: Past) -> set[str]:
        """What it spent; the names of those of which that is not remembered one by one any more."""
        before = {**self._past, name: past}
        self._past = offspring.fold(before, dict(self._fleet.units()), past.at, KEPT_PAST)
        for heap in (one for one in self._past if one.endswith("*")):
            self._fleet.remember(heap, self.remains(heap))
        return before.keys() - self._past.keys() - self._children.keys()

    async def _spent(self, agent: Agent, allowed: int) -> int:
        """The tokens that it spent in its window: it is dead, so what the gateway holds for it is spent too."""
        if agent.life.last is None:
            return 0
        gateway = self._fleet.links.gateway
        try:
            shown = await gateway.call("budget.show", {"unit": agent.name}, timeout=SPENT_WITHIN)
            return sum(int(scope["used"]) + int(scope["held"]) for scope in shown["scopes"])
        except NoSuchUnit:  # it was gone before the gateway had heard of it
            return 0
        except (AgentdError, KeyError, TypeError, ValueError):
            return allowed

    def _tell_end(self, agent: Agent, child: Child) -> None:
        parent = self._fleet.agents.get(parent_of(agent.name) or "")
        if parent is None or parent.life.invocation != child.invocation:
            return
        last = agent.life.last
        end: Json = {"cause": "unstarted", "text": agent.life.reason}
        if last is not None:
            end = {"cause": str(last.cause), "exit": last.exit, "text": last.text, "invocation": last.invocation}
        ends = self._ended.setdefault(parent.name, {})
        ends.pop(agent.name, None)
        ends[agent.name] = {**end, "key": child.key, "digest": child.digest}
        while len(ends) > TOLD_ENDS:
            del ends[next(iter(ends))]
        self._children.pop(agent.name, None)
        self._fleet.told(parent)

    async def _clean(self, name: str) -> None:
        """Its home goes at once, its log when so many newer ones are there."""
        logs = self._logs.setdefault(name.partition(MARK)[0], [])
        if name in logs:
            logs.remove(name)
        logs.append(name)
        old = [one for one in logs if one not in self._children][:-KEPT_LOGS]
        logs[:] = [one for one in logs if one not in old]
        spawning = self._fleet.spawning
        await asyncio.to_thread(_remove, spawning.home(name), [spawning.log(one) for one in old])

    def _state(self, name: str) -> Json:
        agent = self._fleet.agents.get(name)
        if agent is None:
            return {"state": "gone", "phase": "inactive"}
        return {"state": "ready" if agent.life.satisfied else "gone", "phase": str(agent.life.phase)}


def _logs(directory: Path) -> dict[str, list[str]]:
    found = [file for file in directory.glob(f"*{MARK}*.log") if offspring.is_name(file.stem)]
    families: dict[str, list[str]] = {}
    for file in sorted(found, key=lambda file: file.stat().st_mtime):
        families.setdefault(file.stem.partition(MARK)[0], []).append(file.stem)
    return families


def _remove(home: Path, logs: list[Path]) -> None:
    with suppress(OSError):
        shutil.rmtree(home)
    for log in logs:
        for file in log.parent.glob(f"{log.name}*"):
            file.unlink(missing_ok=True)


def _rests(life: Life) -> bool:
    """It does not run, and nobody but a person would start it again."""
    return life.phase is Phase.failed or (life.phase is Phase.inactive and not life.wanted)


def _told(end: Json) -> Json:
    return {"state": "ended", **{key: end.get(key) for key in ("cause", "exit", "text", "invocation")}}


def _child(record: Any) -> Child:
    """What the blob says; of one that cannot be read, a child of no invocation: it is ended."""
    try:
        return Child(**record)
    except TypeError:
        return Child("", "")


def _digest(tables: Any, key: Any) -> str:
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= 128):
        raise BadInput("key: 1 to 128 characters")
    text = json.dumps(tables, sort_keys=True)
    if len(text) > REQUEST_MAX:
        raise BadInput(
            f"unit: {len(text)} bytes, at most {REQUEST_MAX}", hint="Put long texts into a file or a message."
        )
    return hashlib.sha256(text.encode()).hexdigest()
