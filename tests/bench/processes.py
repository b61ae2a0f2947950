"""What /proc says of processes, and when they are dead. Knows pids only."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def cpu(*pids: int) -> float:
    """CPU seconds of these processes, all threads."""
    tasks = (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def share(seconds: float, *pids: int) -> float:
    """Percent of a core that these processes use in the next so many seconds."""
    busy, at = cpu(*pids), time.monotonic()
    time.sleep(seconds)  # this is the interval that is measured
    return 100 * (cpu(*pids) - busy) / (time.monotonic() - at)


def resident(pid: int) -> float:
    """Megabytes."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(lines["VmRSS"].split()[0]) / 1024


def children(pid: int) -> list[int]:
    """Its children; none if it is gone."""
    with suppress(OSError):
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return []


def program(pid: int) -> str:
    """The name of its program; empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


class Watched:
    """Processes held by descriptor, so that a pid that is used again deceives nobody."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._fds: dict[int, int] = {}
        for pid in pids:
            with suppress(ProcessLookupError):
                self._fds[pid] = os.pidfd_open(pid)

    def alive(self, within: float = 0.0) -> list[int]:
        """Those that live, asked again until none does or so many seconds are over."""
        end = time.monotonic() + within
        poll = select.poll()
        left = {fd: pid for pid, fd in self._fds.items()}
        for fd in left:
            poll.register(fd, select.POLLIN)
        while left and (dead := poll.poll(max(0.0, end - time.monotonic()) * 1000)):
            for fd, _ in dead:
                poll.unregister(fd)
                del left[fd]
        return list(left.values())

    def kill(self) -> None:
        """Kill what is left."""
        for fd in self._fds.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of them."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
