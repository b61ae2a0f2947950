"""Fault row "keeper kill -9": agents live and are adopted by the new keeper, none twice; no EPIPE; the exit status of
those that died in between is known.

One kill strikes units in every moment at once; each test looks at what became of one of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.faults.lines import PRINTS, check_lines
from tests.faults.moments import House, Json, agent, each, gone, house, pids, sleeper, slow
from tests.fleet import Fleet, fleet
from tests.waiting import wait_until

AGENTCTL = str(Path(sys.executable).parent / "agentctl")
BEAT = 1.0
LIVE = f'[liveness]\nheartbeat = "{BEAT}s"\n'


def about(f: Fleet) -> Json:
    found: Json = f.status()["agentd"]
    return found


def kill_keeper(f: Fleet) -> int:
    """SIGKILL it and wait until the daemon has noticed; the daemon's pid."""
    assert f.process is not None
    daemon = int(about(f)["pid"])
    f.process.kill()
    f.process.wait()
    wait_until(lambda: about(f)["keeper_pid"] is None, 5)
    return daemon


def next_keeper(f: Fleet) -> None:
    """What a person does: start agentd again."""
    f.start(settle=False)
    assert f.process is not None
    keeper = f.process.pid
    wait_until(lambda: f._died() or about(f)["keeper_pid"] == keeper, 10)


@dataclass
class Struck:
    """What was before, and while no keeper was there."""

    before: dict[str, Json]
    all_pids: dict[str, int]
    daemon: int
    warnings: list[str]
    meanwhile: Json
    """The status of a unit that died meanwhile."""


@pytest.fixture(scope="module")
def at() -> Iterator[House]:
    units = {**dict.fromkeys("imsh", agent(more=LIVE)), "young": slow(), "deaf": slow("--deaf")}
    units |= {"prints": PRINTS, "dies": slow("--print"), "crashed": sleeper()}
    with house(units) as made:
        yield made


@pytest.fixture(scope="module")
def struck(at: House) -> Struck:
    f = at.fleet
    before = {moment.lower(): at.bring(moment.lower(), moment) for moment in "IMSH"}
    before |= {"young": at.starting("young"), "dies": at.let_in("dies"), "deaf": at.stopping("deaf")}
    before |= {name: f.unit(name) for name in ("prints", "crashed")}
    all_pids, daemon = pids(f), kill_keeper(f)
    began, warnings = time.monotonic(), about(f)["warnings"]
    at.write("dies", "leave", "7")
    os.kill(before["crashed"]["pid"], signal.SIGSEGV)
    for name in ("dies", "crashed"):
        wait_until(partial(gone, before[name]["pid"]), 5)
    wait_until(lambda: time.monotonic() > began + 1.5 * BEAT, 10, "longer than a heartbeat that nobody hears")
    meanwhile = f.unit("dies")
    next_keeper(f)
    return Struck(before, all_pids, daemon, warnings, meanwhile)


@each("IMSH", message="MSH", ledger="SH")
def test_untouched(at: House, struck: Struck, moment: str) -> None:
    """The same process, not taken for hung by beats that nobody heard; what it did it brings to its end, once."""
    name = moment.lower()
    at.untouched(name, struck.before[name])
    at.finish(name, moment)
    wait_until(lambda: at.fleet.unit(name)["beat_age"] is not None, 5, "the next keeper hears it beat")
    at.untouched(name, struck.before[name])


@pytest.mark.cell("unit", "P")
def test_a_start_goes_on(at: House, struck: Struck) -> None:
    """Spawned once; the next keeper hears its READY=1."""
    assert at.fleet.unit("young")["state"] == "starting"
    at.let_in("young")
    at.untouched("young", struck.before["young"])
    assert at.remembered("young", "starts") == [struck.before["young"]["invocation"]]


@pytest.mark.cell("unit", "P")
def test_a_stop_goes_on(at: House, struck: Struck) -> None:
    """It is still being stopped, by the same clock; asked again, and when it goes that is a clean stop."""
    assert at.fleet.unit("deaf")["state"] == "stopping"
    at.write("deaf", "leave", "0")
    after = at.fleet.wait("deaf", state="inactive")
    assert (after["last"]["cause"], after["failures"]) == ("stopped", 0)
    assert at.remembered("deaf", "starts") == [struck.before["deaf"]["invocation"]]


@pytest.mark.cell("unit", "I")
def test_deaths_in_between_have_their_status_and_last_words(at: House, struck: Struck) -> None:
    """Nobody can know while no keeper is there; then exit code and signal are known, and one successor runs."""
    assert struck.meanwhile["state"] == "running"
    after = at.fleet.wait("dies", state="running", restarts=1)
    assert (after["last"]["exit"], after["failures"]) == (7, 1)
    assert at.remembered("dies", "starts") == [struck.before["dies"]["invocation"], after["invocation"]]
    wait_until(lambda: at.fleet.log_of("dies").count("started") == 2, 5)
    assert at.fleet.wait("crashed", state="running", restarts=1)["last"]["signal"] == "SIGSEGV"


@pytest.mark.cell("unit", "I")
def test_a_writer_gets_no_epipe_and_loses_no_line(at: House, struck: Struck) -> None:
    """It printed all the while: every line is there, once, whole and in order."""
    at.untouched("prints", struck.before["prints"])
    written = len(at.fleet.log_of("prints"))
    wait_until(lambda: len(at.fleet.log_of("prints")) > written + 10_000, 10)
    at.fleet.post("/v1/units/prints/stop")
    assert check_lines(at.fleet.log_of("prints")) > 100


@pytest.mark.cell("unit", "I")
def test_an_adopted_unit_is_supervised_as_ever(at: House, struck: Struck) -> None:
    """It is no child of the next keeper, and its death is told at once and in full all the same."""
    pid = at.fleet.unit("crashed")["pid"]
    adopted = at.fleet.unit("i")
    at.fleet.kill(adopted["pid"])
    after = at.fleet.wait("i", state="running", restarts=1)
    assert after["last"]["text"] == "killed by SIGKILL"
    assert at.remembered("i", "outlived") == []
    assert at.fleet.unit("crashed")["pid"] == pid


def test_it_was_told_and_the_daemon_and_its_own_units_lived_on(at: House, struck: Struck) -> None:
    """``status`` said so while no keeper was there, and no longer; daemon, bus, router and gateway are the same."""
    assert any("keeper: lost" in warning for warning in struck.warnings)
    assert (about(at.fleet)["pid"], about(at.fleet)["warnings"]) == (struck.daemon, [])
    now = pids(at.fleet)
    for name in ("bus", "router", "gateway"):
        assert now[name] == struck.all_pids[name]


def test_the_next_keeper_kills_a_daemon_that_stands_still(at: House, struck: Struck) -> None:
    """Of an adopted daemon, which is no child, and after an upgrade on top: found as ever, and nobody else touched."""
    f = at.fleet
    assert f.process is not None
    before, daemon = pids(f), int(about(f)["pid"])
    count = len(f.records(kind="keeper.found"))
    f.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: len(f.records(kind="keeper.found")) > count, 10)
    os.kill(daemon, signal.SIGSTOP)
    wait_until(lambda: gone(daemon) and f.answers() and about(f)["pid"] != daemon, 15)
    f.settle()
    assert pids(f) == before


def test_down_is_refused_while_no_keeper_is_there(at: House, struck: Struck) -> None:
    """It would leave the units running; the answer says what to do, and up does it."""
    f = at.fleet
    before, old = pids(f), f.process
    kill_keeper(f)
    status, answer = f.ask("POST", "/v1/down", {})
    assert (status, answer["error"]["code"]) == (503, "unavailable"), answer
    assert "agentctl up" in answer["error"]["hint"]
    next_keeper(f)
    assert (pids(f), about(f)["warnings"]) == (before, [])
    assert f.process is not old


def test_keeper_and_daemon_are_killed_together(at: House, struck: Struck) -> None:
    """The next agentd takes over from files alone: same pids, and the units' state, from the blobs."""
    f = at.fleet
    f.post("/v1/units/crashed/stop")
    before, pid = {name: f.unit(name) for name in "ims"}, about(f)["pid"]
    blobs = f.runtime / "keeper" / "blobs.log"
    wait_until(lambda: any(line.startswith('["crashed"') and "inactive" in line for line in told(blobs)), 5)
    assert f.process is not None
    f.process.kill()
    f.kill(pid)
    f.process.wait()
    wait_until(lambda: gone(pid), 5)
    f.start()
    assert f.unit("crashed")["state"] == "inactive"
    for name, was in before.items():
        at.untouched(name, was)


FLAPS = """[agent]
exec = ["sh", "-c", '''
exec 9> $HOME/lock; flock -n 9 || echo "DOUBLE $AGENTD_INVOCATION" >> $HOME/starts
echo "$AGENTD_INVOCATION" >> $HOME/starts; sleep 0.03; exit 3
''']

[restart]
delay = "20ms"
max_delay = "50ms"
burst = 100000
"""


@pytest.mark.cell("unit", "P")
def test_no_unit_is_ever_started_twice(short_dir: Path) -> None:
    """Keepers are killed while units die and are restarted all the time: every invocation runs at most once, never two
    of a unit at a time, and afterwards all go on."""
    names = [f"f{n}" for n in range(6)]
    with fleet(short_dir, dict.fromkeys(names, FLAPS)) as f:
        for number in range(3):
            count = total(short_dir, names)
            wait_until(partial(more, short_dir, names, count + 20 + 7 * number), 20)
            kill_keeper(f)
            next_keeper(f)
        count = total(short_dir, names)
        wait_until(partial(more, short_dir, names, count + 40), 20)
        for name in names:
            f.post(f"/v1/units/{name}/stop")
        for name in names:
            lines = starts(short_dir, name)
            assert not [line for line in lines if "DOUBLE" in line]
            assert len(lines) == len(set(lines))


def test_agentctl_up_brings_the_next_keeper(short_dir: Path) -> None:
    """``up`` adopts what runs, and ``down`` then leaves nothing."""
    with fleet(short_dir, {"a": sleeper()}) as f:
        before = pids(f)
        kill_keeper(f)
        options = [f"--config={f.config}", f"--units={f.units}", f"--state={f.state}", f"--runtime={f.runtime}"]
        subprocess.run([AGENTCTL, "up", *options], check=True, capture_output=True, timeout=60)
        assert (pids(f), about(f)["warnings"]) == (before, [])
        f.process = None
        env = {**os.environ, "AGENTD_SOCKET": str(f.runtime / "control.sock")}
        subprocess.run([AGENTCTL, "down"], check=True, capture_output=True, timeout=60, env=env)
        wait_until(lambda: not f.left_over(), 5)


def told(path: Path) -> list[str]:
    """The lines of a file that may not be there yet."""
    return path.read_text().splitlines() if path.exists() else []


def starts(base: Path, name: str) -> list[str]:
    return told(base / "s" / "home" / name / "starts")


def total(base: Path, names: list[str]) -> int:
    return sum(len(starts(base, name)) for name in names)


def more(base: Path, names: list[str], than: int) -> bool:
    return total(base, names) > than
