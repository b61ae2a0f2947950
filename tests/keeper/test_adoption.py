"""A keeper is killed and the next one takes over: processes, endings, sockets, output, blobs, cgroups, the daemon."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from agentd.keeper import pidfd, trail
from agentd.keeper.tree import read_stat
from tests.keeper.conftest import ROOT, TIMEOUT, Client, Json, Keeper, alive
from tests.waiting import wait_until

SUBREAPER = 36
Way = Callable[[Keeper, Json], Json]


@pytest.fixture(autouse=True)
def nursery() -> Iterator[None]:
    """Orphans of a killed keeper become ours, as they would become init's; we reap what is left of them."""
    prctl = ctypes.CDLL(None).prctl
    prctl(SUBREAPER, 1, 0, 0, 0)
    yield
    prctl(SUBREAPER, 0, 0, 0, 0)
    for name in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        row = read_stat(int(name))
        if row is not None and row.state == "Z":
            os.waitpid(int(name), 0)


@pytest.fixture
def old(short_dir: Path) -> Iterator[Keeper]:
    """A running keeper that a test may kill and start again; the last one must leave nothing."""
    made = Keeper(short_dir).start()
    yield made
    try:
        assert made.stop() == 0
    finally:  # one that a failed test left in the middle of something
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()
    assert {p.name for p in short_dir.iterdir()} <= {"log", "work", "starts"}
    assert made.cgroup is None or not made.cgroup.exists()


def crash(keeper: Keeper) -> None:
    """SIGKILL the keeper."""
    for client in keeper.clients:
        client.close()
    keeper.clients.clear()
    keeper.process.kill()
    keeper.process.wait()


def blobs(files: Path) -> str:
    """What stands in the file of the blobs."""
    path = files / "blobs.log"
    return path.read_text() if path.exists() else ""


def upgrade(keeper: Keeper) -> None:
    """SIGUSR2, and wait until the new program serves: it has closed our connection, and answers the next."""
    client = keeper.client()
    keeper.process.send_signal(signal.SIGUSR2)
    with contextlib.suppress(EOFError, ConnectionError):
        while client.packet():
            continue
    keeper.client().close()


def passed(moment: float) -> bool:
    return time.monotonic() >= moment


def longer(keeper: Keeper, lines: int) -> bool:
    return keeper.log().count("\n") > lines


def dead(pid: int) -> bool:
    return not alive(pid)


def row_of(client: Client, unit: str = "a") -> Json:
    found: Json = {row["unit"]: row for row in client.welcome["processes"]}[unit]  # type: ignore[attr-defined]
    return found


def which(row: Json) -> Json:
    return {"unit": row["unit"], "invocation": row["invocation"]}


def test_a_living_unit_is_adopted_and_its_end_is_seen(old: Keeper, way: Way) -> None:
    """Same pid, start time and times; signals reach it; its exit status is known although it is not our child."""
    script = "trap 'exit 7' USR1; while :; do sleep 0.02; done"
    before = old.client().done("spawn", plan=way(old, old.shell(script)))["process"]
    crash(old)
    client = old.start().client()
    row = row_of(client)
    assert {k: row[k] for k in ("pid", "start_time", "started", "invocation", "ended")} == {
        k: before[k] for k in ("pid", "start_time", "started", "invocation", "ended")
    }
    assert row["extra"]["adopted"] is True
    assert client.refused("spawn", plan=old.shell("exit 0", invocation="0000000000000002"))["code"] == "exists"
    client.done("signal", **which(row), signal=signal.SIGUSR1)
    ended = client.event("ended")
    assert (ended["process"]["exit"], ended["left"]) == (7, [])
    client.done("release", **which(row))
    again = client.done("spawn", plan=way(old, old.shell("exit 0", invocation="0000000000000002")))
    assert "adopted" not in again["process"]["extra"]
    assert client.event("ended")["process"]["exit"] == 0


def test_the_tree_of_an_adopted_unit_dies_with_it(old: Keeper, way: Way) -> None:
    """Also what has left its session and its parent: by the cgroup, else by the marker it carries."""
    script = "(setsid sh -c 'sleep 1000 & echo $! >&3; wait' 3>&1 &) ; sleep 1000 & echo $!; exec sleep 1000"
    row = old.client().done("spawn", plan=way(old, old.shell(script)))["process"]
    wait_until(lambda: len(old.log().split()) == 2, TIMEOUT)
    pids = [row["pid"], *map(int, old.log().split())]
    crash(old)
    client = old.start().client()
    client.done("kill", **which(row))
    assert client.event("ended")["process"]["exit"] == -9
    wait_until(lambda: not any(map(alive, pids)), TIMEOUT)


def test_a_death_in_between_is_told_and_its_tree_goes(old: Keeper, way: Way) -> None:
    """Reaped by somebody else while no keeper lived: ended, status unknown; what it left is killed at adoption."""
    row = old.client().done("spawn", plan=way(old, old.shell("setsid sleep 1000 & echo $!; exec sleep 1000")))[
        "process"
    ]
    wait_until(lambda: old.log().strip(), TIMEOUT)
    child = int(old.log())
    crash(old)
    os.kill(row["pid"], signal.SIGKILL)
    os.waitpid(row["pid"], 0)
    client = old.start().client()
    found = row_of(client)
    if found["ended"] is None:
        found = client.event("ended")["process"]
    assert (found["invocation"], found["exit"]) == (row["invocation"], None)
    wait_until(lambda: not alive(child), TIMEOUT)
    client.done("release", **which(row))


def test_an_unreaped_death_in_between_has_its_status(old: Keeper) -> None:
    """A zombie that nobody has reaped yet still says how it ended."""
    row = old.client().done("spawn", plan=old.shell("read x < /dev/zero; exit 9 & wait; exec sleep 1000"))["process"]
    crash(old)
    os.kill(row["pid"], signal.SIGUSR1)
    wait_until(lambda: not alive(row["pid"]), TIMEOUT)
    client = old.start().client()
    found = row_of(client)
    if found["ended"] is None:
        found = client.event("ended")["process"]
    assert found["exit"] == -signal.SIGUSR1


def test_an_end_that_was_not_released_is_told_again(old: Keeper) -> None:
    """Ended before the crash: exit status and time are in the next snapshot too."""
    client = old.client()
    client.done("spawn", plan=old.shell("exit 5"))
    before = client.event("ended")["process"]
    crash(old)
    row = row_of(old.start().client())
    assert (row["exit"], row["ended"], row["pid"]) == (5, before["ended"], before["pid"])


def test_ready_status_and_blobs_survive(old: Keeper) -> None:
    """What a unit has said and what the daemon left are in the next snapshot; READY is not told twice."""
    client = old.client()
    client.done("spawn", plan=old.shell("exec sleep 1000", notify=f"{old.directory}/n/a"))
    client.done("blob", unit="a", text="of a")
    client.done("blob", unit="gone", text="without a process")
    client.done("blob", unit="dropped", text="x")
    client.done("blob", unit="dropped", text=None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1\nSTATUS=warm", f"{old.directory}/n/a")
    ready = client.event("ready")["at"]
    files = old.directory / "keeper"
    wait_until(lambda: "without a process" in blobs(files), TIMEOUT)
    wait_until(lambda: any('"warm"' in path.read_text() for path in files.glob("*.json")), TIMEOUT)
    crash(old)
    client = old.start().client()
    row = row_of(client)
    assert (row["ready"], row["status"], row["beat"]) == (ready, "warm", None)
    assert client.welcome["blobs"] == {"a": "of a", "gone": "without a process"}  # type: ignore[attr-defined]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1\nSTATUS=warmer\nWATCHDOG=1", f"{old.directory}/n/a")
    assert client.event("status")["status"] == "warmer"
    assert [event["event"] for event in client.events] == []
    assert client.done("beats")["beats"]["a"] > ready
    client.done("forget", unit="gone")
    crash(old)
    assert set(old.start().client().welcome["blobs"]) == {"a"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["crash", "upgrade"])
def test_what_a_unit_asked_for_survives(old: Keeper, how: str) -> None:
    """EXTEND_TIMEOUT_USEC, WATCHDOG_USEC and RELOADING are in the next snapshot, and nothing of it is told twice."""
    client, files = old.client(), old.directory / "keeper"
    client.done("spawn", plan=old.shell("exec sleep 1000", notify=f"{old.directory}/n/a"))
    asked = b"EXTEND_TIMEOUT_USEC=9000000\nWATCHDOG_USEC=250000\nRELOADING=1\nWATCHDOG=trigger"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(asked, f"{old.directory}/n/a")
    until = client.event("extend")["until"]
    assert client.event("interval")["seconds"] == 0.25
    wait_until(lambda: any('"interval"' in path.read_text() for path in files.glob("*.json")), TIMEOUT)
    if how == "crash":
        crash(old)
        old.start()
    else:
        upgrade(old)
    client = old.client()
    extra = row_of(client)["extra"]
    assert (extra["extended"], extra["interval"], extra["reloading"]) == (until, 0.25, True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"WATCHDOG_USEC=250000\nSTATUS=same", f"{old.directory}/n/a")
    assert client.event("status")["status"] == "same"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"WATCHDOG_USEC=500000", f"{old.directory}/n/a")
    assert client.event("interval")["seconds"] == 0.5
    assert [event["event"] for event in client.events] == []


def test_notify_by_path_goes_on_and_a_connected_socket_is_told(old: Keeper) -> None:
    """Who sends by path, as sd_notify does, is heard again. A connected socket gets ECONNREFUSED: it connects again."""
    path = f"{old.directory}/n/a"
    old.client().done("spawn", plan=old.shell("exec sleep 1000", notify=path))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as by_path,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connected,
    ):
        connected.connect(path)
        connected.send(b"STATUS=1")
        crash(old)
        with pytest.raises(ConnectionRefusedError):  # at once: it does not hang where nobody reads
            by_path.sendto(b"WATCHDOG=1", path)
        client = old.start().client()
        by_path.sendto(b"STATUS=2", path)
        assert client.event("status")["status"] == "2"
        with pytest.raises(ConnectionRefusedError):
            connected.send(b"STATUS=3")
        connected.connect(path)
        connected.send(b"STATUS=4")
        assert client.event("status")["status"] == "4"


def test_a_writer_loses_nothing_and_never_gets_epipe(old: Keeper) -> None:
    """Three keepers are killed under a steady writer: every line is there once, whole and in order."""
    script = "n=0; while [ $n -lt 40000 ]; do echo $n; n=$((n+1)); done; echo end; exec sleep 1000"
    old.client().done("spawn", plan=old.shell(script))
    for count in (100, 10_000, 20_000):
        wait_until(partial(longer, old, count), 30)
        crash(old)
        old.start()
    wait_until(lambda: old.log().endswith("end\n"), 30)
    assert old.log() == "".join(f"{n}\n" for n in range(40_000)) + "end\n"


def serve(keeper: Keeper, word: str, *listeners: Json, **fields: str) -> Json:
    """A plan that answers each connection with a word."""
    script = (
        "import socket, sys\nsock = socket.socket(fileno=3)\n"
        "while True:\n c, _ = sock.accept()\n c.sendall(sys.argv[1].encode())\n c.close()\n"
    )
    return keeper.python(script, word, listeners=listeners, **fields)


def ask(address: str) -> str:
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    with socket.create_connection((host, int(port)), TIMEOUT) as sock:
        return sock.recv(100).decode()


LISTENER = {"name": "http", "address": "tcp:127.0.0.1:0"}


def test_listeners_outlive_the_keeper(old: Keeper) -> None:
    """The living unit serves on; its successor gets the same port, and as root the very same socket: a call that comes
    while neither lives waits in its backlog. Without root it is opened again when the old one is dead."""
    answer = old.client().done("spawn", plan=serve(old, "one", LISTENER))
    row, address = answer["process"], answer["listeners"]["http"]
    assert ask(address) == "one"
    crash(old)
    assert ask(address) == "one"
    client = old.start().client()
    assert ask(address) == "one"
    known = client.welcome["listeners"]  # type: ignore[attr-defined]
    assert known == {"a/http": address} or (not ROOT and known == {})  # some hosts let it be taken without root too
    client.done("kill", **which(row))
    client.event("ended")
    words: list[str] = []
    caller = threading.Thread(target=lambda: words.append(ask(address)))
    caller.start()
    answer = client.done("spawn", plan=serve(old, "two", LISTENER, invocation="0000000000000002"))
    caller.join(TIMEOUT)
    assert (answer["listeners"]["http"], words) == (address, ["two"])


def test_listeners_of_the_dead_are_opened_again_at_the_same_port(old: Keeper) -> None:
    """Unit and keeper both died, or the unit rested: from adoption on calls wait for the successor."""
    client = old.client()
    answer = client.done("spawn", plan=serve(old, "one", LISTENER))
    address = answer["listeners"]["http"]
    crash(old)
    os.kill(answer["process"]["pid"], signal.SIGKILL)
    os.waitpid(answer["process"]["pid"], 0)
    with pytest.raises(ConnectionRefusedError):
        ask(address)
    client = old.start().client()
    assert client.welcome["listeners"] == {"a/http": address}  # type: ignore[attr-defined]
    client.done("release", unit="a", invocation=answer["process"]["invocation"])
    crash(old)  # nothing but the listener is left
    client = old.start().client()
    answer = client.done("spawn", plan=serve(old, "two", LISTENER, invocation="0000000000000002"))
    assert (answer["listeners"]["http"], ask(address)) == (address, "two")
    client.done("kill", unit="a", invocation="0000000000000002")


def test_files_of_another_boot_mean_nothing(old: Keeper) -> None:
    """After a reboot a pid is another's: nothing is adopted, nothing is killed."""
    client = old.client()
    row = client.done("spawn", plan=old.shell("exec sleep 1000"))["process"]
    client.done("blob", unit="a", text="x")
    files = old.directory / "keeper"
    wait_until(lambda: blobs(files), TIMEOUT)
    crash(old)
    for path in files.iterdir():
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | {"boot": "another"}), *rest, ""]))
    client = old.start().client()
    assert (client.welcome["processes"], client.welcome["blobs"]) == ([], {})  # type: ignore[attr-defined]
    assert alive(row["pid"])
    os.kill(row["pid"], signal.SIGKILL)
    (old.directory / "o" / "a").unlink()


@pytest.mark.bad_input("pid reuse")
def test_a_recycled_pid_is_not_adopted(old: Keeper) -> None:
    """The pid lives but was born at another moment: our process is dead, and the stranger is not touched."""
    row = old.client().done("spawn", plan=old.shell("exec sleep 1000"))["process"]
    crash(old)
    (path,) = (p for p in (old.directory / "keeper").iterdir() if p.name != "keeper.json")
    content = trail.read(str(path))
    content["process"]["start_time"] -= 1
    path.write_text(json.dumps(content | {"plan": content["plan"] | {"invocation": "0000000000000000"}}))
    client = old.start().client()
    assert row_of(client)["exit"] is None
    assert row_of(client)["ended"] is not None
    assert alive(row["pid"])
    os.kill(row["pid"], signal.SIGKILL)


def test_a_broken_file_stops_nobody(old: Keeper) -> None:
    """What cannot be read is said and left out; the others are adopted."""
    client = old.client()
    client.done("spawn", plan=old.shell("exec sleep 1000"))
    client.done("spawn", plan=old.shell("exec sleep 1000", unit="b"))
    crash(old)
    (old.directory / "keeper" / "0000.json").write_text("{")
    (old.directory / "keeper" / "0001.json").write_text('{"plan": 1}')
    err = old.directory / "work"
    with err.open("wb") as file:
        client = old.start(stderr=file).client()
    assert {row["unit"] for row in client.welcome["processes"]} == {"a", "b"}  # type: ignore[attr-defined]
    assert "0000.json cannot be read" in err.read_text()
    assert "none of ours" in err.read_text()
    for path in (old.directory / "keeper").glob("000?.json"):
        path.unlink()


def test_a_spawn_cut_short_is_never_doubled(old: Keeper) -> None:
    """The keeper is killed at any moment of a spawn: afterwards the process is adopted, or does not live."""
    starts = old.directory / "starts"
    luck = random.Random(1)
    for number in range(1, 16):
        invocation = f"{number:016}"
        client = old.client()
        client.start("spawn", plan=old.shell(f"echo {invocation} >> {starts}; exec sleep 1000", invocation=invocation))
        end = time.monotonic() + luck.uniform(0, 0.012)
        wait_until(partial(passed, end))
        crash(old)
        client = old.start().client()
        rows = client.welcome["processes"]  # type: ignore[attr-defined]
        living = [row for row in rows if row["ended"] is None]
        everybody = map(int, filter(str.isdigit, os.listdir("/proc")))
        marked = [pid for pid in everybody if carries(pid, invocation, str(old.directory))]
        assert marked == [row["pid"] for row in living]
        for row in living:
            client.done("kill", **which(row))
            client.event("ended")
    lines = starts.read_text().splitlines() if starts.exists() else []
    assert len(lines) == len(set(lines))


def carries(pid: int, invocation: str, runtime: str) -> bool:
    """Whether a living process has this invocation of this fleet in its environment."""
    try:
        text = Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return False
    return alive(pid) and f"AGENTD_INVOCATION={invocation}\0" in text and f"AGENTD_RUNTIME={runtime}\0" in text + "\0"


def test_exit_status_of_strangers() -> None:
    """A pidfd tells how a process ended that somebody else has reaped (Linux 6.15), and the zombie before that."""
    for script, code in (("exit 3", 3), ("kill -USR2 $$", -signal.SIGUSR2), ("exit 0", 0)):
        process = subprocess.Popen(["/bin/sh", "-c", f"read x; {script}"], stdin=subprocess.PIPE)
        row = read_stat(process.pid)
        assert row is not None
        fd = pidfd.opened(process.pid, row.start_time)
        assert pidfd.status(fd, process.pid, row.start_time) is None
        assert process.stdin is not None
        process.stdin.close()
        wait_until(partial(dead, process.pid))
        assert pidfd.status(fd, process.pid, row.start_time) == code
        process.wait()
        expected = code if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15) else None
        assert pidfd.status(fd, process.pid, row.start_time) == expected
        assert pidfd.opened(process.pid, row.start_time) == -1
        os.close(fd)


# --- the daemon slot


def test_the_daemon_is_adopted_and_never_doubled(bare: Keeper) -> None:
    """The next keeper takes the living daemon as its slot; when that dies, it is started again."""
    log = bare.directory / "starts"
    daemon = ["/bin/sh", "-c", f"echo $$ >> {log}; exec sleep 1000"]
    bare.start(*daemon, stderr=subprocess.DEVNULL)
    wait_until(lambda: log.exists() and log.read_text().strip(), TIMEOUT)
    wait_until((bare.directory / "keeper" / "keeper.json").exists)
    first = int(log.read_text())
    crash(bare)
    bare.start(*daemon, stderr=subprocess.DEVNULL)
    client = bare.client()
    client.close()
    assert log.read_text() == f"{first}\n"
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(log.read_text().split()) == 2, TIMEOUT)
    bare.process.terminate()  # nothing lives, nobody is connected: the daemon is told, too
    assert bare.process.wait(TIMEOUT) == 0
    assert not alive(int(log.read_text().split()[1]))
    assert {p.name for p in bare.directory.iterdir()} == {"starts"}


# --- upgrade in place


def test_an_upgrade_loses_nothing(old: Keeper, way: Way) -> None:
    """Same process, new program: children stay children, sockets and FIFO stay open, beats and blobs are known."""
    client = old.client()
    path = f"{old.directory}/n/a"
    script = "n=0; while [ $n -lt 20000 ]; do echo $n; n=$((n+1)); done; echo end;"
    script += "trap 'exit 7' USR1; while :; do sleep 0.02; done"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        row = client.done("spawn", plan=way(old, old.shell(script, notify=path)))["process"]
        address = client.done("spawn", plan=serve(old, "one", LISTENER, unit="b"))["listeners"]["http"]
        client.done("blob", unit="a", text="kept")
        sock.connect(path)
        sock.send(b"READY=1\nWATCHDOG=1\nSTATUS=fine")
        client.event("ready")
        born = read_stat(old.process.pid)
        epoch = client.welcome["keeper"]["epoch"]  # type: ignore[attr-defined]
        for _ in range(3):
            upgrade(old)
        assert read_stat(old.process.pid).start_time == born.start_time  # type: ignore[union-attr]
        client = old.client()
        found = row_of(client)
        assert client.welcome["keeper"]["epoch"] == epoch  # type: ignore[attr-defined]
        assert (found["pid"], found["status"], client.welcome["blobs"]["a"]) == (row["pid"], "fine", "kept")  # type: ignore[attr-defined]
        assert found["beat"] is not None
        assert "adopted" not in found["extra"]
        sock.send(b"STATUS=still connected")
        assert client.event("status")["status"] == "still connected"
    assert ask(address) == "one"
    assert client.welcome["listeners"] == {"b/http": address}  # type: ignore[attr-defined]
    wait_until(lambda: old.log().endswith("end\n"), TIMEOUT)
    client.done("signal", **which(found), signal=signal.SIGUSR1)
    assert client.event("ended")["process"]["exit"] == 7
    assert old.log() == "".join(f"{n}\n" for n in range(20_000)) + "end\n"


def test_an_adopted_unit_goes_through_an_upgrade(old: Keeper) -> None:
    """Crash, adoption, upgrade, and then its end is still seen with its status."""
    row = old.client().done("spawn", plan=old.shell("trap 'exit 7' USR1; while :; do sleep 0.02; done"))["process"]
    crash(old)
    old.start()
    upgrade(old)
    client = old.client()
    assert row_of(client)["extra"]["adopted"] is True
    os.kill(row["pid"], signal.SIGUSR1)
    assert client.event("ended")["process"]["exit"] == 7


def test_children_get_the_first_keepers_limits_after_an_upgrade(short_dir: Path) -> None:
    """The keeper raises its own; what it was given goes over the exec with it."""
    keeper = Keeper(short_dir)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        keeper.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    upgrade(keeper)
    client = keeper.client()
    client.done("spawn", plan=keeper.shell("ulimit -n; ls /proc/self/fd | wc -l"))
    client.event("ended")
    assert keeper.log().split() == [str(min(soft, 512)), "4"]
    assert keeper.stop() == 0


def test_a_death_during_the_upgrade_is_seen(old: Keeper) -> None:
    """Units that end at any moment of it have their status; none is missed."""
    client = old.client()
    for number in range(20):
        client.done("spawn", plan=old.shell(f"sleep 0.{number:02}; exit {number}", unit=f"u{number}"))
    upgrade(old)
    client = old.client()
    found = {row["unit"]: row["exit"] for row in client.welcome["processes"] if row["ended"] is not None}  # type: ignore[attr-defined]
    while len(found) < 20:
        row = client.event("ended")["process"]
        found[row["unit"]] = row["exit"]
    assert found == {f"u{number}": number for number in range(20)}


def test_upgrade_by_request_and_its_refusals(old: Keeper) -> None:
    """The client is answered before the exec. A keeper that is told to stop is not upgraded any more."""
    client = old.client()
    client.done("spawn", plan=old.shell("exec sleep 1000"))
    assert client.ask("upgrade") == {}
    with pytest.raises((EOFError, ConnectionError)):
        client.packet()
    client = old.client()
    assert row_of(client)["ended"] is None
    old.process.terminate()
    client.event("stopping")
    assert client.refused("upgrade")["code"] == "ending"
    client.done("end")
    assert old.process.wait(TIMEOUT) == 0


def test_a_program_that_cannot_take_over_is_not_taken(bare: Keeper) -> None:
    """It is asked first; the old one goes on with everything, and says why."""
    work = bare.directory / "work"
    work.mkdir()
    program = work / "keeper.py"
    good = "import sys\nfrom agentd.keeper import main\nsys.exit(main.main())\n"
    program.write_text(good)
    bare.process = subprocess.Popen([sys.executable, "-S", str(program), "--runtime", str(bare.directory)], env=here())
    wait_until(bare._serves, TIMEOUT)
    client = bare.client()
    row = client.done("spawn", plan=bare.shell("exec sleep 1000"))["process"]
    program.write_text("raise SystemExit(3)\n")
    error = client.refused("upgrade")
    assert "asked, it ended with status 3" in error["message"]
    assert client.done("beats")["beats"] == {}
    program.write_text(good)
    client.done("upgrade")
    assert row_of(bare.client())["pid"] == row["pid"]
    assert bare.stop() == 0


def here() -> dict[str, str]:
    from tests.keeper.conftest import SOURCE

    return {**os.environ, "PYTHONPATH": str(SOURCE)}
