"""The keeper's files, ``<runtime>/keeper/``: what a next keeper needs in order to know.

One of each unit, ``<hash>.json``, written before the fork (``spawning``), after exec and READY (``running``) and at the
end (``ended``); ``idle`` says that only its listeners are left. It holds no value of an environment variable: those may
be secrets. Each change is a line more (trail.py). Beside them one ``keeper.json`` of the keeper itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from agentd.keeper import trail
from agentd.keeper.loop import say
from agentd.keeper.plan import Process, SpawnPlan
from agentd.keeper.tree import carries, read_stat, scan

VERSION = 1
OWN = "keeper.json"
_ROW = ("pid", "start_time", "started", "ready", "status", "ended", "exit", "extra")
Json = dict[str, Any]


def digest(unit: str) -> str:
    """The first 12 hex digits of the SHA-256 of a unit's name: its name in short paths."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # hashlib would load OpenSSL: 3 MB
    except ImportError:
        from hashlib import sha256
    return str(sha256(unit.encode()).hexdigest()[:12])


def boot() -> str:
    """The host's boot: pids, start times and monotonic moments mean nothing in another."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


_BOOT = boot()


@dataclass(slots=True)
class Saved:
    """What the files of one unit say."""

    unit: str
    state: str = "idle"
    plan: SpawnPlan | None = None
    """Without its environment."""
    process: Process | None = None
    listeners: dict[str, str] = field(default_factory=dict)
    """Name → the address that it really had."""
    origin: list[int] | None = None
    """Pid and start time of the process that was forked, where another is main now."""
    store: list[Json] = field(default_factory=list)
    """What the unit had left with the keeper (``fdstore.Store.described``)."""


def write(path: str, content: Json) -> None:
    """Replace a file of this directory in one step."""
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(json.dumps({"version": VERSION, "boot": _BOOT} | content))
    os.rename(path + ".new", path)


def read(path: str) -> Json | None:
    """The content of a file of this directory; None if there is none, or it is of another boot (it is removed)."""
    try:
        content = trail.read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        say(f"{path} cannot be read: {error}; going on without it")
        return None
    if content.get("boot", _BOOT) != _BOOT:
        os.unlink(path)
        return None
    return content


def saved(directory: str) -> list[Saved]:
    """What an earlier keeper of this boot left, unit by unit."""
    found: dict[str, Saved] = {}
    for name in os.listdir(directory):
        if name.endswith(".new"):  # it was killed in the middle of writing
            os.unlink(f"{directory}/{name}")
    for content in _contents(directory, ".json"):
        try:
            plan = SpawnPlan.from_dict(content["plan"] | {"env": {}})
            row = content.get("process")
            known = {name: row[name] for name in _ROW if name in row} if row else None
            if known and "extra" in known:
                known["extra"] = dict(known["extra"])
            process = Process(plan.unit, plan.invocation, **known) if known else None
            one = Saved(plan.unit, content["state"], plan, process, dict(content.get("listeners") or {}))
            one.origin, one.store = content.get("origin"), list(content.get("store") or ())
            found[plan.unit] = one
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            say(f"a file in {directory} is none of ours: {error!r}; going on without it")
    return list(found.values())


def _contents(directory: str, ending: str) -> Iterator[Json]:
    for name in sorted(os.listdir(directory)):
        if name.endswith(ending) and name != OWN and (content := read(f"{directory}/{name}")) is not None:
            yield content


class Record:
    """The files of one unit."""

    def __init__(self, directory: str, unit: str) -> None:
        head = {"version": VERSION, "boot": _BOOT}
        self.path = f"{directory}/{digest(unit)}.json"
        self.runtime = os.path.dirname(directory)
        self._trail = trail.Trail(self.path, head)
        self._plan: SpawnPlan | None = None
        """The plan that the file has."""

    def write(
        self,
        state: str,
        plan: SpawnPlan,
        process: Process | None,
        listeners: dict[str, str],
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Say what is so now, in one step. ``more``: keys of ``Saved`` beside these."""
        row = process and {name: getattr(process, name) for name in _ROW}
        change: Json = {"state": state, "process": row, "listeners": listeners, **more}
        if plan is not self._plan:
            change["plan"] = _plan(plan)
        self._trail.write(change, lambda: {"plan": _plan(plan)})
        self._plan = plan

    def alive(self) -> int | None:
        """The pid that an earlier keeper wrote here, if that very process still lives."""
        if self._trail.begun:
            return None  # what stands there is our own
        try:
            content = trail.read(self.path)
            plan, process = content["plan"], content["process"]
            if content["state"] == "idle":
                return None
            if process is None:
                return marked(str(plan["unit"]), str(plan["invocation"]), self.runtime)
            row = read_stat(int(process["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        lives = row is not None and row.state not in "ZX" and row.start_time == process["start_time"]
        return row.pid if row is not None and lives else None

    def remove(self) -> None:
        """Delete the file."""
        self._plan = None
        self._trail.remove()


def _plan(plan: SpawnPlan) -> Json:
    return plan.to_dict() | {"env": sorted(plan.env)}


def marked(unit: str, invocation: str, runtime: str) -> int | None:
    """A process that carries this invocation's marker: its keeper died between fork and the file."""
    return next((pid for pid in scan() if carries(pid, unit, invocation, runtime)), None)
