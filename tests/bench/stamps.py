"""Words of the programs under measurement: each writes one line into a FIFO, and the bench waits for it.

A line is ``NAME ROLE PID SECONDS`` (unix time, by the program itself, so that the reader's own delay costs nothing).
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from chaos.fleet import Broken

STAMP = 'echo "$0 main $$ $EPOCHREALTIME" > {fifo}; exec sleep 1000000'
"""Bash: the trivial program. Its first act is its stamp."""


class Stamp(NamedTuple):
    """One line."""

    name: str
    role: str
    pid: int
    at: float


class Stamps:
    """The FIFO. Any uid may write into it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        path.chmod(0o666)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""
        self._waiting: deque[Stamp] = deque()

    def close(self) -> None:
        """Nobody is listened to any more."""
        os.close(self._fd)

    def trivial(self, name: str) -> list[str]:
        """The argv of the trivial program, which calls itself NAME."""
        return ["/bin/bash", "-c", STAMP.format(fifo=self.path), name]

    def next(self, timeout: float = 15.0, what: str = "a stamp") -> Stamp:
        """The next line of anybody. Raises Broken after timeout seconds."""
        end = time.monotonic() + timeout
        while not self._waiting:
            if not select.select([self._fd], [], [], max(0.0, end - time.monotonic()))[0]:
                raise Broken(f"not within {timeout:g} s: {what}")
            *lines, self._rest = (self._rest + os.read(self._fd, 65536)).split(b"\n")
            for name, role, pid, at in (line.decode().split() for line in lines):
                self._waiting.append(Stamp(name, role, int(pid), float(at)))
        return self._waiting.popleft()

    def of(self, name: str, timeout: float = 15.0) -> Stamp:
        """The next line of this one; lines of others before it are dropped."""
        while (stamp := self.next(timeout, f"a stamp of {name}")).name != name:
            pass
        return stamp

    def gather(self, count: int, timeout: float = 60.0) -> list[Stamp]:
        """The next so many lines."""
        return [self.next(timeout, f"{count} stamps") for _ in range(count)]


@contextmanager
def stamps(base: Path) -> Iterator[Stamps]:
    """A FIFO in this directory."""
    opened = Stamps(base / "stamps")
    try:
        yield opened
    finally:
        opened.close()
