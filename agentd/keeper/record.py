"""The keeper's file of one unit, ``<runtime>/keeper/<hash>.json``: what a next keeper needs in order to know.

Written before the fork (``spawning``), after exec (``running``) and at the end (``ended``). It holds no value of an
environment variable: those may be secrets.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from agentd.keeper.plan import Process, SpawnPlan
from agentd.keeper.tree import environment, read_stat, scan

VERSION = 1


def digest(unit: str) -> str:
    """The first 12 hex digits of the SHA-256 of a unit's name: its name in short paths."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # hashlib would load OpenSSL: 3 MB
    except ImportError:
        from hashlib import sha256
    return str(sha256(unit.encode()).hexdigest()[:12])


class Record:
    """The file of one unit."""

    def __init__(self, directory: str, unit: str) -> None:
        self.path = f"{directory}/{digest(unit)}.json"

    def write(self, state: str, plan: SpawnPlan, process: Process | None) -> None:
        """Replace the file in one step."""
        text = plan.to_dict() | {"env": sorted(plan.env)}
        row = process and {name: getattr(process, name) for name in ("pid", "start_time", "started", "ended", "exit")}
        content = json.dumps({"version": VERSION, "state": state, "plan": text, "process": row})
        fd = os.open(self.path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(content)
        os.rename(self.path + ".new", self.path)

    def alive(self) -> int | None:
        """The pid that an earlier keeper wrote here, if that very process still lives."""
        try:
            with open(self.path, encoding="utf-8") as file:
                content: dict[str, Any] = json.load(file)
            plan, process = content["plan"], content["process"]
            if process is None:
                return _marked(str(plan["unit"]), str(plan["invocation"]))
            row = read_stat(int(process["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        lives = row is not None and row.state not in "ZX" and row.start_time == process["start_time"]
        return row.pid if row is not None and lives else None

    def remove(self) -> None:
        """Delete the file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def _marked(unit: str, invocation: str) -> int | None:
    """A process that carries this invocation's marker: its keeper died between fork and the file."""
    for pid in scan():
        marks = environment(pid)
        if marks.get(b"AGENTD_INVOCATION") == invocation.encode() and marks.get(b"AGENTD_UNIT") == unit.encode():
            return pid
    return None
