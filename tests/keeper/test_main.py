"""The process: its lock, its daemon slot, its signals, its end."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentd.keeper.fleet import Fleet
from agentd.keeper.loop import Loop
from agentd.keeper.main import arguments
from agentd.keeper.slot import Slot
from agentd.keeper.tree import read_stat
from tests.keeper.conftest import TIMEOUT, Client, Keeper, alive
from tests.waiting import wait_until


def lines(path: Path) -> list[str]:
    """The lines of a file that may not be there yet."""
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.bad_input("two keepers")
def test_two_keepers_on_one_directory(keeper: Keeper) -> None:
    """The second says so in one line, exits 1 and touches nothing."""
    client = keeper.client()
    argv = [sys.executable, "-m", "agentd.keeper.main", "--runtime", str(keeper.directory)]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert f"{keeper.directory}: another keeper runs on this directory" in run.stderr
    assert client.done("beats")["beats"] == {}
    assert keeper.client().done("beats")["beats"] == {}


@pytest.mark.parametrize("argv", [[], ["--runtime"], ["--nonsense", "x"], ["--", "daemon"]])
def test_wrong_arguments(argv: list[str]) -> None:
    """One line with the usage, exit 2."""
    run = subprocess.run([sys.executable, "-m", "agentd.keeper.main", *argv], capture_output=True, text=True)
    assert run.returncode == 2
    assert "usage: agentd-keeper" in run.stderr
    assert run.stderr.count("\n") == 1


def test_arguments_are_read() -> None:
    """Options with a space or an equals sign; what follows -- is the daemon's."""
    assert arguments(["--runtime", "/r", "--state=/s", "--", "d", "--runtime"]) == ("/r", "/s", ["d", "--runtime"])


def test_directory_that_cannot_be_made(short_dir: Path) -> None:
    """A runtime directory below a file: one line that names it, exit 1."""
    (short_dir / "file").write_text("")
    argv = [sys.executable, "-m", "agentd.keeper.main", "--runtime", str(short_dir / "file" / "x")]
    run = subprocess.run(argv, capture_output=True, text=True)
    assert (run.returncode, run.stderr.count("\n")) == (1, 1)
    assert f"{short_dir}/file/x: Not a directory" in run.stderr


def test_directory_whose_name_is_too_long_for_a_socket(short_dir: Path) -> None:
    """A socket path holds 107 bytes: one line that names it, exit 1, nothing left."""
    runtime = short_dir / ("x" * 110)
    argv = [sys.executable, "-m", "agentd.keeper.main", "--runtime", str(runtime)]
    run = subprocess.run(argv, capture_output=True, text=True)
    assert (run.returncode, run.stderr.count("\n")) == (1, 1)
    assert f"{runtime}/keeper.sock: AF_UNIX path too long" in run.stderr
    assert list(runtime.iterdir()) == []


def test_daemon_is_restarted_with_back_off(bare: Keeper) -> None:
    """A daemon that dies young comes back after 100 ms, then 200, then 400; it finds the keeper by environment."""
    log = bare.directory / "starts"
    script = f'cut -d" " -f1 /proc/uptime >> {log}; echo "$AGENTD_KEEPER" >> {log}.env; exit 1'
    bare.start("/bin/sh", "-c", script, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(lines(log)) >= 4, TIMEOUT)
    times = [float(line) for line in lines(log)]
    gaps = [b - a for a, b in itertools.pairwise(times)][:3]
    assert all(low - 0.02 <= gap < low + 0.5 for low, gap in zip((0.1, 0.2, 0.4), gaps, strict=True)), gaps
    assert lines(Path(f"{log}.env"))[0] == str(bare.directory / "keeper.sock")
    client = bare.client()
    client.done("end")
    assert bare.process.wait(TIMEOUT) == 0
    assert {p.name for p in bare.directory.iterdir()} == {"starts", "starts.env"}


def test_daemon_that_lived_is_restarted_at_once(bare: Keeper) -> None:
    """After a second of life there is no delay; agents keep running meanwhile."""
    log = bare.directory / "starts"
    bare.start("/bin/sh", "-c", f"echo $$ >> {log}; exec sleep 60", stderr=subprocess.DEVNULL)
    client = bare.client()
    row = client.done("spawn", plan=bare.shell("exec sleep 60"))["process"]
    wait_until(lambda: lines(log))
    first = int(lines(log)[0])
    born = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    wait_until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) - born > 1.2)
    os.kill(first, signal.SIGKILL)
    before = time.monotonic()
    wait_until(lambda: len(lines(log)) == 2)
    assert time.monotonic() - before < 1
    assert alive(row["pid"])
    client.done("end")
    os.kill(int(lines(log)[1]), signal.SIGKILL)
    assert bare.process.wait(TIMEOUT) == 0
    assert not alive(row["pid"])


def test_slot_waits_for_the_young_only(short_dir: Path) -> None:
    """A daemon that lived a second has its successor before anything else happens; a young one has not."""
    loop = Loop()
    slot = Slot(loop, Fleet(loop, str(short_dir), lambda _: None), ["/bin/sleep", "60"], dict(os.environ))
    pids = []

    def die() -> None:
        assert slot.pid is not None
        pids.append(slot.pid)
        os.kill(slot.pid, signal.SIGKILL)
        os.waitpid(slot.pid, 0)
        slot._exited(-signal.SIGKILL)

    slot.start()
    slot._started -= 1
    die()
    assert slot.pid not in (None, pids[0])
    die()
    assert slot.pid is None
    loop.close()


def test_slot_does_not_wait_longer_for_one_that_supervised(short_dir: Path) -> None:
    """A daemon that dies soon after it said `alive` has its successor after the first delay, however often."""
    loop = Loop()
    slot = Slot(loop, Fleet(loop, str(short_dir), lambda _: None), ["/bin/sleep", "60"], dict(os.environ))
    waits: list[float] = []
    for alive_first in (False, False, True, True):
        slot.start()
        if alive_first:
            slot.alive(60)
        assert slot.pid is not None
        os.kill(slot.pid, signal.SIGKILL)
        os.waitpid(slot.pid, 0)
        waits.append(slot._delay)
        slot._exited(-signal.SIGKILL)
    assert waits == [0.1, 0.2, 0.1, 0.1]
    loop.close()


def test_daemon_whose_input_is_bad_ends_the_keeper(bare: Keeper) -> None:
    """Exit status 2 before anybody said hello: it would be the same again, so the keeper ends with it."""
    bare.start("/bin/sh", "-c", "exit 2")
    assert bare.process.wait(TIMEOUT) == 2
    assert list(bare.directory.iterdir()) == []


def test_daemon_that_is_missing_is_tried_again(bare: Keeper) -> None:
    """A program that cannot be executed is said so, by name; it may be there a moment later."""
    path = bare.directory / "err"
    with path.open("wb") as file:
        bare.start("/nonexistent/daemon", stderr=file)
    wait_until(lambda: path.read_text().count("/nonexistent/daemon cannot be executed: No such file") >= 2)
    bare.client().done("end")
    assert bare.process.wait(TIMEOUT) == 0


def test_end_waits_for_the_daemon(bare: Keeper) -> None:
    """The keeper leaves after its daemon, also when that one takes its time."""
    mark = bare.directory / "mark"
    script = (
        "import os, socket, sys\nsys.path[:0] = ['.']\nfrom agentd.keeper import protocol as p\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\ns.connect(os.environ['AGENTD_KEEPER'])\n"
        "p.send(s, {'hello': 1})\np.receive(s)\np.send(s, {'id': 1, 'do': 'end'})\n"
        "assert p.receive(s)[0]['answer'] == 1\n"
        f"open({str(mark)!r}, 'w').write('after the answer')\n"
    )
    bare.start(sys.executable, "-c", script)
    assert bare.process.wait(TIMEOUT) == 0
    assert mark.read_text() == "after the answer"
    assert [p.name for p in bare.directory.iterdir()] == ["mark"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_is_told_and_the_second_kills(bare: Keeper, number: signal.Signals) -> None:
    """The client may stop all in order; told twice, the keeper kills everything and leaves nothing."""
    bare.start()
    client = bare.client()
    row = client.done("spawn", plan=bare.shell("trap '' TERM INT HUP; sleep 60 & wait"))["process"]
    bare.process.send_signal(number)
    assert client.event("stopping")["signal"] == number
    assert alive(row["pid"])
    again: Client = bare.client()
    assert again.welcome["stopping"] is True  # type: ignore[attr-defined]
    bare.process.send_signal(signal.SIGTERM)
    assert bare.process.wait(TIMEOUT) == 0
    assert not alive(row["pid"])
    assert {p.name for p in bare.directory.iterdir()} == {"log"}


def test_signal_without_a_client_ends_at_once(bare: Keeper) -> None:
    """Nobody is there to stop in order: the keeper does it itself."""
    bare.start()
    client = bare.client()
    row = client.done("spawn", plan=bare.shell("exec sleep 60"))["process"]
    client.close()
    bare.process.terminate()
    assert bare.process.wait(TIMEOUT) == 0
    assert not alive(row["pid"])


def test_client_that_leaves_while_stopping_ends_the_keeper(bare: Keeper) -> None:
    """Told to stop, and then the one client goes away: nothing is left running."""
    bare.start()
    client = bare.client()
    row = client.done("spawn", plan=bare.shell("exec sleep 60"))["process"]
    bare.process.terminate()
    client.event("stopping")
    client.close()
    assert bare.process.wait(TIMEOUT) == 0
    assert not alive(row["pid"])


def test_inherited_descriptors_end_with_the_keeper(bare: Keeper) -> None:
    """What the keeper's own parent leaked to it reaches no unit."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    bare.start(pass_fds=(writer,))
    client = bare.client()
    client.done("spawn", plan=bare.shell(f"ls /proc/self/fd/{writer} 2>/dev/null || echo clean"))
    client.event("ended")
    os.close(reader)
    os.close(writer)
    assert bare.log() == "clean\n"


def test_keeper_is_not_dumpable_and_a_subreaper(short_dir: Path) -> None:
    """No process of the same uid reads the keeper's memory; orphans become its children."""
    script = (
        "import ctypes, sys\nfrom agentd.keeper import main\nmain._set_up(sys.argv[1], [])\n"
        "flag = ctypes.c_int()\nprctl = ctypes.CDLL(None).prctl\nprctl(37, ctypes.byref(flag), 0, 0, 0)\n"
        "print(prctl(3, 0, 0, 0, 0), flag.value)"
    )
    run = subprocess.run([sys.executable, "-c", script, str(short_dir)], capture_output=True, text=True)
    assert run.stdout == "0 1\n", run.stderr


def test_a_daemon_that_falls_silent_is_killed_and_restarted(bare: Keeper) -> None:
    """``alive``: a daemon that does not say it again in time is killed, though it is stopped; one that does lives."""
    starts = bare.directory / "starts"
    script = f"""
import json, os, socket, time
with open({str(starts)!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(os.environ["AGENTD_KEEPER"])
s.send(json.dumps({{"hello": 1, "client": "x"}}).encode())
s.recv(65536)
rounds = 4 if len(open({str(starts)!r}).readlines()) == 1 else 10**6
for n in range(rounds):
    s.send(json.dumps({{"id": n, "do": "alive", "within": 0.5}}).encode())
    s.recv(65536)
    time.sleep(0.2)
os.kill(os.getpid(), 19)
"""
    before = time.monotonic()
    bare.start(sys.executable, "-c", script)
    wait_until(lambda: len(lines(starts)) == 2, 10)
    assert time.monotonic() - before > 0.6 + 0.5
    assert not Path(f"/proc/{lines(starts)[0]}").exists()


def test_a_daemon_that_stops_between_its_hello_and_its_first_word_is_killed(bare: Keeper) -> None:
    """A hello may say when the first ``alive`` comes: one that is stopped before it is not there for ever."""
    starts = bare.directory / "starts"
    script = f"""
import json, os, socket, time
with open({str(starts)!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(os.environ["AGENTD_KEEPER"])
within = 0.4 if len(open({str(starts)!r}).readlines()) == 1 else 60
s.send(json.dumps({{"hello": 1, "client": "x", "alive": within}}).encode())
os.kill(os.getpid(), 19)
"""
    bare.start(sys.executable, "-c", script)
    wait_until(lambda: len(lines(starts)) == 2, 10)
    assert not Path(f"/proc/{lines(starts)[0]}").exists()


@pytest.mark.parametrize("name", ["START_WITHIN", "RETURN_WITHIN"])
def test_a_daemon_that_never_says_hello_is_killed(short_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Stopped before its first word, or when a new keeper finds it: it is killed in time, and another one started."""
    monkeypatch.setattr(f"agentd.keeper.slot.{name}", 0.3)
    loop = Loop()
    slot = Slot(loop, Fleet(loop, str(short_dir), lambda _: None), ["sleep", "1000"], dict(os.environ))
    if name == "START_WITHIN":
        slot.start()
    else:
        found = subprocess.Popen(["sleep", "1000"])
        row = read_stat(found.pid)
        assert row is not None
        assert slot.adopt(found.pid, row.start_time)
    first = slot.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    dead = os.pidfd_open(first)
    loop.watch(dead, lambda _: loop.stop())
    late = loop.after(5.0, loop.stop)
    loop.run()
    assert late.live
    assert os.waitid(os.P_PID, first, os.WEXITED).si_status == signal.SIGKILL  # type: ignore[union-attr]
    if name == "RETURN_WITHIN":
        found.returncode = -signal.SIGKILL
    os.close(dead)
    loop.close()


def test_the_daemon_does_not_speak_to_the_keepers_own_manager(bare: Keeper) -> None:
    """A service manager above the keeper is told by the keeper: its socket is not the daemon's."""
    told = bare.directory / "told"
    script = f"import os, time; open({str(told)!r}, 'w').write(' '.join(os.environ) + '\\n'); time.sleep(1000)"
    bare.start(sys.executable, "-c", script, env={**os.environ, "NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1"})
    wait_until(lambda: lines(told))
    assert "AGENTD_KEEPER" in lines(told)[0].split()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(lines(told)[0].split())


ALIVE = """
import json, os, signal, socket, sys, time
starts = sys.argv[1]
with open(starts, "a") as file:
    file.write(f"{os.getpid()}\\n")
rounds = 3 if len(open(starts).readlines()) == 1 else 10**6
def connect():
    while True:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            s.connect(os.environ["AGENTD_KEEPER"])
            s.send(json.dumps({"hello": 1, "client": "x"}).encode())
            assert s.recv(65536)
            return s
        except (OSError, AssertionError):
            time.sleep(0.01)
s = connect()
for n in range(rounds):
    try:
        s.send(json.dumps({"id": n, "do": "alive", "within": 0.5}).encode())
        assert s.recv(65536)
    except (OSError, AssertionError):
        s = connect()
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("how", ["upgraded", "killed"])
def test_a_daemon_that_hangs_while_the_keeper_is_replaced_is_found(bare: Keeper, how: str) -> None:
    """It never says hello to the next keeper: it is killed all the same, because the one before had heard it."""
    starts = bare.directory / "starts"
    program = (sys.executable, "-c", ALIVE, str(starts))
    bare.start(*program)
    wait_until(lambda: lines(starts) and state(int(lines(starts)[0])) == "T", 10)
    if how == "upgraded":
        bare.process.send_signal(signal.SIGUSR2)
    else:
        bare.process.kill()
        bare.process.wait()
        bare.start(*program)
    wait_until(lambda: len(lines(starts)) == 2, 10)
    assert not alive(int(lines(starts)[0]))
    end_all(bare, starts)


def test_a_keeper_that_stood_still_blames_nobody(bare: Keeper) -> None:
    """SIGSTOP of the keeper for longer than the daemon may be silent: what it said meanwhile is heard first."""
    starts = bare.directory / "starts"
    starts.write_text("an earlier one\n")
    bare.start(sys.executable, "-c", ALIVE, str(starts))
    wait_until(lambda: len(lines(starts)) == 2, 10)
    client_of = int(lines(starts)[1])
    for _ in range(2):
        bare.process.send_signal(signal.SIGSTOP)
        end = time.monotonic() + 0.7
        wait_until(lambda end=end: time.monotonic() > end)  # type: ignore[misc]
        bare.process.send_signal(signal.SIGCONT)
    end = time.monotonic() + 0.6
    wait_until(lambda: time.monotonic() > end)
    assert len(lines(starts)) == 2
    assert alive(client_of)
    end_all(bare, starts)


def end_all(bare: Keeper, starts: Path) -> None:
    """The keeper, then its daemons, which look for another one for ever."""
    bare.process.kill()
    bare.process.wait()
    for pid in filter(str.isdigit, lines(starts)):
        if alive(int(pid)):
            os.kill(int(pid), signal.SIGKILL)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_alive_wants_seconds(keeper: Keeper) -> None:
    """A word that is no time is refused, and changes nothing."""
    client = keeper.client()
    for within in (0, -1, True, "3", 10**6, None):
        assert client.refused("alive", within=within)["code"] == "bad"
