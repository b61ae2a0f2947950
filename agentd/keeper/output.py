"""What a unit prints: a FIFO, spliced into a file that is rotated once.

Bytes are never looked at. A disk that is full drops them, counted; nothing here waits for anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from agentd.keeper.plan import Output

PIPE_SIZE = 1 << 20
CHUNK = 256 << 10


class OutputPipe:
    """The reading side of one unit's FIFO, and its file. Outlives the invocations of the unit."""

    def __init__(self, output: Output, uid: int | None, gid: int | None) -> None:
        self.output = output
        self.dropped = 0
        self._pending_note = 0
        _make_fifo(output.fifo)
        # Read-write: with a writer of our own there is never an end of file, only "nothing now".
        self._fifo = os.open(output.fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._file = -1
        self._size = 0
        try:
            self.give(uid, gid)
            self._open()
        except OSError:
            os.close(self._fifo)
            raise
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(self._fifo, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._fifo

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
        for fd in (self._fifo, self._file):
            if fd >= 0:
                os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.output.fifo)

    def _move(self, count: int) -> int:
        try:
            self._room()
            moved = os.splice(
                self._fifo,
                self._file,
                min(count, self.output.max_bytes - self._size),
                flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE,
            )
        except BlockingIOError:
            return 0
        except OSError as error:
            # EINVAL: a file system without splice.
            return self._copy(count) if error.errno == errno.EINVAL and self._file >= 0 else self._drop(count)
        self._size += moved
        return moved

    def _copy(self, count: int) -> int:
        try:
            data = os.read(self._fifo, min(count, self.output.max_bytes - self._size))
        except BlockingIOError:
            return 0
        try:
            written = os.write(self._file, data)
        except OSError:
            written = 0
        self._size += written
        self._lose(len(data) - written)
        return len(data)

    def _drop(self, count: int) -> int:
        try:
            lost = len(os.read(self._fifo, count))
        except BlockingIOError:
            return 0
        self._lose(lost)
        return lost

    def _lose(self, count: int) -> None:
        self.dropped += count
        self._pending_note += count

    def _room(self) -> None:
        """Make sure that the file is open and has room; an OSError means that output must be dropped now."""
        if self._file < 0:
            self._open()
        if self._size >= self.output.max_bytes:
            os.rename(self.output.file, self.output.file + ".1")
            os.close(self._file)
            self._file = -1
            self._open()
        if self._pending_note:
            note = (
                f"\n[agentd: {self._pending_note} bytes of output were dropped here: the file could not be written]\n"
            )
            self._size += os.write(self._file, note.encode())
            self._pending_note = 0

    def _open(self) -> None:
        os.makedirs(os.path.dirname(self.output.file), mode=0o700, exist_ok=True)
        # Not O_APPEND: splice refuses it with EINVAL.
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self.output.file, flags, 0o600)
        self._size = os.lseek(self._file, 0, os.SEEK_END)


def _make_fifo(path: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        if not stat.S_ISFIFO(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "is in the way and not a FIFO", path) from None
    except OSError as error:  # mkfifo does not name it
        raise OSError(error.errno, error.strerror, path) from None
