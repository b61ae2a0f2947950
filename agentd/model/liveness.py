"""What a running unit is doing: idle, working, thinking or hung, with the reason in words.

Five witnesses are heard, because none of them could decide alone: the heartbeat and the output (keeper), the messages
in hand (router), the model calls under way (gateway), and the unit's own probe. Waiting for a slow model, whose bytes
move or whose silence is within the cap, is thinking and never hung, even where the waiting blocks the loop that beats;
what the unit owes counts anew from the end of such a wait. Each verdict names the next moment at which it may change
without any news: nobody has to look before. All times are CLOCK_MONOTONIC seconds. Nothing is done here: the daemon
tells ``lifecycle`` (thinking: Excused; hung by anything but the heartbeat, which it counts itself: Hang).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from agentd.model.life import Life, Phase, Policy
from agentd.model.lifecycle import heartbeat
from agentd.model.quantity import show_duration


class Activity(StrEnum):
    """What a running unit is doing."""

    idle = "idle"
    working = "working"
    thinking = "thinking"
    hung = "hung"


class Sign(StrEnum):
    """What gives a hang away."""

    heartbeat = "heartbeat"
    message = "message"
    call = "call"
    progress = "progress"
    probe = "probe"


@dataclass(frozen=True, slots=True)
class Pulse:
    """The heartbeat of the present invocation."""

    limit: float
    """Longest time between two beats."""
    last: float
    """The last sign of life: a beat, or the moment from which the next one was expected."""

    @classmethod
    def of(cls, life: Life, policy: Policy) -> Pulse | None:
        """What the lifecycle counts: hung here exactly when its Deadline would end the unit, or it is alarmed so."""
        limit = heartbeat(life, policy)
        if life.phase is not Phase.running or limit is None or life.deadline is None:
            return None
        if life.mute:
            return cls(limit, min(life.since if life.beat is None else life.beat, life.deadline - 2 * limit))
        return cls(limit, life.deadline - limit)


@dataclass(frozen=True, slots=True)
class Held:
    """A message in hand."""

    message: str
    since: float
    progress: float
    """The last sign of progress on it; its own start at first."""

    @property
    def moved(self) -> float:
        """The last sign of progress on it."""
        return max(self.since, self.progress)


@dataclass(frozen=True, slots=True)
class Call:
    """A model call under way."""

    started: float
    last_byte: float | None
    """None: no byte of the answer has come yet."""
    parked: bool = False
    """The gateway keeps it waiting for budget: that silence is ours."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress that the unit owes, because it has work."""

    limit: float
    last: float
    """The last sign of any: output, a message begun, moved or done, a model call that moved."""
    what: str = "output"


@dataclass(frozen=True, slots=True)
class Probed:
    """What its probe found so far."""

    failures: int
    """In a row."""
    most: int
    """So many in a row are a hang."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An activity and why."""

    activity: Activity
    reason: str
    sign: Sign | None = None
    """What gave a hang away."""
    next_look: float | None = None
    """When this may change although nothing new is heard; None: it cannot."""
    beyond: float | None = None
    """Of a unit that is well, the same, should it go on beating."""


def silence(call: Call, now: float) -> float:
    """Seconds since this call last moved; none while the gateway keeps it waiting."""
    return 0.0 if call.parked else max(0.0, now - _moved(call))


def progress(
    limit: float | None,
    *,
    since: float,
    held: Sequence[Held] = (),
    bound: bool = False,
    output: float | None = None,
    done: float | None = None,
) -> Progress | None:
    """The progress that is owed: by a unit that holds a message, or that has no channel on which to wait for one.

    ``bound``: it has a channel. ``since`` is when the watching began, ``done`` when it last finished a message.
    """
    if limit is None or (bound and not held):
        return None
    last = max(since, output or since, done or since)
    if held:
        return Progress(limit, max(last, *(h.moved for h in held)), "progress on its message or output")
    return Progress(limit, last)


def activity(
    now: float,
    *,
    pulse: Pulse | None = None,
    held: Sequence[Held] = (),
    calls: Sequence[Call] = (),
    cap: float = 120.0,
    deadline: float = 300.0,
    overdue: str | None = None,
    owed: Progress | None = None,
    probed: Probed | None = None,
    waited: float = 0.0,
) -> Verdict:
    """The verdict on one running unit.

    ``pulse`` is None for a unit without a heartbeat. ``cap`` is ``llm.silence``, ``deadline`` is ``bus.deadline``.
    ``overdue`` names the message that the router found without result or progress for the deadline. ``waited`` is the
    last moment at which it was seen to wait for a model that moved.
    """
    moving = [call for call in calls if call.parked or now < _moved(call) + cap]
    if moving:
        return Verdict(Activity.thinking, _thinking(moving, now), next_look=_end_of_excuse(moving, cap))
    hangs = list(_hangs(now, pulse, held, calls, cap, deadline, overdue, owed, probed, waited))
    for due, sign, reason in hangs:
        if now >= due:
            again = now + owed.limit if owed is not None and sign is Sign.progress else None
            return Verdict(Activity.hung, reason, sign, next_look=again)
    look = min((due for due, _, _ in hangs), default=None)
    beyond = min((due for due, sign, _ in hangs if sign is not Sign.heartbeat), default=None)
    if held:
        oldest = min(h.since for h in held)
        text = f"holds message {held[0].message}, since {show_duration(now - oldest)}"
        return Verdict(Activity.working, text, next_look=look, beyond=beyond)
    return Verdict(Activity.idle, "waits for messages", next_look=look, beyond=beyond)


def _hangs(
    now: float,
    pulse: Pulse | None,
    held: Sequence[Held],
    calls: Sequence[Call],
    cap: float,
    deadline: float,
    overdue: str | None,
    owed: Progress | None,
    probed: Probed | None,
    waited: float,
) -> Iterator[tuple[float, Sign, str]]:
    """What it would hang over, from when on, and in which words; the first that is due counts."""
    if pulse is not None:
        limit = show_duration(pulse.limit)
        text = f"no heartbeat for {now - pulse.last:.1f}s, longest is {limit}"
        yield pulse.last + pulse.limit, Sign.heartbeat, text
    late = f"without result or progress for {show_duration(deadline)}"
    if overdue is not None:
        yield waited + deadline if waited else now, Sign.message, f"message {overdue} {late}"
    for message in held:
        yield max(message.moved, waited) + deadline, Sign.message, f"message {message.message} {late}"
    if calls:
        quiet = show_duration(min(silence(call, now) for call in calls))
        yield now, Sign.call, f"model call silent for {quiet}, longer than {show_duration(cap)}"
    if probed is not None and probed.failures >= probed.most:
        yield now, Sign.probe, f"its probe failed {probed.failures} times: {probed.reason}"
    if owed is not None:
        last = max(owed.last, waited)
        text = f"no {owed.what} for {now - last:.1f}s, longest is {show_duration(owed.limit)}"
        yield last + owed.limit, Sign.progress, text


def _moved(call: Call) -> float:
    return call.started if call.last_byte is None else call.last_byte


def _end_of_excuse(moving: Sequence[Call], cap: float) -> float | None:
    """When the last of these calls will have been silent for too long; a parked one is told of by the gateway."""
    if any(call.parked for call in moving):
        return None
    return max(_moved(call) for call in moving) + cap


def _thinking(moving: Sequence[Call], now: float) -> str:
    if all(call.parked for call in moving):
        return "its model call waits for budget"
    freshest = min((call for call in moving if not call.parked), key=lambda call: silence(call, now))
    waited = show_duration(now - freshest.started)
    if freshest.last_byte is None:
        return f"waits for a model since {waited}"
    return f"a model answers since {waited}, last byte {show_duration(silence(freshest, now))} ago"
