"""Bad input of the children themselves: floods, garbage, exits at every wrong moment; and two daemons on one directory.

What no fleet is needed for stands in tests/keeper and tests/host; the marker ``bad_input`` says which is proven where.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.moments import House, agent, house, pids, shell, sleeper
from tests.waiting import wait_until

LIVE = '[liveness]\nheartbeat = "700ms"\n'
FLOOD = """
import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
{first}
while not os.path.exists(os.environ["HOME"] + "/flood"):
    time.sleep(0.01)
end = time.monotonic() + 20
while time.monotonic() < end:
    for _ in range(1000):
        s.send({datagram})
"""
GARBAGE = """
import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
for datagram in (b"\\xff\\xfe", b"", b"=", b"\\0" * 500, b"WATCHDOG_USEC=none", b"READY=1\\n" * 4000, b"x" * (1 << 20)):
    try:
        s.send(datagram)
    except OSError:
        pass  # more than the kernel lets one send
s.send(b"READY=1")
while True:
    s.send(b"WATCHDOG=1")
    time.sleep(0.1)
"""


def python(script: str, more: str = "") -> str:
    """A unit that is a Python script."""
    return f"[agent]\ntype = \"notify\"\nexec = ['python3', '-c', '''{script}''']\n{more}\n"


@pytest.fixture(scope="module")
def at() -> Iterator[House]:
    ready = 's.send(b"READY=1")'
    units = {
        "beats": agent(more=LIVE),
        "crashes": sleeper(),
        "floods": python(FLOOD.format(first=ready, datagram='b"WATCHDOG=1"')),
        "floods2": python(FLOOD.format(first=ready, datagram='b"STATUS=" + os.urandom(8).hex().encode()')),
        "garbage": python(GARBAGE, '[liveness]\nheartbeat = "700ms"'),
        "leaves": shell("exit 0", '[restart]\npolicy = "never"', 'type = "notify"'),
        "fails": shell("exit 3", '[restart]\npolicy = "never"', 'type = "notify"'),
        "plain": shell("kill -9 $$", '[restart]\npolicy = "never"'),
    }
    with house(units) as made:
        yield made


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def restarted_in(at: House) -> float:
    """Seconds from the kill of a unit until its successor runs, as the journal has it."""
    before = at.fleet.unit("crashes")
    killed = at.fleet.kill(before["pid"])
    after = at.fleet.wait("crashes", state="running", restarts=before["restarts"] + 1)
    at.fleet.post("/v1/units/crashes/restart")
    return float(after["started"] - killed)


@pytest.mark.bad_input("notify flood")
def test_a_flood_of_datagrams_harms_nobody_else(at: House) -> None:
    """Two units send as fast as they can: others' beats are stamped, their restarts are as fast, and the keeper's
    processor time is bounded."""
    assert at.fleet.process is not None
    keeper = at.fleet.process.pid
    beating = at.bring("beats", "I")
    quiet = min(restarted_in(at) for _ in range(3))
    for name in ("floods", "floods2"):
        at.fleet.wait(name, state="running")
        at.write(name, "flood")
    began, used = time.monotonic(), cpu(keeper)
    wait_until(lambda: time.monotonic() > began + 1.0, 5, "a second of nothing but the flood")
    share = (cpu(keeper) - used) / (time.monotonic() - began)
    loud = [restarted_in(at) for _ in range(5)]
    print(f"keeper {share:.0%} of a core; restart {quiet * 1000:.1f} ms, meanwhile {min(loud) * 1000:.1f} ms")  # noqa: T201
    at.untouched("beats", beating)
    assert at.fleet.unit("beats")["beat_age"] < 0.7
    for name in ("floods", "floods2"):
        at.fleet.post(f"/v1/units/{name}/stop")
    assert min(loud) < 2 * quiet + 0.03
    assert share < 0.3


@pytest.mark.bad_input("garbage", "1 MB in one datagram")
def test_garbage_is_dropped_and_what_is_right_is_heard(at: House) -> None:
    """Not text, empty, no known word, 1 MB: nothing of it counts; its READY and its beats do."""
    now = at.fleet.wait("garbage", state="running", ready=True)
    first = at.fleet.unit("garbage")["started"]
    wait_until(lambda: time.time() > first + 1.5, 5, "longer than its heartbeat")
    at.untouched("garbage", now)


@pytest.mark.bad_input("exits during start")
@pytest.mark.parametrize(
    ("name", "text"), [("leaves", "exited 0"), ("fails", "exited 3"), ("plain", "killed by SIGKILL")]
)
def test_an_exit_during_the_start_is_told_as_what_it_is(at: House, name: str, text: str) -> None:
    """Before READY, or as soon as it is there: the reason names the exit, and the policy holds."""
    after = at.fleet.wait(name, last={"exit": {"leaves": 0, "fails": 3, "plain": -9}[name]})
    assert after["last"]["text"].startswith(text)
    assert after["state"] in ("failed", "inactive")


@pytest.mark.bad_input("two daemons")
def test_a_second_daemon_is_refused_and_the_first_does_not_notice(at: House) -> None:
    """Started by hand beside the one that runs, past the program's own check: one line, exit 1, no unit touched."""
    f = at.fleet
    before, daemon = pids(f), f.status()["agentd"]["pid"]
    argv = [sys.executable, "-m", "agentd.main", "--config", str(f.config)]
    argv += ["--units", str(f.units), "--state", str(f.state), "--runtime", str(f.runtime)]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert run.returncode == 1
    assert "another agentd uses this state directory" in run.stderr
    assert (pids(f), f.status()["agentd"]["pid"]) == (before, daemon)
    assert not f.records(kind="keeper.lost")
