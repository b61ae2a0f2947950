"""Text on a terminal: tones, widths, and making foreign text harmless. Knows nothing of units."""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import Literal

Tone = Literal["", "bold", "dim", "red", "yellow"]
_CODES: dict[str, str] = {"bold": "1", "dim": "2", "red": "31", "yellow": "33"}
_SGR = re.compile(r"\x1b\[[0-9;:]*m")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_UNFINISHED = re.compile(r"\x1b(\[[0-9;:]{0,64})?\Z")
PLAIN_WIDTH = 100


def coloured() -> bool:
    """Whether stdout wants colour: a terminal, unless NO_COLOR is set or TERM is dumb."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")


def width() -> int:
    """Columns of the terminal; 100 where there is none."""
    return max(40, shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns)


def paint(text: str, tone: Tone, on: bool) -> str:
    """The text in its tone, or as it is where colour is off."""
    return f"\x1b[{_CODES[tone]}m{text}\x1b[0m" if on and tone and text.strip() else text


def harmless(text: str) -> str:
    """Text of unknown origin for a terminal: colours are dropped, other control characters shown as ``\\x1b``.

    Tabs and newlines stay. Marks that turn or hide text (bidirectional overrides, zero width) are shown too.
    """
    return _CONTROL.sub(_shown, _SGR.sub("", text))


def line(text: object) -> str:
    """The same on a single line: runs of white space become one space."""
    return harmless(" ".join(str(text).split()))


class Cleaner:
    """``harmless`` for a stream of bytes: a sequence that two chunks share is seen whole."""

    def __init__(self) -> None:
        import codecs

        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, chunk: bytes, final: bool = False) -> str:
        """What can be shown so far."""
        text = self._rest + self._decoder.decode(chunk, final)
        cut = None if final else _UNFINISHED.search(text) or (re.search(r"\r\Z", text))
        self._rest = text[cut.start() :] if cut else ""
        return harmless((text[: cut.start()] if cut else text).replace("\r\n", "\n"))


def cells(text: str) -> int:
    """Columns that the text takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def clip(text: str, room: int) -> str:
    """The text in at most ``room`` columns; what is cut ends in an ellipsis."""
    if cells(text) <= room:
        return text
    if text.isascii():
        return text[: max(0, room - 1)] + "…"
    from rich.cells import set_cell_size

    return set_cell_size(text, max(0, room - 1)).rstrip() + "…"


def wrapped(text: str, room: int, indent: str) -> list[str]:
    """The text in lines of at most ``room`` columns; all but the first are indented."""
    import textwrap

    return textwrap.wrap(text, room, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
