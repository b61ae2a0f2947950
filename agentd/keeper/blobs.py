"""What the daemon leaves with the keeper for its own successor: one text per unit, and their file, for the next keeper.

The file is a log: one ``write`` for all that changed within WRITE_GAP, whatever the number of units; the last line of a
unit counts. A line that is cut short at the end was never promised to anybody. Knows nothing of what the texts mean.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable

from agentd.keeper.loop import Loop, Timer, say
from agentd.keeper.record import boot

NAME = "blobs.log"
WRITE_GAP = 0.05
"""Seconds in which changes gather before they are written. The daemon has them too, so only the death of both within
that time can lose one."""
COMPACT_AT = 1 << 20
"""Bytes from which on a file is written anew, once the living texts are less than half of it."""
_BOOT = boot()


class Blobs:
    """The texts of all units. ``directory`` holds the file; the one of an earlier keeper is read at once."""

    def __init__(self, loop: Loop, directory: str) -> None:
        self._loop, self._path = loop, f"{directory}/{NAME}"
        self._texts: dict[str, str] = {}
        self._changed: dict[str, None] = {}
        self._due: Timer | None = None
        self._fd = -1
        self._size = 0
        self._living = 0
        """Bytes of the living texts, about."""
        self._load()

    def get(self, unit: str) -> str | None:
        """The text of a unit."""
        return self._texts.get(unit)

    def all(self) -> dict[str, str]:
        """Each unit's text."""
        return dict(self._texts)

    def put(self, unit: str, text: str | None) -> None:
        """Keep a text; None drops it. It is in the file within WRITE_GAP."""
        if text == self._texts.get(unit):
            return
        self._living -= len(self._texts.pop(unit, ""))
        if text is not None:
            self._texts[unit] = text
            self._living += len(text)
        self._changed[unit] = None
        if self._due is None:
            self._due = self._loop.after(WRITE_GAP, self.write)

    def resume(self, texts: dict[str, str]) -> None:
        """Take over what ``all`` gave to this same keeper before an exec."""
        self._texts, self._living = dict(texts), sum(map(len, texts.values()))
        self._due = self._due or self._loop.after(WRITE_GAP, self.write)

    def write(self) -> None:
        """Bring what changed to the file now. What cannot be written is tried again with the next change."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        try:
            if self._fd < 0 or (self._size > COMPACT_AT and self._size > 2 * self._living):
                self._rewrite()
            elif self._changed:
                self._append(_lines((unit, self._texts.get(unit)) for unit in self._changed))
        except OSError as error:
            say(f"{self._path} cannot be written: {error}; proceeding")
            return
        self._changed.clear()

    def close(self) -> None:
        """Remove the file: nobody comes after us."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._let_go()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _load(self) -> None:
        try:
            with open(self._path, "rb") as file:
                header, *lines = file.read().split(b"\n")
            if json.loads(header) != _header():
                raise ValueError("is of another boot or version")
            for line in lines[:-1]:
                unit, text = json.loads(line)
                self._texts.pop(unit, None)
                if text is not None:
                    self._texts[str(unit)] = str(text)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError) as error:
            say(f"{self._path} cannot be read: {error}; going on with {len(self._texts)} blobs")
        self._living = sum(map(len, self._texts.values()))

    def _rewrite(self) -> None:
        """The file anew, in one step, with the living texts only."""
        fresh = f"{self._path}.new"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            content = json.dumps(_header()).encode() + b"\n" + _lines(self._texts.items())
            _write_all(fd, content)
            os.rename(fresh, self._path)
        except OSError:
            os.close(fd)
            raise
        self._let_go()
        self._fd, self._size = fd, len(content)

    def _append(self, content: bytes) -> None:
        try:
            _write_all(self._fd, content)
        except OSError:
            self._let_go()  # what is there of it is cut short; the next write begins anew
            raise
        self._size += len(content)

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _header() -> dict[str, object]:
    return {"version": 1, "boot": _BOOT}


def _lines(entries: Iterable[tuple[str, str | None]]) -> bytes:
    return b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
