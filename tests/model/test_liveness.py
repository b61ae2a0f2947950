"""Activity: idle, working, thinking and hung are told apart, and a slow model is never a hang."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentd.model.life import Deadline, Life, Now, Phase, Policy
from agentd.model.lifecycle import step
from agentd.model.liveness import Activity, Call, Held, Pulse, activity, silence

NOW = 10_000.0
FRESH, STALE = Pulse(3.0, NOW - 2.9), Pulse(3.0, NOW - 3.0)
MESSAGE = Held("m1", NOW - 5, NOW - 5)
OLD = Held("m0", NOW - 400, NOW - 301)


def test_idle() -> None:
    """Nothing in hand, no call: it waits."""
    assert activity(NOW, pulse=FRESH).activity is Activity.idle


def test_working() -> None:
    """A message in hand and no call: it works, and the reason says on what and since when."""
    verdict = activity(NOW, held=[MESSAGE])
    assert (verdict.activity, verdict.reason) == (Activity.working, "holds message m1, since 5s")


def test_progress_keeps_a_long_message_working() -> None:
    """Progress counts from its last sign, not from the delivery."""
    assert activity(NOW, held=[replace(OLD, progress=NOW - 299)]).activity is Activity.working


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call(NOW - 100, None), "waits for a model since 1m40s"),
        (Call(NOW - 3000, NOW - 1.0), "a model answers since 50m00s, last byte 1s ago"),
        (Call(NOW - 3000, None, parked=True), "its model call waits for budget"),
    ],
)
def test_a_slow_model_is_thinking_never_hung(call: Call, reason: str) -> None:
    """A call that moves, or is silent within the cap, outweighs a missing beat and an overdue message."""
    verdict = activity(NOW, calls=[call], held=[OLD], pulse=STALE, overdue="m0")
    assert (verdict.activity, verdict.reason) == (Activity.thinking, reason)


@pytest.mark.parametrize("call", [Call(NOW - 121, None), Call(NOW - 3000, NOW - 121)])
def test_a_call_silent_beyond_the_cap_is_stuck(call: Call) -> None:
    """Silence longer than llm.silence is no longer thinking."""
    verdict = activity(NOW, calls=[call], held=[MESSAGE])
    assert (verdict.activity, verdict.reason) == (Activity.hung, "model call silent for 2m01s, longer than 2m00s")


def test_one_moving_call_of_several_is_enough() -> None:
    """A stuck call beside a moving one: still thinking."""
    assert activity(NOW, calls=[Call(NOW - 500, None), Call(NOW - 5, None)]).activity is Activity.thinking


def test_no_heartbeat_is_hung() -> None:
    """A unit that owes a beat and waits for no model is hung, also with a fresh message."""
    verdict = activity(NOW, pulse=STALE, held=[MESSAGE])
    assert (verdict.activity, verdict.reason) == (Activity.hung, "no heartbeat for 3.0s, longest is 3s")


def test_an_overdue_message_is_hung() -> None:
    """By the router's word or by the clock: no result and no progress for the deadline."""
    assert activity(NOW, pulse=FRESH, overdue="m7").activity is Activity.hung
    verdict = activity(NOW, pulse=FRESH, held=[MESSAGE, OLD])
    assert verdict.reason == "message m0 without result or progress for 5m00s"


def test_silence_of_a_parked_call_is_ours() -> None:
    """While the gateway keeps a call waiting nobody counts its silence; a stamp from the future is none."""
    assert silence(Call(NOW - 900, None, parked=True), NOW) == 0.0
    assert silence(Call(NOW, NOW + 5), NOW) == 0.0


def test_activity_and_lifecycle_agree_about_the_heartbeat() -> None:
    """status says hung exactly when the deadline would end the unit."""
    policy = Policy(heartbeat=3.0)
    life = replace(
        Life.new(NOW), phase=Phase.running, wanted=True, invocation="a" * 16, started=NOW, deadline=NOW + 3.0
    )
    for after in (0.0, 2.99, 3.0, 50.0):
        ended = step(life, Deadline(), policy, Now(NOW + after, 0.0, 0.5))[0].phase is Phase.stopping
        hung = activity(NOW + after, pulse=Pulse.of(life, policy)).activity is Activity.hung
        assert ended == hung
    assert Pulse.of(life, Policy()) is None
    assert Pulse.of(Life.new(NOW), policy) is None
