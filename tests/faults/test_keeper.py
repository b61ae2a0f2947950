"""Row "keeper kill -9", "keeper upgraded in place": the parent of everything dies, and nobody else notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.fleet import Fleet, fleet
from tests.waiting import wait_until

Json = dict[str, Any]
AGENTCTL = str(Path(sys.executable).parent / "agentctl")
SLEEPER = '[agent]\nexec = ["sleep", "1000"]\n'
WRITER = """[agent]
exec = ["python", "-uc", '''
import itertools, os, time
for n in itertools.count():
    os.write(1, f"{os.getpid()} line {n} {'x' * (n % 200)} end\\n".encode())
    time.sleep(0.0005)
''']
"""
DIES = """[agent]
exec = ["sh", "-c", '''
echo run $AGENTD_INVOCATION >> $HOME/runs; trap "echo last words; exit 7" USR1
while :; do sleep 0.05; done
''']
stop_timeout = "1s"
"""


def about(f: Fleet) -> Json:
    found: Json = f.status()["agentd"]
    return found


def pids(f: Fleet) -> dict[str, int]:
    return {unit["name"]: unit["pid"] for unit in f.status()["units"]}


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


def check_lines(text: str) -> int:
    """Every line whole, in order, none lost or doubled; how many there are."""
    expected: dict[str, int] = {}
    lines = text.splitlines()
    for line in lines:
        pid, _, number, *_, end = line.split()
        assert end == "end", line
        assert int(number) == expected.get(pid, 0), line
        expected[pid] = int(number) + 1
    return len(lines)


def test_the_keeper_is_killed_and_the_next_one_adopts_all(short_dir: Path) -> None:
    """Units live and keep their pids, a writer loses no line, a death meanwhile has its status and last words, nothing
    is started twice, and Ctrl-C of the new keeper leaves nothing."""
    with fleet(short_dir, {"a": SLEEPER, "writer": WRITER, "dies": DIES}) as f:
        before = pids(f)
        f.wait("dies", state="running")
        home = short_dir / "s" / "home" / "dies"
        wait_until((home / "runs").exists, 5)
        daemon = kill_keeper(f)
        assert any("keeper: lost" in warning for warning in about(f)["warnings"])
        written = len(f.log_of("writer"))
        os.kill(before["dies"], signal.SIGUSR1)
        wait_until(lambda: gone(before["dies"]), 5)
        assert f.unit("dies")["state"] == "running"  # nobody can know yet
        next_keeper(f)
        after = f.wait("dies", state="running", restarts=1)
        assert about(f)["pid"] == daemon
        assert after["last"]["exit"] == 7
        assert "last words" in f.log_of("dies")
        assert (home / "runs").read_text().count("run ") == 2
        now = pids(f)
        assert {k: v for k, v in now.items() if k != "dies"} == {k: v for k, v in before.items() if k != "dies"}
        wait_until(lambda: len(f.log_of("writer")) > written + 10_000, 10)
        assert about(f)["warnings"] == []
        f.kill(now["a"])
        assert f.wait("a", state="running", restarts=1)["last"]["text"] == "killed by SIGKILL"
        f.post("/v1/units/writer/stop")
        assert check_lines(f.log_of("writer")) > 100


def lines(path: Path) -> list[str]:
    """Those of a file that may not be there yet."""
    return path.read_text().splitlines() if path.exists() else []


def gone(pid: int) -> bool:
    """It is dead; a zombie whose new parent takes its time is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_keeper_and_daemon_are_killed_together(short_dir: Path) -> None:
    """The next agentd takes over from files alone: same pids, and the units' state, from the blobs."""
    with fleet(short_dir, {"a": SLEEPER, "b": SLEEPER}) as f:
        f.kill(pids(f)["b"])
        before = f.wait("b", state="running", restarts=1)
        f.post("/v1/units/a/stop")
        pid = about(f)["pid"]
        blobs = short_dir / "r" / "keeper" / "blobs.log"
        wait_until(lambda: any(line.startswith('["a"') and "inactive" in line for line in lines(blobs)), 5)
        assert f.process is not None
        f.process.kill()
        f.kill(pid)
        f.process.wait()
        wait_until(lambda: gone(pid), 5)
        f.start()
        assert f.unit("a")["state"] == "inactive"
        after = f.unit("b")
        assert (after["pid"], after["restarts"], after["invocation"]) == (before["pid"], 1, before["invocation"])


def test_down_is_refused_while_no_keeper_is_there(short_dir: Path) -> None:
    """It would leave the units running; the answer says what to do, and up does it."""
    with fleet(short_dir, {"a": SLEEPER}) as f:
        kill_keeper(f)
        status, answer = f.ask("POST", "/v1/down", {})
        assert (status, answer["error"]["code"]) == (503, "unavailable"), answer
        assert "agentctl up" in answer["error"]["hint"]
        before = pids(f)
        options = [f"--config={f.config}", f"--units={f.units}", f"--state={f.state}", f"--runtime={f.runtime}"]
        subprocess.run([AGENTCTL, "up", *options], check=True, capture_output=True, timeout=60)
        assert (pids(f), about(f)["warnings"]) == (before, [])
        f.process = None
        env = {**os.environ, "AGENTD_SOCKET": str(f.runtime / "control.sock")}
        subprocess.run([AGENTCTL, "down"], check=True, capture_output=True, timeout=60, env=env)
        wait_until(lambda: not f.left_over(), 5)


def test_a_keeper_is_upgraded_in_place(short_dir: Path) -> None:
    """SIGUSR2: same pid, new program; no unit is touched, no line lost, exits are still seen as a parent sees them."""
    with fleet(short_dir, {"a": SLEEPER, "writer": WRITER, "dies": DIES}) as f:
        before, daemon = pids(f), about(f)["pid"]
        assert f.process is not None
        started = start_of(f.process.pid)
        for _ in range(5):
            count = len(f.records(kind="keeper.found"))
            f.process.send_signal(signal.SIGUSR2)
            wait_until(partial(found, f, count), 10)
        assert start_of(f.process.pid) == started
        assert (pids(f), about(f)["pid"], about(f)["keeper_pid"]) == (before, daemon, f.process.pid)
        os.kill(before["dies"], signal.SIGUSR1)
        assert f.wait("dies", state="running", restarts=1)["last"]["exit"] == 7
        f.post("/v1/units/writer/stop")
        assert check_lines(f.log_of("writer")) > 50


def test_the_next_keeper_kills_a_daemon_that_stands_still(short_dir: Path) -> None:
    """SIGSTOP of a daemon that lived through the keeper's death, and through an upgrade: found as ever."""
    with fleet(short_dir, {"a": SLEEPER}) as f:
        before = pids(f)
        kill_keeper(f)
        next_keeper(f)
        assert f.process is not None
        for replace in (False, True):
            if replace:
                count = len(f.records(kind="keeper.found"))
                f.process.send_signal(signal.SIGUSR2)
                wait_until(partial(found, f, count), 10)
            wait_until(lambda: about(f)["keeper_requests"].get("alive"), 5)
            daemon = int(about(f)["pid"])
            os.kill(daemon, signal.SIGSTOP)
            wait_until(partial(replaced, f, daemon), 15)
            f.settle()
        assert pids(f) == before


def replaced(f: Fleet, daemon: int) -> bool:
    return not Path(f"/proc/{daemon}").exists() and f.answers() and about(f)["pid"] != daemon


def found(f: Fleet, count: int) -> bool:
    return len(f.records(kind="keeper.found")) > count


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


HOLDER = """[agent]
type = "notify"
exec = ["python", "-uc", '''
import asyncio, os
from agentd.sdk import Agent
app = Agent()
home = os.environ["HOME"]
@app.on("work")
async def work(ctx, data: dict):
    open(home + "/attempts", "a").write("x")
    while not os.path.exists(home + "/go"):
        await asyncio.sleep(0.01)
    open(home + "/done", "a").write("x")
app.run()
''']

[liveness]
heartbeat = "1s"
"""


def test_a_message_in_hand_does_not_notice(short_dir: Path) -> None:
    """Killed and upgraded keepers, a heartbeat that nobody hears for longer than it may be silent: the message stays
    with its holder, is handled once, and the holder is not taken for hung."""
    home = short_dir / "s" / "home" / "holder"
    with fleet(short_dir, {"holder": HOLDER}) as f:
        f.post("/v1/send", {"to": "holder", "kind": "work", "data": {}})
        before = f.wait("holder", holding={"kind": "work"})
        kill_keeper(f)
        end = time.monotonic() + 2.0
        wait_until(lambda: time.monotonic() > end, 3)
        assert f.unit("holder")["holding"]["kind"] == "work"
        next_keeper(f)
        assert f.process is not None
        f.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: len(f.records(kind="keeper.found")) == 2, 10)
        wait_until(lambda: f.unit("holder")["beat_age"] is not None, 5)
        (home / "go").touch()
        after = f.wait("holder", holding=None)
        wait_until((home / "done").exists, 5)
        assert (after["pid"], after["restarts"]) == (before["pid"], 0)
        assert ((home / "attempts").read_text(), (home / "done").read_text()) == ("x", "x")


def test_a_daemon_that_stands_still_blocks_nobody(short_dir: Path) -> None:
    """SIGSTOP: units write and work on, the keeper upgrades, deaths wait. Going on, it knows them with their status."""
    with fleet(short_dir, {"writer": WRITER, "dies": DIES}) as f:
        before, daemon = pids(f), int(about(f)["pid"])
        assert f.process is not None
        os.kill(daemon, signal.SIGSTOP)
        try:
            size = len(f.log_of("writer"))
            wait_until(lambda: len(f.log_of("writer")) > size + 200_000, 10)
            f.process.send_signal(signal.SIGUSR2)
            os.kill(before["dies"], signal.SIGUSR1)
            wait_until(lambda: gone(before["dies"]), 5)
        finally:
            os.kill(daemon, signal.SIGCONT)
        after = f.wait("dies", state="running", restarts=1)
        assert after["last"]["exit"] == 7
        assert about(f)["pid"] == daemon
        f.post("/v1/units/writer/stop")
        check_lines(f.log_of("writer"))


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


def test_no_unit_is_ever_started_twice(short_dir: Path) -> None:
    """Keepers are killed while units die and are restarted all the time: every invocation runs at most once, never two
    of a unit at a time, and afterwards all go on."""
    names = [f"f{n}" for n in range(6)]
    with fleet(short_dir, dict.fromkeys(names, FLAPS)) as f:
        for number in range(4):
            count = total(short_dir, names)
            wait_until(partial(more, short_dir, names, count + 20 + 7 * number), 20)
            kill_keeper(f)
            next_keeper(f)
        count = total(short_dir, names)
        wait_until(partial(more, short_dir, names, count + 60), 20)
        for name in names:
            f.post(f"/v1/units/{name}/stop")
        for name in names:
            lines = starts(short_dir, name)
            assert not [line for line in lines if "DOUBLE" in line]
            assert len(lines) == len(set(lines))


def starts(base: Path, name: str) -> list[str]:
    path = base / "s" / "home" / name / "starts"
    return path.read_text().splitlines() if path.exists() else []


def total(base: Path, names: list[str]) -> int:
    return sum(len(starts(base, name)) for name in names)


def more(base: Path, names: list[str], than: int) -> bool:
    return total(base, names) > than
