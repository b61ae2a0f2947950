"""Fault row "agent stopped by our SIGTERM": a clean stop, and no failure counted; also of one that is deaf to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.moments import House, agent, each, gone, house, slow
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def at() -> Iterator[House]:
    units = {**dict.fromkeys("imsh", agent()), **dict.fromkeys(("young", "early"), slow())}
    units |= dict.fromkeys(("deaf", "kept"), slow("--deaf", agent='stop_timeout = "300ms"'))
    with house(units) as made:
        yield made


@each("IMSH", message="M")
def test_a_stop_is_clean_and_the_message_waits_uncounted(at: House, moment: str) -> None:
    """Stopped for good, nothing counted, nothing of its tree left; what it held is in the inbox, as attempt 1."""
    name = moment.lower()
    before = at.bring(name, moment)
    after = at.fleet.post(f"/v1/units/{name}/stop")
    assert (after["state"], after["last"]["cause"]) == ("inactive", "stopped")
    assert (after["failures"], after["restarts"]) == (0, 0)
    assert all(gone(int(pid)) for pid in at.remembered(name, "children"))
    if moment != "I":
        at.fleet.wait(name, inbox={"pending": 1, "held": 0, "dead": 0})
        at.write(name, "go")
        at.fleet.post(f"/v1/units/{name}/start")
        if moment != "M":
            at.provider.call(name, 1)
            at.provider.finish(name)
        wait_until(lambda: at.remembered(name, "done"), 10, "it is done at last")
        assert at.remembered(name, "attempts") == ["1", "1"]
        assert before["invocation"] != at.fleet.unit(name)["invocation"]


@pytest.mark.cell("unit", "P")
def test_stopped_while_it_is_being_spawned(at: House) -> None:
    """Before READY=1: as clean as later, and started again it comes up."""
    at.starting("young")
    after = at.fleet.post("/v1/units/young/stop")
    assert (after["state"], after["last"]["cause"], after["failures"]) == ("inactive", "stopped", 0)
    at.fleet.post("/v1/units/young/start", {"wait": 0})
    at.starting("young")
    assert at.let_in("young")["failures"] == 0


@pytest.mark.cell("unit", "P")
def test_restarted_while_it_is_being_spawned(at: House) -> None:
    """The operator's restart takes the place of the start: two invocations, none of them a failure."""
    first = at.starting("early")
    at.fleet.post("/v1/units/early/restart", {"wait": 0})
    at.fleet.wait("early", state="starting", last={"cause": "stopped"})
    after = at.let_in("early")
    assert (after["failures"], after["restarts"]) == (0, 0)
    assert after["invocation"] != first["invocation"]


@pytest.mark.cell("unit", "P")
@pytest.mark.bad_input("ignores SIGTERM")
def test_stopped_again_while_it_is_being_stopped(at: House) -> None:
    """A second stop changes nothing: asked once, killed after stop_timeout, and that is a clean stop too."""
    at.let_in("deaf")
    at.fleet.post("/v1/units/deaf/stop", {"wait": 0})
    after = at.fleet.post("/v1/units/deaf/stop")
    assert (after["state"], after["last"]["cause"], after["last"]["signal"]) == ("inactive", "stopped", "SIGKILL")
    assert (after["failures"], after["last"]["ran"] > 0.3) == (0, True)
    assert at.remembered("deaf", "asked") == ["SIGTERM"]


@pytest.mark.cell("unit", "P")
def test_started_again_while_it_is_being_stopped(at: House) -> None:
    """The stop comes to its end first: never two of them, and the next one runs without anything counted."""
    before = at.stopping("kept")
    at.fleet.post("/v1/units/kept/start", {"wait": 0})
    after = at.fleet.wait("kept", state="running", last={"cause": "stopped"})
    assert (after["failures"], after["restarts"]) == (0, 0)
    assert at.remembered("kept", "starts") == [before["invocation"], after["invocation"]]
