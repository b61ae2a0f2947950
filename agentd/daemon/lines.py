"""The lines of a log as JSON, one object each: when, who, what. Knows bytes and times, no files."""

from __future__ import annotations

import json
from collections.abc import Iterator

from agentd.daemon.times import Times

LONGEST = 256 << 10
"""Bytes of a line; a longer one comes in pieces, all but the last marked ``"cut": true``."""


class Lines:
    """Cuts the stream of one unit into lines. ``{"at": unix seconds | null, "unit", "line", "dropped"?, "cut"?}``."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._rest = bytearray()
        self._at: float | None = None
        self._dropped = 0

    def feed(self, chunk: bytes, offset: int, times: Times | None) -> Iterator[bytes]:
        """The lines that chunk, which stands at offset in its file, completes."""
        begin = 0
        while begin < len(chunk):
            if not self._rest:
                self._at, self._dropped = times.at(offset + begin) if times else (None, 0)
            room = LONGEST - len(self._rest)
            end = chunk.find(b"\n", begin, begin + room + 1)
            if end < 0:
                self._rest += chunk[begin : begin + room]
                begin += room
                if len(self._rest) == LONGEST and begin < len(chunk):
                    yield self._take(cut=True)
                continue
            self._rest += chunk[begin:end]
            begin = end + 1
            yield self._take()

    def finish(self) -> Iterator[bytes]:
        """What has no newline at the end."""
        if self._rest:
            yield self._take()

    def _take(self, cut: bool = False) -> bytes:
        made = {"at": self._at, "unit": self._unit, "line": self._rest.decode("utf-8", "replace")}
        if self._dropped:
            made["dropped"] = self._dropped
        if cut:
            made["cut"] = True
        self._rest.clear()
        return json.dumps(made, ensure_ascii=False).encode() + b"\n"
