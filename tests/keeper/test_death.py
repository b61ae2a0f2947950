"""Death: nothing of a unit outlives it, however it tried to get away; and the end is told once, with its cause."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.keeper.conftest import ROOT, Client, Json, Keeper, alive
from tests.waiting import wait_until

Way = Callable[[Keeper, Json], Json]

ESCAPE = """
import os, sys, time
def escape(write):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write, b'%d\\n' % os.getpid())
            if sys.argv[1] == 'scrub':
                os.execve('/bin/sleep', ['sleep', '60'], {})
            time.sleep(60)
        os._exit(0)
    os.wait()
read, write = os.pipe()
for _ in range(3):
    escape(write)
pids = b''
while pids.count(b'\\n') < 3:
    pids += os.read(read, 100)
print(pids.decode().split(), flush=True)
print('ready', flush=True)
"""


def spawn_escapees(keeper: Keeper, client: Client, way: Way, tail: str, mode: str = "plain") -> list[int]:
    """Spawn a unit whose three grandchildren left its session and were orphaned; their pids."""
    client.done("spawn", plan=way(keeper, keeper.python(ESCAPE + tail, mode)))
    wait_until(lambda: "ready" in keeper.log())
    return [int(pid) for pid in eval(keeper.log().splitlines()[0])]


@pytest.mark.parametrize("mode", ["plain", "scrub"])
def test_escapees_die_with_the_unit(keeper: Keeper, way: Way, mode: str) -> None:
    """Double fork and setsid, even with the environment scrubbed: gone when the end is told."""
    client = keeper.client()
    pids = spawn_escapees(keeper, client, way, "sys.exit(7)", mode)
    ended = client.event("ended")
    assert not any(alive(pid) for pid in pids)
    assert (ended["process"]["exit"], ended["left"]) == (7, [])


def test_kill_takes_the_whole_tree(keeper: Keeper, way: Way) -> None:
    """The kill request: main process and escapees, within half a second."""
    client = keeper.client()
    pids = spawn_escapees(keeper, client, way, "time.sleep(60)")
    started = time.monotonic()
    assert client.done("kill", unit="a", invocation="0000000000000001") == {}
    ended = client.event("ended")
    assert time.monotonic() - started < 0.5
    assert ended["process"]["exit"] == -9
    assert not any(alive(pid) for pid in pids)


def test_a_unit_whose_tree_was_killed_runs_again(keeper: Keeper, way: Way) -> None:
    """The next invocation, in the same cgroup, lives and ends by itself; again after a kill by request."""
    client = keeper.client()
    for number in range(3):
        invocation = f"{number:016x}"
        client.done("spawn", plan=way(keeper, keeper.shell("setsid sleep 60 & exit 5", invocation=invocation)))
        assert client.event("ended")["process"]["exit"] == 5
        invocation = f"{number:015x}a"
        client.done("spawn", plan=way(keeper, keeper.shell("setsid sleep 60 & exec sleep 60", invocation=invocation)))
        client.done("kill", unit="a", invocation=invocation)
        assert client.event("ended")["process"]["exit"] == -9


def test_another_units_escapees_live_on(keeper: Keeper, way: Way) -> None:
    """The death of one unit takes nothing from its neighbour."""
    client = keeper.client()
    pids = spawn_escapees(keeper, client, way, "time.sleep(60)")
    client.done("spawn", plan=way(keeper, keeper.shell("exit 0", unit="b")))
    assert client.event("ended")["process"]["unit"] == "b"
    assert all(alive(pid) for pid in pids)


@pytest.mark.bad_input("ignores SIGTERM")
def test_signal_is_ignored_but_kill_is_not(keeper: Keeper, way: Way) -> None:
    """A program that ignores SIGTERM lives on after it and dies by kill."""
    client = keeper.client()
    plan = way(keeper, keeper.shell("trap 'echo no' TERM; echo up; while :; do sleep 60 & wait; done"))
    pid = client.done("spawn", plan=plan)["process"]["pid"]
    wait_until(lambda: "up" in keeper.log())
    which = {"unit": "a", "invocation": "0000000000000001"}
    client.done("signal", **which, signal=int(signal.SIGTERM))
    wait_until(lambda: "no" in keeper.log())
    assert alive(pid)
    client.done("kill", **which)
    assert client.event("ended")["process"]["exit"] == -signal.SIGKILL


def test_whole_signal_reaches_the_children(keeper: Keeper, way: Way) -> None:
    """With ``whole`` the process group gets the signal, once each; without it only the main process."""
    client = keeper.client()
    script = "trap 'echo main' USR1; (trap 'echo child' USR1; echo up; while :; do sleep 60 & wait; done) & "
    client.done("spawn", plan=way(keeper, keeper.shell(script + "echo up; while :; do wait; done")))
    wait_until(lambda: keeper.log().count("up") == 2)
    which = {"unit": "a", "invocation": "0000000000000001", "signal": int(signal.SIGUSR1)}
    client.done("signal", **which)
    wait_until(lambda: keeper.log().count("main") == 1)
    assert "child" not in keeper.log()
    # The sleeps of the group die of USR1; the shells print.
    client.done("signal", **which, whole=True)
    wait_until(lambda: (keeper.log().count("main"), keeper.log().count("child")) == (2, 1))


def test_signal_to_another_invocation_is_refused(keeper: Keeper) -> None:
    """A late request about an earlier invocation never reaches the new one."""
    client = keeper.client()
    row = client.done("spawn", plan=keeper.shell("exec sleep 60", invocation="0000000000000002"))["process"]
    for do in ("signal", "kill"):
        error = client.refused(do, unit="a", invocation="0000000000000001", signal=9)
        assert error["code"] == "gone"
    assert alive(row["pid"])


def test_exit_by_signal_is_negative(keeper: Keeper) -> None:
    """Killed from outside: the end says by which signal, at once."""
    client = keeper.client()
    row = client.done("spawn", plan=keeper.shell("exec sleep 60"))["process"]
    before = time.monotonic()
    os.kill(row["pid"], signal.SIGSEGV)
    assert client.event("ended")["process"]["exit"] == -signal.SIGSEGV
    assert time.monotonic() - before < 0.5


def test_orphans_of_orphans_are_reaped(keeper: Keeper) -> None:
    """What dies below a unit becomes no zombie of the keeper."""
    client = keeper.client()
    script = "for i in 1 2 3 4 5; do (sh -c 'exit 1' &) ; done; echo up; exec sleep 60"
    client.done("spawn", plan=keeper.shell(script))
    wait_until(lambda: "up" in keeper.log())
    children = Path(f"/proc/{keeper.process.pid}/task/{keeper.process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 1)


def test_release_forgets_the_dead_only(keeper: Keeper) -> None:
    """A living process is not released; a dead one is, once; a stranger is not known."""
    client = keeper.client()
    which = {"unit": "a", "invocation": "0000000000000001"}
    client.done("spawn", plan=keeper.shell("exec sleep 60"))
    assert client.refused("release", **which)["code"] == "exists"
    assert client.refused("forget", unit="a")["code"] == "exists"
    client.done("kill", **which)
    client.event("ended")
    client.done("release", **which)
    assert client.refused("release", **which)["code"] == "gone"
    assert keeper.client().welcome["processes"] == []  # type: ignore[attr-defined]


def test_spawn_releases_the_dead_one(keeper: Keeper) -> None:
    """The next invocation takes the place of the dead one."""
    client = keeper.client()
    client.done("spawn", plan=keeper.shell("exit 0"))
    client.event("ended")
    client.done("spawn", plan=keeper.shell("exec sleep 60", invocation="0000000000000002"))
    (row,) = keeper.client().welcome["processes"]  # type: ignore[attr-defined]
    assert row["invocation"] == "0000000000000002"


def test_end_kills_what_lives(keeper: Keeper, way: Way) -> None:
    """After ``end`` no process of any unit is there, escapees included, and the keeper has left."""
    client = keeper.client()
    pids = spawn_escapees(keeper, client, way, "time.sleep(60)")
    pids.append(client.done("spawn", plan=way(keeper, keeper.shell("exec sleep 60", unit="b")))["process"]["pid"])
    assert client.done("end") == {}
    assert keeper.process.wait(5) == 0
    assert not any(alive(pid) for pid in pids)
    assert {event["event"] for event in client.events} == {"ended"}


def test_descriptors_do_not_add_up(keeper: Keeper, way: Way) -> None:
    """After thirty invocations, good and bad, the keeper holds as many descriptors as after two."""
    client = keeper.client()
    counts = []
    for number in range(30):
        fields = {"notify": f"{keeper.directory}/n/a", "invocation": f"{number:016}"}
        client.done("spawn", plan=way(keeper, keeper.shell("exit 0", **fields)))
        client.event("ended")
        client.refused("spawn", plan=way(keeper, keeper.shell("exit 0", **fields, executable="/nonexistent")))
        if ROOT:
            counts.append(len(list(Path(f"/proc/{keeper.process.pid}/fd").iterdir())))
    assert len(set(counts[1:])) <= 1
    children = Path(f"/proc/{keeper.process.pid}/task/{keeper.process.pid}/children")
    assert children.read_text() == ""


def test_fifty_units_die_at_once(keeper: Keeper, way: Way) -> None:
    """A burst of deaths: every end is told, with the right exit, within two seconds."""
    client = keeper.client()
    rows = [
        client.done("spawn", plan=way(keeper, keeper.shell("exec sleep 60", unit=f"u{n}", output=None)))["process"]
        for n in range(50)
    ]
    before = time.monotonic()
    for row in rows:
        os.kill(row["pid"], signal.SIGTERM)
    ends = [client.event("ended")["process"] for _ in rows]
    assert time.monotonic() - before < 2
    assert {(end["unit"], end["exit"]) for end in ends} == {(f"u{n}", -15) for n in range(50)}


def test_spawn_whose_client_went_away_is_in_the_next_snapshot(keeper: Keeper) -> None:
    """An answer that nobody heard is not lost: a started process is listed, a failed one is listed as ended."""
    client = keeper.client()
    client.start("spawn", plan=keeper.shell("exec sleep 60"))
    client.start("spawn", plan=keeper.shell("exit 0", unit="b", executable="/nonexistent"))
    client.close()
    again = keeper.client()
    rows = {row["unit"]: row for row in again.welcome["processes"]}  # type: ignore[attr-defined]
    assert alive(rows["a"]["pid"])
    if "b" in rows and rows["b"]["ended"] is None:
        rows["b"] = again.event("ended")["process"]
    assert "b" not in rows or rows["b"]["exit"] == 127


@pytest.mark.parametrize("tries", [1, 2])
def test_a_unit_whose_cgroup_was_killed_starts_again(keeper: Keeper, tries: int) -> None:
    """Some kernels kill whoever is born in a cgroup that was killed before: the next child goes another way, or the one
    after it where the keeper could not know, as somebody else (2) wrote to cgroup.kill."""
    if keeper.cgroup is None:
        pytest.skip("no writable cgroup2 mount")
    path = keeper.cgroup / "a"
    client = keeper.client()

    def spawned(invocation: str) -> bool:
        """Whether the program itself came to run, in its cgroup."""
        script = "echo $AGENTD_INVOCATION; exec sleep 1000"
        plan = keeper.shell(script, cgroups=[{"path": str(path), "kill": True}], invocation=invocation)
        pid = client.done("spawn", plan=plan)["process"]["pid"]
        wait_until(lambda: invocation in keeper.log() or not alive(pid))
        if not alive(pid):
            client.event("ended")
            return False
        assert str(pid) in (path / "cgroup.procs").read_text().split()
        return True

    assert spawned("01")
    if tries == 1:
        client.done("kill", unit="a", invocation="01")
    else:
        (path / "cgroup.kill").write_text("1")
    client.event("ended")
    assert any(spawned(f"1{number}") for number in range(tries))
