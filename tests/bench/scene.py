"""Where a measure happens: a directory of its own, the FIFO of stamps, a fleet; all of it gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.fleet import CONFIG, DRY_RUN, Broken, wait_until
from chaos.run import place
from tests.bench.processes import Watched, children
from tests.bench.stamps import Stamps, stamps
from tests.fleet import Fleet, fleet

IDLE = '[agent]\nexec = ["/bin/sleep", "1000000"]\n'
MEMORY = "/dev/shm"
FOREVER = '[restart]\nhealthy_after = "0s"\nburst = 1000000\n'


@contextmanager
def scene() -> Iterator[tuple[Path, Stamps]]:
    """A directory and a FIFO."""
    with place() as base, stamps(base) as opened:
        yield base, opened


@contextmanager
def in_memory(base: Path) -> Iterator[None]:
    """The runtime directory on a tmpfs, where /run is one on every server; /run itself may be a disk in a container."""
    if not os.access(MEMORY, os.W_OK):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="ad", dir=MEMORY) as directory:
        Path(directory).chmod(0o755)
        (base / "r").symlink_to(directory)
        yield
        (base / "r").unlink()


@contextmanager
def running(base: Path, units: dict[str, str] | None = None, more: str = "") -> Iterator[Fleet]:
    """A fleet of these units that has come to rest; ``more`` is added to its configuration."""
    with in_memory(base), fleet(base, units, CONFIG + DRY_RUN + more) as started:
        yield started


def unit(argv: list[str], more: str = "", agent: str = "") -> str:
    """A unit that is restarted at once for ever; ``agent`` are more keys of its first section."""
    return f"[agent]\nexec = {json.dumps(argv)}\n{agent}{FOREVER}{more}"


def deploy(fleet: Fleet, units: dict[str, str]) -> None:
    """Bring these units into a running fleet."""
    files = [{"path": f"{fleet.units}/{name}.toml", "text": text} for name, text in units.items()]
    errors = [f for f in fleet.post("/v1/deploy", {"files": files})["findings"] if f["severity"] == "error"]
    if errors:
        raise Broken("; ".join(f["message"] for f in errors))


def pids(fleet: Fleet) -> tuple[int, int]:
    """Keeper and daemon."""
    about = fleet.status()["agentd"]
    return int(about["keeper_pid"]), int(about["pid"])


def until_spawned(keeper: int, count: int) -> None:
    """Wait until the keeper has so many children: /proc says it without asking those who are measured."""
    wait_until(lambda: len(children(keeper)) >= count, 180, f"{count} processes")


def halt(fleet: Fleet) -> tuple[float, list[str]]:
    """Ctrl-C: the seconds until it had ended, and what it left: processes by descriptor, and cgroups."""
    process = fleet.process
    assert process is not None
    lived = Watched(u["pid"] for u in fleet.status()["units"] if u["pid"])
    try:
        at = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(120)
        took = time.monotonic() - at
        left = [f"process {pid}" for pid in lived.alive()] + fleet.left_over()
        lived.kill()
    finally:
        lived.close()
    return took, left


def kill_daemon(fleet: Fleet) -> float:
    """kill -9 of the daemon; the seconds until the control API of the next one answers."""
    _, daemon = pids(fleet)
    watched = Watched([daemon])
    at = time.monotonic()
    os.kill(daemon, signal.SIGKILL)
    watched.alive(5)
    watched.close()
    wait_until(fleet.answers, 60, "the control API is back")
    return time.monotonic() - at


def adoptions(fleet: Fleet) -> list[float]:
    """Seconds of each adoption, as the daemons wrote them into their log."""
    rows = (line for line in fleet.log.read_text().splitlines() if '"daemon.adopted"' in line)
    return [float(json.loads(row)["seconds"]) for row in rows]
