"""What the daemon remembers of each unit over its own end and the machine's: a log of small blobs, last one wins.

One ``save`` is one ``pwrite`` into room that was allocated before: it costs microseconds, survives ``kill -9`` of
the daemon as soon as it returns, and still works when the disk has run full. A thread brings it to the platter within
10 ms. Once per mebibyte of saves the file is written anew, which takes some milliseconds. Nothing here needs the
journal. What a blob means is the daemon's business.

The file: one record per line, ``<crc32 of the rest, 8 hex digits> <JSON>\\n``; the JSON is ``[unit, blob]``, with
null for a unit that was dropped. Zero bytes follow the last line. A line that is torn at the end was never promised
to anybody and is forgotten; damage before the end moves the file aside, and what is still readable is kept.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentd.errors import Full, HostCannot
from agentd.store import aside

Blob = dict[str, Any]

ROOM = 256 << 10
"""Bytes of zeros that are written ahead."""
COMPACT_AT = 1 << 20
"""A log of this size is written anew with the living blobs only, once they are less than half of it."""
SYNC_WITHIN = 0.01
"""Seconds until what was written goes to the disk: one fdatasync for all of that time."""


class Memory:
    """The blobs of all units. ``save`` and ``drop`` return when the write has returned."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises HostCannot where the file can be neither read nor made."""
        self.path = path
        self.notice: str | None = None
        self._blobs: dict[str, str] = {}
        self._sizes = 0
        self._fd, self._end, self._room = -1, 0, 0
        self._dirty = threading.Event()
        self._closing = threading.Event()
        try:
            self._open()
        except OSError as error:
            raise self._cannot(error) from error
        self._syncer = threading.Thread(target=self._sync_forever, name="memory", daemon=True)
        self._syncer.start()

    def load(self) -> dict[str, Blob]:
        """The last blob of every unit."""
        return {unit: json.loads(text)[1] for unit, text in self._blobs.items()}

    def save(self, unit: str, blob: Blob) -> None:
        """Remember this blob for the unit. It is on disk, in the sense of write(), on return.

        Raises Full when the disk has no room left, HostCannot on any other failure; then the last blob still holds.
        """
        text = json.dumps([unit, blob], separators=(",", ":"))
        self._append(text)
        self._remember(unit, text)
        self._compact_if_due()

    def drop(self, unit: str) -> None:
        """Forget the unit; nothing happens if it is not known. Raises like ``save``."""
        if unit in self._blobs:
            self._append(json.dumps([unit, None], separators=(",", ":")))
            self._remember(unit, None)

    def close(self) -> None:
        """Bring everything to the disk and close."""
        self._closing.set()
        self._dirty.set()
        self._syncer.join()
        os.close(self._fd)

    def _remember(self, unit: str, text: str | None) -> None:
        old = self._blobs.pop(unit, "")
        self._sizes -= len(old)
        if text is not None:
            self._blobs[unit] = text
            self._sizes += len(text)

    # -- the file ---------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._fd = _open_private(self.path, os.O_CREAT)
        content = _read_all(self._fd)
        self._end = self._replay(content)
        self._room = len(content)
        if self.notice is not None:
            self._rewrite()
        self._make_room(1)

    def _replay(self, content: bytes) -> int:
        """Take in every good line; returns where the next one goes."""
        used = len(content.rstrip(b"\0"))
        *lines, tail = content[:used].split(b"\n")
        bad = 0
        for line in lines:
            entry = _parse(line)
            if entry is None:
                bad += bool(line)
            else:
                self._remember(*entry)
        if bad:
            moved = aside.move(self.path)
            self.notice = (
                f"{self.path}: {bad} of {len(lines)} records are damaged. Moved to {moved}; went on with the "
                f"{len(self._blobs)} units that could be read."
            )
        elif tail and not lines:
            self.notice = f"{self.path}: not a memory file. Moved to {aside.move(self.path)}; began empty."
        return used - len(tail)

    def _append(self, text: str) -> None:
        line = _line(text)
        self._make_room(len(line))
        try:
            written = os.pwrite(self._fd, line, self._end)
        except OSError as error:
            raise self._cannot(error) from error
        if written != len(line):  # the next one overwrites what is there of it
            raise Full(f"{self.path}: only {written} of {len(line)} bytes could be written.", hint="Free some disk.")
        self._end += len(line)
        self._dirty.set()

    def _make_room(self, size: int) -> None:
        """Write zeros ahead; without success the write itself will say whether it fits.

        Room that was only allocated would have to be marked as written at each sync, and with it everything waits
        that anybody changes on this file system.
        """
        if self._end + size > self._room:
            with suppress(OSError):
                self._room += os.pwrite(self._fd, bytes(ROOM + size), self._room)

    def _compact_if_due(self) -> None:
        if self._end < COMPACT_AT or self._end < 2 * self._sizes:
            return
        try:
            self._rewrite()
        except OSError:
            return  # no room for a second file: the long one goes on serving, and is tried again at the next save

    def _rewrite(self) -> None:
        """Write the living blobs into a new file and put it in place of the old one."""
        beside = Path(f"{self.path}.new")
        fd = _open_private(beside, os.O_CREAT | os.O_TRUNC)
        try:
            content = b"".join(_line(text) for text in self._blobs.values())
            _write_all(fd, content + bytes(ROOM))
            os.fdatasync(fd)
            os.replace(beside, self.path)
            _sync_directory(self.path.parent)
        except OSError:
            os.close(fd)
            beside.unlink(missing_ok=True)
            raise
        os.dup2(fd, self._fd, inheritable=False)  # the same number, so that the syncing thread never sees a closed one
        os.close(fd)
        self._end, self._room = len(content), len(content) + ROOM

    def _sync_forever(self) -> None:
        while not self._closing.is_set():
            self._dirty.wait()
            self._closing.wait(SYNC_WITHIN)
            self._dirty.clear()
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self.notice = f"{self.path}: cannot be brought to the disk: {error}. It would not survive a power cut."

    def _cannot(self, error: OSError) -> Full | HostCannot:
        kind = Full if error.errno in (errno.ENOSPC, errno.EDQUOT) else HostCannot
        return kind(
            f"{self.path}: cannot remember the units: {error.strerror}.",
            hint="Free some disk, or make the state directory writable.",
        )


def _open_private(path: Path, flags: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_all(fd: int) -> bytes:
    size, parts = os.fstat(fd).st_size, []
    offset = 0
    while offset < size and (part := os.pread(fd, size - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _write_all(fd: int, content: bytes) -> None:
    offset = 0
    while offset < len(content):
        offset += os.pwrite(fd, content[offset:], offset)


def _line(text: str) -> bytes:
    body = text.encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _parse(line: bytes) -> tuple[str, str | None] | None:
    """Unit and text of a good line (no text: dropped); None for a damaged one."""
    mark, _, body = line.partition(b" ")
    if len(mark) != 8 or mark != b"%08x" % zlib.crc32(body):
        return None
    unit, blob = json.loads(body)
    return str(unit), None if blob is None else body.decode("ascii")
