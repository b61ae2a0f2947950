"""When the bytes of a log were printed: the reader's side of the keeper's time index (keeper/PROTOCOL.md, Logs).

A moment is shown by the clock as it stood then, unless the clock was set since: then by the clock as it stands now,
which CLOCK_BOOTTIME connects with every moment of this boot.
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from agentd.keeper.plan import INDEX_HEADER, INDEX_MAGIC, INDEX_RECORD

SUFFIX = ".idx"
STEP = 1.0
"""Seconds: a smaller difference of the two clocks is their drift, not a step."""
_HEADER, _RECORD, _OFFSET = struct.Struct(INDEX_HEADER), struct.Struct(INDEX_RECORD), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Clock:
    """What connects the moments of this boot with the wall: unix seconds at CLOCK_BOOTTIME 0, by the clock as it is."""

    boot: int
    zero: float

    @classmethod
    def now(cls) -> Self:
        """The clock as it stands."""
        return cls(_boot(), time.time() - time.clock_gettime(time.CLOCK_BOOTTIME))

    def at(self, wall: int, boottime: int, boot: int) -> float:
        """Unix seconds of a record."""
        told = wall / 1e9
        if boot != self.boot:
            return told
        derived = self.zero + boottime / 1e9
        return told if abs(derived - told) < STEP else derived


class Times:
    """The index of one log file, as far as it was read. ``refresh`` reads on."""

    def __init__(self, fd: int, serial: int) -> None:
        self.serial = serial
        """The number of the file among all of its unit."""
        self._fd, self._clock = fd, Clock.now()
        self._records = bytearray()
        self._cursor = 0

    @classmethod
    def find(cls, log: Path, inode: int) -> Self | None:
        """The index that names this inode, among those of the log and its rotated files; None without one.

        By inode, not by name: log and index are renamed one after the other, and we may look in between.
        """
        for path in names(log):
            try:
                fd = os.open(f"{path}{SUFFIX}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            header = os.pread(fd, _HEADER.size, 0)
            if len(header) == _HEADER.size and (told := _HEADER.unpack(header))[:2] == (INDEX_MAGIC, inode):
                times = cls(fd, told[2])
                times.refresh()
                return times
            os.close(fd)
        return None

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def refresh(self) -> None:
        """Take the records that were written since, and the clock as it stands now."""
        self._clock = Clock.now()
        begin = _HEADER.size + len(self._records)
        more = os.pread(self._fd, max(0, os.fstat(self._fd).st_size - begin), begin)
        self._records += more[: len(more) // _RECORD.size * _RECORD.size]

    def at(self, offset: int) -> tuple[float | None, int]:
        """When the byte was printed, and how many bytes are missing right before it. Offsets must not fall."""
        records, step = self._records, _RECORD.size
        while self._cursor < len(records) and _OFFSET.unpack_from(records, self._cursor)[0] <= offset:
            self._cursor += step
        if not self._cursor:
            return None, 0
        begin, wall, boottime, lost, boot = _RECORD.unpack_from(records, self._cursor - step)
        return self._clock.at(wall, boottime, boot), lost if begin == offset else 0

    def first_from(self, moment: float) -> int | None:
        """The offset from which on bytes were printed at this moment or later; None where all were earlier."""
        for offset, wall, boottime, _, boot in _RECORD.iter_unpack(self._records):
            if self._clock.at(wall, boottime, boot) >= moment:
                return int(offset)
        return None

    def first_after(self, moment: float, begin: int) -> int | None:
        """The offset, not before begin, from which on bytes were printed after this moment; None where none were."""
        for offset, wall, boottime, _, boot in _RECORD.iter_unpack(self._records):
            if offset >= begin and self._clock.at(wall, boottime, boot) > moment:
                return int(offset)
        return None


def names(log: Path) -> list[Path]:
    """The log and its rotated files, youngest first. One may be missing in between: they are being renamed."""
    found, missing, number = [log], 0, 1
    while missing < 2:
        path = Path(f"{log}.{number}")
        missing = 0 if os.path.lexists(path) else missing + 1
        found.append(path)
        number += 1
    return found


@cache
def _boot() -> int:
    return int(Path("/proc/sys/kernel/random/boot_id").read_text()[:8], 16)
