"""Fault row "agent kill -9": restarted at once, its whole tree gone first; a start that is killed counts once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.moments import House, agent, each, house, slow
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def at() -> Iterator[House]:
    with house({**dict.fromkeys("imsh", agent()), "young": slow(), "deaf": slow("--deaf")}) as made:
        yield made


@each("IMSH", message="MSH")
def test_it_is_back_at_once_and_its_tree_was_gone_first(at: House, moment: str) -> None:
    """The successor starts without a back-off; what the dead one had started, also in a session of its own, is gone.
    What it held is the successor's second attempt, which does it."""
    name = moment.lower()
    before = at.bring(name, moment)
    at.fleet.kill(before["pid"])
    after = at.fleet.wait(name, state="running", ready=True, restarts=1)
    assert (after["last"]["cause"], after["last"]["signal"], after["failures"]) == ("crashed", "SIGKILL", 1)
    assert after["last"]["invocation"] == before["invocation"] < after["invocation"]
    assert at.remembered(name, "starts") == [before["invocation"], after["invocation"]]
    assert at.remembered(name, "outlived") == []
    wait_until(lambda: "running" in at.kinds(name, after["invocation"]))
    assert "backoff" not in at.kinds(name)
    if moment != "I":
        wait_until(lambda: at.remembered(name, "done"), 10, "the successor does what the dead one held")
        at.fleet.wait(name, inbox={"pending": 0, "held": 0, "dead": 0})
        assert at.remembered(name, "attempts") == ["1", "2"]


@pytest.mark.cell("unit", "P")
def test_killed_while_it_is_being_spawned(at: House) -> None:
    """One failure, one restart: the start that never came to READY is not counted as well."""
    before = at.starting("young")
    at.fleet.kill(before["pid"])
    again = at.fleet.wait("young", state="starting", restarts=1)
    assert again["failures"] == 1
    assert again["last"]["text"] == "killed by SIGKILL before READY=1"
    after = at.let_in("young")
    assert (after["invocation"], after["failures"], after["restarts"]) == (again["invocation"], 1, 1)
    assert at.remembered("young", "starts") == [before["invocation"], after["invocation"]]


@pytest.mark.cell("unit", "P")
def test_killed_while_it_is_being_stopped(at: House) -> None:
    """The end that was asked for: clean, not counted, and nothing is started."""
    before = at.stopping("deaf")
    at.fleet.kill(before["pid"])
    after = at.fleet.wait("deaf", state="inactive")
    assert (after["last"]["cause"], after["failures"], after["restarts"]) == ("stopped", 0, 0)
    assert at.remembered("deaf", "starts") == [before["invocation"]]
