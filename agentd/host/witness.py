"""What the daemon holds of each unit's process, so that nothing is lost while no keeper lives.

A second read descriptor of the unit's FIFO, which is never read: what a dying unit wrote stays in the pipe for the next
keeper. And a pidfd of its process: how it ended is known although its parent is dead and somebody else reaped it. The
daemon opens both itself, as root or under the uid that all its units share.
"""

from __future__ import annotations

import fcntl
import os
import resource
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentd.keeper.plan import Process

_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
"""PIDFD_GET_INFO; how a process ended is told since Linux 6.15."""
_INFO_EXIT = 8


@dataclass(slots=True)
class _Held:
    """The descriptors of one unit; -1 where one could not be had."""

    invocation: str = ""
    pid: int = 0
    pidfd: int = -1
    fifo: int = -1


class Witness:
    """Holds the descriptors of all units."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def see(self, process: Process, fifo: Path) -> None:
        """Hold what there is of a unit's living process. What cannot be had is not missed before a keeper dies."""
        held = self._held.setdefault(process.unit, _Held())
        if (held.invocation, held.pid) != (process.invocation, process.pid):
            _close(held.pidfd)
            held.invocation, held.pid, held.pidfd = process.invocation, process.pid, _pidfd(process)
        if not _same(held.fifo, fifo):
            _close(held.fifo)
            held.fifo = _opened(fifo)

    def exit(self, process: Process) -> int | None:
        """How a process ended of which the keeper cannot know it; None where the kernel does not tell either."""
        held = self._held.get(process.unit)
        if held is None or held.invocation != process.invocation or held.pidfd < 0:
            return None
        answer = bytearray(64)
        struct.pack_into("=Q", answer, 0, _INFO_EXIT)
        with suppress(OSError):
            fcntl.ioctl(held.pidfd, _GET_INFO, answer)
            if struct.unpack_from("=Q", answer, 0)[0] & _INFO_EXIT:
                return os.waitstatus_to_exitcode(struct.unpack_from("=i", answer, 60)[0])
        return None

    def forget(self, unit: str) -> None:
        """Let go of a unit that is removed."""
        held = self._held.pop(unit, None)
        if held is not None:
            _close(held.pidfd)
            _close(held.fifo)

    def close(self) -> None:
        """Let go of everything."""
        for unit in list(self._held):
            self.forget(unit)


def raise_limit() -> None:
    """Two descriptors per unit: as many as we may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _pidfd(process: Process) -> int:
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return -1
    with suppress(OSError, IndexError, ValueError):
        stat = Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
        if int(stat.rpartition(")")[2].split()[19]) == process.start_time:
            return fd
    os.close(fd)  # it is dead, and the number is another's
    return -1


def _opened(fifo: Path) -> int:
    try:
        return os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1


def _same(fd: int, path: Path) -> bool:
    with suppress(OSError):
        return fd >= 0 and os.path.samestat(os.fstat(fd), os.lstat(path))
    return False


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
