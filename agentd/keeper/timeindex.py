"""The side index of one log file: which byte was printed when, without looking at any byte.

Fixed records (format in ``plan.py``), at most one every GAP seconds. It is a convenience of the log: whatever cannot be
written here is left out, and the log goes on.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from dataclasses import dataclass

from agentd.keeper.plan import INDEX_HEADER, INDEX_MAGIC, INDEX_RECORD

SUFFIX = ".idx"
GAP = 0.02
"""Seconds: what is printed within them shares a record, so a time is never further off than this and one wake-up."""
SMALLEST = 64 << 10
"""Bytes that an index may have at least."""
MOST_LOST = (1 << 32) - 1

_HEADER, _RECORD = struct.Struct(INDEX_HEADER), struct.Struct(INDEX_RECORD)


@dataclass(frozen=True, slots=True)
class Stamp:
    """One record."""

    offset: int
    wall: int
    """Unix nanoseconds, as the clock stood then."""
    boottime: int
    """CLOCK_BOOTTIME nanoseconds: it neither jumps nor stops while the host sleeps."""
    lost: int
    boot: int

    @classmethod
    def now(cls, offset: int, lost: int = 0) -> Stamp:
        """This moment."""
        return cls(offset, time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), lost, BOOT)

    def age(self) -> float:
        """Seconds since; by the clock on the wall only where another boot lies between."""
        now = Stamp.now(0)
        return ((now.boottime - self.boottime) if self.boot == now.boot else (now.wall - self.wall)) / 1e9

    def pack(self) -> bytes:
        """The bytes of the record."""
        return _RECORD.pack(self.offset, self.wall, self.boottime, self.lost, self.boot)


class TimeIndex:
    """The index beside the log that is being written. Never raises OSError."""

    def __init__(self, log: str) -> None:
        self._path, self._older, self._most = log + SUFFIX, f"{log}.1{SUFFIX}", SMALLEST
        self._serial = 0
        self._log = -1
        self._fd = -1
        self._end = 0
        self._first: Stamp | None = None
        self._last = 0.0

    def open(self, log: int, max_bytes: int) -> None:
        """Continue the index of this open log file, or begin it; it may have half as many bytes as the log."""
        self.close()
        self._most = max(SMALLEST, max_bytes // 2)
        self._log, self._first, self._last = log, None, 0.0
        with contextlib.suppress(OSError):
            self._open()

    def close(self) -> None:
        """Close it; the file stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def full(self) -> bool:
        """Whether it has no room for another record: log and index are to be rotated."""
        return self._end + _RECORD.size > self._most

    def age(self) -> float:
        """Seconds since the first record of this file."""
        return self._first.age() if self._first else 0.0

    def stamp(self, offset: int) -> None:
        """What is written from offset on is printed now."""
        now = time.monotonic()
        if now - self._last >= GAP:
            self._last = now
            self._append(Stamp.now(offset))

    def lose(self, offset: int, count: int) -> None:
        """Before offset, count bytes are missing."""
        self._last = time.monotonic()
        self._append(Stamp.now(offset, min(count, MOST_LOST)))

    def _append(self, stamp: Stamp) -> None:
        with contextlib.suppress(OSError):
            if self._fd < 0:
                self._open()
            if os.pwrite(self._fd, stamp.pack(), self._end) == _RECORD.size:  # half a record is written over
                self._end += _RECORD.size
                self._first = self._first or stamp

    def _open(self) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._end = self._continued(fd) or self._begun(fd)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd

    def _continued(self, fd: int) -> int:
        """Behind its last whole record, if it is this log's and of our format; else 0."""
        log = os.fstat(self._log)
        begin, end = _HEADER.size, os.fstat(fd).st_size
        end -= (end - begin) % _RECORD.size
        inode, serial = _header(fd)
        if inode != log.st_ino:
            return 0
        if end > begin and _read(fd, end - _RECORD.size).offset > log.st_size:
            return 0  # the log was emptied or replaced by hand
        self._first, self._serial = _read(fd, begin) if end > begin else None, serial
        return end

    def _begun(self, fd: int) -> int:
        os.ftruncate(fd, 0)
        serial = 1 + (self._serial or _serial(self._older))
        header = _HEADER.pack(INDEX_MAGIC, os.fstat(self._log).st_ino, serial)
        if os.pwrite(fd, header, 0) != len(header):
            raise OSError(f"{self._path}: no room for its header")
        self._serial = serial
        return len(header)


def age(log: str) -> float:
    """Seconds since the last record of a log that is no longer written; without an index, since it was written."""
    try:
        with open(log + SUFFIX, "rb") as file:
            records = (os.fstat(file.fileno()).st_size - _HEADER.size) // _RECORD.size
            if records > 0:
                return _read(file.fileno(), _HEADER.size + (records - 1) * _RECORD.size).age()
    except OSError:
        pass
    return time.time() - os.stat(log).st_mtime


def _header(fd: int) -> tuple[int, int]:
    """Inode and number of the log file that an index is about; zeros where it is no index of our format."""
    raw = os.pread(fd, _HEADER.size, 0)
    magic, inode, serial = _HEADER.unpack(raw) if len(raw) == _HEADER.size else (b"", 0, 0)
    return (inode, serial) if magic == INDEX_MAGIC else (0, 0)


def _serial(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return _header(file.fileno())[1]
    except OSError:
        return 0


def _read(fd: int, offset: int) -> Stamp:
    return Stamp(*_RECORD.unpack(os.pread(fd, _RECORD.size, offset)))


def _boot() -> int:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return int(file.read(8), 16)
    except (OSError, ValueError):
        return 0


BOOT = _boot()
"""The first 32 bits of the boot id: CLOCK_BOOTTIME of two records is comparable where they agree."""
