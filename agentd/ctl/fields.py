"""Log lines that are JSON objects, for people: the message first, then the other fields. Knows no unit."""

from __future__ import annotations

import json
from typing import Any

from agentd.ctl.paint import Cleaner, harmless, line, paint

MESSAGES = ("event", "message", "msg")
"""Fields that hold what a line says, the first that is there."""
LONGEST = 64 << 10
"""Characters of a line that are held back to see whether it is JSON."""


def fields(text: str) -> dict[str, Any] | None:
    """The fields of a line that is a JSON object, else None."""
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def readable(text: str, colour: bool) -> str:
    """One line for a terminal: harmless, and with its message first where it is JSON that has one."""
    found = fields(text)
    key = next((name for name in MESSAGES if found and isinstance(found.get(name), str)), None)
    if found is None or key is None:
        return harmless(text)
    rest = " ".join(f"{line(name)}={_value(value)}" for name, value in found.items() if name != key)
    shown = line(found[key]) + (f"  {paint(rest, 'dim', colour)}" if rest else "")
    return shown.encode("utf-8", "replace").decode()  # JSON can carry lone surrogates, a terminal cannot


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return line(json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text else text)


class Renderer:
    """A stream of bytes for a terminal. What begins like JSON waits for its newline; all else is shown as it comes."""

    def __init__(self, colour: bool) -> None:
        self._cleaner, self._colour = Cleaner(), colour
        self._held = ""
        self._begun = False

    def feed(self, chunk: bytes, final: bool = False) -> str:
        """What can be shown so far."""
        *whole, rest = self._cleaner.feed(chunk, final).split("\n")
        shown = [self._end(text) + "\n" for text in whole]
        return "".join(shown) + self._part(rest) + (self._flush() if final else "")

    def _end(self, text: str) -> str:
        """The rest of a line."""
        text = self._flush_into(text)
        shown = text if self._begun else readable(text, self._colour)
        self._begun = False
        return shown

    def _part(self, text: str) -> str:
        """The beginning or middle of a line."""
        if not text:
            return ""
        if not self._begun:
            text = self._flush_into(text)
            if text.lstrip()[:1] in ("{", "") and len(text) < LONGEST:
                self._held = text
                return ""
        self._begun = True
        return text

    def _flush_into(self, text: str) -> str:
        held, self._held = self._held, ""
        return held + text

    def _flush(self) -> str:
        return readable(self._flush_into(""), self._colour)
