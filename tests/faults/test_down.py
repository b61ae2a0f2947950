"""``agentctl down``, cut on the way: whoever dies, in the end everything is down, and what is said of it is true."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fleet import Fleet, fleet
from tests.waiting import wait_until

SLOW = """
[agent]
exec = ["sh", "-c", "trap 'sleep 0.4; exit 0' TERM; while :; do sleep 0.1; done"]
stop_timeout = "20s"
"""
UNITS = {"a": SLOW, "b": '[agent]\nexec = ["sleep", "1000"]\nafter = ["a"]\n', "c": SLOW + 'after = ["b"]\n'}


def down(f: Fleet) -> subprocess.Popen[bytes]:
    """The command, as a person gives it."""
    argv = [sys.executable, "-P", "-m", "agentd.ctl.main", "--socket", str(f.runtime / "control.sock"), "down"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def stopping(f: Fleet) -> bool:
    """The intention is written down."""
    return (f.runtime / "going-down.json").exists()


@pytest.mark.parametrize("when", ["again and again", "after the first has stopped"])
def test_it_goes_on_when_the_daemon_dies(short_dir: Path, when: str) -> None:
    """kill -9 of the daemon at several moments of a down that takes its time: the next one goes on with it."""
    with fleet(short_dir, UNITS) as f:
        keeper, daemon = f.process, f.status()["agentd"]["pid"]
        assert keeper is not None
        asked = down(f)
        wait_until(lambda: stopping(f), 5)
        if when == "after the first has stopped":
            f.wait("c", state="inactive")
        os.kill(daemon, signal.SIGKILL)
        for _ in range(2 if when == "again and again" else 0):
            wait_until(lambda: f.answers() or keeper.poll() is not None, 15)
            if keeper.poll() is None:
                os.kill(f.status()["agentd"]["pid"], signal.SIGKILL)
        said, _ = asked.communicate(timeout=30)
        assert (asked.returncode, said) == (0, b"agentd is down: all units stopped.\n")
        assert keeper.wait(10) == 0
        assert not stopping(f)
        assert f.left_over() == []


def test_a_fleet_that_is_started_again_is_not_stopped_by_it(short_dir: Path) -> None:
    """Keeper and daemon are killed on the way: the command says so; the next keeper's fleet takes over and runs."""
    with fleet(short_dir, UNITS) as f:
        keeper, daemon = f.process, f.status()["agentd"]["pid"]
        assert keeper is not None
        asked = down(f)
        wait_until(lambda: stopping(f), 5)
        keeper.kill()
        os.kill(daemon, signal.SIGKILL)
        said, _ = asked.communicate(timeout=30)
        assert asked.returncode == 1
        assert b"killed before everything was stopped" in said
        keeper.wait()
        f.start()
        assert not stopping(f)
        before = time.time()
        f.post("/v1/units/b/start")
        assert f.wait("b", state="running")["since"] > before - 60
