"""Old logs: ``FILE.1`` is the youngest, ``FILE.<keep>`` the oldest, each with its index beside it.

Knows names only. A crash between two renames leaves a gap in the numbers and nothing wrong: an index names the file
that it belongs to.
"""

from __future__ import annotations

import contextlib
import os

from agentd.keeper import timeindex


def shift(file: str, keep: int, max_age: float) -> None:
    """Make room for a new ``file``: it becomes ``.1`` and so on; what is too many or too old is removed."""
    _remove_from(file, keep)
    for number in range(keep - 1, 0, -1):
        _move(f"{file}.{number}", f"{file}.{number + 1}")
    _move(file, f"{file}.1")
    if max_age > 0:
        _remove_older(file, keep, max_age)


def _remove_from(file: str, number: int) -> None:
    """This one and what an earlier, larger limit left behind it."""
    while os.path.lexists(f"{file}.{number}"):
        _remove(f"{file}.{number}")
        number += 1


def _remove_older(file: str, keep: int, max_age: float) -> None:
    for number in range(keep, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            if timeindex.age(f"{file}.{number}") <= max_age:
                return  # the younger ones are younger still
            _remove(f"{file}.{number}")


def _move(old: str, new: str) -> None:
    for suffix in (timeindex.SUFFIX, ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(old + suffix, new + suffix)


def _remove(path: str) -> None:
    for suffix in (timeindex.SUFFIX, ""):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)
