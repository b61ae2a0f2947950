"""What a unit prints: a FIFO, spliced into a file with an index of times beside it, rotated.

Bytes are never looked at. A disk that is full drops them, counted; nothing here waits for anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass

from agentd.keeper import rotation
from agentd.keeper.plan import Output
from agentd.keeper.timeindex import TimeIndex

PIPE_SIZE = 1 << 20
CHUNK = 256 << 10
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""What a disk has for a time. Anything else about a log file is a mistake that somebody must mend."""


@dataclass(slots=True)
class Losses:
    """What of one unit's output is missing in its log, since the keeper knows the unit."""

    dropped: int = 0
    """Bytes."""
    losing: bool = False
    """Whether the last bytes that came had to be dropped: the log cannot be written now."""
    error: str = ""
    """Why, in the system's words."""
    at: float | None = None
    """CLOCK_MONOTONIC seconds of the last drop."""


class OutputPipe:
    """The reading side of one unit's FIFO, and its file. Outlives the invocations of the unit.

    ``losses`` are added to, and ``changed`` is called when they have changed.
    """

    def __init__(
        self,
        output: Output,
        uid: int | None,
        gid: int | None,
        losses: Losses | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.output = output
        self.losses = losses or Losses()
        self._changed = changed
        self._pending_note = 0
        _make_fifo(output.fifo)
        # Read-write: with a writer of our own there is never an end of file, only "nothing now".
        self._fifo = os.open(output.fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._file = -1
        self._size = 0
        self._index = TimeIndex(output.file)
        try:
            self.give(uid, gid)
            self._try_open()
        except OSError:
            os.close(self._fifo)
            raise
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(self._fifo, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._fifo

    def follows(self, output: Output) -> bool:
        """Whether it can go on with this output: the same files, perhaps with other limits."""
        return (output.fifo, output.file) == (self.output.fifo, self.output.file)

    def give(self, uid: int | None, gid: int | None) -> None:
        """Let the unit's uid open the FIFO."""
        os.chown(self.output.fifo, os.geteuid() if uid is None else uid, -1 if gid is None else gid)
        os.chmod(self.output.fifo, 0o600)

    def writer(self) -> int:
        """A new descriptor for the child's stdout and stderr: read-write, so a dead reader never breaks it."""
        return os.open(self.output.fifo, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def pump(self, quota: int) -> int:
        """Move at most quota bytes into the file; how many were moved or dropped. 0: nothing waits."""
        done = 0
        while done < quota:
            moved = self._move(min(quota - done, CHUNK))
            if not moved:
                break
            done += moved
        return done

    def drain(self) -> None:
        """Move what waits: all of it when no writer lives, else a bounded part."""
        self.pump(4 * PIPE_SIZE)

    def close(self) -> None:
        """Stop reading and remove the FIFO. The file stays."""
        self._index.close()
        for fd in (self._fifo, self._file):
            if fd >= 0:
                os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.output.fifo)

    def _move(self, count: int) -> int:
        try:
            self._room()
            moved = os.splice(self._fifo, self._file, self._most(count), flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except BlockingIOError:
            return 0
        except OSError as error:
            # EINVAL: a file system without splice.
            if error.errno == errno.EINVAL and self._file >= 0:
                return self._copy(count)
            return self._drop(count, error)
        self._size += moved
        return moved

    def _most(self, count: int) -> int:
        """So much of count that the file ends at its size; a note may already have gone beyond it."""
        return max(1, min(count, self.output.max_bytes - self._size))

    def _copy(self, count: int) -> int:
        try:
            data = os.read(self._fifo, self._most(count))
        except BlockingIOError:
            return 0
        try:
            written = os.write(self._file, data)
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as failure:
            written, error = 0, failure
        self._size += written
        if written < len(data):
            self._lose(len(data) - written, error)
        return len(data)

    def _drop(self, count: int, error: OSError) -> int:
        try:
            lost = len(os.read(self._fifo, count))
        except BlockingIOError:
            return 0
        self._lose(lost, error)
        return lost

    def _lose(self, count: int, error: OSError) -> None:
        self._pending_note += count
        losses = self.losses
        losses.dropped += count
        losses.losing, losses.error, losses.at = True, error.strerror or str(error), time.monotonic()
        self._changed()

    def _room(self) -> None:
        """Make sure that the file is open and has room; an OSError means that output must be dropped now."""
        if self._file < 0:
            self._open()
        if self._worn_out():
            rotation.shift(self.output.file, self.output.keep, self.output.max_age)
            os.close(self._file)
            self._file = -1
            self._open()
        if self._pending_note:
            self._note()
        self._index.stamp(self._size)

    def _worn_out(self) -> bool:
        if self._size >= self.output.max_bytes or self._index.full:
            return True
        return 0 < self.output.max_age < self._index.age() and self._size > 0

    def _note(self) -> None:
        """Say in the log itself what is missing here: whole, or not at all."""
        lost = self._pending_note
        note = f"\n[agentd: {lost} bytes of output were dropped here: the file could not be written]\n".encode()
        if os.write(self._file, note) != len(note):
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.output.file)
        self._index.lose(self._size + 1, lost)
        self._size += len(note)
        self._pending_note = 0
        self.losses.losing = False
        self._changed()

    def _try_open(self) -> None:
        """A unit runs also where its log cannot be written for now: what it prints is dropped, counted and shown."""
        try:
            self._open()
        except OSError as error:
            if error.errno not in PASSING:
                raise

    def _open(self) -> None:
        os.makedirs(os.path.dirname(self.output.file), mode=0o700, exist_ok=True)
        # Not O_APPEND: splice refuses it with EINVAL.
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self.output.file, flags, 0o600)
        self._size = os.lseek(self._file, 0, os.SEEK_END)
        self._index.open(self._file, self.output.max_bytes)


def _make_fifo(path: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        if not stat.S_ISFIFO(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "is in the way and not a FIFO", path) from None
    except OSError as error:  # mkfifo does not name it
        raise OSError(error.errno, error.strerror, path) from None
