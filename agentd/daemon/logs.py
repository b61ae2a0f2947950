"""Reading a unit's log: its last lines or those of a span of time, then what comes, over rotation.

The keeper writes ``<unit>.log``, renames it to ``.1``, that one to ``.2`` and so on; an index of times is beside each.
To a reader all are one stream of bytes. Bytes are never parsed beyond counting newlines.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agentd.daemon import inotify
from agentd.daemon.lines import Lines
from agentd.daemon.times import Times, names

CHUNK = 64 << 10
GROWN = inotify.MODIFY
APPEARED = inotify.CREATE | inotify.MOVED_TO | inotify.ONLYDIR
MISSED = b"\n[agentd: output was rotated away here before this reader came to it]\n"


@dataclass(frozen=True, slots=True)
class Span:
    """Which part of a log: the last ``lines`` lines (None: all) of those that began from ``since`` to ``until``."""

    lines: int | None = 100
    since: float | None = None
    """Unix seconds, like ``until``."""
    until: float | None = None


async def read(
    path: Path, lines: int | None, follow: bool, *, since: float | None = None, until: float | None = None
) -> AsyncIterator[bytes]:
    """The lines of that span in chunks, as they were printed; with ``follow`` also all that is written from then on.

    Without ``follow`` a log that does not exist yet is empty; with it, it is waited for. Close the iterator to stop
    following. Raises NotFound where not even the directory exists (follow only), HostCannot without inotify.
    """
    async with aclosing(_pieces(path, Span(lines, since, until), follow)) as pieces:
        async for piece in pieces:
            yield piece.chunk


async def read_lines(
    path: Path,
    unit: str,
    lines: int | None,
    follow: bool,
    *,
    since: float | None = None,
    until: float | None = None,
) -> AsyncIterator[bytes]:
    """The same as JSON, one object for each line (``lines.Lines``)."""
    cutter = Lines(unit)
    async with aclosing(_pieces(path, Span(lines, since, until), follow)) as pieces:
        async for piece in pieces:
            if made := b"".join(cutter.feed(piece.chunk, piece.offset, piece.times)):
                yield made
    if made := b"".join(cutter.finish()):
        yield made


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of one file."""

    chunk: bytes
    offset: int = 0
    times: Times | None = None


async def _pieces(path: Path, span: Span, follow: bool) -> AsyncGenerator[_Piece, None]:
    with ExitStack() as stack:
        watcher = stack.enter_context(inotify.opened()) if follow else None
        if watcher is not None:
            watcher.watch(path.parent, APPEARED)
        stream = stack.enter_context(_Stream(path, watcher))
        await asyncio.to_thread(stream.rewind, span)
        while True:
            if watcher is not None:
                watcher.changed.clear()  # before reading: what is written meanwhile sets it again
            for piece in stream.unread():
                yield piece
            if watcher is None:
                return
            await watcher.wait_for_growth()


@dataclass(slots=True)
class _File:
    """One open log file and how far it was read."""

    fd: int
    inode: int
    offset: int = 0
    end: int | None = None
    """Where reading ends; None: at its end, wherever that will be."""
    watch: int | None = None
    times: Times | None = None

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def forget_times(self) -> None:
        if self.times is not None:
            self.times.close()
            self.times = None

    def close(self) -> None:
        os.close(self.fd)
        self.forget_times()


class _Stream:
    """The present file and its rotated ones as one stream."""

    def __init__(self, path: Path, watcher: inotify.Inotify | None) -> None:
        self._path, self._watcher = path, watcher
        self._files: list[_File] = []  # oldest first; the last one is the present file

    def __enter__(self) -> Self:
        self._discover()
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def rewind(self, span: Span) -> None:
        """Stand before what is wanted of what is there now."""
        for file in self._files:
            self._find_times(file)
        wanted, ends_open = span.lines, True
        for file, (begin, end) in reversed(list(zip(self._files, self._bounds(span), strict=True))):
            file.offset = begin
            if wanted is not None:
                start, wanted = _line_start(file.fd, end, wanted, ends_open)
                file.offset = min(end, max(begin, start))
            ends_open = ends_open and begin >= end
            file.end = None if self._watcher else end

    def _bounds(self, span: Span) -> list[tuple[int, int]]:
        """From where to where each file's lines began in the span of time."""
        found: list[tuple[int, int]] = []
        begun, over, whole = span.since is None, False, True
        for file in self._files:
            size = file.size()
            begin = 0 if begun else size
            if not begun and (offset := _since(file, size, span.since or 0.0)) is not None:
                begin = _next_line(file.fd, offset, size, whole)
                begun = begin < size or _ends_line(file.fd, size)
            end = begin if over else size
            if not over and span.until is not None:
                offset = file.times.first_after(span.until, begin) if file.times else None
                if offset is not None and begin < size:
                    end, over = max(begin, _next_line(file.fd, offset, size, whole)), True
            found.append((begin, end))
            whole = _ends_line(file.fd, size) if size else whole
        return found

    def unread(self) -> Iterator[_Piece]:
        """All that was not read yet, to the end as it was when we came there."""
        while True:
            for file in self._files:
                yield from self._rest(file)
            if self._watcher is None:
                return  # what was there at the beginning stays open and readable, whatever becomes of its name
            self._forget_read_ones()
            held = self._files[:]
            missed = self._discover()
            if len(self._files) == len(held):
                return
            for file in held:  # rotated while we read: the old one may have got its last bytes since
                yield from self._rest(file)
            if missed:
                yield _Piece(MISSED)

    def _rest(self, file: _File) -> Iterator[_Piece]:
        size = file.size()
        end = size if file.end is None else min(size, file.end)
        if size < file.offset:  # somebody emptied it
            file.offset = 0
            file.forget_times()
        if file.offset < end:
            self._find_times(file)
        while file.offset < end and (chunk := os.pread(file.fd, min(CHUNK, end - file.offset), file.offset)):
            file.offset += len(chunk)
            yield _Piece(chunk, file.offset - len(chunk), file.times)

    def _find_times(self, file: _File) -> None:
        if file.times is None:
            file.times = Times.find(self._path, file.inode)
        else:
            file.times.refresh()

    def _discover(self) -> bool:
        """Open what is new. What we hold open stays readable when it is renamed or removed.

        True: files came and went unseen between those that we had and those that are there now.
        """
        seen = {file.inode for file in self._files}
        held = frozenset(seen)
        new: list[_File] = []
        for path in names(self._path):  # youngest first, as they are renamed: none slips past
            file = _open(path)
            if file is None:
                continue
            if file.inode in seen:
                file.close()
                if file.inode in held:
                    break
                continue
            seen.add(file.inode)
            new.append(file)
        missed = bool(new) and self._misses(new[-1])
        for file in reversed(new):
            self._watch(file)
            self._files.append(file)
        return missed

    def _misses(self, oldest: _File) -> bool:
        """Whether there were files between the last one that we hold and the oldest new one, by their numbers."""
        if not self._files:
            return False
        for file in (self._files[-1], oldest):
            self._find_times(file)
        before, after = self._files[-1].times, oldest.times
        return before is not None and after is not None and after.serial > before.serial + 1

    def _watch(self, file: _File) -> None:
        if self._watcher is not None:
            file.watch = self._watcher.watch(Path(f"/proc/self/fd/{file.fd}"), GROWN)

    def _forget_read_ones(self) -> None:
        """Close all but the last two: one that was just renamed may still get its last bytes."""
        for file in self._files[:-2]:
            if self._watcher is not None and file.watch is not None:
                self._watcher.unwatch(file.watch)
            file.close()
        del self._files[:-2]


def _open(path: Path) -> _File | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    return _File(fd, os.fstat(fd).st_ino)


def _since(file: _File, size: int, moment: float) -> int | None:
    """From which offset on the file's bytes are not older. Without an index all are as old as its last change."""
    if file.times is not None:
        return file.times.first_from(moment)
    return 0 if size and os.fstat(file.fd).st_mtime >= moment else None


def _ends_line(fd: int, end: int) -> bool:
    return end > 0 and os.pread(fd, 1, end - 1) == b"\n"


def _next_line(fd: int, offset: int, size: int, whole: bool) -> int:
    """The first line that begins at offset or behind it; size where none does. whole: offset 0 begins one."""
    if (offset == 0 and whole) or _ends_line(fd, min(offset, size)):
        return min(offset, size)
    while offset < size and (block := os.pread(fd, CHUNK, offset)):
        if (at := block.find(b"\n")) >= 0:
            return min(size, offset + at + 1)
        offset += len(block)
    return size


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
