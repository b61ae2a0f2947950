"""Bugs that somebody could write: each is one change of one file, and the laws must notice it.

``old`` stands exactly once in the file. A mutant that no law kills is a hole in the laws, not a curiosity.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One bug: in the text of ``agentd/model/<file>.py``, ``old`` becomes ``new``."""

    bug: str
    file: str
    old: str
    new: str


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "events of dead invocations are taken for the present one's",
        "lifecycle",
        "if isinstance(event, Of) and event.invocation != life.invocation:",
        "if isinstance(event, Of) and life.invocation is None:",
    ),
    Mutant(
        "ids ignore the floor, so they fall when the clock steps back",
        "lifecycle",
        "fresh = mint(int(now.wall * 1000), life.floor)",
        "fresh = mint(int(now.wall * 1000), None)",
    ),
    Mutant(
        "a stop forgets to take back what the operator wanted",
        "lifecycle",
        'return _stop(replace(life, wanted=False), Purpose.stop, f"stopped {event}", policy, now, event.actor)',
        'return _stop(life, Purpose.stop, f"stopped {event}", policy, now, event.actor)',
    ),
    Mutant(
        "a stop during a restart is ignored",
        "lifecycle",
        "moved = replace(life, wanted=False, again=False, reason=_stop_reason(life, reason))",
        "moved = replace(life, again=False, reason=_stop_reason(life, reason))",
    ),
    Mutant(
        "a stop in back-off leaves the timer that brings it back",
        "lifecycle",
        "Phase.backoff: _stop_resting, ",
        "",
    ),
    Mutant(
        "what a stop waited for is not told to stop when it is there",
        "lifecycle",
        "moved, effects = _end(replace(life, started=started), (note,), policy, now)",
        "moved, effects = replace(life, started=started, deadline=now.mono + policy.stop_timeout), (note,)",
    ),
    Mutant(
        "a stop is given no end",
        "lifecycle",
        "return replace(life, deadline=now.mono + policy.stop_timeout), (*effects, ask)",
        "return life, (*effects, ask)",
    ),
    Mutant(
        "our own stop counts as a crash",
        "lifecycle",
        "cause = Cause.held if life.purpose is Purpose.hold else Cause.stopped",
        "cause = Cause.crashed",
    ),
    Mutant(
        "a hold is told as a stop",
        "lifecycle",
        "cause = Cause.held if life.purpose is Purpose.hold else Cause.stopped",
        "cause = Cause.stopped",
    ),
    Mutant(
        "a hang is forgiven: no failure is counted",
        "lifecycle",
        "elif ending.cause in (Cause.hung, Cause.failed) and not life.again:",
        "elif False:",
    ),
    Mutant(
        "a hang is asked to stop instead of being killed",
        "lifecycle",
        "if life.purpose in BLAMED:\n        return replace",
        "if life.purpose is Purpose.start_timeout:\n        return replace",
    ),
    Mutant(
        "a held unit is spawned by the operator's start",
        "lifecycle",
        '    if life.hold is not None:\n        return _enter(life, Phase.held, f"held: {life.hold}", now, actor,',
        "    if False:\n        return _enter(life, Phase.held, '', now, actor,",
    ),
    Mutant(
        "a hold in back-off is only written down",
        "lifecycle",
        "Phase.backoff: _hold_waiting,",
        "Phase.backoff: _hold_mark,",
    ),
    Mutant(
        "a release is not heard",
        "lifecycle",
        "        Phase.held: _release,\n",
        "",
    ),
    Mutant(
        "back-off without a deadline: silent for ever",
        "lifecycle",
        "return _enter(life, Phase.backoff, reason, now, deadline=now.mono + verdict.delay)",
        "return _enter(life, Phase.backoff, reason, now)",
    ),
    Mutant(
        "nobody wakes what is parked",
        "lifecycle",
        "Phase.backoff: _due(_again), Phase.parked: _due(_again),",
        "Phase.backoff: _due(_again),",
    ),
    Mutant(
        "a deadline is believed although it is early",
        "lifecycle",
        "early = life.deadline is None or now.mono < life.deadline",
        "early = life.deadline is None",
    ),
    Mutant(
        "an old beat takes time away",
        "lifecycle",
        "return (life if known else replace(life, deadline=due)), notes",
        "return replace(life, deadline=due), notes",
    ),
    Mutant(
        "a beat from the future is believed",
        "lifecycle",
        "at = min(event.at, now.mono)",
        "at = event.at + 1.0",
    ),
    Mutant(
        "an adopted unit is stale at once",
        "lifecycle",
        "return _alive(life, (note,), now.mono, policy)",
        "return life, (note,)",
    ),
    Mutant(
        "policy never is always",
        "lifecycle",
        'if policy.restart == "never" or (policy.type == "oneshot" and policy.restart != "on-failure"):',
        'if policy.type == "oneshot" and policy.restart != "on-failure":',
    ),
    Mutant(
        "exit 0 is a success although the policy is always",
        "lifecycle",
        'accepted = ending.cause is Cause.done or (ending.cause is Cause.left and policy.restart != "always")',
        "accepted = ending.cause in (Cause.done, Cause.left)",
    ),
    Mutant(
        "an operator's start does not forgive",
        "lifecycle",
        '{"wanted": True, "failures": (), "attempt": 0, "probation": False, "restarts": 0}',
        '{"wanted": True}',
    ),
    Mutant(
        "what it needs is not waited for",
        "lifecycle",
        "    if life.awaits is not None:\n        moved, _",
        "    if False:\n        moved, _",
    ),
    Mutant(
        "what is ready at last is not told to those who wait",
        "lifecycle",
        "return _spawn(life, event.text, now) if life.waiting else (life, ())",
        "return life, ()",
    ),
    Mutant(
        "a wait goes on although all is ready",
        "lifecycle",
        "life = replace(life, awaits=None)",
        "life = replace(life, awaits=life.awaits)",
    ),
    Mutant(
        "a wait stops what runs",
        "lifecycle",
        "    if not life.waiting:\n        return replace(life, awaits=event.text), ()",
        "    if not life.waiting:\n        return _enter(life, Phase.inactive, event.text, now)",
    ),
    Mutant(
        "an operator's stop does not reach a unit that waits",
        "lifecycle",
        "        Phase.inactive: _stop_waiting,\n",
        "",
    ),
    Mutant(
        "who is bound to what ended goes on",
        "lifecycle",
        "Follow: {Phase.starting: _follow, Phase.running: _follow},",
        "Follow: {},",
    ),
    Mutant(
        "who follows is not wanted any more",
        "lifecycle",
        "return _stop(life, Purpose.follow, event.text, policy, now)",
        "return _stop(replace(life, wanted=False), Purpose.follow, event.text, policy, now)",
    ),
    Mutant(
        "following counts as a fault",
        "lifecycle",
        "return _stop(life, Purpose.follow, event.text, policy, now)",
        "return _stop(life, Purpose.hang, event.text, policy, now)",
    ),
    Mutant(
        "a run may last for ever as long as it beats",
        "lifecycle",
        "return due if end is None else min(due, end)",
        "return due",
    ),
    Mutant(
        "a run without a heartbeat may last for ever",
        "lifecycle",
        "    if limit is None:\n        return end\n",
        "    if limit is None:\n        return None\n",
    ),
    Mutant(
        "who ran too long is killed unasked",
        "lifecycle",
        "return _stop(life, Purpose.overrun, text, policy, now)",
        "return _stop(life, Purpose.hang, text, policy, now)",
    ),
    Mutant(
        "a run that was too long is nobody's fault",
        "lifecycle",
        "cause = Cause.failed if life.purpose is Purpose.overrun else Cause.hung",
        "cause = Cause.stopped if life.purpose is Purpose.overrun else Cause.hung",
    ),
    Mutant(
        "listed exit statuses are no success",
        "lifecycle",
        "clean = event.exit in policy.success",
        "clean = False",
    ),
    Mutant(
        "restarts are not counted",
        "restart",
        "return Verdict(0.0, False, failures, 1, False,",
        "return Verdict(0.0, False, failures, 0, False,",
    ),
    Mutant(
        "the back-off exceeds its cap",
        "restart",
        "full = min(policy.max_delay, policy.delay * 2.0 ** min(attempt - 1, _STEEPEST))",
        "full = policy.delay * 2.0 ** min(attempt - 1, _STEEPEST)",
    ),
    Mutant(
        "the back-off does not double",
        "restart",
        "policy.delay * 2.0 ** min(attempt - 1, _STEEPEST)",
        "policy.delay",
    ),
    Mutant(
        "no jitter",
        "restart",
        "return full * luck if policy.jitter else full",
        "return full",
    ),
    Mutant(
        "burst is one too many",
        "restart",
        "if len(failures) >= policy.burst:",
        "if len(failures) > policy.burst:",
    ),
    Mutant(
        "failures never leave the window",
        "restart",
        "if t > at - policy.window), at)",
        "), at)",
    ),
    Mutant(
        "what was tried from parked gets a whole burst again",
        "restart",
        "if life.probation and not healthy:",
        "if False:",
    ),
    Mutant(
        "a healthy run resets nothing",
        "restart",
        "healthy = ran >= policy.healthy_after",
        "healthy = False",
    ),
    Mutant(
        "every run is healthy",
        "restart",
        "healthy = ran >= policy.healthy_after",
        "healthy = True",
    ),
    Mutant(
        "only the first wait counts",
        "ordering",
        "for name, others in graph.items()}\n    order",
        "for name, others in ((n, list(o)[:1]) for n, o in graph.items())}\n    order",
    ),
    Mutant(
        "unknown names are waited for",
        "ordering",
        "{other for other in others if other in graph}",
        "{other for other in others}",
    ),
    Mutant(
        "one unit at a time",
        "ordering",
        "if not others))",
        "if not others))[:1]",
    ),
    Mutant(
        "units stop as they started",
        "ordering",
        "return start_order(graph)[::-1]",
        "return start_order(graph)",
    ),
    Mutant(
        "every road is a cycle",
        "ordering",
        "if way[-1] == name:",
        "if len(way) > 2:",
    ),
    Mutant(
        "what a unit said before is remembered",
        "relations",
        "        self.drop(name)\n        if ties.all:",
        "        if ties.all:",
    ),
    Mutant(
        "a unit that is gone still counts",
        "relations",
        "            named_by.discard(name)\n",
        "            pass\n",
    ),
    Mutant(
        "who only comes after counts as needing",
        "relations",
        "if name in self.of(other).needs]",
        "]",
    ),
    Mutant(
        "what a unit is bound to it does not need",
        "relations",
        "return _once((*self.requires, *self.binds_to))",
        "return _once(self.requires)",
    ),
    Mutant(
        "who requires a unit counts as bound to it",
        "relations",
        "if name in self.of(other).binds_to]",
        "if name in self.of(other).needs]",
    ),
    Mutant(
        "only neighbours are reached",
        "relations",
        "if other not in found]",
        "if other not in found][:0]",
    ),
    Mutant(
        "one for all is its dependants",
        "strategy",
        "names = group(failed, relations)\n",
        "names = reached(failed, relations.bound)\n",
    ),
    Mutant(
        "a group is what is bound to a unit",
        "strategy",
        "(*relations.of(one).binds_to, *relations.bound(one))",
        "relations.bound(one)",
    ),
    Mutant(
        "the rest reaches out of the group",
        "strategy",
        "reached(failed, relations.dependants) & group(failed, relations)",
        "reached(failed, relations.dependants)",
    ),
    Mutant(
        "the rest is what is bound",
        "strategy",
        "reached(failed, relations.dependants) & group",
        "reached(failed, relations.bound) & group",
    ),
    Mutant(
        "one for one leaves alone what is bound to it",
        "strategy",
        "        names = reached(failed, relations.bound)\n",
        "        names = {failed}\n",
    ),
    Mutant(
        "the group is restarted backwards",
        "strategy",
        "    return start_order(relations.graph(names))\n",
        "    return start_order(relations.graph(names))[::-1]\n",
    ),
    Mutant(
        "what is stopped stops in the order of starting",
        "strategy",
        "reached(name, relations.needing)))[::-1]",
        "reached(name, relations.needing)))",
    ),
    Mutant(
        "a stop takes down those who only come after",
        "strategy",
        "reached(name, relations.needing)",
        "reached(name, relations.dependants)",
    ),
    Mutant(
        "what is only needed by what it needs is not started",
        "strategy",
        "reached(name, lambda one: relations.of(one).needs)",
        "{name, *relations.of(name).needs}",
    ),
    Mutant(
        "a silent heartbeat outweighs a moving model",
        "liveness",
        "    if moving:\n",
        "    if moving and (pulse is None or now - pulse.last < pulse.limit):\n",
    ),
    Mutant(
        "a stuck call counts as thinking",
        "liveness",
        "if call.parked or now < _moved(call) + cap]",
        "]",
    ),
    Mutant(
        "a call that waits for budget counts as stuck",
        "liveness",
        "if call.parked or now < _moved(call) + cap]",
        "if now < _moved(call) + cap]",
    ),
    Mutant(
        "progress does not count",
        "liveness",
        "return max(self.since, self.progress)",
        "return self.since",
    ),
    Mutant(
        "the router's word is not heard",
        "liveness",
        "if overdue is not None:",
        "if False:",
    ),
    Mutant(
        "nobody looks when a silent model call stops being an excuse",
        "liveness",
        "_thinking(moving, now), next_look=_end_of_excuse(moving, cap))",
        "_thinking(moving, now))",
    ),
    Mutant(
        "the excuse ends with the first call that falls silent, not with the last",
        "liveness",
        "return max(_moved(call) for call in moving) + cap",
        "return min(_moved(call) for call in moving) + cap",
    ),
    Mutant(
        "the next look is planned for the last promise that may break, not for the first",
        "liveness",
        "look = min((due for due, _, _ in hangs), default=None)",
        "look = max((due for due, _, _ in hangs), default=None)",
    ),
    Mutant(
        "a message is late although its reader waited for a model until now",
        "liveness",
        "yield max(message.moved, waited) + deadline",
        "yield message.moved + deadline",
    ),
    Mutant(
        "the router's word counts although the reader waited for a model until now",
        "liveness",
        "yield waited + deadline if waited else now",
        "yield now",
    ),
    Mutant(
        "progress is owed by a unit that only waits for messages",
        "liveness",
        "if limit is None or (bound and not held):",
        "if limit is None:",
    ),
    Mutant(
        "output is no progress",
        "liveness",
        "last = max(since, output or since, done or since)",
        "last = max(since, done or since)",
    ),
    Mutant(
        "progress on a message is no progress",
        "liveness",
        "return Progress(limit, max(last, *(h.moved for h in held)), ",
        "return Progress(limit, last, ",
    ),
    Mutant(
        "waiting for a model is no progress",
        "liveness",
        "last = max(owed.last, waited)",
        "last = owed.last",
    ),
    Mutant(
        "one failure of a probe is enough",
        "liveness",
        "if probed is not None and probed.failures >= probed.most:",
        "if probed is not None and probed.failures:",
    ),
    Mutant(
        "an alarm kills",
        "lifecycle",
        '    if policy.on_hang == "alarm":\n        return _alarm(life, event.text)\n',
        "",
    ),
    Mutant(
        "an alarm puts off the end of a run",
        "lifecycle",
        "mute=True, deadline=_next(life, now.mono, policy))",
        "mute=True, deadline=now.mono + limit)",
    ),
    Mutant(
        "a heartbeat that it asked for puts off the end of a run",
        "lifecycle",
        "due = _next(life, now.mono, policy) if life",
        "due = now.mono + event.seconds if life",
    ),
    Mutant(
        "an alarm about beats kills",
        "lifecycle",
        'if policy.on_hang == "alarm":\n        return _alarm(life, text, mute',
        "if False:\n        return _alarm(life, text, mute",
    ),
    Mutant(
        "an alarm is told at every look",
        "lifecycle",
        "() if life.alarm is not None else (note,)",
        "(note,)",
    ),
    Mutant(
        "an alarm outlives its process",
        "lifecycle",
        '"alarm": None, "mute": False, "interval": None,',
        '"interval": None,',
    ),
    Mutant(
        "an abort is a kill",
        "lifecycle",
        'if life.purpose is Purpose.hang and policy.on_hang == "abort":',
        "if False:",
    ),
    Mutant(
        "an abort that is not answered has no end",
        "lifecycle",
        "return replace(life, deadline=now.mono + ABORT_TIMEOUT), (*effects, Abort(life.invocation))",
        "return life, (*effects, Abort(life.invocation))",
    ),
    Mutant(
        "a unit that is killed for a hang can ask for more time",
        "lifecycle",
        "if life.purpose in BLAMED or (life.phase is Phase.starting and policy.type",
        "if (life.phase is Phase.starting and policy.type",
    ),
    Mutant(
        "asking for more time can shorten it",
        "lifecycle",
        "if life.deadline is not None and life.deadline >= event.until:",
        "if False:",
    ),
    Mutant(
        "the heartbeat that the process asked for is forgotten",
        "lifecycle",
        "return policy.heartbeat if policy.heartbeat is None or life.interval is None else life.interval",
        "return policy.heartbeat",
    ),
    Mutant(
        "a process without a heartbeat can give itself one",
        "lifecycle",
        "if policy.heartbeat is None or event.seconds <= 0 or event.seconds",
        "if event.seconds <= 0 or event.seconds",
    ),
)
