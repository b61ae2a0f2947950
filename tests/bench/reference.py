"""The reference of `make bench BENCH=supervision`: one bare pidfd loop that does the same work as a supervisor must.

For each unit: the same argv and environment, a cgroup of its own, the same limits, output into a log file;
when the process dies, the same again at once. No policy, protocol, journal or other process. Written once, not tuned.

    python tests/bench/reference.py COUNT DIRECTORY -- ARGV…     {} in ARGV is the unit's own directory

It prints `ready SECONDS` once all run, and ends on SIGTERM after killing everything, printing `stopped SECONDS`.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import sys
import time
from pathlib import Path

CGROUPS = ("memory", "cpu", "pids", "unified")


def cgroups(name: str) -> list[Path]:
    """A directory in each hierarchy that this host lets us write to."""
    made = []
    for root in (Path("/sys/fs/cgroup") / kind for kind in CGROUPS):
        if root.is_dir() and os.access(root, os.W_OK):
            path = root / name
            path.mkdir(parents=True, exist_ok=True)
            made.append(path)
    return made


def spawn(argv: list[str], directory: Path, groups: list[Path]) -> int:
    """One process, in its cgroups and limits, with its log file. Its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for group in groups:
            (group / "cgroup.procs").write_text("0")
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(directory)
        os.execve(argv[0], argv, {"PATH": "/usr/bin:/bin", "HOME": str(directory), "LANG": "C.UTF-8"})
    finally:
        os._exit(127)


def main() -> int:
    """Keep COUNT units running."""
    count, base, argv = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:]
    tag = f"agentd-reference-{os.getpid()}"
    selector = selectors.DefaultSelector()
    told, tell = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(tell, b"x"))
    selector.register(told, selectors.EVENT_READ, None)
    begun = time.monotonic()
    units = []
    for number in range(count):
        directory = base / str(number)
        directory.mkdir(parents=True)
        own = [word.replace("{}", str(directory)) for word in argv]
        groups = cgroups(f"{tag}/{number}")
        units.append((own, directory, groups))
        watch(selector, number, spawn(own, directory, groups))
    print(f"ready {time.monotonic() - begun:.6f}", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                return stop(selector, tag, units)
            pid, number = key.data
            selector.unregister(key.fileobj)
            os.close(key.fd)
            os.waitpid(pid, 0)
            watch(selector, number, spawn(*units[number]))


def watch(selector: selectors.BaseSelector, number: int, pid: int) -> None:
    """Hear of its end."""
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, number))


def stop(selector: selectors.BaseSelector, tag: str, units: list[tuple[list[str], Path, list[Path]]]) -> int:
    """Kill everything, wait for it, remove the cgroups."""
    begun = time.monotonic()
    pids = [key.data[0] for key in list(selector.get_map().values()) if key.data is not None]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)
    print(f"stopped {time.monotonic() - begun:.6f}", flush=True)
    for _, _, groups in units:
        for group in groups:
            group.rmdir()
    for kind in CGROUPS:
        path = Path("/sys/fs/cgroup") / kind / tag
        if path.is_dir():
            path.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
