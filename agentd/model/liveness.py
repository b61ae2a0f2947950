"""What a running unit is doing: idle, working, thinking or hung, with the reason in words.

Three witnesses are heard together, because none of them could decide alone: the heartbeat (keeper), the messages in
hand (router), the model calls under way (gateway). Waiting for a slow model, whose bytes move or whose silence is
within the cap, is thinking and never hung, even where the waiting blocks the loop that beats. All times are
CLOCK_MONOTONIC seconds. Nothing is done here: the daemon tells ``lifecycle`` (thinking: Excused; hung over a message
or a call: Hang).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from agentd.model.life import Life, Phase, Policy
from agentd.model.quantity import show_duration


class Activity(StrEnum):
    """What a running unit is doing."""

    idle = "idle"
    working = "working"
    thinking = "thinking"
    hung = "hung"


@dataclass(frozen=True, slots=True)
class Pulse:
    """The heartbeat of the present invocation."""

    limit: float
    """Longest time between two beats."""
    last: float
    """The last sign of life: a beat, or the moment from which the next one was expected."""

    @classmethod
    def of(cls, life: Life, policy: Policy) -> Pulse | None:
        """What the lifecycle counts: hung here exactly when its Deadline would end the unit."""
        if life.phase is not Phase.running or policy.heartbeat is None or life.deadline is None:
            return None
        return cls(policy.heartbeat, life.deadline - policy.heartbeat)


@dataclass(frozen=True, slots=True)
class Held:
    """A message in hand."""

    message: str
    since: float
    progress: float
    """The last sign of progress on it; its own start at first."""


@dataclass(frozen=True, slots=True)
class Call:
    """A model call under way."""

    started: float
    last_byte: float | None
    """None: no byte of the answer has come yet."""
    parked: bool = False
    """The gateway keeps it waiting for budget: that silence is ours."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An activity and why."""

    activity: Activity
    reason: str


def silence(call: Call, now: float) -> float:
    """Seconds since this call last moved; none while the gateway keeps it waiting."""
    return 0.0 if call.parked else max(0.0, now - (call.started if call.last_byte is None else call.last_byte))


def activity(
    now: float,
    *,
    pulse: Pulse | None = None,
    held: Sequence[Held] = (),
    calls: Sequence[Call] = (),
    cap: float = 120.0,
    deadline: float = 300.0,
    overdue: str | None = None,
) -> Verdict:
    """The verdict on one running unit.

    ``pulse`` is None for a unit without a heartbeat. ``cap`` is ``llm.silence``, ``deadline`` is ``bus.deadline``.
    ``overdue`` names the message that the router found without result or progress for the deadline.
    """
    moving = [call for call in calls if silence(call, now) <= cap]
    if moving:
        return Verdict(Activity.thinking, _thinking(moving, now))
    if pulse is not None and now - pulse.last >= pulse.limit:
        age = now - pulse.last
        return Verdict(Activity.hung, f"no heartbeat for {age:.1f}s, longest is {show_duration(pulse.limit)}")
    late = overdue or next((h.message for h in held if now - max(h.since, h.progress) > deadline), None)
    if late is not None:
        return Verdict(Activity.hung, f"message {late} without result or progress for {show_duration(deadline)}")
    if calls:
        quiet = min(silence(call, now) for call in calls)
        return Verdict(Activity.hung, f"model call silent for {show_duration(quiet)}, longer than {show_duration(cap)}")
    if held:
        oldest = min(h.since for h in held)
        return Verdict(Activity.working, f"holds message {held[0].message}, since {show_duration(now - oldest)}")
    return Verdict(Activity.idle, "waits for messages")


def _thinking(moving: Sequence[Call], now: float) -> str:
    if all(call.parked for call in moving):
        return "its model call waits for budget"
    freshest = min((call for call in moving if not call.parked), key=lambda call: silence(call, now))
    waited = show_duration(now - freshest.started)
    if freshest.last_byte is None:
        return f"waits for a model since {waited}"
    return f"a model answers since {waited}, last byte {show_duration(silence(freshest, now))} ago"
