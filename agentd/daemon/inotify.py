"""inotify for the event loop, by ctypes: something in a directory changed, without asking again and again.

Knows file descriptors and masks; what a change means is its caller's business.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from agentd.errors import HostCannot, NotFound

MODIFY, ATTRIB, MOVED_TO, CREATE, DELETE, ONLYDIR = 0x2, 0x4, 0x80, 0x100, 0x200, 0x0100_0000

UNTOLD = 0.25
"""Seconds between looks on a kernel that does not tell (Linux before 6.4): the keeper writes logs by splice."""

_libc = ctypes.CDLL(None, use_errno=True)
_HINTS = {
    errno.EMFILE: "Raise fs.inotify.max_user_instances (sysctl), or end other followers.",
    errno.ENOSPC: "Raise fs.inotify.max_user_watches (sysctl).",
}


class Inotify:
    """One inotify descriptor, drained by the loop. ``changed`` is set whenever anything that is watched changed."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._fd = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._drain)

    def watch(self, path: Path, mask: int) -> int:
        """Watch a file or directory for these kinds of change; the same one again replaces its mask.

        Raises NotFound where there is none, HostCannot where the kernel has no watch left.
        """
        return _check(_libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)), str(path))

    def unwatch(self, watch: int) -> None:
        """End a watch; one that the kernel ended already (its file is gone) is fine."""
        _libc.inotify_rm_watch(self._fd, watch)

    async def wait_for_growth(self) -> None:
        """Wait until something changed. Where the kernel tells nothing of splice(2), also return now and then."""
        try:
            await asyncio.wait_for(self.changed.wait(), None if tells_splice() else UNTOLD)
        except TimeoutError:
            return

    def close(self) -> None:
        """End all watches."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _drain(self) -> None:
        self.changed.set()
        try:
            os.read(self._fd, 65536)
        except BlockingIOError:
            return


@contextmanager
def opened() -> Iterator[Inotify]:
    """An Inotify that is closed at the end of the block."""
    inotify = Inotify()
    try:
        yield inotify
    finally:
        inotify.close()


@cache
def tells_splice() -> bool:
    """Whether inotify on this kernel reports what splice(2) writes into a file. Tried out once, on a memfd."""
    inotify = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")
    file, (end, begin) = os.memfd_create("agentd-probe"), os.pipe()
    try:
        _check(_libc.inotify_add_watch(inotify, b"/proc/self/fd/%d" % file, ctypes.c_uint32(MODIFY)), "memfd")
        os.write(begin, b"x")
        os.splice(end, file, 1)
        return len(os.read(inotify, 4096)) > 0
    except BlockingIOError:
        return False
    finally:
        for fd in (inotify, file, end, begin):
            os.close(fd)


def _check(result: int, what: str) -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    if number in (errno.ENOENT, errno.ENOTDIR):
        raise NotFound(f"{what}: {os.strerror(number)}.")
    raise HostCannot(f"{what}: cannot be watched: {os.strerror(number)}.", hint=_HINTS.get(number))
