"""Fault row "agent exits 0 unasked while it holds a message": what follows for the unit is its policy's to say."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.faults.moments import House, agent, each, house, slow
from tests.waiting import wait_until

POLICIES = ("always", "on-failure", "never")


@pytest.fixture(scope="module")
def at() -> Iterator[House]:
    units = {p: agent(more=f'[restart]\npolicy = "{p}"') for p in POLICIES}
    units |= {**dict.fromkeys("sh", agent()), "young": slow(), "deaf": slow("--deaf")}
    with house(units) as made:
        yield made


def leave(at: House, name: str, moment: str) -> str:
    """Bring the unit into the moment and have it exit 0; its invocation."""
    before = at.bring(name, moment)
    os.kill(before["pid"], signal.SIGUSR1)
    invocation = str(before["invocation"])
    at.fleet.wait(name, last={"invocation": invocation, "exit": 0, "cause": "left"})
    return invocation


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.cell("unit", "M")
@pytest.mark.cell("message", "M")
def test_the_policy_decides_about_the_unit(at: House, policy: str) -> None:
    """``always`` runs it again at once, the others let it rest, not failed; the message counts an attempt (*left*)."""
    left = leave(at, policy, "M")
    if policy == "always":
        after = at.fleet.wait(policy, state="running", ready=True, restarts=1)
        assert at.remembered(policy, "starts") == [left, after["invocation"]]
        assert "backoff" not in at.kinds(policy)
    else:
        after = at.fleet.wait(policy, state="inactive")
        assert (after["restarts"], after["failures"]) == (0, 0)
        at.fleet.wait(policy, inbox={"pending": 1, "held": 0, "dead": 0})
        at.fleet.post(f"/v1/units/{policy}/start")
    wait_until(lambda: at.remembered(policy, "attempts") == ["1", "2"], 10)


@each("SH", message="SH")
def test_in_the_midst_of_a_model_call(at: House, moment: str) -> None:
    """The successor runs at once and does what the one that left held."""
    name = moment.lower()
    leave(at, name, moment)
    assert at.fleet.wait(name, state="running", ready=True, restarts=1)
    wait_until(lambda: at.remembered(name, "done"), 10)
    assert at.remembered(name, "attempts") == ["1", "2"]


@pytest.mark.cell("unit", "P")
@pytest.mark.bad_input("exits during start")
def test_left_before_it_was_ready(at: House) -> None:
    """Exit 0 while starting: told so, and counted as one restart."""
    before = at.starting("young")
    at.write("young", "leave", "0")
    at.write("young", "gate")
    again = at.fleet.wait("young", state="running", restarts=1)
    assert (again["last"]["cause"], again["last"]["invocation"]) == ("left", before["invocation"])


@pytest.mark.cell("unit", "P")
@pytest.mark.bad_input("exits while stopping")
def test_left_while_it_was_being_stopped(at: House) -> None:
    """It is what was asked for, late."""
    at.stopping("deaf")
    at.write("deaf", "leave", "0")
    after = at.fleet.wait("deaf", state="inactive")
    assert (after["last"]["cause"], after["last"]["exit"], after["failures"]) == ("stopped", 0, 0)
