"""The lifecycle, by example: what each event does. The laws that hold for all histories are in test_laws.py."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import pytest

from agentd.model.life import DOWN, Of
from agentd.model.lifecycle import (
    TABLE,
    Beat,
    Cause,
    Deadline,
    Effect,
    Ended,
    Event,
    Excused,
    Extend,
    Hang,
    Hold,
    Interval,
    Kill,
    Life,
    Note,
    Now,
    Phase,
    Policy,
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
    step,
)
from agentd.model.unit import Unit

START, STOP, RESTART = Start("alice", "wanted"), Stop("alice", "enough"), Restart("alice")


class Story:
    """A life and its clock: events happen at ``at`` seconds."""

    def __init__(self, policy: Policy | None = None, **changes: Any) -> None:
        self.policy = replace(policy or Policy(), **changes)
        self.at = 1000.0
        self.luck = 0.999999
        self.life = Life.new(self.at)
        self.effects: tuple[Effect, ...] = ()

    def on(self, event: Event, after: float = 0.0) -> Story:
        self.at += after
        now = Now(self.at, 1_700_000_000.0 + self.at, self.luck)
        self.life, self.effects = step(self.life, event, self.policy, now)
        return self

    @property
    def id(self) -> str:
        assert self.life.invocation is not None
        return self.life.invocation

    def running(self) -> Story:
        self.on(START).on(Spawned(self.id, 42))
        return self.on(Ready(self.id)) if self.policy.type == "notify" else self

    def end(self, code: int | None = 1, after: float = 0.0) -> Story:
        return self.on(Ended(self.id, code), after)

    def respawned(self) -> Story:
        return self.on(Spawned(self.id, 43))

    def parked(self) -> Story:
        self.running()
        while self.life.phase is not Phase.parked:
            self.end() if self.life.invocation else self.due()
            if self.life.phase is Phase.starting:
                self.respawned()
        return self

    def due(self, late: float = 0.0) -> Story:
        """Let the deadline come."""
        assert self.life.deadline is not None
        self.at = max(self.at, self.life.deadline) + late
        return self.on(Deadline())

    @property
    def deeds(self) -> list[Effect]:
        return [e for e in self.effects if not isinstance(e, Note)]

    @property
    def notes(self) -> list[Note]:
        return [e for e in self.effects if isinstance(e, Note)]


# --- starting ---------------------------------------------------------------------------------------------------------


def test_start_mints_an_id_and_asks_for_a_spawn() -> None:
    """Start persists a new invocation in the life and asks for its spawn, noting who wanted it and why."""
    story = Story().on(START)
    assert story.life.phase is Phase.starting
    assert story.deeds == [Spawn(story.id)]
    assert story.notes == [Note("unit.starting", "started by alice: wanted", "alice", story.id)]
    assert story.life.floor == story.id


def test_simple_runs_when_it_is_spawned() -> None:
    """A simple unit is running and ready as soon as the keeper has spawned it."""
    story = Story().on(START)
    story.on(Spawned(story.id, 42))
    assert (story.life.phase, story.life.ready, story.life.deadline) == (Phase.running, True, None)
    assert story.life.satisfied


def test_notify_runs_when_it_says_ready() -> None:
    """A notify unit is starting until READY=1 and has start_timeout for it."""
    story = Story(type="notify", start_timeout=30.0).on(START)
    story.on(Spawned(story.id, 42), after=0.1)
    assert (story.life.phase, story.life.deadline) == (Phase.starting, 1000.1 + 30)
    story.on(Ready(story.id), after=2.0)
    assert (story.life.phase, story.life.ready, story.life.deadline) == (Phase.running, True, None)
    assert story.notes[0].text == "ready after 2s"


def test_ready_may_overtake_the_answer_to_the_spawn() -> None:
    """READY=1 that is known before the keeper's answer counts."""
    story = Story(type="notify").on(START)
    story.on(Ready(story.id)).on(Spawned(story.id, 42))
    assert story.life.phase is Phase.running


def test_notify_that_never_gets_ready_is_killed_and_counted() -> None:
    """start_timeout kills, and that is a failure with the reason in words."""
    story = Story(type="notify", start_timeout=30.0).on(START)
    story.on(Spawned(story.id, 42)).due()
    assert story.deeds == [Kill(story.id)]
    assert story.life.purpose is Purpose.start_timeout
    story.end(-9)
    assert story.life.last is not None
    assert (story.life.last.cause, story.life.last.text) == (Cause.hung, "did not say READY=1 within 30s")
    assert len(story.life.failures) == 1
    assert story.life.phase is Phase.starting


def test_oneshot_is_done() -> None:
    """A oneshot that exits 0 is inactive, done, unblamed, and satisfies who waits for it; not before."""
    story = Story(type="oneshot").running()
    assert not story.life.satisfied
    story.end(0, after=1)
    assert (story.life.phase, story.life.wanted, story.life.failures) == (Phase.inactive, False, ())
    assert story.life.last is not None
    assert story.life.last.cause is Cause.done
    assert story.life.satisfied


@pytest.mark.parametrize(
    ("policy", "phase"),
    [("always", Phase.failed), ("never", Phase.failed), ("on-failure", Phase.starting)],
)
def test_oneshot_that_fails(policy: Any, phase: Phase) -> None:
    """A failed oneshot is failed, unless its policy is on-failure."""
    assert Story(type="oneshot", restart=policy).running().end(3).life.phase is phase


def test_refused_plan_fails() -> None:
    """A plan that cannot be executed fails with the keeper's words and burns no restart."""
    story = Story().on(START)
    story.on(Refused(story.id, "spawn failed at exec: no such file: /bin/nope"))
    assert (story.life.phase, story.life.invocation, story.life.deadline) == (Phase.failed, None, None)
    assert story.life.reason == "spawn failed at exec: no such file: /bin/nope"
    assert story.life.last is not None
    assert story.life.last.cause is Cause.unstarted


def test_refused_plan_that_may_work_later_is_tried_again() -> None:
    """A refusal for want of memory, say, goes the way of a failure, and parks in the end."""
    story = Story(burst=3).on(START)
    phases = []
    for _ in range(3):
        story.on(Refused(story.id, "spawn failed at fork: no memory", retry=True))
        phases.append(story.life.phase)
        if story.life.phase is Phase.backoff:
            story.due()
    assert phases == [Phase.starting, Phase.backoff, Phase.parked]


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "cause", "text"),
    [
        (1, Cause.failed, "exited 1"),
        (-9, Cause.crashed, "killed by SIGKILL"),
        (-35, Cause.crashed, "killed by signal 35"),
        (None, Cause.crashed, "gone, exit status unknown"),
        (0, Cause.left, "exited 0"),
    ],
)
def test_an_end_that_nobody_asked_for(code: int | None, cause: Cause, text: str) -> None:
    """Cause, text, run time and wall time of an unasked end."""
    story = Story().running()
    story.on(Ended(story.life.invocation or "", code, at=1005.0), after=6.0)
    last = story.life.last
    assert last is not None
    assert (last.cause, last.text, last.exit, last.ran) == (cause, text, code, 5.0)
    assert last.at == 1_700_000_000.0 + 1005.0
    assert story.life.phase is Phase.starting


def test_first_failure_after_a_healthy_run_restarts_at_once() -> None:
    """No delay stands between the first crash and the new process; the counter says so."""
    story = Story().running().end(-11, after=3600)
    assert [type(e) for e in story.deeds] == [Spawn]
    assert story.life.restarts == 1
    assert story.life.reason == "killed by SIGSEGV: restarted at once"
    assert [n.kind for n in story.notes] == ["unit.ended", "unit.starting"]


def test_back_off_doubles_to_its_cap() -> None:
    """At once, then 0.5 s doubling to max_delay, with full jitter below it."""
    story = Story(delay=0.5, max_delay=4.0, burst=100).running()
    delays = []
    for _ in range(7):
        story.end()
        if story.life.phase is Phase.backoff:
            assert story.life.deadline is not None
            delays.append(round(story.life.deadline - story.at, 3))
            story.due()
        story.respawned()
    assert delays == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert story.life.restarts == 7


def test_full_jitter() -> None:
    """Luck scales the delay: a fleet that fails together does not come back together."""
    story = Story(delay=1.0, burst=100).running().end().respawned()
    story.luck = 0.25
    story.end()
    assert story.life.deadline == story.at + 0.25


def test_a_healthy_run_resets_the_back_off() -> None:
    """After healthy_after seconds the next failure restarts at once again."""
    story = Story(burst=100, healthy_after=10.0).running().end().respawned().end().due().respawned()
    assert story.life.attempt == 2
    story.end(after=10.0)
    assert (story.life.phase, story.life.attempt) == (Phase.starting, 1)


def test_burst_parks_and_parked_never_gives_up() -> None:
    """The burst-th failure parks; each parked_delay it is tried; a failure parks at once; a healthy run ends it."""
    story = Story(burst=4, parked_delay=300.0).parked()
    assert len(story.life.failures) == 4
    assert story.life.restarts == 3
    for _ in range(3):
        assert story.life.deadline == story.at + 300.0
        assert "parked" in story.life.reason
        story.due().respawned().end(after=1.0)
        assert story.life.phase is Phase.parked
    story.due().respawned().end(after=10.0)
    assert (story.life.phase, story.life.probation) == (Phase.starting, False)


def test_failures_outside_the_window_do_not_park() -> None:
    """Only failures within the window count."""
    story = Story(burst=3, window=100.0).running()
    for _ in range(10):
        story.end(after=60.0).respawned()
    assert story.life.phase is Phase.running


def test_operators_start_unparks_and_forgives() -> None:
    """Start on a parked unit runs it at once with clean counters."""
    story = Story(burst=3).parked().on(START)
    assert story.life.phase is Phase.starting
    assert (story.life.failures, story.life.attempt, story.life.restarts, story.life.probation) == ((), 0, 0, False)


@pytest.mark.parametrize(
    ("policy", "code", "phase", "wanted"),
    [
        ("always", 0, Phase.starting, True),
        ("on-failure", 0, Phase.inactive, False),
        ("never", 0, Phase.inactive, False),
        ("always", 1, Phase.starting, True),
        ("on-failure", 1, Phase.starting, True),
        ("never", 1, Phase.failed, True),
    ],
)
def test_policy(policy: Any, code: int, phase: Phase, wanted: bool) -> None:
    """What each restart policy makes of exit 0 and exit 1."""
    life = Story(restart=policy).running().end(code).life
    assert (life.phase, life.wanted) == (phase, wanted)


def test_system_units() -> None:
    """At once if they lived a second, else 100 ms doubling to 2 s, without jitter, never parked."""
    story = Story(Policy.system(type="simple")).running().end(after=1.0)
    assert story.life.phase is Phase.starting
    delays = []
    for _ in range(40):
        story.respawned().end(after=0.5)
        assert story.life.phase is Phase.backoff
        assert story.life.deadline is not None
        delays.append(round(story.life.deadline - story.at, 6))
        story.due()
    assert delays[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert set(delays[5:]) == {2.0}


def test_system_unit_that_dies_young_at_first() -> None:
    """A first life under a second waits 100 ms."""
    story = Story(Policy.system(type="simple")).running().end(after=0.5)
    assert story.life.deadline == story.at + 0.1


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_stop_asks_then_kills() -> None:
    """stop_signal first; after stop_timeout the tree is killed, and again if it does not die."""
    story = Story(stop_signal="SIGINT", stop_timeout=5.0).running().on(STOP)
    assert story.deeds == [Signal(story.id, "SIGINT")]
    assert story.notes[0].actor == "alice"
    story.due()
    assert story.deeds == [Kill(story.id)]
    story.due()
    assert story.deeds == [Kill(story.id)]
    story.end(-9)
    assert (story.life.phase, story.life.wanted, story.life.failures) == (Phase.inactive, False, ())
    assert story.life.last is not None
    assert (story.life.last.cause, story.life.last.text) == (Cause.stopped, "stopped (killed by SIGKILL)")
    assert story.life.reason == "stopped by alice: enough"


def test_stop_before_the_spawn_is_answered() -> None:
    """A stop that meets a spawn under way waits for the answer, then ends the process: nothing is left over."""
    story = Story().on(START)
    story.on(STOP)
    assert story.deeds == []
    story.on(Spawned(story.id, 42))
    assert story.deeds == [Signal(story.id, "SIGTERM")]
    assert story.life.deadline == story.at + 10.0
    story.end(-15)
    assert (story.life.phase, story.deeds) == (Phase.inactive, [])


def test_stop_before_the_spawn_is_refused() -> None:
    """The refusal ends the stop too."""
    story = Story().on(START).on(STOP)
    story.on(Refused(story.id, "no"))
    assert story.life.phase is Phase.inactive


@pytest.mark.parametrize("phase", ["backoff", "parked", "held", "failed"])
def test_stop_while_nothing_runs(phase: str) -> None:
    """Stop wins in every resting phase: inactive at once, and the old deadline is void."""
    story = Story(burst=3)
    if phase == "parked":
        story.parked()
    elif phase == "backoff":
        story.running().end().respawned().end()
    elif phase == "held":
        story.running().on(Hold("budget")).end(-15)
    else:
        story.on(START)
        story.on(Refused(story.id, "no"))
    assert story.life.phase == phase
    story.on(STOP)
    assert (story.life.phase, story.life.wanted, story.life.deadline) == (Phase.inactive, False, None)
    story.on(Deadline(), after=1e6)
    assert story.effects == ()


def test_restart_of_a_running_unit() -> None:
    """Restart stops it cleanly and runs it at once, whatever its exit; the counters begin anew."""
    story = Story().running().end(after=3600).respawned().on(RESTART)
    old = story.id
    story.end(3)
    assert story.life.phase is Phase.starting
    assert old < story.id
    assert (story.life.failures, story.life.restarts) == ((), 0)


def test_restart_of_an_inactive_unit_starts_it() -> None:
    """Restart is start where nothing runs."""
    assert Story().on(RESTART).life.phase is Phase.starting


def test_the_last_word_during_a_stop_counts() -> None:
    """Start and Stop that come while it stops decide what comes after."""
    story = Story().running().on(STOP).on(START).on(STOP).on(START)
    assert story.deeds == []
    assert story.end(0).life.phase is Phase.starting
    story = Story().running().on(RESTART).on(STOP)
    assert story.end(0).life.phase is Phase.inactive


def test_an_operators_restart_beats_the_policy_over_a_hang() -> None:
    """With policy never, a unit that is killed for a hang runs again because the operator asked meanwhile."""
    story = Story(restart="never", heartbeat=3.0).running().due().on(RESTART).end(-9)
    assert story.life.phase is Phase.starting
    assert story.life.last is not None
    assert story.life.last.cause is Cause.hung


def test_stop_during_the_kill_of_a_hang() -> None:
    """The end still says hung (its message needs to know), but it stays down."""
    story = Story(heartbeat=3.0).running().due().on(STOP).end(-9)
    assert story.life.phase is Phase.inactive
    assert story.life.last is not None
    assert (story.life.last.cause, story.life.last.text) == (Cause.hung, "no heartbeat for 3.0s")
    assert story.life.reason == "stopped while it was killed (no heartbeat for 3.0s)"


# --- holds ------------------------------------------------------------------------------------------------------------


def test_hold_and_release() -> None:
    """Held is nobody's fault: clean stop, no failure, no restart counted, and back at once when released."""
    story = Story().running().on(Hold("tokens of the day are used up"))
    assert story.deeds == [Signal(story.id, "SIGTERM")]
    story.end(1)
    assert (story.life.phase, story.life.wanted, story.life.failures) == (Phase.held, True, ())
    assert story.life.last is not None
    assert story.life.last.cause is Cause.held
    assert story.life.reason == "held: tokens of the day are used up"
    story.on(Release("budget raised"))
    assert (story.life.phase, story.life.restarts) == (Phase.starting, 0)
    assert story.life.reason == "released: budget raised"


def test_start_while_held_explains() -> None:
    """Start does not break a hold; it says why not, and the unit runs once released."""
    story = Story().running().on(Hold("no tokens")).end(0).on(STOP).on(START)
    assert (story.life.phase, story.deeds) == (Phase.held, [])
    story.on(START)
    assert (story.life.phase, story.deeds) == (Phase.held, [])
    assert story.life.reason == "held: no tokens; it starts once that is over"
    assert story.on(Release("raised")).life.phase is Phase.starting


def test_hold_in_back_off_and_parked() -> None:
    """A hold takes the place of waiting; the release runs it."""
    for story in (Story(burst=100).running().end().respawned().end(), Story(burst=3).parked()):
        story.on(Hold("no tokens"))
        assert (story.life.phase, story.life.deadline) == (Phase.held, None)
        assert story.on(Release("raised")).life.phase is Phase.starting


def test_hold_before_the_spawn_is_answered() -> None:
    """A hold that meets a spawn under way ends it as soon as it is there."""
    story = Story().on(START).on(Hold("no tokens"))
    story.on(Spawned(story.id, 42))
    assert story.deeds == [Signal(story.id, "SIGTERM")]
    assert story.end(-15).life.phase is Phase.held


def test_release_while_it_still_stops() -> None:
    """A hold that is over before the stop is over: straight back to running."""
    story = Story().running().on(Hold("no tokens")).on(Release("raised")).end(-15)
    assert story.life.phase is Phase.starting
    assert story.life.last is not None
    assert story.life.last.cause is Cause.held


def test_stop_wins_over_a_hold() -> None:
    """A release does not resurrect what the operator stopped."""
    story = Story().running().on(Hold("no tokens")).end(0).on(STOP).on(Release("raised"))
    assert (story.life.phase, story.life.hold) == (Phase.inactive, None)


def test_hold_of_an_inactive_unit_is_remembered() -> None:
    """The hold is a level: whoever starts the unit later finds it held."""
    assert Story().on(Hold("no tokens")).on(START).life.phase is Phase.held


# --- heartbeat --------------------------------------------------------------------------------------------------------


def test_silence_is_a_hang() -> None:
    """No beat for the heartbeat: killed, cause hung, restarted by policy."""
    story = Story(type="notify", heartbeat=3.0).running()
    story.on(Beat(story.id, story.at + 1.0), after=1.0).due(late=0.02)
    assert story.deeds == [Kill(story.id)]
    assert story.life.reason == "no heartbeat for 3.0s"
    story.end(-9)
    assert story.life.last is not None
    assert (story.life.last.cause, story.life.last.exit) == (Cause.hung, -9)
    assert (story.life.phase, len(story.life.failures)) == (Phase.starting, 1)


def test_beats_move_the_deadline() -> None:
    """A beat is good for one heartbeat from its stamp; an old stamp takes nothing away; none is from the future."""
    story = Story(heartbeat=3.0).running()
    story.on(Beat(story.id, story.at + 2.0), after=2.5)
    assert story.life.deadline == 1000.0 + 2.0 + 3.0
    story.on(Beat(story.id, 900.0))
    assert story.life.deadline == 1000.0 + 2.0 + 3.0
    story.on(Beat(story.id, 5000.0))
    assert story.life.deadline == story.at + 3.0
    assert story.on(Deadline()).effects == ()


def test_a_deadline_that_comes_early_changes_nothing() -> None:
    """A timer armed for an older deadline is harmless."""
    story = Story(heartbeat=3.0).running()
    before = story.life
    assert story.on(Deadline(), after=2.999).life is before


def test_a_change_of_the_unit_while_it_runs() -> None:
    """A policy that asks for no beats, or for rarer ones, kills nobody over the old deadline."""
    story = Story(heartbeat=3.0).running()
    story.policy = replace(story.policy, heartbeat=None)
    assert story.due().effects == ()
    assert (story.life.phase, story.life.deadline) == (Phase.running, None)
    story = Story(type="notify").on(START)
    story.on(Spawned(story.id, 42))
    story.policy = replace(story.policy, type="simple")
    assert story.on(Ready(story.id)).life.phase is Phase.running


def test_thinking_excuses_the_heartbeat() -> None:
    """A unit that waits for a model that moves gets another heartbeat, and no beat is invented."""
    story = Story(heartbeat=3.0).running()
    story.on(Excused(story.id), after=2.9).on(Deadline(), after=0.2)
    assert (story.life.phase, story.life.beat) == (Phase.running, None)
    assert story.life.deadline == pytest.approx(1002.9 + 3.0)


def test_hang_found_by_the_daemon() -> None:
    """An overdue message kills with its own words."""
    story = Story().running()
    story.on(Hang(story.id, "message m1 without result or progress for 5m00s"))
    assert story.deeds == [Kill(story.id)]
    story.end(-9)
    assert story.life.last is not None
    assert story.life.last.text == "message m1 without result or progress for 5m00s"


# --- adoption ---------------------------------------------------------------------------------------------------------


def back(story: Story, away: float) -> Story:
    """The daemon comes back after a while and reads its lives."""
    story.at += away
    story.life = Life.from_json(json.loads(json.dumps(story.life.to_json())))
    return story


def test_adoption_gives_one_heartbeat() -> None:
    """A daemon that was away does not kill a unit for beats that nobody looked at."""
    story = back(Story(heartbeat=3.0).running(), 3600.0)
    invocation = story.id
    story.on(Spawned(invocation, 42, at=1000.0)).on(Ready(invocation)).on(Beat(invocation, story.at - 10)).on(
        Deadline()
    )
    assert (story.life.phase, story.life.invocation) == (Phase.running, invocation)
    assert story.life.deadline == story.at + 3.0
    assert story.life.started == 1000.0
    assert story.due().deeds == [Kill(invocation)]


def test_adoption_of_an_end() -> None:
    """What ended in the gap is judged with the time at which it ended."""
    story = back(Story().running(), 3600.0)
    story.on(Spawned(story.id, 42, at=1000.0))
    story.on(Ended(story.id, 1, at=1002.0))
    assert story.life.last is not None
    assert story.life.last.ran == 2.0
    assert story.life.phase is Phase.starting


def test_adoption_of_a_spawn_whose_answer_was_lost() -> None:
    """Between the persisted id and the answer: the snapshot's word is the answer."""
    story = back(Story(type="notify", start_timeout=30.0).on(START), 60.0)
    story.on(Spawned(story.id, 42, at=1000.1)).on(Ready(story.id)).on(Deadline())
    assert (story.life.phase, story.life.started) == (Phase.running, 1000.1)


def test_adoption_of_a_spawn_that_never_happened() -> None:
    """The id is burnt, nobody is blamed, and a new one is spawned at once."""
    story = back(Story().on(START), 1.0)
    burnt = story.id
    story.on(Ended(burnt, None))
    assert story.life.last is not None
    assert story.life.last.cause is Cause.unstarted
    assert story.deeds == [Spawn(story.id)]
    assert story.id > burnt
    assert (story.life.failures, story.life.restarts) == ((), 0)


def test_adoption_of_a_stop() -> None:
    """The signal that may never have left is repeated; a stop_timeout that went by kills."""
    story = back(Story().running().on(STOP), 3600.0)
    story.on(Spawned(story.id, 42, at=1000.0))
    assert story.deeds == [Signal(story.id, "SIGTERM")]
    story.on(Deadline())
    assert story.deeds == [Kill(story.id)]


def test_adoption_of_an_unknown_process() -> None:
    """A process without a life gets one, and keeps its pid."""
    story = Story(heartbeat=3.0)
    story.life = Life.found("00000000000000aa", story.at)
    story.on(Spawned("00000000000000aa", 42, at=900.0))
    assert (story.life.phase, story.life.started) == (Phase.running, 900.0)


def test_older_and_newer_texts_of_a_life_are_read() -> None:
    """Unknown keys are ignored, missing ones take their default; nonsense is an error."""
    data = Story().running().end().life.to_json()
    del data["probation"]
    life = Life.from_json({**data, "from the future": 1})
    assert life.to_json() == {**data, "probation": False}
    with pytest.raises(ValueError, match="dancing"):
        Life.from_json({**data, "phase": "dancing"})


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_event_has_a_row() -> None:
    """No kind of event is forgotten."""
    assert set(TABLE) == set(get_args(Event))


def test_events_of_a_dead_invocation_change_nothing() -> None:
    """In every phase, for every event of a process, an older or a later id is ignored."""
    lives = [Story(), Story().on(START), Story().running(), Story().running().on(STOP), Story(burst=2).parked()]
    for story in lives:
        for other in ("0" * 16, "f" * 16):
            stale: list[Event] = [
                Hang(other, "x"), Spawned(other, 1), Refused(other, "x"), Ready(other), Beat(other, 1e9),
                Excused(other), Ended(other, 1), Recovered(other, "x"), Extend(other, 1e9), Interval(other, 9.0),
            ]  # fmt: skip
            assert {type(e) for e in stale} == {kind for kind in TABLE if issubclass(kind, Of)}
            for event in stale:
                before = story.life
                story.on(event)
                assert story.life is before
                assert story.effects == ()


def test_policy_of_a_unit() -> None:
    """Every number of the unit file arrives."""
    unit = Unit.model_validate(
        {
            "name": "a",
            "agent": {
                "exec": ["x"], "type": "notify", "stop_signal": "INT", "stop_timeout": "1s", "start_timeout": "2s",
            },
            "restart": {
                "policy": "on-failure", "delay": "3s", "max_delay": "4s", "burst": 5, "window": "6s",
                "healthy_after": "7s", "parked_delay": "8s",
            },
            "liveness": {"heartbeat": "9s", "on_hang": "abort"},
        }
    )  # fmt: skip
    assert Policy.of(unit) == Policy("notify", "on-failure", 3, 4, 5, 6, 7, 8, "SIGINT", 1, 2, 9, on_hang="abort")


def test_down_is_what_does_not_come_back_by_itself() -> None:
    """The router takes back what these phases held."""
    assert {"inactive", "parked", "held", "failed"} == DOWN
