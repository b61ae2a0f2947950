"""The law of a unit's life: one pure function, ``step(life, event, policy, now) -> (life, effects)``.

Rule 1: everything that decides in which phase a unit is stands in this file (values in ``life``, the arithmetic of
the back-off in ``restart``). Rule 2: this file knows no process, clock, file or bus; time is an argument, and what is
to be done is returned. Rule 3: an event that TABLE does not list for the phase, that is about another invocation than
the present one, or that comes too early, changes nothing: the same life and no effects.

Theory of operation
-------------------
The daemon keeps one Life per unit. Whatever happens becomes an event in the unit's mailbox; the daemon calls ``step``,
persists the new life (store and keeper blob), executes the effects in order, and arms one timer for ``life.deadline``,
which posts Deadline. Persisting comes before executing: an id is never used twice, and an effect that a crash swallowed
is found again at adoption (below).

Six facts make up a life beside its phase:

* ``wanted``, the operator's word. Only Start and Restart set it; Stop clears it, and so does an end that the unit's
  policy accepts (``done``, or exit 0 without ``always``). Nothing but a wanted unit is ever spawned.
* ``invocation``, present exactly in starting, running and stopping. There is one at a time: a new one is minted only
  once the Ended or Refused of the old one is there, so a stop that meets a spawn under way waits for its answer.
* ``hold``, a level: while it is set the unit does not run. It says nothing about fault.
* ``awaits``, a level: while it is set the unit is not spawned, because what it needs is not ready. What runs goes on;
  a wanted unit that cannot be spawned for it is ``waiting`` (inactive and wanted) until Proceed. Who needs whom is not
  known here; ``Follow`` stops a unit that cannot go on without what it is bound to, and leaves it wanted.
* ``purpose``, why it began to stop. It decides the cause that the end is given: ``stop``, ``restart``, ``hold`` and
  ``follow`` are ours, so the end is clean whatever the exit status; ``hang``, ``timed_out`` (no progress on its
  message), ``start_timeout`` and ``overrun`` are the unit's fault, a failure. What comes after the end is decided at
  the end: by ``wanted``, ``hold``, ``awaits``, and for a failure by the policy.
* ``deadline``, the one next moment that matters: start_timeout in starting, heartbeat or the end of runtime_max in
  running, stop_timeout in stopping, the next try in backoff and parked; nothing elsewhere.

Heartbeats do not travel as they come: when the deadline is due the daemon asks the keeper for the last stamp, posts
Beat, or Excused where the unit waits for a model call that moves, and then Deadline. A beat only ever moves the
deadline away, so that Deadline finds it in the future and does nothing.

What a hang leads to is the policy's ``on_hang``: the kill; an Abort first, with ABORT_TIMEOUT for the program to leave
its last words; or an alarm only, which is told once and lasts until the unit beats, or Recovered says so.

A failure of a oneshot ends in ``failed``, unless its policy is ``on-failure``: then it is tried again.

A run that lasts longer than runtime_max is asked to stop as an operator would do it, and its end is a failure (cause
``failed``) whatever its exit status: the policy says what follows, and a message that it held counts an attempt.

Adoption
--------
A daemon that comes back reads each Life (``from_json``), connects to the keeper, and posts for each unit, in this
order, what the snapshot says of ``life.invocation``: Spawned (with the time of the fork), Ready, Beat, Ended; then one
Deadline. Spawned of an invocation that is known to run is the adoption: it gives one whole heartbeat from now, since
nobody could look at beats meanwhile, and repeats the signal of a stop that was under way. An invocation of which the
keeper knows nothing is posted as Ended with exit None: never spawned, it is ``unstarted`` and replaced at once;
spawned, it ``crashed``.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from agentd.model import restart
from agentd.model.invocation import mint
from agentd.model.life import (
    AT_FAULT,
    BLAMED,
    DOWN,
    HANGS,
    INNOCENT,
    LIVE,
    Abort,
    Asked,
    Await,
    Beat,
    Cause,
    Deadline,
    Effect,
    Ended,
    Ending,
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
    Of,
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
from agentd.model.quantity import show_duration

__all__ = [
    "AT_FAULT", "BLAMED", "DOWN", "HANGS", "INNOCENT", "LIVE", "TABLE",
    "Abort", "Asked", "Await", "Beat", "Cause", "Deadline",
    "Effect", "Ended", "Ending", "Event", "Excused", "Extend", "Follow", "Hang", "Hold", "Interval", "Kill", "Life",
    "Note", "Now", "Of", "Phase", "Policy", "Proceed", "Purpose", "Ready", "Recovered", "Refused", "Release", "Restart",
    "Signal", "Spawn", "Spawned", "Start", "Stop", "step",
]  # fmt: skip

ABORT_TIMEOUT = 3.0
"""Seconds from SIGABRT until the whole tree is killed."""

Step = tuple[Life, tuple[Effect, ...]]
Rule = Callable[[Life, Any, Policy, Now], Step]

_REKILL = 1.0
"""Least seconds between two kills of a tree that does not die (uninterruptible sleep)."""


def step(life: Life, event: Event, policy: Policy, now: Now) -> Step:
    """What an event makes of a life, and what is to be done about it."""
    if isinstance(event, Of) and event.invocation != life.invocation:
        return life, ()
    rule = TABLE[type(event)].get(life.phase)
    return (life, ()) if rule is None else rule(life, event, policy, now)


# --- moves: each brings a life into one phase -------------------------------------------------------------------------

_NO_PROCESS: dict[str, Any] = {
    "invocation": None, "started": None, "ready": False, "beat": None, "purpose": None, "again": False,
    "alarm": None, "mute": False, "interval": None,
}  # fmt: skip


def _enter(life: Life, phase: Phase, reason: str, now: Now, actor: str = "agentd", **changes: Any) -> Step:
    """Into a phase without a process unless ``changes`` or the life says otherwise; noted with its reason."""
    if phase not in LIVE:
        changes |= _NO_PROCESS
    moved = replace(life, **{"phase": phase, "since": now.mono, "reason": reason, "deadline": None, **changes})
    return moved, (Note(f"unit.{phase}", reason, actor, moved.invocation),)


def _spawn(life: Life, reason: str, now: Now, actor: str = "agentd", **changes: Any) -> Step:
    """Into starting under a new id; or into held, if it may not run; or waiting, if what it needs is not ready."""
    if life.hold is not None:
        return _enter(life, Phase.held, f"held: {life.hold}", now, actor, **changes)
    if life.awaits is not None:
        moved, _ = _enter(life, Phase.inactive, life.awaits, now, actor, **changes)
        return moved, (Note("unit.waiting", life.awaits, actor),)
    fresh = mint(int(now.wall * 1000), life.floor)
    moved, notes = _enter(
        replace(life, **_NO_PROCESS, floor=fresh), Phase.starting, reason, now, actor, invocation=fresh, **changes
    )
    return moved, (*notes, Spawn(fresh))


def _stop(life: Life, purpose: Purpose, reason: str, policy: Policy, now: Now, actor: str = "agentd") -> Step:
    """Into stopping. A process that the keeper has not confirmed yet gets its signal when it has (``_stop_late``)."""
    moved, notes = _enter(life, Phase.stopping, reason, now, actor, purpose=purpose, ready=False)
    return _end(moved, notes, policy, now) if life.started is not None else (moved, notes)


def _end(life: Life, effects: tuple[Effect, ...], policy: Policy, now: Now) -> Step:
    """Do what the purpose of the stop asks for: a signal first, or the kill."""
    assert life.invocation is not None
    if life.purpose in HANGS and policy.on_hang == "abort":
        return replace(life, deadline=now.mono + ABORT_TIMEOUT), (*effects, Abort(life.invocation))
    if life.purpose in BLAMED:
        return replace(life, deadline=_rekill(policy, now)), (*effects, Kill(life.invocation))
    ask = Signal(life.invocation, policy.stop_signal)
    return replace(life, deadline=now.mono + policy.stop_timeout), (*effects, ask)


def _rekill(policy: Policy, now: Now) -> float:
    return now.mono + max(policy.stop_timeout, _REKILL)


def _run(life: Life, reason: str, policy: Policy, now: Now, **changes: Any) -> Step:
    """Into running; from here on it has to beat, if it was told to, and to end in time."""
    moved, notes = _enter(life, Phase.running, reason, now, **changes)
    return replace(moved, deadline=_next(moved, now.mono, policy)), notes


def _next(life: Life, at: float, policy: Policy) -> float | None:
    """The next moment that matters to a unit that runs and was alive at ``at``."""
    end = _end_of_run(life, policy)
    limit = heartbeat(life, policy)
    if limit is None:
        return end
    due = at + limit
    return due if end is None else min(due, end)


def _end_of_run(life: Life, policy: Policy) -> float | None:
    if policy.runtime_max is None or life.started is None:
        return None
    return life.started + policy.runtime_max


def _fail(life: Life, ending: Ending, policy: Policy, now: Now) -> Step:
    """After a failure: again at once, later, parked, or not at all."""
    if policy.restart == "never" or (policy.type == "oneshot" and policy.restart != "on-failure"):
        return _enter(life, Phase.failed, f"{ending.text}: not restarted by policy", now)
    return _retry(life, ending, policy, now)


def _retry(life: Life, ending: Ending, policy: Policy, now: Now) -> Step:
    verdict = restart.judge(life, ending.ran, now.mono, now.luck, policy)
    life = replace(life, failures=verdict.failures, attempt=verdict.attempt, probation=verdict.probation)
    reason = f"{ending.text}: {verdict.reason}"
    if life.hold is not None:
        return _enter(life, Phase.held, f"held: {life.hold}", now)
    if verdict.parked:
        return _enter(life, Phase.parked, reason, now, deadline=now.mono + verdict.delay)
    if verdict.delay > 0:
        return _enter(life, Phase.backoff, reason, now, deadline=now.mono + verdict.delay)
    return _spawn(life, reason, now, restarts=life.restarts + 1)


# --- what the operator asks for ---------------------------------------------------------------------------------------

_FORGIVEN: dict[str, Any] = {"wanted": True, "failures": (), "attempt": 0, "probation": False, "restarts": 0}


def _start(life: Life, event: Asked, policy: Policy, now: Now) -> Step:
    return _spawn(replace(life, **_FORGIVEN), f"started {event}", now, event.actor)


def _start_held(life: Life, event: Asked, policy: Policy, now: Now) -> Step:
    reason = f"held: {life.hold}; it starts once that is over"
    return replace(life, **_FORGIVEN, reason=reason), (Note("unit.wanted", reason, event.actor),)


def _start_stopping(life: Life, event: Asked, policy: Policy, now: Now) -> Step:
    if life.wanted and (life.again or life.purpose not in AT_FAULT):
        return life, ()
    reason = f"started {event}, once it has stopped"
    moved = replace(life, **_FORGIVEN, again=True, reason=_stop_reason(life, reason))
    return moved, (Note("unit.wanted", reason, event.actor, life.invocation),)


def _stop_live(life: Life, event: Asked, policy: Policy, now: Now) -> Step:
    return _stop(replace(life, wanted=False), Purpose.stop, f"stopped {event}", policy, now, event.actor)


def _stop_stopping(life: Life, event: Asked, policy: Policy, now: Now) -> Step:
    if not life.wanted:
        return life, ()
    reason = f"stopped {event}"
    moved = replace(life, wanted=False, again=False, reason=_stop_reason(life, reason))
    return moved, (Note("unit.unwanted", reason, event.actor, life.invocation),)


def _stop_reason(life: Life, reason: str) -> str:
    """While the unit is ended for a fault, its reason is the fault: the ending will tell it."""
    return life.reason if life.purpose in AT_FAULT else reason


def _stop_resting(life: Life, event: Asked, policy: Policy, now: Now) -> Step:
    return _enter(life, Phase.inactive, f"stopped {event}", now, event.actor, wanted=False)


def _stop_waiting(life: Life, event: Asked, policy: Policy, now: Now) -> Step:
    return _stop_resting(life, event, policy, now) if life.wanted else (life, ())


def _restart_live(life: Life, event: Asked, policy: Policy, now: Now) -> Step:
    return _stop(replace(life, **_FORGIVEN), Purpose.restart, f"restarted {event}", policy, now, event.actor)


# --- holds ------------------------------------------------------------------------------------------------------------


def _hold_live(life: Life, event: Hold, policy: Policy, now: Now) -> Step:
    return _stop(replace(life, hold=event.text), Purpose.hold, f"held: {event.text}", policy, now)


def _hold_waiting(life: Life, event: Hold, policy: Policy, now: Now) -> Step:
    return _enter(life, Phase.held, f"held: {event.text}", now, hold=event.text)


def _hold_mark(life: Life, event: Hold, policy: Policy, now: Now) -> Step:
    if life.hold == event.text:
        return life, ()
    reason = f"held: {event.text}" if life.phase is Phase.held else life.reason
    return replace(life, hold=event.text, reason=reason), (Note("unit.hold", event.text),)


def _release(life: Life, event: Release, policy: Policy, now: Now) -> Step:
    return _spawn(replace(life, hold=None), f"released: {event.text}", now)


def _release_mark(life: Life, event: Release, policy: Policy, now: Now) -> Step:
    if life.hold is None:
        return life, ()
    return replace(life, hold=None), (Note("unit.release", event.text),)


# --- what it needs ----------------------------------------------------------------------------------------------------


def _await(life: Life, event: Await, policy: Policy, now: Now) -> Step:
    if life.awaits == event.text:
        return life, ()
    if not life.waiting:
        return replace(life, awaits=event.text), ()
    return replace(life, awaits=event.text, reason=event.text), (Note("unit.waiting", event.text),)


def _proceed(life: Life, event: Proceed, policy: Policy, now: Now) -> Step:
    if life.awaits is None:
        return life, ()
    life = replace(life, awaits=None)
    return _spawn(life, event.text, now) if life.waiting else (life, ())


def _follow(life: Life, event: Follow, policy: Policy, now: Now) -> Step:
    return _stop(life, Purpose.follow, event.text, policy, now)


# --- what the keeper reports ------------------------------------------------------------------------------------------


def _spawned(life: Life, event: Spawned, policy: Policy, now: Now) -> Step:
    if life.started is not None:
        return life, ()
    started = now.mono if event.at is None else event.at
    text = f"runs as pid {event.pid}"
    if policy.type != "notify":
        return _run(life, text, policy, now, started=started, ready=policy.type == "simple")
    due = started + policy.start_timeout
    life = replace(life, started=started, deadline=due if life.deadline is None else max(due, life.deadline))
    return life, (Note("unit.spawned", f"{text}, not ready yet", invocation=life.invocation),)


def _adopt(life: Life, event: Spawned, policy: Policy, now: Now) -> Step:
    """It is known to run: nobody could look at its beats meanwhile, so it gets one whole heartbeat."""
    note = Note("unit.adopted", f"runs as pid {event.pid}", invocation=life.invocation)
    return _alive(life, (note,), now.mono, policy)


def _stop_late(life: Life, event: Spawned, policy: Policy, now: Now) -> Step:
    """The process that a stop was waiting for is there; or an adopted one, whose signal may never have left."""
    due = life.deadline
    started = life.started if life.started is not None else (now.mono if event.at is None else event.at)
    note = Note("unit.spawned", f"runs as pid {event.pid} and is to stop", invocation=life.invocation)
    moved, effects = _end(replace(life, started=started), (note,), policy, now)
    return (moved if due is None else replace(moved, deadline=due)), effects


def _refused(life: Life, event: Refused, policy: Policy, now: Now) -> Step:
    if life.started is not None:
        return life, ()
    ending = _ending(life, Cause.unstarted, None, event.text, now.mono, now)
    life = replace(life, last=ending)
    if event.retry:
        moved, effects = _retry(life, ending, policy, now)
    else:
        moved, effects = _enter(life, Phase.failed, event.text, now)
    return moved, (_ended_note(ending), *effects)


def _refused_stopping(life: Life, event: Refused, policy: Policy, now: Now) -> Step:
    if life.started is not None:
        return life, ()
    return _settle(life, _ending(life, Cause.unstarted, None, event.text, now.mono, now), policy, now)


def _ready(life: Life, event: Ready, policy: Policy, now: Now) -> Step:
    if policy.type != "notify" and life.started is None:
        return life, ()  # the answer to the spawn is on its way and says all
    started = now.mono if life.started is None else life.started
    took = show_duration(max(0.0, now.mono - started))
    return _run(life, f"ready after {took}", policy, now, started=started, ready=True)


def _beat(life: Life, event: Beat, policy: Policy, now: Now) -> Step:
    at = min(event.at, now.mono)
    if life.beat is not None and at <= life.beat:
        return life, ()
    return _alive(*_unmuted(replace(life, beat=at), "it beats again"), at, policy)


def _excused(life: Life, event: Excused, policy: Policy, now: Now) -> Step:
    return _alive(*_unmuted(life, "it waits for a model"), now.mono, policy)


def _unmuted(life: Life, text: str) -> Step:
    """An alarm about missing beats is over."""
    if not life.mute:
        return life, ()
    return replace(life, alarm=None, mute=False), (Note("unit.recovered", text, invocation=life.invocation),)


def heartbeat(life: Life, policy: Policy) -> float | None:
    """Longest time between two beats of this invocation; None: it owes none."""
    return policy.heartbeat if policy.heartbeat is None or life.interval is None else life.interval


def _interval(life: Life, event: Interval, policy: Policy, now: Now) -> Step:
    """As the service manager's protocol has it: the new limit counts from now. A unit without a heartbeat gets none."""
    if policy.heartbeat is None or event.seconds <= 0 or event.seconds == heartbeat(life, policy):
        return life, ()
    note = Note("unit.extended", f"asks for a heartbeat of {show_duration(event.seconds)}", invocation=life.invocation)
    life = replace(life, interval=event.seconds)
    due = _next(life, now.mono, policy) if life.phase is Phase.running else life.deadline
    return replace(life, deadline=due), (note,)


def _extend(life: Life, event: Extend, policy: Policy, now: Now) -> Step:
    """Its start or stop takes longer. Not where it is killed for its own fault."""
    if life.purpose in BLAMED or (life.phase is Phase.starting and policy.type != "notify"):
        return life, ()
    if life.phase is Phase.stopping and life.started is None:
        return life, ()  # nothing was asked to stop yet
    if life.deadline is not None and life.deadline >= event.until:
        return life, ()
    text = f"asks for {show_duration(max(0.0, event.until - now.mono))} more to {_DOING[life.phase]}"
    return replace(life, deadline=event.until), (Note("unit.extended", text, invocation=life.invocation),)


_DOING = {Phase.starting: "start", Phase.stopping: "stop"}


def _alive(life: Life, notes: tuple[Effect, ...], at: float, policy: Policy) -> Step:
    """It was alive at that moment: the heartbeat counts from there, or from a later moment known before."""
    due = _next(life, at, policy)
    if due is None:
        return life, notes
    known = life.deadline is not None and life.deadline >= due
    return (life if known else replace(life, deadline=due)), notes


def _hang(life: Life, event: Hang, policy: Policy, now: Now) -> Step:
    if life.started is None:
        return life, ()
    if policy.on_hang == "alarm":
        return _alarm(life, event.text)
    return _stop(life, Purpose.timed_out if event.late else Purpose.hang, event.text, policy, now)


def _alarm(life: Life, text: str, **changes: Any) -> Step:
    """It hangs, and nobody is to act but to tell: once."""
    note = Note("unit.hung", f"{text}: alarm only", invocation=life.invocation)
    return replace(life, alarm=life.alarm or text, **changes), () if life.alarm is not None else (note,)


def _recovered(life: Life, event: Recovered, policy: Policy, now: Now) -> Step:
    if life.alarm is None or life.mute:
        return life, ()
    return replace(life, alarm=None), (Note("unit.recovered", event.text, invocation=life.invocation),)


def _ended(life: Life, event: Ended, policy: Policy, now: Now) -> Step:
    """Nobody asked it to end."""
    ending = _unasked(life, event, policy, now)
    life = replace(life, last=ending)
    accepted = ending.cause is Cause.done or (ending.cause is Cause.left and policy.restart != "always")
    if ending.cause is Cause.unstarted:
        moved, effects = _spawn(life, f"{ending.text}: started again", now)
    elif accepted:
        moved, effects = _enter(life, Phase.inactive, ending.text, now, wanted=False)
    else:
        moved, effects = _fail(life, ending, policy, now)
    return moved, (_ended_note(ending), *effects)


def _ended_stopping(life: Life, event: Ended, policy: Policy, now: Now) -> Step:
    """The end that the stop was for; its purpose, not its exit status, says what it means."""
    at = now.mono if event.at is None else event.at
    if life.started is None and event.exit is None:
        ending = _ending(life, Cause.unstarted, None, "never ran", at, now)
    elif life.purpose in AT_FAULT:
        cause = _FAULTS.get(life.purpose, Cause.hung)
        ending = _ending(life, cause, event.exit, life.reason, at, now)
    else:
        cause = Cause.held if life.purpose is Purpose.hold else Cause.stopped
        ending = _ending(life, cause, event.exit, f"{cause} ({_exit_text(event.exit)})", at, now)
    return _settle(life, ending, policy, now)


_FAULTS: Mapping[Purpose | None, Cause] = {Purpose.overrun: Cause.failed, Purpose.timed_out: Cause.timed_out}
"""What an end for a fault counts as, where it is not simply hung."""


def _settle(life: Life, ending: Ending, policy: Policy, now: Now) -> Step:
    """A stop is over: on to what is wanted now."""
    life = replace(life, last=ending)
    if not life.wanted:
        reason = f"stopped while it was killed ({life.reason})" if life.purpose in AT_FAULT else life.reason
        moved, effects = _enter(life, Phase.inactive, reason, now)
    elif ending.cause in (Cause.hung, Cause.timed_out, Cause.failed) and not life.again:
        moved, effects = _fail(life, ending, policy, now)
    else:
        moved, effects = _spawn(life, life.reason, now)
    return moved, (_ended_note(ending), *effects)


# --- deadlines --------------------------------------------------------------------------------------------------------


def _due(rule: Rule) -> Rule:
    """The rule, once the deadline is reached; nothing before."""

    def when_due(life: Life, event: Deadline, policy: Policy, now: Now) -> Step:
        early = life.deadline is None or now.mono < life.deadline
        return (life, ()) if early else rule(life, event, policy, now)

    return when_due


def _unready(life: Life, event: Deadline, policy: Policy, now: Now) -> Step:
    text = f"did not say READY=1 within {show_duration(policy.start_timeout)}"
    return _stop(life, Purpose.start_timeout, text, policy, now)


def _silent(life: Life, event: Deadline, policy: Policy, now: Now) -> Step:
    assert life.deadline is not None
    end = _end_of_run(life, policy)
    if end is not None and now.mono >= end:
        text = f"ran longer than runtime_max = {show_duration(policy.runtime_max or 0.0)}"
        return _stop(life, Purpose.overrun, text, policy, now)
    limit = heartbeat(life, policy)
    if limit is None:
        return replace(life, deadline=end), ()  # the unit was changed: it owes no beats any more
    text = f"no heartbeat for {now.mono - (life.deadline - limit):.1f}s"
    if policy.on_hang == "alarm":
        return _alarm(life, text, mute=True, deadline=_next(life, now.mono, policy))  # then it is looked up again
    return _stop(life, Purpose.hang, text, policy, now)


def _unstopped(life: Life, event: Deadline, policy: Policy, now: Now) -> Step:
    assert life.invocation is not None
    text = f"still there {show_duration(now.mono - life.since)} after the stop began: killed"
    note = Note("unit.killed", text, invocation=life.invocation)
    return replace(life, deadline=_rekill(policy, now)), (note, Kill(life.invocation))


def _again(life: Life, event: Deadline, policy: Policy, now: Now) -> Step:
    waited = show_duration(now.mono - life.since)
    return _spawn(life, f"tried again after {waited} of {life.phase}", now, restarts=life.restarts + 1)


# --- endings in words -------------------------------------------------------------------------------------------------


def _unasked(life: Life, event: Ended, policy: Policy, now: Now) -> Ending:
    at = now.mono if event.at is None else event.at
    if event.exit is None and life.started is None:
        return _ending(life, Cause.unstarted, None, "never ran", at, now)
    clean = event.exit in policy.success
    if clean or event.exit == 0:
        cause = Cause.done if policy.type == "oneshot" else Cause.left
    elif event.exit is None or event.exit < 0:
        cause = Cause.crashed
    else:
        cause = Cause.failed
    early = " before READY=1" if policy.type == "notify" and life.phase is Phase.starting else ""
    told = _exit_text(event.exit) + (", a success of this unit" if clean else "") + early
    return _ending(life, cause, event.exit, told, at, now)


def _ending(life: Life, cause: Cause, code: int | None, text: str, at: float, now: Now) -> Ending:
    assert life.invocation is not None
    ran = 0.0 if life.started is None else max(0.0, at - life.started)
    return Ending(life.invocation, cause, code, now.wall - max(0.0, now.mono - at), ran, text)


def _ended_note(ending: Ending) -> Note:
    ran = f" after {show_duration(ending.ran)}" if ending.cause is not Cause.unstarted else ""
    return Note("unit.ended", f"{ending.text}{ran}", invocation=ending.invocation)


def _exit_text(code: int | None) -> str:
    if code is None:
        return "gone, exit status unknown"
    if code >= 0:
        return f"exited {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


# --- the table --------------------------------------------------------------------------------------------------------

TABLE: Mapping[type, Mapping[Phase, Rule]] = {
    Start: {
        Phase.inactive: _start, Phase.failed: _start, Phase.backoff: _start, Phase.parked: _start,
        Phase.held: _start_held, Phase.stopping: _start_stopping,
    },
    Restart: {
        Phase.inactive: _start, Phase.failed: _start, Phase.backoff: _start, Phase.parked: _start,
        Phase.held: _start_held, Phase.stopping: _start_stopping,
        Phase.starting: _restart_live, Phase.running: _restart_live,
    },
    Stop: {
        Phase.starting: _stop_live, Phase.running: _stop_live, Phase.stopping: _stop_stopping,
        Phase.inactive: _stop_waiting,
        Phase.backoff: _stop_resting, Phase.parked: _stop_resting, Phase.held: _stop_resting,
        Phase.failed: _stop_resting,
    },
    Hold: {
        Phase.starting: _hold_live, Phase.running: _hold_live,
        Phase.backoff: _hold_waiting, Phase.parked: _hold_waiting,
        Phase.inactive: _hold_mark, Phase.failed: _hold_mark, Phase.held: _hold_mark, Phase.stopping: _hold_mark,
    },
    Release: {
        Phase.held: _release,
        Phase.inactive: _release_mark, Phase.failed: _release_mark, Phase.stopping: _release_mark,
    },
    Await: dict.fromkeys(Phase, _await),
    Proceed: dict.fromkeys(Phase, _proceed),
    Follow: {Phase.starting: _follow, Phase.running: _follow},
    Spawned: {Phase.starting: _spawned, Phase.running: _adopt, Phase.stopping: _stop_late},
    Refused: {Phase.starting: _refused, Phase.stopping: _refused_stopping},
    Ready: {Phase.starting: _ready},
    Beat: {Phase.running: _beat},
    Excused: {Phase.running: _excused},
    Hang: {Phase.starting: _hang, Phase.running: _hang},
    Recovered: {Phase.starting: _recovered, Phase.running: _recovered},
    Extend: {Phase.starting: _extend, Phase.stopping: _extend},
    Interval: {Phase.starting: _interval, Phase.running: _interval},
    Ended: {Phase.starting: _ended, Phase.running: _ended, Phase.stopping: _ended_stopping},
    Deadline: {
        Phase.starting: _due(_unready), Phase.running: _due(_silent), Phase.stopping: _due(_unstopped),
        Phase.backoff: _due(_again), Phase.parked: _due(_again),
    },
}  # fmt: skip
"""What each event does in each phase; a pair that is missing does nothing."""
