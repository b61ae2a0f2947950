"""The whole house with real processes: start, crash, daemon crash, stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.fleet import Fleet, fleet
from tests.waiting import wait_until

SLEEPER = '[agent]\nexec = ["sleep", "1000"]\n'


def test_a_killed_unit_is_back_at_once_and_says_why(short_dir: Path) -> None:
    """kill -9, and a successor runs; status says how the last one ended."""
    with fleet(short_dir, {"a": SLEEPER}) as f:
        before = f.wait("a", state="running")
        f.kill(before["pid"])
        after = f.wait("a", state="running", restarts=1)
        assert after["pid"] != before["pid"]
        assert after["last"]["text"] == "killed by SIGKILL"
        assert after["last"]["invocation"] < after["invocation"]


def test_the_daemon_dies_and_every_agent_keeps_its_pid(short_dir: Path) -> None:
    """kill -9 of the daemon: agents untouched; the next one knows them, and a death meanwhile with its status."""
    units = {"a": SLEEPER, "b": SLEEPER}
    with fleet(short_dir, units) as f:
        before = {u["name"]: u["pid"] for u in f.get("/v1/status")["units"]}
        daemon = f.get("/v1/status")["agentd"]["pid"]
        os.kill(daemon, signal.SIGSTOP)
        f.kill(before["b"], signal.SIGUSR1)
        f.kill(daemon)
        wait_until(lambda: f.answers() and f.get("/v1/status")["agentd"]["pid"] != daemon, 15)
        after = f.wait("b", state="running", restarts=1)
        assert after["last"]["signal"] == "SIGUSR1"
        now = {u["name"]: u["pid"] for u in f.get("/v1/status")["units"]}
        assert {k: v for k, v in now.items() if k != "b"} == {k: v for k, v in before.items() if k != "b"}
        f.kill(now["a"])
        f.wait("a", state="running", restarts=1)


def test_an_operators_stop_wins_and_start_brings_it_back(short_dir: Path) -> None:
    """Stopped means stopped, also over a crash of the daemon."""
    with fleet(short_dir, {"a": SLEEPER}) as f:
        assert f.post("/v1/units/a/stop")["state"] == "inactive"
        daemon = f.get("/v1/status")["agentd"]["pid"]
        f.kill(daemon)
        wait_until(lambda: f.answers() and f.get("/v1/status")["agentd"]["pid"] != daemon, 15)
        assert f.unit("a")["state"] == "inactive"
        assert f.post("/v1/units/a/start")["state"] == "running"


def test_how_a_resting_unit_ended_is_told_also_by_the_next_daemon(short_dir: Path) -> None:
    """A router that was away must learn it, or it would count an innocent stop as a crash."""

    def endings() -> list[list[str]]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(f.runtime / "facts" / "daemon.sock"))
            sock.sendall(b'{"facts":1,"client":"test","have":null}\n')
            with sock.makefile() as lines:
                told: list[list[str]] = json.loads(lines.readline())["full"]["unit/a"]["endings"]
                return told

    with fleet(short_dir, {"a": SLEEPER}) as f:
        invocation = f.wait("a", state="running")["invocation"]
        f.post("/v1/units/a/stop")
        assert endings() == [[invocation, "stopped"]]
        f.kill_daemon()
        assert endings() == [[invocation, "stopped"]]


def test_units_start_in_order_and_a_waiting_one_says_for_whom(short_dir: Path) -> None:
    """``after`` waits for READY; the reason names the unit that is waited for."""
    ready = (
        "import os, socket, time; time.sleep(0.5); s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        "s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET']); time.sleep(1000)"
    )
    units = {
        "base": f'[agent]\nexec = ["python", "-c", "{ready}"]\ntype = "notify"\n',
        "late": SLEEPER.replace("[agent]", '[agent]\nafter = ["base"]'),
    }
    with fleet(short_dir, units) as f:
        base, late = f.wait("base", state="running"), f.wait("late", state="running")
        assert late["started"] >= base["started"] + 0.4


def test_a_broken_unit_file_stops_nobody_else(short_dir: Path) -> None:
    """The others run; status names file, line, key and what to do."""
    units = {"good": SLEEPER, "bad": '[agent]\nexec = ["sleep", "1"]\nrestrat = 3\n', "a": "[agent\n"}
    with fleet(short_dir, units) as f:
        assert f.wait("good", state="running")
        broken = {Path(b["file"]).name: b for b in f.get("/v1/status")["agentd"]["broken"]}
        assert set(broken) == {"bad.toml", "a.toml"}
        assert "bad.toml:3" in broken["bad.toml"]["message"]


def test_a_corrupt_journal_and_a_lost_memory_stop_nobody(short_dir: Path) -> None:
    """Supervision goes on; the damaged file is kept aside and status says so."""
    state = short_dir / "s"
    state.mkdir(mode=0o711)
    state.chmod(0o711)
    (state / "journal.db").write_bytes(b"this is no database" * 1000)
    with fleet(short_dir, {"a": SLEEPER}) as f:
        pid = f.wait("a", state="running")["pid"]
        f.kill(pid)
        f.wait("a", state="running", restarts=1)
        assert any("journal" in warning for warning in f.get("/v1/status")["agentd"]["warnings"])
        assert list(state.glob("journal.db.corrupt-*"))


def test_invocations_grow_for_ever(short_dir: Path) -> None:
    """Also over a whole stop and start of everything."""
    with fleet(short_dir, {"a": SLEEPER}) as f:
        first = f.unit("a")["invocation"]
    with fleet(short_dir, {"a": SLEEPER}) as f:
        assert f.unit("a")["invocation"] > first


def test_the_story_is_in_the_journal(short_dir: Path) -> None:
    """Every transition with its reason; the operator's with the actor."""
    with fleet(short_dir, {"a": SLEEPER}) as f:
        f.kill(f.unit("a")["pid"])
        f.wait("a", state="running", restarts=1)
        f.post("/v1/units/a/stop")
        kinds = ["unit.starting", "unit.running", "unit.ended", "unit.starting", "unit.running", "unit.stopping"]

        def story() -> list[str]:
            return [r["kind"] for r in f.get("/v1/journal?unit=a")["records"]]

        wait_until(lambda: story()[: len(kinds)] == kinds, 5, f"{story()}")
        ended = next(r for r in f.get("/v1/journal?unit=a")["records"] if r["kind"] == "unit.ended")
        assert "killed by SIGKILL" in ended["reason"]


def test_a_crash_is_answered_within_milliseconds(short_dir: Path) -> None:
    """Not a benchmark: only that nothing waits for a tick."""
    with fleet(short_dir, {"a": SLEEPER}) as f:
        pid = f.unit("a")["pid"]
        at = f.kill(pid)
        f.wait("a", state="running", restarts=1)
        assert time.monotonic() - at < 1.0


def test_nothing_starts_again_while_everything_goes_down(short_dir: Path) -> None:
    """The operator's ``down`` wins over a restart, a run or a deploy that comes a moment later."""
    stubborn = '[agent]\nexec = ["sh", "-c", "trap : TERM; while :; do sleep 0.1; done"]\nstop_timeout = "2s"\n'
    with fleet(short_dir, {"a": stubborn}) as f:
        f.wait("a", state="running")
        f.post("/v1/down")
        assert f.ask("POST", "/v1/units/a/restart")[0] == 409
        assert f.ask("POST", "/v1/run", {"name": "b", "unit": {"agent": {"exec": ["sleep", "9"]}}})[0] == 409
        files = [{"path": str(short_dir / "a.toml"), "text": stubborn + 'description = "new"\n'}]
        assert f.ask("POST", "/v1/deploy", {"files": files})[0] == 409
        assert f.process is not None
        begun = time.monotonic()
        assert f.process.wait(20) == 0
        assert time.monotonic() - begun < 10


def test_units_that_wait_for_each_other_stop_all_the_same(short_dir: Path) -> None:
    """A file that broke and one that changed, at once: what runs may be a circle, and ``down`` still ends it."""
    with fleet(short_dir, {"a": SLEEPER + 'after = ["b"]\n', "b": SLEEPER}) as f:
        f.wait("a", state="running")
        (f.units / "a.toml").write_text("broken")
        (f.units / "b.toml").write_text(SLEEPER + 'after = ["a"]\n')
        f.kill_daemon()
        f.post("/v1/down")
        assert f.process is not None
        assert f.process.wait(20) == 0


def test_modules_where_agentd_was_started_are_not_executed(short_dir: Path) -> None:
    """Root may stand in anybody's directory when starting agentd."""
    (short_dir / "heapq.py").write_text(f"open({str(short_dir / 'executed')!r}, 'w')\nraise SystemExit(1)\n")
    made = Fleet(short_dir)
    argv = [Path(sys.executable).with_name("python"), "-P", "-m", "agentd", "--config", str(made.config)]
    argv += ["--units", str(made.units), "--state", str(made.state), "--runtime", str(made.runtime)]
    made.process = process = subprocess.Popen(argv, cwd=short_dir, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: made.answers() or process.poll() is not None, 20)
        assert not (short_dir / "executed").exists()
    finally:
        made.stop()
