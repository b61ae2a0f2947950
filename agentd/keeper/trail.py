"""A small file that says what is so now, told in lines: each line is a JSON object and sets the keys that it names.

A change is appended by one ``write``: microseconds, where replacing the file costs a new one and a rename each time. A
line that is torn at the end was never promised to anybody and is no line. Whatever was not begun by us, or has become
long, is begun anew beside it and put in its place in one step. Knows nothing of what stands in it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
LONG = 16 << 10
"""Bytes at which a file is begun anew, or four times a line that is longer than that."""


class Trail:
    """One file. ``head`` stands in it whatever is written."""

    def __init__(self, path: str, head: Json) -> None:
        self.path, self._head = path, head
        self._size = -1
        """Bytes of the file as we wrote it; -1: none that is ours."""

    @property
    def begun(self) -> bool:
        """Whether the next line may be appended, as far as we know."""
        return self._size >= 0

    def write(self, change: Json, rest: Callable[[], Json]) -> None:
        """Set these keys. ``rest`` gives all others, for a file that is begun anew."""
        line = _line(change)
        if self._size < 0 or self._size + len(line) > max(LONG, 4 * len(line)) or not self._append(line):
            self._begin(_line(self._head | rest() | change))

    def remove(self) -> None:
        """Delete the file."""
        self._size = -1
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def _append(self, line: bytes) -> bool:
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self._put(fd, line)
        self._size += len(line)
        return True

    def _begin(self, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            self._put(os.open(self.path, flags | os.O_EXCL, 0o600), line)
        except FileExistsError:
            beside = self.path + ".new"
            self._put(os.open(beside, flags | os.O_TRUNC, 0o600), line)
            os.rename(beside, self.path)
        self._size = len(line)

    def _put(self, fd: int, line: bytes) -> None:
        """Write a whole line and close; after anything less the file is not ours to append to."""
        self._size, before = -1, self._size
        try:
            if os.write(fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        finally:
            os.close(fd)
        self._size = before


def read(path: str) -> Json:
    """What is so now. Raises OSError, or ValueError for what is none of these files."""
    with open(path, encoding="utf-8") as file:
        *lines, torn = file.read().split("\n")
    content: Json = {}
    for line in lines or [torn]:  # an older keeper wrote one object without an end of line
        change = json.loads(line)
        if not isinstance(change, dict):
            raise ValueError("is not a JSON object")
        content |= change
    return content


def _line(content: Json) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
