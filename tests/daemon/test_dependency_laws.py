"""What the dependencies make of any history of any fleet, with the real lifecycle and a keeper that answers at once or
later; and that the laws notice planted bugs."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.daemon import dependencies
from agentd.model import strategy
from agentd.model.lifecycle import (
    LIVE,
    Asked,
    Cause,
    Deadline,
    Ended,
    Event,
    Life,
    Now,
    Phase,
    Policy,
    Proceed,
    Restart,
    Spawn,
    Spawned,
    Start,
    Stop,
    step,
)
from agentd.model.reading import from_dict
from agentd.model.unit import Unit
from tests.model.laws import NAMES, Fleet, closure, dependants, fleets

HOWS = ("one_for_one", "rest_for_one", "one_for_all")
ACTIONS = (
    "start", "start", "stop", "restart", "spawn", "spawn", "spawn", "spawn", "crash", "crash", "end", "end", "due",
    "turn",
)  # fmt: skip


class Agent:
    """A mailbox without a keeper: what it was asked to do is done when the history says so."""

    def __init__(self, unit: Unit, world: World) -> None:
        self.name, self.unit, self.world = unit.name, unit, world
        self.policy = Policy.of(unit)
        self.life = Life.new(0.0)
        self.correlation: str | None = None
        self.blame: str | None = None
        self.asked = False

    def post(self, event: Event, chain: str | None = None) -> None:
        if isinstance(event, Start | Restart):
            self.asked = True
        elif isinstance(event, Stop):
            self.asked = False
        before = self.life
        self.life, effects = step(before, event, self.policy, self.world.now())
        for effect in effects:
            if isinstance(effect, Spawn):
                self.world.check_spawn(self, event)
        if before.phase is not self.life.phase or before.ready != self.life.ready:
            self.world.dependencies.changed(self)


class World:
    """A fleet in a history."""

    def __init__(self, module: ModuleType, fleet: Fleet, limit: int, how: str) -> None:
        self.clock = 100.0
        self.fleet = fleet
        self.how: Any = how
        self.limit = limit
        self.by_hand = False
        """An operator's own start waits for no turn."""
        self.agents: dict[str, Agent] = {}
        self.records: list[dict[str, Any]] = []
        self.dependencies = module.Dependencies(self.agents, self, limit=limit)
        for name in NAMES:
            tables = {
                "agent": {
                    "exec": ["x"],
                    "after": list(fleet.after[name]),
                    "requires": list(fleet.requires[name]),
                    "binds_to": list(fleet.binds_to[name]),
                },
                "restart": {"strategy": how},
            }
            unit = from_dict(name, tables)
            self.agents[name] = Agent(unit, self)
            self.dependencies.put(unit)
        self.dependencies.wake()
        self.module = module

    def now(self) -> Now:
        return Now(self.clock, self.clock, 0.5)

    def record(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def told(self, agent: Agent) -> None:
        assert agent.name in self.agents

    # --- what happens -------------------------------------------------------------------------------------------------

    def act(self, action: str, name: str) -> None:
        """One thing happens, if it can."""
        self.clock += 1.0
        agent = self.agents[name]
        life = agent.life
        asked = Asked("op", "", "c1")
        self.by_hand = action in ("start", "restart")
        if action in ("start", "turn"):
            self.dependencies.start(name, asked, turn=action == "turn")
            assert agent.asked or self.dependencies.queued(name)
            if action == "start":
                for one in closure(name, self.fleet.needs):
                    assert self.agents[one].life.wanted or self.satisfied(one) or self.dependencies.queued(one)
        elif action == "restart":
            self.dependencies.restart(name, asked)
        elif action == "stop":
            self.stop(name, asked)
        elif action == "spawn" and life.phase in (Phase.starting, Phase.stopping) and life.started is None:
            agent.post(Spawned(life.invocation or "", 1))
        elif action in ("crash", "end") and life.phase in LIVE and life.started is not None:
            if life.phase is Phase.stopping:
                self.end(agent)
            elif action == "crash":
                self.crash(agent)
        elif action == "due" and life.deadline is not None:
            self.clock = max(self.clock, life.deadline)
            agent.post(Deadline())
        self.check()

    def end(self, agent: Agent) -> None:
        """Its process is dead."""
        event = Ended(agent.life.invocation or "", -9)
        agent.post(event, self.dependencies.ending(agent, event))

    def crash(self, agent: Agent) -> None:
        """Nobody asked it to end: exactly those stop whom its strategy names, and it is what failed."""
        ran = {n: a.life for n, a in self.agents.items() if a.life.phase in (Phase.starting, Phase.running)}
        named = strategy.restarted(self.how, agent.name, self.dependencies.relations)
        others = {one for generation in named for one in generation} - {agent.name}
        for one in list(others):
            others |= closure(one, dependants(self.fleet, lambda name: set(self.fleet.binds_to[name])))
        self.end(agent)
        last = agent.life.last
        assert last is not None
        assert last.cause is Cause.crashed
        for name, life in ran.items():
            now = self.agents[name].life
            if name != agent.name:
                assert now.invocation == life.invocation
                assert now.phase is (Phase.stopping if name in others else life.phase)

    def stop(self, name: str, asked: Asked) -> None:
        """An operator's stop in order, the ends of all processes included."""
        order = self.module.Stopping.of(name, asked, self.dependencies.relations)
        self.dependencies.cancel(name)
        kept = []
        for generation in order.generations:
            for one in generation:
                agent = self.agents[one]
                if (event := order.events.get(one)) is not None:
                    self.dependencies.cancel(one)
                    agent.post(event)
                else:
                    kept.append(one)
                    self.dependencies.part(one, name)
                self.finish(agent)
            assert not any(self.agents[one].life.phase in LIVE for one in generation), "an ordered stop left one"
        self.dependencies.parted(kept)
        for one in order.events:
            assert not self.agents[one].life.wanted
        assert set(order.events) == self.required_by(name)

    def required_by(self, name: str) -> set[str]:
        """Those that require it, over any number of steps: they are stopped for good."""
        found = {name}
        while more := {o for o in NAMES if set(self.fleet.requires[o]) & found} - found:
            found |= more
        return found

    def finish(self, agent: Agent) -> None:
        """Whatever is under way with its process comes to its end."""
        if agent.life.phase is Phase.stopping and agent.life.started is None:
            agent.post(Spawned(agent.life.invocation or "", 1))
        if agent.life.phase is Phase.stopping:
            agent.post(Ended(agent.life.invocation or "", -15))

    # --- the laws -----------------------------------------------------------------------------------------------------

    def satisfied(self, name: str) -> bool:
        return self.agents[name].life.satisfied

    def check_spawn(self, agent: Agent, event: Event) -> None:
        """Nobody is spawned before what it needs is ready, or against the operator's last word."""
        assert agent.asked, "spawned although its last word was stop"
        assert all(map(self.satisfied, self.fleet.needs(agent.name))), "spawned before what it needs is ready"
        if isinstance(event, Start | Proceed):
            assert all(map(self.satisfied, self.fleet.all(agent.name))), "started before what it comes after"
        if isinstance(event, Proceed) and not self.by_hand:
            starting = sum(other.life.phase is Phase.starting for other in self.agents.values())
            assert starting <= self.limit, "too many at once"

    def check(self) -> None:
        """What is so after each event, when everybody has been told."""
        starting = sum(agent.life.phase is Phase.starting for agent in self.agents.values())
        for name, agent in self.agents.items():
            life = agent.life
            runs = life.phase in (Phase.starting, Phase.running)
            gone = {other for other in self.fleet.needs(name) if not self.satisfied(other)}
            if runs:
                assert not gone & set(self.fleet.binds_to[name]), "it runs on although what it is bound to is gone"
            assert set(self.dependencies.degraded.get(name, ())) == (gone if runs else set())
            assert set(self.dependencies.laments(name)) or not (runs and gone)
            if life.waiting:
                lacks = {other for other in self.fleet.all(name) if not self.satisfied(other)}
                assert lacks or starting >= self.limit, "it waits for nothing"
                assert self.dependencies.why(name)
                assert self.dependencies.queued(name) or self.dependencies.blocked(name) == self.stuck(name)
            if self.dependencies.queued(name):
                assert starting >= self.limit, "its turn is not given to it"

    def stuck(self, name: str) -> bool:
        """The naive way: something that it waits for, over others that wait, is not about to be ready."""
        for other in self.fleet.all(name):
            life = self.agents[other].life
            if life.satisfied or self.dependencies.queued(other):
                continue
            if life.waiting:
                if self.stuck(other):
                    return True
            elif not (life.wanted and life.phase in LIVE):
                return True
        return False


Moves = list[tuple[str, str]]


def play(module: ModuleType, fleet: Fleet, moves: Moves, limit: int, how: str) -> None:
    """One history; AssertionError if a law is broken."""
    world = World(module, fleet, limit, how)
    for action, name in moves:
        world.act(action, name)


histories = st.tuples(
    fleets(),
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from(NAMES)), min_size=20, max_size=60),
    st.sampled_from((1, 2, 16)),
    st.sampled_from(HOWS),
)


@settings(derandomize=True, max_examples=120, deadline=None, database=None)
@given(histories)
def test_no_history_breaks_a_law(history: tuple[Fleet, Moves, int, str]) -> None:
    """Whatever is started, stopped, crashes or ends, in whatever fleet."""
    play(dependencies, *history)


MUTANTS = {
    "what is needed is not waited for": ("        if agent.life.wanted:\n            self._tell_waits(agent)\n", ""),
    "an operator's start waits for nobody": (
        "        self._tell_waits(self._agents[name])\n        self._agents[name].post(Start",
        "        self._agents[name].post(Start",
    ),
    "what is required is not started too": ("or self._comes(one):", "or True:"),
    "who is bound goes on": ("if lost and agent.life.phase in", "if False and agent.life.phase in"),
    "the failed one follows those that follow it": ("and name != self._failed", ""),
    "no bound on starts": (
        "and len(self._starting) >= self.limit:\n            self._turns",
        "and False:\n            self._turns",
    ),
    "no turn is ever given": (
        "        self._look_again(agent.name)\n        self._deal()\n",
        "        self._look_again(agent.name)\n",
    ),
    "degraded is never over": ("            self.degraded.pop(agent.name)\n", "            pass\n"),
    "a unit that stopped stays degraded": (
        "if runs and not self._ready(other, needed=True))",
        "if not self._ready(other, needed=True))",
    ),
    "an ordered stop lets the bound ones come back": ("        self._parting[name] = by\n", ""),
    "who was parted never comes back": (
        "if self._parting.pop(name, None) is not None and",
        "if self._parting.get(name) is None and",
    ),
    "a strategy asks nobody": ('if agent.unit is None or agent.unit.restart.strategy == "one_for_one":', "if True:"),
    "whoever requires what is stopped is only kept down": ("if needed in events and one not in events:", "if False:"),
    "a blocked unit is said to be on its way": (
        "                if not agent.life.waiting:\n                    return True\n",
        "",
    ),
}


def random_histories(count: int) -> Iterator[tuple[Fleet, Moves, int, str]]:
    """Always the same ones."""
    rng = random.Random(20261121)
    for n in range(count):
        order = rng.sample(NAMES, len(NAMES))
        graphs = [
            {x: tuple(rng.sample(order[:i], min(i, rng.choice((0, 0, 1))))) for i, x in enumerate(order)} for _ in "abc"
        ]
        moves = [("start", rng.choice(NAMES)) for _ in range(4)]
        moves += [(rng.choice(ACTIONS), rng.choice(NAMES)) for _ in range(80)]
        yield Fleet(*graphs), moves, (1, 2, 16)[n % 3], HOWS[n % 3]


def play_all(module: ModuleType) -> None:
    for history in random_histories(200):
        play(module, *history)


def mutated(old: str, new: str) -> ModuleType:
    source = Path(dependencies.__file__ or "").read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times"
    module = ModuleType("mutant_of_dependencies")
    sys.modules[module.__name__] = module  # dataclasses look there
    exec(compile(source.replace(old, new), "dependencies.py (mutant)", "exec"), module.__dict__)
    return module


def test_a_cycle_that_slipped_through_is_cut() -> None:
    """A definition that lost its file may close a cycle that no file shows: it is untied, and all else goes on."""
    none: dict[str, tuple[str, ...]] = dict.fromkeys(NAMES, ())
    world = World(dependencies, Fleet(none, none, none), 16, "one_for_one")
    for name, other in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "c")):
        world.dependencies.put(from_dict(name, {"agent": {"exec": ["x"], "requires": [other]}}))
    assert [(r["kind"], r["unit"]) for r in world.records] == [("unit.untied", "c")]
    assert "cycle c → a → b → c" in world.records[0]["reason"]
    assert world.dependencies.relations.of("c").all == ()
    world.dependencies.start("d", Asked("op"))
    assert (world.agents["c"].life.phase, world.agents["d"].life.waiting) == (Phase.starting, True)


@pytest.mark.parametrize("bug", MUTANTS)
def test_each_bug_breaks_a_law(bug: str) -> None:
    """A bug that could be written is noticed."""
    module = mutated(*MUTANTS[bug])
    with pytest.raises((AssertionError, KeyError)):
        play_all(module)


def test_without_a_bug_the_same_histories_break_nothing() -> None:
    """So it is the bug that is noticed."""
    play_all(dependencies)
