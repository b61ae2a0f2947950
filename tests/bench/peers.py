"""The same kill -9 → replacement below other supervisors, as far as they are installed: reported, no gate.

Each is configured to restart at once and for ever, as far as it can be told so.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.fleet import Broken
from tests.bench.lines import median, p99, report
from tests.bench.processes import Watched
from tests.bench.restart import AGES, Victims
from tests.bench.scene import scene
from tests.bench.stamps import Stamps

RESTARTS = 10
"""Of each: most of them look once a second, or once in five."""
Command = Callable[[Path, Path], list[str]]


def supervisord(base: Path, script: Path) -> list[str]:
    """Its loop looks once a second."""
    text = f"[supervisord]\nnodaemon=true\nlogfile={base}/log\npidfile={base}/pid\nchildlogdir={base}\n"
    text += f"[program:peer]\ncommand={script}\nautorestart=true\nstartsecs=0\nstartretries=1000000\n"
    (base / "supervisord.conf").write_text(text)
    return ["supervisord", "-c", f"{base}/supervisord.conf"]


def circusd(base: Path, script: Path) -> list[str]:
    """Its check_delay is 1 s unless told otherwise."""
    text = f"[circus]\nendpoint = ipc://{base}/endpoint\npubsub_endpoint = ipc://{base}/pubsub\n"
    (base / "circus.ini").write_text(f"{text}[watcher:peer]\ncmd = {script}\nmax_retry = -1\n")
    return ["circusd", f"{base}/circus.ini"]


def pm2(base: Path, script: Path) -> list[str]:
    """In the foreground."""
    os.environ["PM2_HOME"] = str(base / "pm2")
    return ["pm2", "start", str(script), "--interpreter", "none", "--no-daemon", "--restart-delay", "0"]


def svscan(base: Path, script: Path) -> list[str]:
    """Waits a second between two starts."""
    (base / "scan" / "peer").mkdir(parents=True)
    shutil.copy(script, base / "scan" / "peer" / "run")
    return ["s6-svscan", str(base / "scan")]


def runsv(base: Path, script: Path) -> list[str]:
    """Waits a second between two starts."""
    (base / "peer").mkdir()
    shutil.copy(script, base / "peer" / "run")
    return ["runsv", str(base / "peer")]


def systemd(base: Path, script: Path) -> list[str]:
    """A transient service; ``--wait`` keeps it ours."""
    properties = ["Restart=always", "RestartSec=0", "StartLimitIntervalSec=0"]
    words = [word for text in properties for word in ("-p", text)]
    return ["systemd-run", "--quiet", "--wait", f"--unit=agentd-bench-{os.getpid()}", *words, str(script)]


PEERS: dict[str, Command] = {
    "supervisord": supervisord,
    "circusd": circusd,
    "pm2": pm2,
    "s6-svscan": svscan,
    "runsv": runsv,
    "systemd-run": systemd,
}


def missing(program: str) -> bool:
    """It is not here, or (systemd) does not run here."""
    if program == "systemd-run" and (os.geteuid() != 0 or not Path("/run/systemd/system").is_dir()):
        return True
    return shutil.which(program) is None


@contextmanager
def peer(program: str, base: Path, stamps: Stamps) -> Iterator[None]:
    """One of them with one program to keep running; nothing of it is left."""
    script = base / "peer.sh"
    script.write_text(f'#!/bin/bash\necho "peer main $$ $EPOCHREALTIME" > {stamps.path}\nexec sleep 1000000\n')
    script.chmod(0o755)
    with (base / "output").open("wb") as output:
        process = subprocess.Popen(
            PEERS[program](base, script), stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield
    finally:
        if program == "systemd-run":
            subprocess.run(["systemctl", "stop", f"agentd-bench-{os.getpid()}"])
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def measured(program: str, count: int) -> None:
    """Its milliseconds."""
    with scene() as (base, stamps):
        try:
            with peer(program, base, stamps):
                victims = Victims(stamps, ["peer"])
                time.sleep(max(AGES))
                (found,) = victims.rounds(min(count, RESTARTS), ["peer"])
                last = Watched(victims.pids())
            last.alive(5)
            last.kill()
            last.close()
        except Broken as error:
            said = (base / "output").read_text(errors="replace")[-200:].replace("\n", " ")
            report(f"peer_{program}_restart_median", 0, f"not measured: {error}: {said}")
            return
    report(f"peer_{program}_restart_median", median(found), "ms")
    report(f"peer_{program}_restart_p99", p99(found), "ms")


def run(count: int) -> bool:
    """All that are installed; the others are named."""
    absent = [program for program in PEERS if missing(program)]
    report("peers_not_installed", len(absent), ", ".join(absent) or "none")
    for program in PEERS:
        if program not in absent:
            measured(program, count)
    return True
