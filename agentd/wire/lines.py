"""JSON lines over a stream socket, with a bound on what may wait for a slow reader.

Used by the facts protocol. Writing never blocks: what is too much for the peer ends the connection instead.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from agentd.errors import ProtocolError

LINE_MAX = 1 << 20
BACKLOG_MAX = 4 << 20


def encode(value: Any) -> bytes:
    """One line."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


class Lines:
    """One connection: ``read`` gives objects until the end, ``write`` queues one line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> dict[str, Any] | None:
        """The next object; None at the end of the stream. ProtocolError for a line that is none."""
        try:
            line = await self._reader.readline()
        except ValueError as error:
            raise ProtocolError("a line is longer than the protocol allows") from error
        except ConnectionError:
            return None
        if not line.endswith(b"\n"):
            return None
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ProtocolError(f"a line is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ProtocolError("a line is not a JSON object")
        return value

    def write(self, value: Any) -> bool:
        """Queue one line; False if the peer reads too slowly and was cut off."""
        if self._writer.is_closing():
            return False
        if self._writer.transport.get_write_buffer_size() > BACKLOG_MAX:
            self._writer.transport.abort()
            return False
        self._writer.write(encode(value))
        return True

    async def close(self) -> None:
        """Close and wait until it is closed."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # the peer was gone already
