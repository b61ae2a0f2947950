"""Moving a damaged file out of the way without losing it."""

from __future__ import annotations

import os
import time
from pathlib import Path


def move(path: Path, companions: tuple[str, ...] = ()) -> Path:
    """Rename ``path`` to ``path.corrupt-<UTC time>`` and say where it is now. Raises OSError.

    ``companions`` are suffixes of files that belong to it (SQLite's ``-wal``); they keep belonging to it.
    """
    target = _free(Path(f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"))
    for suffix in companions:  # first, so that a crash in between leaves no old log beside a new file
        if os.path.lexists(f"{path}{suffix}"):
            os.replace(f"{path}{suffix}", f"{target}{suffix}")
    os.replace(path, target)
    return target


def _free(wanted: Path) -> Path:
    """The name itself, or the first of name-2, name-3 … that nothing has yet."""
    target, number = wanted, 1
    while os.path.lexists(target):
        number += 1
        target = Path(f"{wanted}-{number}")
    return target
