"""Fault row "keeper upgraded in place": another program in the same process; units, messages and calls untouched."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.faults.lines import PRINTS, check_lines
from tests.faults.moments import House, Json, agent, each, gone, house, pids, slow, stop_process
from tests.fleet import Fleet
from tests.waiting import wait_until

LIVE = '[liveness]\nheartbeat = "1s"\n'


@dataclass
class Struck:
    """What was before."""

    before: dict[str, Json]
    all_pids: dict[str, int]
    daemon: int


@pytest.fixture(scope="module")
def at() -> Iterator[House]:
    units = {**dict.fromkeys("imsh", agent(more=LIVE)), "young": slow(), "deaf": slow("--deaf")}
    units |= {"prints": PRINTS, "dies": slow(), "unseen": slow()}
    with house(units) as made:
        yield made


def upgrade(f: Fleet, times: int = 1) -> None:
    """SIGUSR2, and wait until the daemon has found the new program."""
    assert f.process is not None
    for _ in range(times):
        count = len(f.records(kind="keeper.found"))
        f.process.send_signal(signal.SIGUSR2)
        wait_until(partial(found, f, count), 10)


def found(f: Fleet, count: int) -> bool:
    return len(f.records(kind="keeper.found")) > count


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.fixture(scope="module")
def struck(at: House) -> Struck:
    f = at.fleet
    assert f.process is not None
    before = {moment.lower(): at.bring(moment.lower(), moment) for moment in "IMSH"}
    before |= {"young": at.starting("young"), "deaf": at.stopping("deaf")}
    before |= {name: at.let_in(name) for name in ("dies", "unseen")}
    before["prints"] = f.unit("prints")
    all_pids, began = pids(f), start_of(f.process.pid)
    upgrade(f, 3)
    assert start_of(f.process.pid) == began, "the same process"
    return Struck(before, all_pids, f.status()["agentd"]["pid"])


@each("IMSH", message="MSH", ledger="SH")
def test_untouched(at: House, struck: Struck, moment: str) -> None:
    """The same process, whose beats are heard on; what it did it brings to its end, once."""
    name = moment.lower()
    at.untouched(name, struck.before[name])
    at.finish(name, moment)
    at.untouched(name, struck.before[name])


@pytest.mark.cell("unit", "P")
def test_a_start_goes_on(at: House, struck: Struck) -> None:
    """Spawned once; the new program hears its READY=1."""
    at.let_in("young")
    at.untouched("young", struck.before["young"])
    assert at.remembered("young", "starts") == [struck.before["young"]["invocation"]]


@pytest.mark.cell("unit", "P")
def test_a_stop_goes_on(at: House, struck: Struck) -> None:
    """Still being stopped; when it goes that is a clean stop."""
    assert at.fleet.unit("deaf")["state"] == "stopping"
    at.write("deaf", "leave", "0")
    after = at.fleet.wait("deaf", state="inactive")
    assert (after["last"]["cause"], after["last"]["exit"], after["failures"]) == ("stopped", 0, 0)


@pytest.mark.cell("unit", "I")
def test_nobody_is_another_process_and_exits_are_seen_as_a_parent_sees_them(at: House, struck: Struck) -> None:
    """Units stay children of the keeper: exit status, at once."""
    now = pids(at.fleet)
    for name in ("bus", "router", "gateway", "dies"):
        assert now[name] == struck.all_pids[name]
    assert at.fleet.process is not None
    assert at.fleet.status()["agentd"]["keeper_pid"] == at.fleet.process.pid
    at.write("dies", "leave", "7")
    assert at.fleet.wait("dies", state="running", restarts=1)["last"]["exit"] == 7


@pytest.mark.cell("unit", "I")
def test_a_daemon_that_stands_still_meanwhile_blocks_nobody(at: House, struck: Struck) -> None:
    """SIGSTOP of the daemon: units print on, the keeper upgrades, deaths wait. Going on, it knows them in full."""
    f = at.fleet
    daemon = int(f.status()["agentd"]["pid"])
    stop_process(daemon)
    try:
        size = len(f.log_of("prints"))
        assert f.process is not None
        f.process.send_signal(signal.SIGUSR2)
        at.write("unseen", "leave", "9")
        wait_until(lambda: gone(struck.before["unseen"]["pid"]), 5)
        wait_until(lambda: len(f.log_of("prints")) > size + 50_000, 10)
    finally:
        os.kill(daemon, signal.SIGCONT)
    f.wait("unseen", state="running", restarts=1)
    ended = [record["reason"] for record in f.records(unit="unseen", kind="unit.ended")]
    assert ended[0].startswith("exited 9 ")  # then perhaps a spawn that the keeper of before never got
    assert f.status()["agentd"]["pid"] == daemon


@pytest.mark.cell("unit", "I")
def test_a_writer_loses_no_line(at: House, struck: Struck) -> None:
    """It printed all the while: every line is there, once, whole and in order."""
    at.untouched("prints", struck.before["prints"])
    at.fleet.post("/v1/units/prints/stop")
    assert check_lines(at.fleet.log_of("prints")) > 50
