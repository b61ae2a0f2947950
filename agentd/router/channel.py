"""The channel sockets: one listener per unit, lines in and out, who is at the other end.

Knows bytes and peers, not messages. Nothing here waits for an agent: what an agent does not read is bounded, because
we stop reading from it as long as it does not read from us.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from agentd.errors import BadInput
from agentd.router import rpc
from agentd.wire.peer import credentials

_WRITE_HIGH = 4 << 20
_BUSY_MAX = 64
"""Calls of one connection that may be unanswered before we stop reading from it."""


class Line(asyncio.Protocol):
    """One connection of an agent. ``invocation`` is set once it said hello."""

    def __init__(self, heard: Callable[[Line, bytes], None], ended: Callable[[Line], None], uid: int) -> None:
        self.invocation: str | None = None
        self.since = 0.0
        self._heard, self._ended, self._uid = heard, ended, uid
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._busy = 0
        self._deaf = False  # the agent does not read what we wrote

    @property
    def open(self) -> bool:
        """Whether something can still be said on it."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def deaf(self) -> bool:
        """The agent does not read what was written."""
        return self._deaf

    def write(self, line: bytes) -> None:
        """Queue one line."""
        if self._transport is not None and self.open:
            self._transport.write(line)

    def close(self) -> None:
        """Say what is queued, then end."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    def begin(self) -> None:
        """A call is being worked on."""
        self._busy += 1

    def finish(self) -> None:
        """A call was answered; go on with what waited."""
        self._busy -= 1
        self._pump()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check who it is."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_HIGH)
        if credentials(transport.get_extra_info("socket")).uid != self._uid:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone; this releases nothing that it holds."""
        self._transport = None
        self._buffer.clear()
        self._ended(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came in."""
        self._buffer += data
        self._pump()

    def pause_writing(self) -> None:
        """The agent does not read."""
        self._deaf = True
        self._throttle()

    def resume_writing(self) -> None:
        """It reads again."""
        self._deaf = False
        self._pump()

    def _pump(self) -> None:
        """Hear all whole lines, as long as we may."""
        start = 0
        while self.open and not self._deaf and self._busy < _BUSY_MAX:
            end = self._buffer.find(b"\n", start)
            if end < 0:
                break
            line = bytes(self._buffer[start:end])
            start = end + 1
            if len(line) > rpc.MAX_LINE:
                self._too_long()
            elif line.strip():
                self._heard(self, line)
        del self._buffer[:start]
        if len(self._buffer) > rpc.MAX_LINE and b"\n" not in self._buffer:
            self._too_long()
        self._throttle()

    def _too_long(self) -> None:
        text = f"a line has more than {rpc.MAX_LINE} bytes; closing the connection"
        self.write(rpc.error(None, rpc.Malformed(text)))
        self.close()

    def _throttle(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._deaf or self._busy >= _BUSY_MAX:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


class Listener:
    """The channel socket of one unit: its path, whom it lets in, and the lines that are open."""

    def __init__(
        self, path: Path, uid: int | None, heard: Callable[[Line, bytes], None], ended: Callable[[Line], None]
    ) -> None:
        self.path, self.uid = path, uid
        self._heard, self._ended = heard, ended
        self._lines: set[Line] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. A unit with a uid of its own reaches the socket because its mode allows it; its uid is checked."""
        if len(os.fsencode(self.path)) > 107:
            raise BadInput(f"{self.path}: a socket path holds 107 bytes", hint="Use a shorter runtime directory.")
        self.path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._line, str(self.path), backlog=16)
        self.path.chmod(0o600 if self.uid is None else 0o666)

    async def close(self) -> None:
        """Listen no more and end all lines."""
        if self._server is not None:
            self._server.close()
        for line in list(self._lines):
            line.close()
        self.path.unlink(missing_ok=True)

    def _line(self) -> Line:
        line = Line(self._heard, self._gone, os.geteuid() if self.uid is None else self.uid)
        self._lines.add(line)
        return line

    def _gone(self, line: Line) -> None:
        self._lines.discard(line)
        self._ended(line)
