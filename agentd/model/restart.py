"""When a unit that failed runs again: at once, after a back-off, or parked. Pure: time and luck are arguments.

    at once   the first failure after a healthy run (or after the operator's start)
    later     delay * 2**n, at most max_delay, times luck (full jitter)
    park      the burst-th failure within the window, or any failure of a run that was tried from parked

It does not know what a failure is; ``lifecycle`` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentd.model.life import Life, Policy
from agentd.model.quantity import show_duration

_STEEPEST = 32
"""No back-off doubles more often: keeps 2**n a float."""
_REMEMBERED = 20
"""Failures that are remembered where no burst bounds them: for people only."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens after a failure. ``delay`` 0 without ``parked`` means at once."""

    delay: float
    parked: bool
    failures: tuple[float, ...]
    attempt: int
    probation: bool
    reason: str


def backoff(attempt: int, policy: Policy, luck: float) -> float:
    """Seconds to wait after ``attempt`` failures in a row (1 is the base); never over max_delay."""
    full = min(policy.max_delay, policy.delay * 2.0 ** min(attempt - 1, _STEEPEST))
    return full * luck if policy.jitter else full


def judge(life: Life, ran: float, at: float, luck: float, policy: Policy) -> Verdict:
    """The verdict on a unit that failed at ``at`` (monotonic) after running for ``ran`` seconds."""
    failures = (*(t for t in life.failures if t > at - policy.window), at)
    healthy = ran >= policy.healthy_after
    attempt = 0 if healthy else life.attempt
    if policy.burst is not None:
        failures = failures[-policy.burst :]
        if life.probation and not healthy:
            return _park(failures, attempt, policy, "it failed again when it was tried from parked")
        if len(failures) >= policy.burst:
            return _park(failures, attempt, policy, f"{len(failures)} failures within {show_duration(policy.window)}")
    else:
        failures = failures[-_REMEMBERED:]
    if attempt == 0 and (healthy or policy.eager):
        return Verdict(0.0, False, failures, 1, False, "restarted at once")
    attempt = max(attempt, 1)
    delay = backoff(attempt, policy, luck)
    reason = f"failure {attempt} in a row, next try in {show_duration(delay)}"
    return Verdict(delay, False, failures, attempt + 1, False, reason)


def _park(failures: tuple[float, ...], attempt: int, policy: Policy, why: str) -> Verdict:
    delay = policy.parked_delay
    reason = f"{why}: parked, tried again every {show_duration(delay)}; agentctl start tries now"
    return Verdict(delay, True, failures, attempt, True, reason)
