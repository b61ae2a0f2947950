"""Fault row "daemon, router, gateway or nats-server SIGSTOPped": found hung within 3 s, killed, restarted; meanwhile
nobody blocks on it.

One after the other is stopped under the same units, which stay in their moments all the while.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.faults.moments import House, Json, agent, each, gone, house, pids, sleeper, slow, stop_process
from tests.waiting import wait_until

LIVE = '[liveness]\nheartbeat = "1s"\n'
VICTIMS = ("router", "bus", "gateway", "daemon")
"""The gateway late: calls under way end with it, by its own row."""
FOUND = 3.3
"""Seconds: 3, and what a busy machine adds."""


@dataclass
class Struck:
    """What was before, and what was seen while each of them stood still."""

    before: dict[str, Json]
    found: dict[str, float]
    """Seconds until it was killed."""
    slowest: dict[str, float]
    """The longest answer of the control API meanwhile, in seconds."""
    restarted: dict[str, float]
    """Seconds that the restart of a killed unit took meanwhile."""
    begun: dict[str, float]
    """Seconds that a unit took which nobody had met before."""
    ends: dict[str, Json]


@pytest.fixture(scope="module")
def at() -> Iterator[House]:
    units = {**dict.fromkeys("imsh", agent(more=LIVE)), "young": slow(), "deaf": slow("--deaf")}
    units |= {f"killed-{victim}": sleeper() for victim in VICTIMS}
    with house(units) as made:
        yield made


def strike(at: House, victim: str, seen: Struck) -> None:
    """Stop one of them, kill a unit, and look what else goes on until it was found; then wait until it is back."""
    f = at.fleet
    old = f.status()["agentd"]["pid"] if victim == "daemon" else f.unit(victim)["pid"]
    killed = f.unit(f"killed-{victim}")["pid"]
    stop_process(old)
    began = time.monotonic()
    f.kill(killed)
    if victim == "daemon":
        wait_until(lambda: gone(old), 6)
        seen.found[victim] = time.monotonic() - began
        wait_until(lambda: f.answers() and f.status()["agentd"]["pid"] != old, 15)
        f.wait(f"killed-{victim}", state="running", restarts=1)
    else:
        body = {"name": f"new-{victim}", "unit": {"agent": {"exec": ["sleep", "1000"]}}}
        assert f.post("/v1/run", body)["state"] == "running"
        seen.begun[victim] = time.monotonic() - began
        while not gone(old):
            asked = time.monotonic()
            back = f.unit(f"killed-{victim}")
            now = time.monotonic()
            seen.slowest[victim] = max(seen.slowest.get(victim, 0.0), now - asked)
            if back["state"] == "running" and back["restarts"]:
                seen.restarted.setdefault(victim, now - began)
            assert now - began < 6, f"{victim} is not found"
        seen.found[victim] = time.monotonic() - began
        f.wait(victim, state="running", ready=True)
        seen.ends[victim] = f.unit(victim)["last"]
    wait_until(lambda: all(u["state"] == "running" for u in f.status()["units"] if u["system"]), 15)


@pytest.fixture(scope="module")
def struck(at: House) -> Struck:
    before = {moment.lower(): at.bring(moment.lower(), moment) for moment in "IMSH"}
    before |= {"young": at.starting("young"), "deaf": at.stopping("deaf")}
    seen = Struck(before, {}, {}, {}, {}, {})
    for victim in VICTIMS:
        strike(at, victim, seen)
    return seen


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.cell("unit", "I")
def test_it_is_found_and_replaced_and_nobody_waits_for_it(at: House, struck: Struck, victim: str) -> None:
    """Within 3 s. The control API answers, a unit that dies meanwhile is back, and a new one is started."""
    assert struck.found[victim] < FOUND
    if victim != "daemon":
        assert struck.slowest[victim] < 0.5
        assert struck.restarted[victim] < 1.5
        assert struck.begun[victim] < 2.0
        assert struck.ends[victim]["cause"] == "hung"


@each("IM", message="M")
def test_untouched(at: House, struck: Struck, moment: str) -> None:
    """Under all four, one after the other: the same process, and its message is done once."""
    name = moment.lower()
    at.untouched(name, struck.before[name])
    at.finish(name, moment)
    at.untouched(name, struck.before[name])


@each("SH")
def test_a_unit_in_a_call_is_not_blamed(at: House, struck: Struck, moment: str) -> None:
    """Its call ended with the gateway; the unit is the same process, and went on after it."""
    name = moment.lower()
    at.untouched(name, struck.before[name])
    at.provider.end()
    at.fleet.wait(name, holding=None)
    at.untouched(name, struck.before[name])


@pytest.mark.cell("unit", "P")
def test_a_start_goes_on(at: House, struck: Struck) -> None:
    """It was starting all the while."""
    at.let_in("young")
    at.untouched("young", struck.before["young"])
    assert at.remembered("young", "starts") == [struck.before["young"]["invocation"]]


@pytest.mark.cell("unit", "P")
def test_a_stop_came_to_its_end(at: House, struck: Struck) -> None:
    """Its stop_timeout was over meanwhile: a clean stop."""
    after = at.fleet.wait("deaf", state="inactive")
    assert (after["last"]["cause"], after["failures"]) == ("stopped", 0)


def test_a_message_goes_its_way_again(at: House, struck: Struck) -> None:
    """With all of them replaced, and the units still the same."""
    sent = at.fleet.post("/v1/send", {"to": "i", "kind": "echo", "data": {"number": 7}, "wait": 20})
    assert sent["result"] == 7
    assert pids(at.fleet)["i"] == struck.before["i"]["pid"]
