"""The descriptors that a unit leaves with the keeper for its next invocation (sd_notify: FDSTORE=1).

Knows names, descriptors and how many may be kept; neither what they are nor when the unit may have them. Nothing is
ever read from one or written to it. What hangs up is dropped; what is too much is closed at once and counted.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import resource
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agentd.keeper import pidfd
from agentd.keeper.loop import Loop

MOST = 16
"""Descriptors that one unit may leave, and that one datagram may bring."""
ROOM = socket.CMSG_SPACE(MOST * 4)
"""Bytes of ancillary data that a datagram may have; the kernel closes what does not fit."""
SHARE = 4
"""All units together may leave a quarter of the descriptors that the keeper may have: spawning needs the others."""
NAME_LENGTH = 255
UNNAMED = "stored"
_NO_LINGER = struct.pack("ii", 0, 0)
_DUPFD_QUERY = 1024 + 3
"""F_DUPFD_QUERY of Linux 6.10: whether two descriptors are one open file."""
_KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine)
_syscall = ctypes.CDLL(None, use_errno=True).syscall
Json = dict[str, Any]


@dataclass(slots=True)
class Quota:
    """What all units of this keeper have left."""

    kept: int = 0

    def full(self) -> bool:
        """Whether no unit may leave more."""
        return self.kept >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE


_quota = Quota()


@dataclass(slots=True)
class Kept:
    """One descriptor that is kept."""

    name: str
    fd: int
    polled: bool = True
    """Dropped when it hangs up (FDPOLL=0: not)."""


class Store:
    """What one unit has left. ``changed`` is called when the number of them is another, or one was refused."""

    def __init__(self, loop: Loop, changed: Callable[[], None]) -> None:
        self.refused = 0
        """Descriptors that were closed because there was no room."""
        self._loop, self._changed = loop, changed
        self._kept: list[Kept] = []

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they came."""
        return tuple(kept.name for kept in self._kept)

    @property
    def fds(self) -> list[int]:
        """The same descriptors; they stay the store's."""
        return [kept.fd for kept in self._kept]

    def take(self, datagram: bytes, fds: list[int], cut: bool = False) -> None:
        """Do what a datagram says about the store; its descriptors are kept or closed. ``cut``: it had more of them."""
        said = dict(line.partition("=")[::2] for line in datagram.decode(errors="replace").split("\n"))
        before = (len(self._kept), self.refused)
        name = said.get("FDNAME", "")
        if said.get("FDSTOREREMOVE") == "1" and valid(name):
            self._remove([kept for kept in self._kept if kept.name == name])
        if said.get("FDSTORE") == "1":
            self.refused += cut
            for fd in fds:
                self._add(Kept(name if valid(name) else UNNAMED, fd, said.get("FDPOLL") != "0"))
        else:
            close(fds)
        if before != (len(self._kept), self.refused):
            self._changed()

    def clear(self) -> None:
        """Let go of all."""
        if self._kept:
            self._remove(list(self._kept))
            self._changed()
        self.refused = 0

    # From one keeper to the next

    def handover(self) -> list[Json]:
        """For this same keeper after its exec; the descriptors are ``fds``."""
        return [{"name": kept.name, "fd": kept.fd, "polled": kept.polled} for kept in self._kept]

    def resume(self, state: list[Json], refused: int) -> None:
        """Take over what ``handover`` gave."""
        self.refused = refused
        for row in state:
            self._keep(Kept(row["name"], row["fd"], row["polled"]))

    def described(self) -> list[Json]:
        """For a next keeper: what it may find again in the unit's own process."""
        return [{"name": k.name, "file": named(f"/proc/self/fd/{k.fd}"), "polled": k.polled} for k in self._kept]

    def recover(self, rows: list[Json], pid: int, process: int) -> int:
        """Copy from a living process (its pidfd) what it still holds of a dead keeper's store; how many are lost.

        Needs root, as every look into another's descriptors does.
        """
        theirs = _descriptors_of(pid)
        for row in rows:
            number = theirs.get(str(row.get("file") or ""))
            fd = pidfd.fetched(process, number) if number is not None else -1
            if fd >= 0 and named(f"/proc/self/fd/{fd}") != row["file"]:
                close([fd])  # it has put another one there meanwhile
            elif fd >= 0:
                self._add(Kept(str(row["name"]), fd, bool(row.get("polled", True))))
        return len(rows) - len(self._kept)

    # One at a time

    def _add(self, new: Kept) -> None:
        if any(same(kept.fd, new.fd) for kept in self._kept):
            close([new.fd])
        elif len(self._kept) >= MOST or _quota.full():
            self.refused += 1
            close([new.fd])
        else:
            self._keep(new)

    def _keep(self, new: Kept) -> None:
        _quota.kept += 1
        self._kept.append(new)
        if new.polled:
            try:
                self._loop.watch(new.fd, lambda _: self._hung_up(new), 0)
            except OSError:
                new.polled = False  # a file or a memfd never hangs up

    def _hung_up(self, kept: Kept) -> None:
        self._remove([kept])
        self._changed()

    def _remove(self, gone: list[Kept]) -> None:
        for kept in gone:
            if kept.polled:
                self._loop.unwatch(kept.fd)
            self._kept.remove(kept)
            _quota.kept -= 1
        close([kept.fd for kept in gone])


def valid(name: str) -> bool:
    """As the service manager's protocol has it: up to 255 printable ASCII characters without a colon."""
    return 0 < len(name) <= NAME_LENGTH and name.isascii() and name.isprintable() and ":" not in name


def received(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a datagram."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def close(fds: list[int]) -> None:
    """Close what others gave us. A socket that is to linger would make us wait for its peer: it does not."""
    for fd in fds:
        with contextlib.suppress(OSError):
            _no_linger(fd)
        with contextlib.suppress(OSError):  # whatever its file system says: it is closed
            os.close(fd)


def _no_linger(fd: int) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    finally:
        sock.detach()


def same(one: int, other: int) -> bool:
    """Whether two descriptors are the same open file; False where the kernel does not tell."""
    with contextlib.suppress(OSError):
        return bool(fcntl.fcntl(one, _DUPFD_QUERY, other))
    pid = os.getpid()
    return _KCMP is not None and _syscall(_KCMP, pid, pid, 0, one, other) == 0


def named(link: str) -> str:
    """What names the file behind a descriptor's link for the whole host; empty where nothing does.

    Sockets and pipes have a number of their own; a memfd is known by the inode of its file system.
    """
    try:
        text = os.readlink(link)
        if text.startswith(("socket:", "pipe:")):
            return text
        if text.startswith("/memfd:"):
            row = os.stat(link)
            return f"memfd:{row.st_dev}:{row.st_ino}"
    except OSError:
        return ""
    return ""


def _descriptors_of(pid: int) -> dict[str, int]:
    directory = f"/proc/{pid}/fd"
    try:
        return {name: int(fd) for fd in os.listdir(directory) if (name := named(f"{directory}/{fd}"))}
    except OSError:
        return {}
