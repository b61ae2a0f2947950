"""Fault row "daemon kill -9": units untouched; watchdog, restart counters, held and timers go on; deaths meanwhile are
handled on its return, with their status.

One kill strikes units in every moment at once; each test looks at what became of one of them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.faults.moments import House, Json, agent, each, gone, house, pids, sleeper, slow, stop_process
from tests.waiting import wait_until

BEAT = 1.0
AWAY = 3.0
"""Seconds from its start after which a timer of a unit is due: the daemon is killed before."""


@dataclass
class Struck:
    """What was before the kill."""

    before: dict[str, Json]
    all_pids: dict[str, int]
    at: float
    back: float
    """When the next daemon answered; both unix seconds."""


@pytest.fixture(scope="module")
def at() -> Iterator[House]:
    units = {**dict.fromkeys("imsh", agent(more=f'[liveness]\nheartbeat = "{BEAT}s"')), "young": slow()}
    units["deaf"] = slow("--deaf", agent='stop_timeout = "3s"')
    units["frozen"] = agent(more=f'[liveness]\nheartbeat = "{BEAT}s"')
    units["counted"] = sleeper('[restart]\nburst = 3\nhealthy_after = "1h"\ndelay = "1ms"')
    units["parked"] = sleeper(f'[restart]\nburst = 1\nparked_delay = "{AWAY}s"')
    units["limited"] = sleeper('[restart]\npolicy = "never"', agent=f'runtime_max = "{AWAY}s"')
    units["poor"] = agent(more='[budget]\ntokens = "1000/day"')
    units |= {"dies": slow(), "stopped": sleeper()}
    with house(units) as made:
        yield made


def spend_all(at: House, name: str) -> None:
    """An answer costs more than the unit has, so that its next call, for its next message, has it held."""
    at.provider.costs[name] = 5000
    at.bring(name, "H")
    at.finish(name, "H")
    at.fleet.post("/v1/send", {"to": name, "kind": "call", "data": {"model": "slow"}})
    at.fleet.wait(name, state="held")


@pytest.fixture(scope="module")
def struck(at: House) -> Struck:
    f = at.fleet
    at.let_in("dies")
    f.post("/v1/units/stopped/stop")
    spend_all(at, "poor")
    before = {moment.lower(): at.bring(moment.lower(), moment) for moment in "IMSH"}
    before["young"], before["deaf"] = at.starting("young"), at.stopping("deaf")
    f.kill(f.unit("counted")["pid"])
    f.wait("counted", state="running", restarts=1)
    f.post("/v1/units/limited/restart")
    f.kill(f.unit("parked")["pid"])
    f.wait("parked", state="parked")
    for name in ("counted", "parked", "limited", "poor", "frozen", "dies", "stopped"):
        before[name] = f.unit(name)
    daemon = f.status()["agentd"]["pid"]
    all_pids = pids(f)
    stop_process(daemon)
    stop_process(before["frozen"]["pid"])
    at.write("dies", "leave", "7")
    wait_until(lambda: gone(before["dies"]["pid"]), 5)
    struck = f.kill(daemon)
    wait_until(lambda: f.answers() and f.status()["agentd"]["pid"] != daemon, 20, "the daemon is back")
    return Struck(before, all_pids, struck, time.time())


@each("IMSH", message="MSH", ledger="SH")
def test_untouched(at: House, struck: Struck, moment: str) -> None:
    """The same process; what it did when the daemon died it brings to its end, once, no byte of its stream lost."""
    name = moment.lower()
    at.untouched(name, struck.before[name])
    at.finish(name, moment)
    at.untouched(name, struck.before[name])


@pytest.mark.cell("unit", "P")
def test_a_start_goes_on(at: House, struck: Struck) -> None:
    """Spawned once: the process that was starting is the one that becomes ready."""
    assert at.fleet.unit("young")["state"] == "starting"
    at.let_in("young")
    at.untouched("young", struck.before["young"])
    assert at.remembered("young", "starts") == [struck.before["young"]["invocation"]]


@pytest.mark.cell("unit", "P")
def test_a_stop_goes_on(at: House, struck: Struck) -> None:
    """It comes to its end by its own time-out, still a clean stop."""
    after = at.fleet.wait("deaf", state="inactive")
    assert (after["last"]["cause"], after["last"]["signal"], after["failures"]) == ("stopped", "SIGKILL", 0)
    since = at.fleet.records(unit="deaf", kind="unit.stopping")[0]["at"]
    assert 2.9 < after["last"]["at"] - since < 5.0
    assert at.remembered("deaf", "starts") == [struck.before["deaf"]["invocation"]]


@pytest.mark.cell("unit", "I")
def test_a_stopped_unit_stays_stopped(at: House, struck: Struck) -> None:
    """The operator's word outlives the daemon."""
    assert at.fleet.unit("stopped")["state"] == "inactive"


@pytest.mark.cell("unit", "I")
def test_the_watchdog_goes_on(at: House, struck: Struck) -> None:
    """A unit that stands still since before the kill is hung within one heartbeat of the daemon's return."""
    after = at.fleet.wait("frozen", state="running", restarts=1)
    assert after["last"]["cause"] == "hung"
    found = at.fleet.records(unit="frozen", kind="unit.stopping")[0]["at"]
    assert found - struck.back < BEAT + 1.5


@pytest.mark.cell("unit", "I")
def test_restart_counters_go_on(at: House, struck: Struck) -> None:
    """One failure before, two after: parked by the third within the window, as if there had been one daemon."""
    now = at.untouched("counted", struck.before["counted"])
    assert (now["failures"], now["restarts"]) == (1, 1)
    at.fleet.kill(now["pid"])
    now = at.fleet.wait("counted", state="running", restarts=2)
    at.fleet.kill(now["pid"])
    assert "3 failures" in at.fleet.wait("counted", state="parked")["reason"]


@pytest.mark.cell("unit", "I")
def test_a_parked_unit_is_tried_when_it_was_due(at: House, struck: Struck) -> None:
    """Not earlier, not from the beginning of a new wait, and once."""
    due = struck.before["parked"]["next"]
    after = at.fleet.wait("parked", state="running")
    assert -0.05 < after["started"] - due < 1.5
    assert [r["kind"] for r in at.fleet.records(unit="parked")].count("unit.starting") == 2


@pytest.mark.cell("unit", "I")
def test_the_longest_run_counts_from_its_start(at: House, struck: Struck) -> None:
    """runtime_max goes on over the daemon's death."""
    after = at.fleet.wait("limited", state="failed")
    assert after["last"]["text"].startswith("ran longer than runtime_max")
    assert AWAY - 0.05 < after["last"]["ran"] < AWAY + 1.5


@pytest.mark.cell("unit", "I")
@pytest.mark.cell("message", "M")
def test_held_stays_held(at: House, struck: Struck) -> None:
    """No room in its budget: held before and after, nothing burnt; raised, it does its message, the first attempt."""
    now = at.fleet.unit("poor")
    assert (now["state"], now["failures"], now["restarts"]) == ("held", 0, 0)
    at.fleet.wait("poor", inbox={"pending": 1, "held": 0, "dead": 0})
    assert at.fleet.records(unit="poor", kind="unit.held")[0]["at"] < struck.at
    at.fleet.post("/v1/budget/poor/raise", {"tokens": 1_000_000})
    at.fleet.wait("poor", state="running")
    at.provider.call("poor", 1)
    at.provider.finish("poor")
    wait_until(lambda: len(at.remembered("poor", "done")) == 2, 10)
    assert set(at.remembered("poor", "attempts")) == {"1"}


@pytest.mark.cell("unit", "I")
def test_a_death_meanwhile_is_handled_with_its_status(at: House, struck: Struck) -> None:
    """It died while the daemon could not look: exit status, one failure, one restart."""
    after = at.fleet.wait("dies", state="running", restarts=1)
    assert (after["last"]["exit"], after["last"]["cause"], after["failures"]) == (7, "failed", 1)
    assert after["last"]["at"] < struck.at + 0.1
    assert at.remembered("dies", "starts") == [struck.before["dies"]["invocation"], after["invocation"]]


def test_neither_bus_nor_router_nor_gateway_notice(at: House, struck: Struck) -> None:
    """agentd's own units are adopted like all others."""
    now = pids(at.fleet)
    for name in ("bus", "router", "gateway"):
        assert now[name] == struck.all_pids[name]


def test_a_daemon_that_is_killed_again_and_again(at: House, struck: Struck) -> None:
    """Each time as soon as it answers: nobody but the dead is replaced."""
    for name in ("young", "i"):
        at.fleet.wait(name, state="running")
    before = {name: at.fleet.unit(name) for name in ("young", "i", "m")}
    for _ in range(3):
        os.kill(at.fleet.status()["agentd"]["pid"], signal.SIGKILL)
        wait_until(lambda: not at.fleet.answers(), 5)
        wait_until(at.fleet.answers, 10)
    for name, was in before.items():
        at.untouched(name, was)
