"""MAINPID=: a unit names its main process anew, and only one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.keeper.conftest import ROOT, Client, Json, Keeper, alive
from tests.keeper.test_notify import tell
from tests.waiting import wait_until

WHICH = {"unit": "a", "invocation": "0000000000000001"}
Way = Callable[[Keeper, Json], Json]
FORKS = """
import os, sys, time
if pid := os.fork():
    open(sys.argv[1], "w").write(f"{os.getpid()} {pid}\\n")
    time.sleep(1000)
else:
    if len(sys.argv) > 2:
        os.setsid()
    time.sleep(1000)
"""
HANDS_OVER = """
import os, socket, sys, time
if pid := os.fork():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.sendto(b"MAINPID=%d\\nREADY=1" % pid, os.environ["NOTIFY_SOCKET"])
    os._exit(3)
time.sleep(1000)
"""


@pytest.fixture
def old(bare: Keeper) -> Iterator[Keeper]:
    """A keeper that may be killed and started again; its last one ends in order."""
    bare.start()
    yield bare
    bare.stop()


def notify(keeper: Keeper) -> Path:
    return keeper.directory / "n" / "a"


def forked(keeper: Keeper, client: Client, way: Way, *arguments: str) -> tuple[int, int]:
    """A unit of two processes: the one that was spawned, and its child."""
    pids = keeper.directory / "work" / "pids"
    pids.parent.mkdir(exist_ok=True)
    plan = keeper.python(FORKS, str(pids), *arguments, notify=str(notify(keeper)))
    client.done("spawn", plan=way(keeper, plan))
    wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    first, second = pids.read_text().split()
    return int(first), int(second)


def moved(client: Client, keeper: Keeper, pid: int) -> None:
    """It names this process, and the keeper believes it."""
    tell(notify(keeper), b"MAINPID=%d" % pid)
    assert client.event("main")["pid"] == pid


@pytest.mark.parametrize("session", [(), ("setsid",)], ids=["same session", "own session"])
def test_the_end_of_the_new_main_is_the_end(keeper: Keeper, way: Way, session: tuple[str, ...]) -> None:
    """The old main's exit is none; the new one's is, with its status, and nothing is left."""
    client = keeper.client()
    first, second = forked(keeper, client, way, *session)
    moved(client, keeper, second)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{first}").exists())
    tell(notify(keeper), b"STATUS=still here")
    assert client.event("status")["status"] == "still here"
    os.kill(second, signal.SIGTERM)
    process = client.event("ended")["process"]
    assert (process["pid"], process["exit"]) == (second, -signal.SIGTERM)
    assert not alive(second)


@pytest.mark.parametrize("session", [(), ("setsid",)], ids=["same session", "own session"])
def test_the_old_main_does_not_outlive_the_new_one(keeper: Keeper, way: Way, session: tuple[str, ...]) -> None:
    """The whole tree is killed, the process that was spawned too."""
    client = keeper.client()
    first, second = forked(keeper, client, way, *session)
    moved(client, keeper, second)
    os.kill(second, signal.SIGKILL)
    event = client.event("ended")
    assert (event["process"]["exit"], event["left"]) == (-signal.SIGKILL, [])
    assert not alive(first)


def test_kill_and_signal_reach_the_new_main(keeper: Keeper, way: Way) -> None:
    """A signal goes to the process that it named; a kill gets all of it."""
    client = keeper.client()
    first, second = forked(keeper, client, way, "setsid")
    moved(client, keeper, second)
    client.done("signal", **WHICH, signal=signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{second}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    client.done("kill", **WHICH)
    assert client.event("ended")["left"] == []
    assert not alive(first)
    assert not alive(second)


def test_a_main_that_hands_over_and_exits_at_once(keeper: Keeper, way: Way) -> None:
    """Its last word counts before its death does: the unit lives on as the process that it named."""
    client = keeper.client()
    for number in range(10):
        plan = keeper.python(HANDS_OVER, invocation=f"{number:016}", notify=str(notify(keeper)))
        client.done("spawn", plan=way(keeper, plan))
        client.event("ready")
        assert not [event for event in client.events if event["event"] == "ended"]
        (row,) = keeper.client().welcome["processes"]  # type: ignore[attr-defined]
        client = keeper.client()
        wait_until(lambda: alive(row["pid"]))  # noqa: B023
        client.done("kill", unit="a", invocation=f"{number:016}")
        assert client.event("ended")["process"]["pid"] == row["pid"]


@pytest.mark.parametrize(
    "what", ["1", "0", "-5", "x", "", "4294967297", "99999999999999999999", "keeper", "unit", "dead"]
)
def test_what_is_not_its_own_is_ignored_and_told(keeper: Keeper, way: Way, what: str) -> None:
    """Pid 1, garbage, the keeper, another unit's process, a dead one: nothing changes, and the reason is told."""
    client = keeper.client()
    first, _ = forked(keeper, client, way)
    other = client.done("spawn", plan=way(keeper, keeper.shell("exec sleep 1000", unit="b")))["process"]["pid"]
    dead = subprocess.Popen(["true"])
    dead.wait()
    pid = {"keeper": str(keeper.process.pid), "unit": str(other), "dead": str(dead.pid)}.get(what, what)
    tell(notify(keeper), f"MAINPID={pid}".encode())
    assert "MAINPID=" in client.event("ignored")["text"]
    (row,) = (r for r in keeper.client().welcome["processes"] if r["unit"] == "a")  # type: ignore[attr-defined]
    assert row["pid"] == first


@pytest.mark.skipif(not ROOT, reason="needs a second uid")
def test_a_process_of_another_uid_is_refused(keeper: Keeper, way: Way) -> None:
    """Inside the unit, but not under its uid: a set-uid program that it started is not its main process."""
    client = keeper.client()
    pids = keeper.directory / "work" / "pids"
    pids.parent.mkdir()
    script = f"""
import os, time
pid = os.fork()
if pid == 0:
    os.setresuid(65534, 65534, 65534)
    time.sleep(1000)
open({str(pids)!r}, "w").write(f"{{pid}}\\n")
time.sleep(1000)
"""
    client.done("spawn", plan=way(keeper, keeper.python(script, notify=str(notify(keeper)))))
    wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    pid = int(pids.read_text())
    wait_until(lambda: os.stat(f"/proc/{pid}").st_uid == 65534)
    tell(notify(keeper), b"MAINPID=%d" % pid)
    assert "uid 65534" in client.event("ignored")["text"]


def test_adopted_after_the_keepers_death(old: Keeper, way: Way) -> None:
    """The next keeper watches the process that it named, and gets the one that was spawned too."""
    client = old.client()
    first, second = forked(old, client, way, "setsid")
    moved(client, old, second)
    old.process.send_signal(signal.SIGKILL)
    old.process.wait()
    client = old.start().client()
    (row,) = client.welcome["processes"]  # type: ignore[attr-defined]
    assert (row["pid"], row["ended"]) == (second, None)
    os.kill(second, signal.SIGKILL)
    assert client.event("ended")["left"] == []
    wait_until(lambda: not alive(first))


def test_kept_over_an_upgrade_in_place(old: Keeper, way: Way) -> None:
    """The same after an exec of the keeper, whichever of the two dies first."""
    client = old.client()
    first, second = forked(old, client, way)
    moved(client, old, second)
    client.done("upgrade")
    wait_until(old._serves)
    client = old.client()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{first}").exists())
    os.kill(second, signal.SIGTERM)
    assert client.event("ended")["process"]["exit"] == -signal.SIGTERM


def test_back_to_the_first(keeper: Keeper, way: Way) -> None:
    """It may take it back: then the child's exit is none again."""
    client = keeper.client()
    first, second = forked(keeper, client, way)
    moved(client, keeper, second)
    moved(client, keeper, first)
    os.kill(second, signal.SIGKILL)
    tell(notify(keeper), b"STATUS=still here")
    assert client.event("status")["status"] == "still here"
    os.kill(first, signal.SIGKILL)
    assert client.event("ended")["process"]["pid"] == first
