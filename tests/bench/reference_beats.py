"""The reference for heartbeats: one bare epoll and recv loop on one datagram socket for each unit.

    python tests/bench/reference_beats.py COUNT DIRECTORY LIMIT -- ARGV…     {} in ARGV is the unit's own directory

LIMIT 0: it receives, nothing else. Otherwise a unit that is silent for LIMIT seconds is killed and started again, and
`hung NUMBER UNIXTIME` is printed. `ready SECONDS` comes first; on SIGTERM it kills all and prints `stopped SECONDS`.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path


class Unit:
    """A socket, a process, and when it was heard last."""

    def __init__(self, number: int, directory: Path, argv: list[str]) -> None:
        directory.mkdir(parents=True)
        self.number = number
        self.argv = [word.replace("{}", str(directory)) for word in argv]
        self.path = str(directory / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(self.path)
        self.heard = 0.0
        self.pid = 0

    def spawn(self) -> None:
        """Start it (again)."""
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.setsid()
            os.execve(self.argv[0], self.argv, {"PATH": "/usr/bin:/bin", "NOTIFY_SOCKET": self.path})
        finally:
            os._exit(127)


def main() -> None:
    """Receive until SIGTERM."""
    count, base, limit, argv = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[5:]
    told, tell = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(tell, b"x"))
    begun = time.monotonic()
    epoll = select.epoll()
    epoll.register(told, select.EPOLLIN)
    units = {}
    for number in range(count):
        unit = Unit(number, base / str(number), argv)
        units[unit.socket.fileno()] = unit
        epoll.register(unit.socket, select.EPOLLIN)
        unit.spawn()
    print(f"ready {time.monotonic() - begun:.6f}", flush=True)
    due: list[tuple[float, int]] = []
    while True:
        wait = max(0.0, due[0][0] - time.monotonic()) if due else -1
        for fd, _ in epoll.poll(wait):
            if fd == told:
                return stop(list(units.values()))
            if units[fd].socket.recv(4096) == b"WATCHDOG=1" and limit:
                if not units[fd].heard:
                    heapq.heappush(due, (time.monotonic() + limit, fd))
                units[fd].heard = time.monotonic()
        judge(due, units, limit)


def judge(due: list[tuple[float, int]], units: dict[int, Unit], limit: float) -> None:
    """Those that are silent for too long are replaced; those that were heard meanwhile are judged later."""
    while due and due[0][0] <= (now := time.monotonic()):
        _, fd = heapq.heappop(due)
        unit = units[fd]
        if unit.heard + limit > now:
            heapq.heappush(due, (unit.heard + limit, fd))
            continue
        print(f"hung {unit.number} {time.time():.6f}", flush=True)
        os.kill(unit.pid, signal.SIGKILL)
        os.waitpid(unit.pid, 0)
        unit.heard = 0.0
        unit.spawn()


def stop(units: list[Unit]) -> None:
    """Kill all, wait for all."""
    begun = time.monotonic()
    for unit in units:
        os.kill(unit.pid, signal.SIGKILL)
    for unit in units:
        os.waitpid(unit.pid, 0)
    print(f"stopped {time.monotonic() - begun:.6f}", flush=True)


if __name__ == "__main__":
    main()
