"""The notify socket of one unit: READY, STATUS, RELOADING, STOPPING, WATCHDOG and their kin, stamped when they arrive.

Knows the sd_notify text form and its own socket, not what the stamps are used for. Identity is the socket: only
the unit's uid can write to it. Descriptors that come with a datagram go to the unit's store, or are closed: that is
what BARRIER=1 waits for, and it comes after all that was said before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from dataclasses import dataclass
from typing import Any

from agentd.keeper import fdstore

DATAGRAM = 4096
"""Longer datagrams are dropped."""
PER_TURN = 256
FLOOD_GAP = 0.05
"""Seconds that a unit's socket rests once PER_TURN datagrams came within as many: reading them all would cost a whole
processor. The kernel makes the sender wait."""
STATUS_LENGTH = 256
RECEIVE_BUFFER = 1 << 20
Received = tuple[bytes, list[tuple[int, int, bytes]], int, Any]
"""What recvmsg returns."""
LONGEST_EXTENSION = 3600.0
"""Seconds that one EXTEND_TIMEOUT_USEC= may ask for."""


@dataclass(slots=True)
class Stamps:
    """What one invocation has said so far; times are CLOCK_MONOTONIC seconds."""

    ready: float | None = None
    beat: float | None = None
    status: str = ""
    stopping: bool = False
    reloading: bool = False
    """Between RELOADING=1 and the next READY=1."""
    said: float | None = None
    """When STATUS, RELOADING or STOPPING came last."""
    extended: float | None = None
    """The moment until which EXTEND_TIMEOUT_USEC= asks for patience."""
    interval: float | None = None
    """Seconds: what WATCHDOG_USEC= asks for as the longest time between two beats."""
    trigger: float | None = None
    """When WATCHDOG=trigger came: it declares itself hung."""
    main: str | None = None
    """What MAINPID= named, until it was looked at."""

    def take(self, datagram: bytes, now: float) -> bool:
        """Apply one datagram; False if it is garbage."""
        try:
            lines = datagram.decode().split("\n")
        except UnicodeDecodeError:
            return False
        known = False
        for line in lines:
            known = self._assign(*line.partition("=")[::2], now) or known
        return known

    def _assign(self, name: str, value: str, now: float) -> bool:
        if name == "WATCHDOG" and value == "1":
            self.beat = now
        elif name == "WATCHDOG" and value == "trigger":
            self.trigger = now if self.trigger is None else self.trigger
        elif name == "READY" and value == "1":
            self.ready = now if self.ready is None else self.ready
            self.reloading = False
        elif name == "RELOADING" and value == "1":
            self.reloading, self.said = True, now
        elif name in _TIMES:
            return self._time(name, value, now)
        elif name == "STOPPING" and value == "1":
            self.stopping, self.said = True, now
        elif name == "MAINPID":
            self.main = value[:32]
        elif name == "STATUS":
            self.status = "".join(c if c.isprintable() else "\ufffd" for c in value[:STATUS_LENGTH])
            self.said = now
        else:
            return name in _HARMLESS
        return True

    def _time(self, name: str, value: str, now: float) -> bool:
        """A number of microseconds."""
        if not (value.isascii() and value.isdecimal()) or len(value) > 18:
            return False
        seconds = int(value) / 1e6
        if name == "EXTEND_TIMEOUT_USEC":
            self.extended = now + min(seconds, LONGEST_EXTENSION)
        elif seconds:
            self.interval = seconds
        return True


_BEAT = b"WATCHDOG=1"
_TIMES = frozenset({"EXTEND_TIMEOUT_USEC", "WATCHDOG_USEC"})
_HARMLESS = frozenset(
    {
        "RELOADING",
        "ERRNO",
        "BUSERROR",
        "BARRIER",
        "MONOTONIC_USEC",
        "READY",
        "STOPPING",
        "WATCHDOG",
        "FDSTORE",
        "FDSTOREREMOVE",
        "FDNAME",
        "FDPOLL",
        "NOTIFYACCESS",
    }
)


class NotifySocket:
    """A bound datagram socket that outlives the invocations of its unit."""

    def __init__(self, path: str, uid: int | None, gid: int | None, inherited: socket.socket | None = None) -> None:
        self.path = path
        self.dropped = 0
        self._since, self._count = 0.0, 0
        if inherited is not None:
            self._socket = inherited
            return
        os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
        unlink_socket(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            bind_private(self._socket, path)
            self.give(uid, gid)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._socket.fileno()

    def give(self, uid: int | None, gid: int | None) -> None:
        """Let the unit's uid, and no other, write to it."""
        os.chown(self.path, os.geteuid() if uid is None else uid, -1 if gid is None else gid)

    def drain(self, stamps: Stamps | None, store: fdstore.Store | None = None, most: int = PER_TURN) -> int:
        """Read at most this many datagrams into stamps and store, or drop them (None); how many there were."""
        for count in range(most):
            try:
                received = self._socket.recvmsg(DATAGRAM, fdstore.ROOM, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return count
            self._take(received, stamps, store)
        return most

    def flooded(self, count: int, now: float) -> bool:
        """Whether, with so many more datagrams, it is more than anybody has to say: time for a rest."""
        if now > self._since + FLOOD_GAP:
            self._since, self._count = now, 0
        self._count += count
        return self._count >= PER_TURN

    def beat(self, stamps: Stamps, store: fdstore.Store | None) -> bool:
        """Read one datagram; whether that was all: a heartbeat and nothing else, as nearly always.

        What comes behind it keeps the descriptor readable.
        """
        try:
            received = self._socket.recvmsg(DATAGRAM, fdstore.ROOM, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return True
        if received[0] == _BEAT and not received[1]:
            stamps.beat = time.monotonic()
            return True
        self._take(received, stamps, store)
        return False

    def _take(self, received: Received, stamps: Stamps | None, store: fdstore.Store | None) -> None:
        datagram, ancillary, flags, _ = received
        good = stamps is not None and not flags & socket.MSG_TRUNC and stamps.take(datagram, time.monotonic())
        self.dropped += not good
        if ancillary or b"FDSTORE" in datagram:
            fds = fdstore.received(ancillary)
            if good and store is not None:
                store.take(datagram, fds, cut=bool(flags & socket.MSG_CTRUNC))
            else:
                fdstore.close(fds)

    def close(self) -> None:
        """Unbind and remove the socket file."""
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def bind_private(sock: socket.socket, path: str) -> None:
    """Bind with mode 0600 from the first moment on; an OSError names the path."""
    before = os.umask(0o177)
    try:
        sock.bind(path)
    except OSError as error:
        raise OSError(error.errno or errno.ENAMETOOLONG, error.strerror or str(error), path) from None
    finally:
        os.umask(before)


def unlink_socket(path: str) -> None:
    """Remove a stale socket file; anything else in its place stays, and bind will refuse."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
