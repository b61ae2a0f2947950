"""The laws that hold for every history: of a life, of an order, of an activity.

Each law takes the module that it judges, so that test_mutants.py can hand in a broken one and show that it notices. A
Keeper is simulated just well enough to answer Spawn, Signal and Kill; a second, naive account of failures is kept
beside the life. Shared by test_laws.py, test_ordering.py and test_mutants.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from hypothesis import strategies as st

from agentd.model.life import (
    AT_FAULT,
    BLAMED,
    HANGS,
    INNOCENT,
    LIVE,
    Abort,
    Await,
    Beat,
    Cause,
    Deadline,
    Ended,
    Event,
    Excused,
    Extend,
    Follow,
    Hang,
    Hold,
    Interval,
    Kill,
    Life,
    Note,
    Now,
    Phase,
    Policy,
    Proceed,
    Purpose,
    Ready,
    Recovered,
    Refused,
    Release,
    Restart,
    Signal,
    Spawn,
    Spawned,
    Start,
    Stop,
)

POLICIES: tuple[Policy, ...] = (
    Policy(burst=4, window=100.0, delay=0.5, max_delay=3.0, parked_delay=50.0),
    Policy(type="notify", heartbeat=3.0, burst=3, window=60.0, max_delay=20.0, stop_signal="SIGINT"),
    Policy(type="notify", restart="on-failure", start_timeout=7.0, burst=5),
    Policy(restart="never", heartbeat=2.0),
    Policy(type="oneshot", restart="on-failure", burst=3),
    Policy(type="oneshot"),
    Policy(runtime_max=6.0, burst=4, success=frozenset({1})),
    Policy(type="notify", heartbeat=3.0, runtime_max=5.0, restart="on-failure", success=frozenset({-9})),
    Policy(type="oneshot", runtime_max=4.0, success=frozenset({1, -9})),
    Policy.system(type="simple", heartbeat=5.0),
    Policy(type="notify", heartbeat=3.0, on_hang="abort", stop_timeout=20.0),
    Policy(heartbeat=3.0, on_hang="alarm"),
    Policy(type="notify", heartbeat=2.0, on_hang="alarm", restart="on-failure"),
    Policy(heartbeat=3.0, runtime_max=20.0, on_hang="alarm"),
)
"""A number of them that MOODS does not divide: each is tried in each mood."""


ANYTHING = (
    "start", "stop", "restart", "hold", "release", "answer", "answer", "answer", "refuse", "refuse for now",
    "ready", "ready", "beat", "excuse", "hang", "late", "recover", "extend", "interval",
    "crash", "exit 1", "exit 0", "fail", "due", "due", "early", "stale",
    "reborn", "await", "proceed", "proceed", "follow",
)  # fmt: skip
FAILING = ("fail", "fail", "fail", "due", "due", "due", "due", "refuse for now", "reborn", "early")
"""A unit that is left alone with its bug: back-off and parking come up."""
MOODS = (ANYTHING, FAILING, (*FAILING, *FAILING, *ANYTHING))
PAUSES = (0.0, 0.0, 0.0, 0.0, 0.3, 1.0, 2.5, 12.0, 70.0)
LUCK = (0.0, 0.5, 0.999)


@dataclass(frozen=True)
class Move:
    """One thing that happens, some time after the last."""

    action: str
    pause: float
    luck: float


def histories() -> st.SearchStrategy[tuple[Policy, list[Move]]]:
    """A policy and what happens to a unit under it."""

    def moves(mood: tuple[str, ...]) -> st.SearchStrategy[list[Move]]:
        move = st.builds(Move, st.sampled_from(mood), st.sampled_from(PAUSES), st.sampled_from(LUCK))
        return st.lists(move, min_size=5, max_size=50)

    return st.tuples(st.sampled_from(POLICIES), st.one_of(*map(moves, MOODS)))


def random_histories(count: int) -> Iterator[tuple[Policy, list[Move]]]:
    """Always the same ones, and many in a short time: for the mutants, where nothing has to be shrunk."""
    rng = random.Random(20261121)
    for n in range(count):
        mood = MOODS[n % len(MOODS)]
        moves = [Move(rng.choice(mood), rng.choice(PAUSES), rng.choice(LUCK)) for _ in range(40)]
        yield POLICIES[n % len(POLICIES)], moves


class History:
    """One unit, its simulated keeper, and the naive account that the life is compared with."""

    def __init__(self, lifecycle: ModuleType, policy: Policy) -> None:
        self.lifecycle = lifecycle
        self.policy = policy
        self.mono, self.wall, self.luck = 1000.0, 1_700_000_000.0, 0.5
        self.life = Life.new(self.mono)
        self.asked = False
        """The operator's last word."""
        self.process: str | None = None
        """The invocation that the keeper was asked for and that has not ended."""
        self.forked: float | None = None
        self.ids: list[str] = []
        self.tally: list[float] = []
        self.row = 0
        self.from_parked = False
        """It was parked and has not been healthy since."""

    # --- the world ----------------------------------------------------------------------------------------------------

    def play(self, moves: Sequence[Move]) -> None:
        """Let it all happen; AssertionError if a law is broken."""
        self.post(Start("op", "first"))
        for move in moves:
            self.mono += move.pause
            self.wall += move.pause - (40.0 if move.action == "reborn" else 0.0)
            self.luck = move.luck
            self.move(move.action)
        self.settle()

    def settle(self) -> None:
        """Whatever happened: a stop brings it down, for good, with nothing left."""
        self.post(Stop("op"))
        self.move("answer")
        for _ in range(3):
            self.move("due")
        self.move("crash")
        assert self.process is None
        assert self.life.phase is Phase.inactive
        self.mono += 1e6
        assert self.post(Deadline()) == ()

    def move(self, action: str) -> None:
        """One thing happens, if it can."""
        exits = {"crash": -9, "exit 1": 1, "exit 0": 0}
        asked: dict[str, Event] = {
            "start": Start("op", "because"), "stop": Stop("op"), "restart": Restart("op"),
            "hold": Hold("no tokens"), "release": Release("raised"),
            "await": Await("waits for base"), "proceed": Proceed("base is ready"), "follow": Follow("base ended"),
        }  # fmt: skip
        if action in asked:
            self.post(asked[action])
        elif action in exits:
            if self.process is not None and self.forked is not None:
                self.post(Ended(self.process, exits[action]))
        elif action in ("answer", "refuse", "refuse for now"):
            self.answer(action)
        elif action in ("ready", "beat", "excuse", "hang", "late", "recover", "extend", "interval"):
            self.speak(action)
        else:
            {"fail": self.fail, "due": self.due, "early": self.early, "stale": self.stale, "reborn": self.reborn}[
                action
            ]()

    def answer(self, action: str) -> None:
        """The keeper answers a spawn."""
        if self.process is None or self.forked is not None:
            return
        if action == "answer":
            self.forked = self.mono
            self.post(Spawned(self.process, 42))
        else:
            self.post(Refused(self.process, "no such file", retry=action != "refuse"))

    def speak(self, action: str) -> None:
        """Something is heard of the process."""
        mine = self.process
        if mine is None or self.forked is None:
            return
        heard: dict[str, Event] = {
            "ready": Ready(mine), "beat": Beat(mine, self.mono + 0.5 - self.luck), "excuse": Excused(mine),
            "hang": Hang(mine, "it hangs"), "late": Hang(mine, "overdue", late=True),
            "recover": Recovered(mine, "it moves"),
            "extend": Extend(mine, self.mono + 40.0 * self.luck), "interval": Interval(mine, 1.0 + 8.0 * self.luck),
        }  # fmt: skip
        before = self.life.phase
        self.post(heard[action])
        if action in ("hang", "late") and self.life.phase is Phase.stopping is not before:
            assert self.life.purpose is (Purpose.timed_out if action == "late" else Purpose.hang)

    @property
    def limit(self) -> float | None:
        """Longest time between two beats, as the unit file or the process itself has it."""
        policy = self.policy
        return policy.heartbeat if policy.heartbeat is None or self.life.interval is None else self.life.interval

    def fail(self) -> None:
        """It comes up, and crashes."""
        self.move("answer")
        if self.policy.type == "notify":
            self.move("ready")
        self.move("crash")

    def due(self) -> None:
        """The deadline comes."""
        if self.life.deadline is not None:
            self.mono = max(self.mono, self.life.deadline)
            self.post(Deadline())

    def early(self) -> None:
        """A timer rings that was armed for another deadline."""
        if self.life.deadline is None or self.life.deadline > self.mono:
            self.unchanged(Deadline())

    def stale(self) -> None:
        """Events of another invocation arrive."""
        other = "f" * 16 if self.luck > 0.6 else "0" * 16
        for event in (Ended(other, 1), Spawned(other, 7), Ready(other), Beat(other, self.mono), Excused(other)):
            self.unchanged(event)
        for event in (Refused(other, "x"), Hang(other, "x"), Recovered(other, "x")):
            self.unchanged(event)
        for event in (Extend(other, self.mono + 99.0), Interval(other, 99.0)):
            self.unchanged(event)

    def reborn(self) -> None:
        """The daemon is killed, comes back, and posts what the keeper's snapshot says."""
        again = Life.from_json(json.loads(json.dumps(self.life.to_json())))
        assert again == self.life
        self.life = again
        if self.process is None:
            return
        if self.forked is None and self.luck < 0.3:
            self.post(Ended(self.process, None))
            return
        self.forked = self.mono if self.forked is None else self.forked
        before = self.life
        self.post(Spawned(self.process, 42, at=self.forked))
        if before.phase is Phase.running and self.limit is not None:
            assert self.life.deadline is not None
            assert self.life.deadline >= min(self.mono + self.limit, self.end_of_run())
        if before.phase is Phase.stopping:
            assert before.deadline is None or before.deadline == self.life.deadline
        self.post(Deadline())

    def unchanged(self, event: Event) -> None:
        now = Now(self.mono, self.wall, self.luck)
        life, effects = self.lifecycle.step(self.life, event, self.policy, now)
        assert life is self.life, event
        assert effects == (), event

    def post(self, event: Event) -> tuple[Any, ...]:
        """One step, and all laws about it."""
        before, alive = self.life, self.process
        self.life, effects = self.lifecycle.step(before, event, self.policy, Now(self.mono, self.wall, self.luck))
        if isinstance(event, Start | Restart):
            self.asked = True
        elif isinstance(event, Stop):
            self.asked = False
        if isinstance(event, Ended | Refused) and event.invocation == alive:
            self.check_end(before, event)
            self.process = self.forked = None
        self.check_shape()
        self.check_notes(before, event, effects)
        self.check_deeds(before, event, effects)
        self.check_words(before, event)
        self.check_time(before, event)
        self.check_alarm(before, effects)
        self.check_patience(before, event)
        return tuple(effects)

    # --- the laws -----------------------------------------------------------------------------------------------------

    def check_shape(self) -> None:
        """What is true of a life at any time."""
        life = self.life
        assert (life.invocation is not None) == (life.phase in LIVE)
        assert life.wanted or life.phase in (Phase.inactive, Phase.stopping)
        assert not (life.wanted and life.phase is Phase.inactive) or life.awaits is not None
        assert not life.waiting or life.reason == life.awaits, "it waits, and does not say for whom"
        assert (life.purpose is not None) == (life.phase is Phase.stopping)
        assert life.hold is None or life.phase in (Phase.inactive, Phase.stopping, Phase.held, Phase.failed)
        assert life.phase is not Phase.held or life.hold is not None
        assert not life.ready or life.phase is Phase.running
        assert life.started is None or life.phase in LIVE
        assert not life.again or (life.phase is Phase.stopping and life.wanted)
        assert self.policy.burst is None or len(life.failures) <= self.policy.burst
        if life.wanted and life.invocation is None and life.phase not in (Phase.held, Phase.failed, Phase.inactive):
            assert life.deadline is not None, "wanted, without a process, and nothing is due: silent for ever"
        if self.policy.burst is None:
            assert life.phase is not Phase.parked

    def check_notes(self, before: Life, event: Event, effects: tuple[Any, ...]) -> None:
        """Every transition is told with its reason, and who asked for it."""
        notes = [e for e in effects if isinstance(e, Note)]
        assert all(n.text for n in notes)
        if before.phase is not self.life.phase:
            kind = "unit.waiting" if self.life.waiting else f"unit.{self.life.phase}"
            assert [n for n in notes if n.kind == kind and n.text == self.life.reason]
            assert self.life.since == self.mono
            if isinstance(event, Start | Stop | Restart):
                assert notes[-1].actor == "op"
        again = before.alarm is not None and isinstance(event, Deadline)
        if self.life != before and not again and not isinstance(event, Beat | Excused | Spawned | Await | Proceed):
            assert notes
        if before.waiting and isinstance(event, Await) and self.life != before:
            assert notes

    def check_deeds(self, before: Life, event: Event, effects: tuple[Any, ...]) -> None:
        """One process at a time, only while it is wanted, never under an old id; nobody else's process is touched."""
        deeds = [e for e in effects if not isinstance(e, Note)]
        assert len(deeds) <= 1
        for deed in deeds:
            if isinstance(deed, Spawn):
                assert self.asked, "spawned although the operator's last word was stop"
                assert before.awaits is None or isinstance(event, Proceed), "spawned before what it needs is ready"
                assert self.process is None, "a second process"
                assert all(deed.invocation > old for old in self.ids)
                assert self.life.phase is Phase.starting
                assert self.life.invocation == self.life.floor == deed.invocation
                self.ids.append(deed.invocation)
                self.process = deed.invocation
            else:
                assert deed.invocation == self.process
                assert self.life.phase is Phase.stopping
                assert self.forked is not None or isinstance(event, Ready | Spawned)
            if isinstance(deed, Signal):
                assert deed.signal == self.policy.stop_signal
                assert self.life.purpose not in BLAMED
            aborts = self.life.purpose in HANGS and self.policy.on_hang == "abort"
            if isinstance(deed, Kill):
                assert isinstance(event, Deadline) or (self.life.purpose in BLAMED and not aborts)
                assert before.phase is Phase.stopping or not aborts
            if isinstance(deed, Abort):
                assert aborts
        if before.phase is not Phase.stopping and self.life.phase is Phase.stopping and self.forked is not None:
            assert deeds, "it is to stop, but nobody tells it"
        if isinstance(event, Spawned) and self.life.phase is Phase.stopping:
            assert deeds, "it is there and is to stop, but nobody tells it"
        if before.phase in LIVE and self.life.phase is Phase.starting and before.invocation != self.life.invocation:
            assert isinstance(event, Ended | Refused)
        assert (self.life.phase in LIVE) == (self.process is not None)

    def check_words(self, before: Life, event: Event) -> None:
        """The operator's words and the holds are obeyed in every phase."""
        life = self.life
        if isinstance(event, Stop):
            assert not life.wanted
            assert life.phase in (Phase.inactive, Phase.stopping)
        if isinstance(event, Start | Restart):
            assert life.wanted
            assert life.phase in (Phase.starting, Phase.running, Phase.stopping, Phase.held) or life.waiting
            if life.phase is not before.phase or before.phase in (Phase.held, Phase.inactive):
                assert (life.failures, life.attempt, life.restarts, life.probation) == ((), 0, 0, False)
                self.tally, self.row, self.from_parked = [], 0, False
            elif life.failures == () and life.attempt == 0:
                self.tally, self.row, self.from_parked = [], 0, False
        if isinstance(event, Restart) and before.phase in (Phase.starting, Phase.running):
            assert life.phase is Phase.stopping
        if isinstance(event, Hold):
            assert life.hold == "no tokens"
            assert life.phase not in (Phase.starting, Phase.running, Phase.backoff, Phase.parked)
        if isinstance(event, Await | Proceed):
            assert life.awaits == (event.text if isinstance(event, Await) else None)
            assert before.waiting or (life.phase, life.invocation) == (before.phase, before.invocation)
            assert not before.waiting or isinstance(event, Await) or life.phase in (Phase.starting, Phase.held)
        if isinstance(event, Follow):
            assert life.wanted == before.wanted
            assert life.phase is Phase.stopping or life is before
            if before.phase in (Phase.starting, Phase.running):
                assert life.phase is Phase.stopping
                assert life.purpose not in AT_FAULT, "it did nothing wrong"
        if isinstance(event, Release):
            assert life.hold is None
            assert life.phase is not Phase.held
        if life.restarts > before.restarts:
            assert life.restarts == before.restarts + 1
            assert isinstance(event, Ended | Refused | Deadline)
            assert life.phase is Phase.starting or life.waiting

    def check_time(self, before: Life, event: Event) -> None:
        """Exactly the phases that wait for something have a deadline, and when it comes something happens."""
        life, policy = self.life, self.policy
        due = {
            Phase.running: policy.heartbeat is not None or policy.runtime_max is not None,
            Phase.backoff: True,
            Phase.parked: True,
            Phase.stopping: life.started is not None,
            Phase.starting: life.started is not None,
        }.get(life.phase, False)
        assert (life.deadline is not None) == due, life.phase
        if isinstance(event, Deadline) and before.deadline is not None and before.deadline <= self.mono:
            assert life is not before
            assert life.deadline is None or life.deadline > self.mono
            if before.phase is Phase.running:
                over = policy.runtime_max is not None and self.mono >= (before.started or 0.0) + policy.runtime_max
                assert (life.purpose is Purpose.overrun) == over, "asked to stop after its time, and only then"
                if not over:
                    assert life.mute if policy.on_hang == "alarm" else life.purpose in BLAMED
        if life.phase is Phase.running and policy.runtime_max is not None:
            assert life.started is not None
            assert life.deadline is not None
            assert life.deadline <= life.started + policy.runtime_max, "a run without an end"
        if isinstance(event, Beat | Excused) and before.phase is Phase.running and self.limit is not None:
            assert before.deadline is not None
            assert life.deadline is not None
            assert before.deadline <= life.deadline <= self.mono + self.limit
            if isinstance(event, Excused) or (before.beat or 0.0) < event.at:
                seen = min(event.at, self.mono) if isinstance(event, Beat) else self.mono
                assert life.deadline >= min(seen + self.limit, self.end_of_run())
        if life.phase is Phase.stopping and before.phase is not Phase.stopping and life.deadline is not None:
            assert life.deadline <= self.mono + max(policy.stop_timeout, 1.0)
        if life.phase is Phase.running and before.phase is Phase.starting:
            assert isinstance(event, Ready) == (policy.type == "notify")
            assert life.ready == (policy.type != "oneshot")
            assert self.limit is None or life.deadline == min(self.mono + self.limit, self.end_of_run())

    def end_of_run(self) -> float:
        """When the present run is too long."""
        longest = float("inf") if self.policy.runtime_max is None else self.policy.runtime_max
        return (self.life.started or 0.0) + longest

    def spawned_into(self) -> Phase:
        """Where a unit is that is to be spawned now."""
        if self.life.hold is not None:
            return Phase.held
        return Phase.starting if self.life.awaits is None else Phase.inactive

    def check_alarm(self, before: Life, effects: tuple[Any, ...]) -> None:
        """An alarm stops nothing, is told once when it comes and once when it goes, and dies with its process."""
        life, told = self.life, [e.kind for e in effects if isinstance(e, Note)]
        assert life.alarm is None or life.phase in LIVE
        assert life.alarm is not None or not life.mute
        assert (self.policy.on_hang == "alarm") or life.alarm is None
        assert self.policy.on_hang != "alarm" or life.purpose not in HANGS
        assert told.count("unit.hung") == (before.alarm is None and life.alarm is not None)
        if before.alarm is not None and life.alarm is None and life.invocation == before.invocation:
            assert "unit.recovered" in told
        if before.mute and not life.mute and life.phase is Phase.running:
            assert life.beat != before.beat or life.deadline == min(self.mono + (self.limit or 0.0), self.end_of_run())

    def check_patience(self, before: Life, event: Event) -> None:
        """What asks for more time gets it, never less than it had, and not where it is killed for its own fault."""
        life = self.life
        if isinstance(event, Extend):
            assert (before.deadline or 0.0) <= (life.deadline or 0.0)
            patient = life.phase is Phase.starting and self.policy.type == "notify"
            if patient or (life.phase is Phase.stopping and life.purpose not in BLAMED):
                assert life.started is None or (life.deadline or 0.0) >= event.until
            else:
                assert life is before
        if isinstance(event, Interval):
            if self.policy.heartbeat is None or before.phase not in _UP:
                assert life is before
                return
            assert self.limit == event.seconds
            if life.phase is Phase.running and life is not before:
                assert life.deadline == min(self.mono + event.seconds, self.end_of_run())

    # --- endings ------------------------------------------------------------------------------------------------------

    def check_end(self, before: Life, event: Ended | Refused) -> None:
        """An end is told truly, and counts as a failure exactly if it is one."""
        last, life = self.life.last, self.life
        assert last is not None
        assert last.invocation == event.invocation
        ran = 0.0 if self.forked is None else self.mono - self.forked
        assert abs(last.ran - ran) < 1e-6
        cause = self.expected_cause(before, event)
        assert last.cause is cause
        assert last.text
        if not before.wanted:
            assert life.phase is Phase.inactive
            return
        if before.phase is Phase.stopping and (cause in INNOCENT or before.again):
            assert life.phase is self.spawned_into()
            assert (life.failures, life.attempt, life.restarts) == (before.failures, before.attempt, before.restarts)
            return
        self.check_failure(before, event, cause, ran)

    def expected_cause(self, before: Life, event: Ended | Refused) -> Cause:
        if isinstance(event, Refused) or (event.exit is None and self.forked is None):
            return Cause.unstarted
        if before.phase is Phase.stopping:
            assert before.purpose is not None
            ours = {"hold": Cause.held, "overrun": Cause.failed, "timed_out": Cause.timed_out} | dict.fromkeys(
                ("stop", "restart", "follow"), Cause.stopped
            )
            return ours.get(before.purpose, Cause.hung)
        if event.exit == 0 or event.exit in self.policy.success:
            return Cause.done if self.policy.type == "oneshot" else Cause.left
        return Cause.crashed if event.exit is None or event.exit < 0 else Cause.failed

    def check_failure(self, before: Life, event: Ended | Refused, cause: Cause, ran: float) -> None:
        life, policy = self.life, self.policy
        if isinstance(event, Refused):
            if not event.retry:
                assert life.phase is Phase.failed
                return
        elif cause is Cause.unstarted:
            assert life.phase is self.spawned_into()
            assert (life.failures, life.restarts) == (before.failures, before.restarts)
            return
        elif cause is Cause.done or (cause is Cause.left and policy.restart != "always"):
            assert life.phase is Phase.inactive
            return
        elif policy.restart == "never" or (policy.type == "oneshot" and policy.restart == "always"):
            assert life.phase is Phase.failed
            return
        self.check_retry(ran)

    def check_retry(self, ran: float) -> None:
        """The naive account: what should follow this failure."""
        life, policy = self.life, self.policy
        healthy = ran >= policy.healthy_after
        self.tally.append(self.mono)
        self.row = 1 if healthy else self.row + 1
        recent = [t for t in self.tally if t > self.mono - policy.window]
        parked = policy.burst is not None and (len(recent) >= policy.burst or (self.from_parked and not healthy))
        self.from_parked = parked
        at_once = healthy or (self.row == 1 and policy.eager)
        if parked and not healthy:
            self.row -= 1
        elif not parked and healthy and not policy.eager:
            self.row = 0
        if life.hold is not None:
            assert life.phase is Phase.held
        elif parked:
            assert life.phase is Phase.parked
            assert life.deadline == self.mono + policy.parked_delay
        elif at_once:
            assert life.phase is self.spawned_into(), "the first failure after a healthy run restarts at once"
        else:
            doublings = self.row - (2 if policy.eager else 1)
            full = min(policy.max_delay, policy.delay * 2.0 ** min(max(doublings, 0), 30))
            wait = full * self.luck if policy.jitter else full
            if wait == 0:
                assert life.phase is self.spawned_into()
                return
            assert life.phase is Phase.backoff
            assert life.deadline is not None
            assert abs(life.deadline - self.mono - wait) < 1e-6
            assert life.deadline - self.mono <= policy.max_delay


def lifecycle_law(lifecycle: ModuleType, history: tuple[Policy, list[Move]]) -> None:
    """All laws of a life, over one history."""
    policy, moves = history
    History(lifecycle, policy).play(moves)


# --- order ------------------------------------------------------------------------------------------------------------

Graph = dict[str, tuple[str, ...]]
NAMES = tuple("abcdefgh")


def graphs() -> st.SearchStrategy[Graph]:
    """Graphs without a cycle: each unit may come after units that are named before it, or nobody knows."""
    edges = st.lists(st.sampled_from((*NAMES, "ghost")), max_size=4)
    every = st.fixed_dictionaries(dict.fromkeys(NAMES, edges))
    shuffled = st.permutations(NAMES)
    return st.builds(
        lambda drawn, order: {
            n: tuple(o for o in drawn[n] if o == "ghost" or order.index(o) < order.index(n)) for n in NAMES
        },
        every,
        shuffled,
    )


def cyclic_graphs() -> st.SearchStrategy[Graph]:
    """Graphs with at least one cycle."""
    ring = st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True)

    def close(graph: Graph, names: list[str]) -> Graph:
        pairs = zip(names, [*names[1:], names[0]], strict=True)
        return graph | {name: (*graph[name], other) for name, other in pairs}

    return st.builds(close, graphs(), ring)


def everybody_once(ordering: ModuleType, graph: Graph) -> None:
    """Each unit stands in exactly one generation."""
    assert sorted(name for gen in ordering.start_order(graph) for name in gen) == sorted(graph)


def nobody_too_early(ordering: ModuleType, graph: Graph) -> None:
    """Each unit stands in a later generation than all that it waits for."""
    rank = {name: n for n, gen in enumerate(ordering.start_order(graph)) for name in gen}
    assert all(rank[other] < rank[name] for name, others in graph.items() for other in others if other in graph)


def nobody_too_late(ordering: ModuleType, graph: Graph) -> None:
    """A unit of a later generation waits for one of the generation before: no wait is made up."""
    order = ordering.start_order(graph)
    for n, gen in enumerate(order):
        assert gen == tuple(sorted(gen))
        assert all(n == 0 or set(graph[name]) & set(order[n - 1]) for name in gen)


def stops_backwards(ordering: ModuleType, graph: Graph) -> None:
    """The stop order is the start order backwards."""
    assert ordering.stop_order(graph) == list(reversed(ordering.start_order(graph)))


def no_cycle_made_up(ordering: ModuleType, graph: Graph) -> None:
    """Where there is no cycle none is found."""
    assert ordering.cycles(graph) == {}


ORDERING_LAWS: tuple[Callable[[ModuleType, Graph], None], ...] = (
    everybody_once, nobody_too_early, nobody_too_late, stops_backwards, no_cycle_made_up,
)  # fmt: skip


# --- who is restarted, stopped and started with whom ----------------------------------------------------------------


@dataclass(frozen=True)
class Fleet:
    """Ties without a cycle: each unit may name units that come before it in some order, in any of the three ways."""

    after: Graph
    requires: Graph
    binds_to: Graph

    def all(self, name: str) -> set[str]:
        """Whom it depends on directly."""
        return {*self.after[name], *self.requires[name], *self.binds_to[name]} & set(NAMES)

    def needs(self, name: str) -> set[str]:
        """Without whom it is not started."""
        return {*self.requires[name], *self.binds_to[name]} & set(NAMES)


def fleets() -> st.SearchStrategy[Fleet]:
    """Three relations over one order of the units."""
    few = st.lists(st.sampled_from(NAMES), max_size=2)
    every = st.fixed_dictionaries(dict.fromkeys(NAMES, few))

    def build(drawn: list[Graph], order: Sequence[str]) -> Fleet:
        kept = [{n: tuple(o for o in g[n] if order.index(o) < order.index(n)) for n in NAMES} for g in drawn]
        return Fleet(*kept)

    return st.builds(build, st.lists(every, min_size=3, max_size=3), st.permutations(NAMES))


def closure(first: str, neighbours: Callable[[str], set[str]]) -> set[str]:
    """All that can be reached: the naive way, until nothing more is found."""
    found = {first}
    while more := {other for one in found for other in neighbours(one)} - found:
        found |= more
    return found


def dependants(fleet: Fleet, relation: Callable[[str], set[str]]) -> Callable[[str], set[str]]:
    """A relation the other way round."""
    return lambda name: {other for other in NAMES if name in relation(other)}


def relations_of(relations: ModuleType, fleet: Fleet) -> Any:
    """The index of a fleet, after some units were put in twice and others taken out again."""
    index = relations.Relations()
    for name in NAMES:
        index.put(name, relations.Ties(after=("a", "b"), requires=("c",), binds_to=("d",)))
    for name in NAMES[::2]:
        index.drop(name)
    for name in NAMES:
        index.put(name, relations.Ties(fleet.after[name], fleet.requires[name], fleet.binds_to[name]))
    return index


def in_start_order(fleet: Fleet, generations: Sequence[Sequence[str]]) -> None:
    """Nobody starts with or before one of those that it depends on; everybody stands there once."""
    flat = [name for generation in generations for name in generation]
    assert len(flat) == len(set(flat))
    rank = {name: n for n, generation in enumerate(generations) for name in generation}
    assert all(rank[other] < rank[name] for name in flat for other in fleet.all(name) if other in rank)


def relations_law(relations: ModuleType, fleet: Fleet) -> None:
    """The index says of every unit what its file says, both ways round, whatever was there before."""
    index = relations_of(relations, fleet)
    for name in NAMES:
        assert set(index.of(name).needs) == fleet.needs(name)
        assert set(index.of(name).all) == fleet.all(name)
        assert index.dependants(name) == sorted(dependants(fleet, fleet.all)(name))
        assert index.needing(name) == sorted(dependants(fleet, fleet.needs)(name))
        assert index.bound(name) == sorted(other for other in NAMES if name in fleet.binds_to[other])
        assert relations.reached(name, fleet.all) == closure(name, fleet.all)


def strategy_law(strategy: ModuleType, fleet: Fleet) -> None:
    """Exactly those are restarted, stopped and started whom the page of the module names, in order."""
    from agentd.model import relations

    index = relations_of(relations, fleet)

    def binds(name: str) -> set[str]:
        return set(fleet.binds_to[name])

    bound = dependants(fleet, binds)
    for name in NAMES:
        joined = closure(name, lambda one: binds(one) | bound(one))
        later = closure(name, dependants(fleet, fleet.all)) & joined
        expected = {"one_for_one": closure(name, bound), "rest_for_one": later, "one_for_all": joined}
        for how, names in expected.items():
            restarted = strategy.restarted(how, name, index)
            assert {one for generation in restarted for one in generation} == names
            in_start_order(fleet, restarted)
        stopped = strategy.stopped(name, index)
        assert {one for gen in stopped for one in gen} == closure(name, dependants(fleet, fleet.needs))
        in_start_order(fleet, stopped[::-1])
        assert stopped[-1] == (name,), "dependants stop first"
        started = strategy.started(name, index)
        assert {one for gen in started for one in gen} == closure(name, fleet.needs)
        in_start_order(fleet, started)


# --- activity ---------------------------------------------------------------------------------------------------------


_UP = (Phase.starting, Phase.running)


@dataclass(frozen=True)
class Scene:
    """What is known of a running unit: ages in seconds."""

    beat: float | None
    calls: tuple[tuple[float, float | None, bool], ...]
    held: tuple[tuple[float, float], ...]
    overdue: bool
    progress: tuple[bool, float | None, float | None] | None
    """Whether it has a channel, and how long ago it printed and finished a message; it is watched for 1000 s."""
    failures: int | None
    waited: float | None


def scenes() -> st.SearchStrategy[Scene]:
    """Ages on both sides of all limits (heartbeat 3, cap 120, deadline 300)."""
    age = st.sampled_from((0.0, 2.9, 3.0, 39.0, 60.0, 119.0, 120.0, 299.0, 301.0, 4000.0))
    call = st.tuples(age, st.none() | age, st.booleans())
    return st.builds(
        Scene,
        st.none() | age,
        st.just(()) | st.lists(call, max_size=2).map(tuple),
        st.just(()) | st.lists(st.tuples(age, age), max_size=2).map(tuple),
        st.sampled_from((False, False, False, True)),
        st.none() | st.tuples(st.booleans(), st.none() | age, st.none() | age),
        st.none() | st.none() | st.integers(0, 4),
        st.none() | age,
    )


def liveness_law(liveness: ModuleType, scene: Scene) -> None:
    """A unit that waits for a moving model thinks; else a broken promise hangs it; else it works or idles."""
    verdict = _judged(liveness, scene, 0.0)
    moving = any(parked or (started if byte is None else byte) < 120.0 for started, byte, parked in scene.calls)
    excuse = 1e6 if scene.waited is None else scene.waited
    late = (scene.overdue and excuse >= 300.0) or any(min(excuse, *ages) >= 300.0 for ages in scene.held)
    silent = scene.beat is not None and scene.beat >= 3.0
    ill = scene.failures is not None and scene.failures >= 3
    if moving:
        expected = "thinking"
    elif silent or late or scene.calls or ill or _stuck(scene, excuse):
        expected = "hung"
    else:
        expected = "working" if scene.held else "idle"
    assert verdict.activity == expected
    assert verdict.reason
    if expected == "hung":
        assert verdict.sign
        return
    look = verdict.next_look
    after = 1e5 if look is None else look - NOW
    assert after > 0
    assert _judged(liveness, scene, after - 0.01).activity == expected, "it changed, and nobody was to look"
    assert look is None or _judged(liveness, scene, after).activity == "hung", "nothing changed when it was looked at"
    if not moving:
        assert verdict.beyond == _judged(liveness, replace(scene, beat=None), 0.0).next_look, (
            "beats are not all it owes"
        )


NOW = 1e6


def _judged(liveness: ModuleType, scene: Scene, after: float) -> Any:
    """The verdict on a scene that nothing new is heard of for a while."""
    now = NOW
    held = [liveness.Held(f"m{n}", now - s, now - p) for n, (s, p) in enumerate(scene.held)]
    owed = None
    if scene.progress is not None:
        bound, output, done = (a if a is None or isinstance(a, bool) else now - a for a in scene.progress)
        owed = liveness.progress(40.0, since=now - 1000.0, held=held, bound=bound, output=output, done=done)
    return liveness.activity(
        now + after,
        pulse=None if scene.beat is None else liveness.Pulse(3.0, now - scene.beat),
        calls=[liveness.Call(now - s, None if b is None else now - b, p) for s, b, p in scene.calls],
        held=held,
        cap=120.0,
        deadline=300.0,
        overdue="m9" if scene.overdue else None,
        owed=owed,
        probed=None if scene.failures is None else liveness.Probed(scene.failures, 3, "no answer"),
        waited=0.0 if scene.waited is None else now - scene.waited,
    )


def _stuck(scene: Scene, excuse: float) -> bool:
    """It has work, and gave no sign of any progress for 40 s."""
    if scene.progress is None or (scene.progress[0] and not scene.held):
        return False
    signs = [excuse, 1000.0, *(age for age in scene.progress[1:] if age is not None)]
    return min([*signs, *(age for ages in scene.held for age in ages)]) >= 40.0
