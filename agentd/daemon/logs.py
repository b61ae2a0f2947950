"""Reading a unit's log: its last lines, then what comes, over rotation.

The keeper writes ``<unit>.log`` and renames it to ``<unit>.log.1`` when it is big enough. To a reader both are one
stream of bytes. Bytes are never parsed beyond counting newlines.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agentd.daemon import inotify

CHUNK = 64 << 10
GROWN = inotify.MODIFY
APPEARED = inotify.CREATE | inotify.MOVED_TO | inotify.ONLYDIR


async def read(path: Path, lines: int, follow: bool) -> AsyncIterator[bytes]:
    """The last ``lines`` lines of the log, in chunks; with ``follow`` also all that is written from then on.

    Without ``follow`` a log that does not exist yet is empty; with it, it is waited for. Close the iterator to stop
    following. Raises NotFound where not even the directory exists (follow only), HostCannot without inotify.
    """
    with ExitStack() as stack:
        watcher = stack.enter_context(inotify.opened()) if follow else None
        if watcher is not None:
            watcher.watch(path.parent, APPEARED)
        stream = stack.enter_context(_Stream(path, watcher))
        await asyncio.to_thread(stream.rewind, lines)
        while True:
            if watcher is not None:
                watcher.changed.clear()  # before reading: what is written meanwhile sets it again
            for chunk in stream.unread():
                yield chunk
            if watcher is None:
                return
            await watcher.wait_for_growth()


@dataclass(slots=True)
class _File:
    """One open log file and how far it was read."""

    fd: int
    inode: int
    offset: int = 0
    watch: int | None = None


class _Stream:
    """``.1`` and the present file as one stream."""

    def __init__(self, path: Path, watcher: inotify.Inotify | None) -> None:
        self._path, self._older = path, Path(f"{path}.1")
        self._watcher = watcher
        self._files: list[_File] = []  # oldest first; the last one is the present file
        self._seen: set[int] = set()

    def __enter__(self) -> Self:
        self._discover()
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            os.close(file.fd)

    def rewind(self, lines: int) -> None:
        """Stand before the last ``lines`` lines of what is there now."""
        wanted, ends_open = lines, True
        for file in reversed(self._files):
            size = os.fstat(file.fd).st_size
            file.offset, wanted = _line_start(file.fd, size, wanted, ends_open)
            ends_open = ends_open and size == 0

    def unread(self) -> Iterator[bytes]:
        """All that was not read yet, to the end as it was when we came there."""
        more = True
        while more:
            for file in self._files:
                yield from _rest(file)
            self._forget_read_ones()
            more = self._discover()  # rotated while we read: the old one may have got its last bytes since

    def _discover(self) -> bool:
        """Open what is new at the two paths. What we hold open stays readable when it is renamed or replaced."""
        known = len(self._files)
        self._open(self._older)  # first: after two rotations at once it is the one in between
        self._open(self._path)
        return len(self._files) > known

    def _open(self, path: Path) -> None:
        inode = _inode(path)
        if inode is None or inode in self._seen:
            return
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        file = _File(fd, os.fstat(fd).st_ino)
        if file.inode in self._seen:
            os.close(fd)
            return
        self._seen.add(file.inode)
        self._files.append(file)
        if self._watcher is not None:
            file.watch = self._watcher.watch(Path(f"/proc/self/fd/{fd}"), GROWN)

    def _forget_read_ones(self) -> None:
        """Close all but the last two: one that was just renamed may still get its last bytes."""
        for file in self._files[:-2]:
            if self._watcher is not None and file.watch is not None:
                self._watcher.unwatch(file.watch)
            self._seen.discard(file.inode)
            os.close(file.fd)
        del self._files[:-2]


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _rest(file: _File) -> Iterator[bytes]:
    size = os.fstat(file.fd).st_size
    if size < file.offset:  # somebody emptied it
        file.offset = 0
    while file.offset < size and (chunk := os.pread(file.fd, min(CHUNK, size - file.offset), file.offset)):
        file.offset += len(chunk)
        yield chunk


def _line_start(fd: int, size: int, wanted: int, ends_stream: bool) -> tuple[int, int]:
    """Where the last ``wanted`` lines of the file begin, and how many lines are still wanted before it.

    The newline that ends the whole stream separates nothing and is not counted.
    """
    if wanted <= 0:
        return size, 0
    end = size
    ignored = ends_stream
    while end > 0:
        begin = max(0, end - CHUNK)
        block = os.pread(fd, end - begin, begin)
        at = len(block)
        if ignored and block.endswith(b"\n"):
            at -= 1
        ignored = False
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            wanted -= 1
            if wanted == 0:
                return begin + at + 1, 0
        end = begin
    return 0, wanted
