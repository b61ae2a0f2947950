"""What the state of one unit means for those that depend on it, and whose turn it is to start.

Level-triggered: whenever a unit changes, each unit that names it is looked at again, and its mailbox is told what holds
now (``Await``, ``Proceed``, ``Follow``). Who is concerned stands in ``model.relations``, what follows from a failure in
``model.strategy``, what a life makes of it in ``model.lifecycle``; here they meet. Nothing here costs more the more
units there are that have nothing to do with the change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from agentd.daemon.agent import Agent
from agentd.daemon.ports import new_chain
from agentd.model import strategy
from agentd.model.life import INNOCENT
from agentd.model.lifecycle import (
    LIVE,
    Asked,
    Await,
    Ended,
    Follow,
    Now,
    Phase,
    Proceed,
    Restart,
    Start,
    Stop,
    step,
)
from agentd.model.ordering import cycles, start_order
from agentd.model.relations import Relations, Ties, reached
from agentd.model.unit import Unit

Json = dict[str, Any]

PARALLEL_STARTS = 16
"""Units that may be starting at once before others wait for their turn."""
_ON_ITS_WAY = frozenset({Phase.starting, Phase.stopping})
_TRIES = frozenset({Phase.starting, Phase.backoff, Phase.parked})
"""Where a unit is after a failure that its policy answers with a restart."""


class Fleet(Protocol):
    """What the dependencies ask of the supervisor."""

    def now(self) -> Now:
        """This moment."""

    def record(self, record: Json) -> None:
        """Append to the journal."""

    def told(self, agent: Agent) -> None:
        """Something is different that the facts tell."""


class Dependencies:
    """The relations of the fleet at work."""

    def __init__(self, agents: Mapping[str, Agent], fleet: Fleet, limit: int = PARALLEL_STARTS) -> None:
        self.relations = Relations()
        self.limit = limit
        self.degraded: dict[str, tuple[str, ...]] = {}
        self._agents = agents
        self._fleet = fleet
        self._awake = False
        self._changed: list[str] = []
        self._draining = False
        self._starting: set[str] = set()
        self._asked: dict[str, Asked] = {}
        """Starts that wait for their turn: nobody has been told yet."""
        self._turns: dict[str, None] = {}
        """Units that may start as soon as it is their turn: what they waited for is ready."""
        self._parting: dict[str, str] = {}
        """Units that are kept down until the one named here has stopped too."""
        self._failed: str | None = None
        """The unit whose end is about to be posted: it follows nobody, it is dead."""
        self._missed: list[str] = []
        """Units whose end became known before anybody could be told."""

    # --- the fleet changes --------------------------------------------------------------------------------------------

    def put(self, unit: Unit) -> None:
        """The unit is new, or its ties are. Files are verified before; an old definition that lost its file is not."""
        self.relations.put(unit.name, Ties.of(unit))
        if way := cycles(self.relations.graph(self._before(unit.name)), [unit.name]).get(unit.name):
            self.relations.drop(unit.name)
            reason = f"cycle {' → '.join(way)}: its relations are ignored until one of these files is mended"
            self._fleet.record({"kind": "unit.untied", "unit": unit.name, "actor": "agentd", "reason": reason})
        self._look_again(unit.name)

    def drop(self, name: str) -> None:
        """The unit is gone."""
        self.relations.drop(name)
        for known in (self._asked, self._turns, self._parting, self.degraded):
            known.pop(name, None)
        self._starting.discard(name)
        self._look_again(name)
        self._deal()

    def wake(self) -> None:
        """All units are known: from now on what is so has consequences."""
        self._awake = True
        self._starting = {name for name, agent in self._agents.items() if agent.life.phase is Phase.starting}
        for name in list(self._agents):
            self._look(name)
        for name in self._missed:
            if name in self._agents:
                self._regroup(self._agents[name], self._agents[name].life.reason)
        self._missed.clear()
        self._drain()

    def changed(self, agent: Agent) -> None:
        """A unit's life is another: those who name it are looked at, and who waits for a turn may get one."""
        if agent.life.phase is Phase.starting:
            self._starting.add(agent.name)
        else:
            self._starting.discard(agent.name)
        self._mark(agent, agent)
        self._look_again(agent.name)
        self._deal()

    # --- what people and the daemon ask for ---------------------------------------------------------------------------

    def start(self, name: str, asked: Asked, *, turn: bool = False, alone: bool = False) -> None:
        """Start a unit and (unless ``alone``) what it needs; with ``turn`` once not too many are starting."""
        if turn and len(self._starting) >= self.limit and self._agents[name].life.phase not in LIVE:
            self._asked[name] = asked
            return
        self._asked.pop(name, None)
        if not alone:
            self._start_needed(name, asked)
        self._tell_waits(self._agents[name])
        self._agents[name].post(Start(asked.actor, asked.reason, asked.correlation))

    def restart(self, name: str, asked: Asked) -> None:
        """Stop a unit if it runs, and start it and what it needs."""
        self._start_needed(name, asked)
        self._tell_waits(self._agents[name])
        self._agents[name].post(Restart(asked.actor, asked.reason, asked.correlation))

    def cancel(self, name: str | None = None) -> None:
        """Whoever (or this unit) waits for a turn does not get it."""
        for one in [name] if name else list(self._asked):
            self._asked.pop(one, None)

    def part(self, name: str, by: str) -> None:
        """Keep this unit down until ``by`` has stopped; it stops now, and is wanted as before."""
        self._parting[name] = by
        self._look(name)
        if (asked := self._asked.pop(name, None)) is not None:
            self._tell_waits(self._agents[name])  # its start goes on, once the other is back: it does not bring it back
            self._agents[name].post(Start(asked.actor, asked.reason, asked.correlation))

    def parted(self, names: Iterable[str]) -> None:
        """The orderly stop of these is over."""
        for name in names:
            if self._parting.pop(name, None) is not None and name in self._agents:
                self._look(name)

    def ending(self, agent: Agent, event: Ended) -> str | None:
        """Before the end of a unit is posted: have those restarted that its strategy names; the chain of all that."""
        if agent.unit is None or agent.unit.restart.strategy == "one_for_one":
            return None
        after, _ = step(agent.life, event, agent.policy, self._fleet.now())
        if after.last is agent.life.last or after.last is None or after.last.cause in INNOCENT:
            return None
        if after.phase not in _TRIES and not after.waiting:
            return None
        if not self._awake:
            self._missed.append(agent.name)
            return None
        self._failed = agent.name
        try:
            return self._regroup(agent, after.last.text)
        finally:
            self._failed = None

    # --- what is so ---------------------------------------------------------------------------------------------------

    def lacking(self, name: str) -> list[str]:
        """Those that this unit would have to wait for if it were started now."""
        ties = self.relations.of(name)
        full = self._agents[name].life.phase in (Phase.inactive, Phase.failed)
        lacking = [other for other in (ties.all if full else ties.needs) if not self._ready(other, other in ties.needs)]
        by = self._parting.get(name)
        return lacking if by is None or by in lacking else [by, *lacking]

    def queued(self, name: str) -> bool:
        """It waits for its turn only."""
        return name in self._asked or name in self._turns

    def blocked(self, name: str) -> bool:
        """It waits for something that is not about to be ready."""
        seen, edge = {name}, [name]
        while edge:
            for other in self.lacking(edge.pop()):
                agent = self._agents.get(other)
                if agent is None:
                    return True
                if other in seen or self._moves(other, agent):
                    continue
                if not agent.life.waiting:
                    return True
                seen.add(other)
                edge.append(other)
        return False

    def pending(self) -> bool:
        """A start that was asked for is still on its way."""
        if self._asked or self._turns:
            return True
        return any(agent.life.waiting and not self.blocked(name) for name, agent in self._agents.items())

    def why(self, name: str) -> str:
        """Why a unit that waits does not run, as things are now."""
        if self.queued(name):
            return f"waits for its turn: {len(self._starting)} units are starting"
        return self._text(name, self.lacking(name))

    def laments(self, name: str) -> list[str]:
        """What a person should know of a unit that is degraded."""
        return [f"degraded: {self._gone(other)}" for other in self.degraded.get(name, ())]

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _before(self, name: str) -> set[str]:
        """All that it comes after, directly or over others, and itself."""
        return reached(name, lambda one: self.relations.of(one).all)

    def _start_needed(self, name: str, asked: Asked) -> None:
        for generation in strategy.started(name, self.relations):
            for one in generation:
                if one == name or one not in self._agents or self._comes(one):
                    continue
                self._tell_waits(self._agents[one])
                reason = _because(asked, f"{name} requires it")
                self._agents[one].post(Start(asked.actor, reason, asked.correlation))

    def _look_again(self, name: str) -> None:
        if self._awake:
            self._changed.append(name)
            self._drain()

    def _drain(self) -> None:
        """One change after the other, however long the chain of dependants is."""
        if self._draining:
            return
        self._draining = True
        try:
            while self._changed:
                name = self._changed.pop(0)
                for dependant in self.relations.dependants(name):
                    if dependant in self._agents:
                        self._look(dependant, name)
        finally:
            self._draining = False

    def _look(self, name: str, cause: str | None = None) -> None:
        """Tell a unit what the present states of those that it depends on mean for it."""
        agent = self._agents[name]
        if agent.unit is None:
            return
        lost = [other for other in self.relations.of(name).binds_to if not self._ready(other, needed=True)]
        by = self._parting.get(name)
        if by is not None and by not in lost:
            lost.append(by)
        if not self.lacking(name) and agent.life.waiting and len(self._starting) >= self.limit:
            self._turns[name] = None
            return
        self._turns.pop(name, None)
        if agent.life.wanted:
            self._tell_waits(agent)
        if lost and agent.life.phase in (Phase.starting, Phase.running) and name != self._failed:
            agent.post(Follow(self._followed(lost[0])), self._chain(cause or lost[0]))
        self._mark(agent, self._agents.get(cause or "", agent))

    def _tell_waits(self, agent: Agent) -> None:
        lacking = self.lacking(agent.name)
        if lacking:
            agent.post(Await(self._text(agent.name, lacking)))
        elif agent.life.awaits is not None:
            agent.post(Proceed("what it waited for is ready"))

    def _followed(self, other: str) -> str:
        if other not in self._agents:
            return f"{other}, which it is bound to, was removed"
        life = self._agents[other].life
        if life.satisfied:
            return f"{other}, which it is bound to, is being stopped"
        return f"{other}, which it is bound to, is {life.phase}: {life.reason}"

    def _regroup(self, agent: Agent, why: str) -> str | None:
        """A unit failed and is restarted: with it whom its strategy names."""
        assert agent.unit is not None
        how = agent.unit.restart.strategy
        chain, agent.blame = agent.blame or new_chain(), None
        for generation in reversed(strategy.restarted(how, agent.name, self.relations)):
            for name in generation:
                other = self._agents.get(name)
                if other is not None and other is not agent and other.life.phase in (Phase.starting, Phase.running):
                    other.post(Follow(f"{agent.name} failed ({why}) and asks for {how}"), chain)
        return chain

    def _mark(self, agent: Agent, cause: Agent) -> None:
        """Note, once for each change, which of those that a unit needs are gone while it runs."""
        needs = self.relations.of(agent.name).needs
        if not needs:
            return
        runs = agent.life.phase in (Phase.starting, Phase.running)
        gone = tuple(other for other in needs if runs and not self._ready(other, needed=True))
        before = self.degraded.get(agent.name, ())
        if gone == before or not self._awake:
            return
        if gone:
            self.degraded[agent.name] = gone
        else:
            self.degraded.pop(agent.name)
        if gone:
            self._record(agent, cause, "unit.degraded", "; ".join(map(self._gone, gone)))
        elif runs:
            self._record(agent, cause, "unit.restored", f"{', '.join(before)}: ready again")
        self._fleet.told(agent)

    def _record(self, agent: Agent, cause: Agent, kind: str, reason: str) -> None:
        record = {"kind": kind, "unit": agent.name, "invocation": agent.life.invocation, "actor": "agentd"}
        self._fleet.record({**record, "reason": reason, "correlation": cause.correlation})

    def _deal(self) -> None:
        """Let those start whose turn it is."""
        while self._awake and (self._turns or self._asked) and len(self._starting) < self.limit:
            if self._turns:
                name = next(iter(self._turns))
                del self._turns[name]
                if name in self._agents:
                    self._look(name)
            else:
                name = next(iter(self._asked))
                self.start(name, self._asked[name])

    def _ready(self, name: str, needed: bool) -> bool:
        """What is not there is not waited for, unless it is needed."""
        agent = self._agents.get(name)
        if agent is None:
            return not needed
        return agent.life.satisfied or (agent.unit is None)

    def _comes(self, name: str) -> bool:
        """It is ready, or about to be without anybody's doing."""
        agent = self._agents.get(name)
        if agent is None:
            return False
        return self._moves(name, agent) or (agent.life.waiting and not self.blocked(name))

    def _moves(self, name: str, agent: Agent) -> bool:
        """It is ready or on its way, and waits for nobody."""
        life = agent.life
        under_way = life.wanted and (life.phase in _ON_ITS_WAY or life.phase is Phase.running)
        return life.satisfied or under_way or self.queued(name)

    def _text(self, name: str, lacking: list[str]) -> str:
        needs = self.relations.of(name).needs
        broken = [other for other in lacking if not self._comes(other)]
        if broken and broken[0] in needs:
            return f"does not start: {self._gone(broken[0])}"
        if broken:
            return f"waits for {self._state(broken[0])}"
        return f"waits for {', '.join(lacking)} to be ready"

    def _gone(self, name: str) -> str:
        return f"it requires {self._state(name)}"

    def _state(self, name: str) -> str:
        agent = self._agents.get(name)
        if agent is None:
            return f"{name}, which is no unit"
        return f"{name}, which is {agent.life.phase}: {agent.life.reason}"

    def _chain(self, name: str) -> str | None:
        agent = self._agents.get(name)
        return None if agent is None else agent.correlation


@dataclass(frozen=True)
class Stopping:
    """An operator's stop of one unit, with all that it takes down: generations, dependants first."""

    generations: list[tuple[str, ...]]
    events: dict[str, Stop]
    """Those that are stopped for good. The others are only bound to them: kept down, and wanted as before."""

    @classmethod
    def of(cls, name: str, asked: Asked, relations: Relations) -> Stopping:
        """The stop of a unit."""
        generations = strategy.stopped(name, relations)
        events = {name: Stop(asked.actor, asked.reason, asked.correlation)}
        for generation in reversed(generations):
            for one in generation:
                for needed in relations.of(one).requires:
                    if needed in events and one not in events:
                        reason = _because(asked, f"{needed}, which it requires, is stopped")
                        events[one] = Stop(asked.actor, reason, asked.correlation)
        return cls(generations, events)


def in_order(names: Iterable[str], relations: Relations) -> list[str]:
    """These units in the order in which they start."""
    return [name for generation in start_order(relations.graph(names)) for name in generation]


def _because(asked: Asked, why: str) -> str:
    return f"{why}; {asked.reason}" if asked.reason else why
