"""Reading an answer as it passes: the usage in it, and the usage chunk that its client did not ask for.

Works on bytes: an event is parsed as JSON only if it holds a usage that is not null; all others pass untouched.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from agentd.errors import ProtocolError

EVENT_MAX = 8 << 20
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_NULL = re.compile(rb',\s*"usage"\s*:\s*null')


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the upstream counted them. Cached input is part of `tokens_in`."""

    tokens_in: int
    tokens_out: int

    @property
    def total(self) -> int:
        """Both together: what a token budget is charged."""
        return self.tokens_in + self.tokens_out


def usage_of(answer: object) -> Usage | None:
    """The usage in a chat completion or chunk; None unless both numbers are there and make sense."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if type(tokens_in) is not int or type(tokens_out) is not int or min(tokens_in, tokens_out) < 0:
        return None
    return Usage(tokens_in, tokens_out)


def usage_in(body: bytes) -> Usage | None:
    """The usage in a whole answer; None if it is no JSON or has none."""
    try:
        return usage_of(json.loads(body))
    except (ValueError, RecursionError):
        return None


class SseMeter:
    """Passes server-sent events on, whole events at a time, and finds the usage in them.

    Some upstreams count along in every chunk; only the usage of the last chunk (no choices) is `final` before the end.
    """

    def __init__(self, *, strip: bool) -> None:
        self.usage: Usage | None = None
        self.final = False
        self._strip = strip
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """What to send on of the events that are complete now. ProtocolError if one never ends."""
        buffer = self._rest + data
        out: list[bytes] = []
        start = 0
        for end in _END.finditer(buffer):
            out.append(self._event(buffer[start : end.end()]))
            start = end.end()
        self._rest = buffer[start:]
        if len(self._rest) > EVENT_MAX:
            raise ProtocolError(f"the upstream sent an event of more than {EVENT_MAX} bytes.")
        return b"".join(out)

    def end(self) -> bytes:
        """What was left without an end."""
        rest, self._rest = self._rest, b""
        return self._event(rest) if rest else b""

    def _event(self, event: bytes) -> bytes:
        if b'"usage"' not in event:
            return event
        if not _USAGE.search(event):
            return _NULL.sub(b"", event) if self._strip else event
        lines = (line[5:] for line in event.splitlines() if line.startswith(b"data:"))
        try:
            chunk = json.loads(b"\n".join(lines))
        except (ValueError, RecursionError):
            return event
        self.usage = usage_of(chunk) or self.usage
        last = isinstance(chunk, dict) and chunk.get("choices") == []
        self.final = self.final or (last and self.usage is not None)
        return b"" if self._strip and last else event
