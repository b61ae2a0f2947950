"""Fault row "agent SIGSTOP or busy loop": hung within its limit, and ``on_hang`` is done."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.moments import House, agent, each, gone, house, slow, stop_process
from tests.waiting import wait_until

LIMIT = 0.8
BEAT = f'[liveness]\nheartbeat = "{LIMIT}s"\n'
SHORT = '[llm]\nsilence = "1s"\n'
SLACK = 1.5
"""Seconds that a busy machine may add."""


@pytest.fixture(scope="module")
def at() -> Iterator[House]:
    units = {f"{how}-{moment}": agent(more=BEAT + SHORT) for how in ("stop", "busy") for moment in "imsh"}
    units |= {action: agent(more=f'{BEAT}on_hang = "{action}"') for action in ("abort", "alarm")}
    units["faulty"] = agent(more=f'{BEAT}on_hang = "abort"', agent='env = { PYTHONFAULTHANDLER = "1" }')
    units["young"] = slow(agent='start_timeout = "700ms"\nstop_timeout = "300ms"')
    units["deaf"] = slow(agent='stop_timeout = "400ms"')
    with house(units) as made:
        yield made


def strike(at: House, name: str, how: str) -> float:
    """SIGSTOP, or a busy loop; when."""
    pid = at.fleet.unit(name)["pid"]
    struck = time.time()
    if how == "stop":
        stop_process(pid)
    else:
        os.kill(pid, signal.SIGUSR2)
    return struck


@pytest.mark.parametrize("how", ["stop", "busy"])
@each("IMSH", message="MSH")
def test_it_is_hung_within_its_limit_and_replaced(at: House, how: str, moment: str) -> None:
    """By its beats; in a model call by the call, which nobody reads any more, once that excuses it no longer. Its
    message goes to the successor."""
    name = f"{how}-{moment.lower()}"
    at.bring(name, moment)
    struck = strike(at, name, how)
    limit = LIMIT if moment in "IM" else LIMIT + 1.0
    if moment == "S":
        at.provider.finish(name)  # a call that moves excuses everything: it ends
    after = at.fleet.wait(name, state="running", ready=True, restarts=1)
    assert (after["last"]["cause"], after["failures"]) == ("hung", 1)
    found = at.fleet.records(unit=name, kind="unit.stopping")[0]["at"]
    assert found - struck < limit + SLACK
    if moment != "I":
        wait_until(lambda: at.remembered(name, "attempts") == ["1", "2"], 10)
        at.fleet.wait(name, inbox={"pending": 0, "held": 0, "dead": 0})
    assert at.remembered(name, "outlived") == []


@pytest.mark.cell("unit", "P")
def test_it_stands_still_while_it_is_being_spawned(at: House) -> None:
    """start_timeout is its limit: killed, one failure, tried again."""
    at.fleet.post("/v1/units/young/stop")  # it was not let in since the fleet began, and has failures behind it
    before = at.starting("young")
    stop_process(before["pid"])
    again = at.fleet.wait("young", restarts=1)
    assert again["last"]["cause"] == "hung"
    assert "READY=1" in again["last"]["text"]
    at.let_in("young")


@pytest.mark.cell("unit", "P")
def test_it_stands_still_while_it_is_being_stopped(at: House) -> None:
    """A stopped process takes no SIGTERM: killed after stop_timeout, a clean stop."""
    before = at.let_in("deaf")
    stop_process(before["pid"])
    after = at.fleet.post("/v1/units/deaf/stop")
    assert (after["state"], after["last"]["cause"], after["failures"]) == ("inactive", "stopped", 0)
    assert gone(before["pid"])


@pytest.mark.cell("unit", "I")
def test_abort_keeps_a_dump_with_the_stacks_and_the_last_words(at: House) -> None:
    """on_hang = abort: the kernel's view and the program's own traceback stay on disk, and status says where."""
    at.bring("faulty", "I")
    strike(at, "faulty", "busy")
    after = at.fleet.wait("faulty", state="running", restarts=1)
    assert after["last"]["signal"] == "SIGABRT"
    dump = Path(after["dump"])
    assert dump.parent == at.fleet.state / "dumps"
    wait_until(lambda: "in spin" in dump.read_text(), 5)
    text = dump.read_text()
    assert "no heartbeat" in text
    assert "wchan:" in text
    assert dump.stat().st_mode & 0o777 == 0o600


@pytest.mark.cell("unit", "I")
def test_abort_of_what_does_not_answer_ends_in_the_kill(at: House) -> None:
    """A stopped process does not die of SIGABRT: it is killed three seconds later."""
    at.bring("abort", "I")
    strike(at, "abort", "stop")
    assert at.fleet.wait("abort", state="running", restarts=1)["last"]["signal"] == "SIGKILL"
    assert at.fleet.records(unit="abort", kind="unit.dumped")
    (killed,) = at.fleet.records(unit="abort", kind="unit.killed")
    assert killed["reason"].startswith("still there 3")


@pytest.mark.cell("unit", "I")
def test_alarm_tells_once_and_touches_nothing(at: House) -> None:
    """on_hang = alarm: status and one journal record, also over a daemon's death; it recovers when it moves again."""
    before = at.bring("alarm", "I")
    strike(at, "alarm", "stop")
    wait_until(lambda: at.fleet.unit("alarm")["alarm"], 5)
    assert at.fleet.unit("alarm")["activity"] == "hung"
    at.fleet.kill_daemon()
    wait_until(lambda: at.fleet.unit("alarm")["alarm"], 5)
    os.kill(before["pid"], signal.SIGCONT)
    wait_until(lambda: at.fleet.unit("alarm")["alarm"] is None, 5)
    at.untouched("alarm", before)
    assert len(at.fleet.records(unit="alarm", kind="unit.hung")) == 1
    assert len(at.fleet.records(unit="alarm", kind="unit.recovered")) == 1
