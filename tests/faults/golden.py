"""Texts that people read, kept as files and compared word for word.

``AGENTD_GOLDEN=write`` writes them anew; the diff is then read by a person, as those who get the error will.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
_OWN_BIN = re.compile(r"(?<=\()/[^ :]*/bin:/usr/local/bin:/usr/bin:/bin(?=\))")


def plain(text: str, places: dict[str, str]) -> str:
    """The text without what differs from run to run: ``places`` are strings and the words to put for them."""
    for found in sorted(places, key=len, reverse=True):
        text = text.replace(found, places[found])
    text = _OWN_BIN.sub("PATH", text)
    text = re.sub(r"\buid 7\d{4}\b", "uid UID", text)
    text = re.sub(r"(corrupt-)\d{8}T\d{6}Z", r"\1TIME", text)
    return "".join(f"{line.rstrip()}\n" for line in text.strip("\n").split("\n"))


def same(name: str, text: str) -> None:
    """The text is the one in golden/NAME.txt."""
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("AGENTD_GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text(), f"{file} differs; if the new text is better: AGENTD_GOLDEN=write"
