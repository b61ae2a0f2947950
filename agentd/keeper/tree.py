"""The process tree of one unit: who belongs to it, and how all of it dies.

With a kill-cgroup the kernel says who belongs. Without one: the main process's group and session, what carries its
environment marker, what runs under its own uid, and the descendants of those, among the keeper's descendants.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from agentd.keeper import cgroup
from agentd.keeper.loop import EPOLLPRI, Loop, Timer

PROBE = "AGENTD_PROBE"
"""In the environment of a probe: what that starts is known by it, where no cgroup holds it."""
PATIENCE = 2.0
"""Seconds until survivors are reported as left."""
RESCAN = 0.02
"""Seconds after which a walk that found something looks again, if no death was reported before."""
AT_ONCE = 20
"""Walks in a row while each finds new processes: a fork bomb is outrun, or the next event continues."""


@dataclass(frozen=True, slots=True)
class Stat:
    """A row of /proc."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_time: int


@dataclass(frozen=True, slots=True)
class Tree:
    """What identifies the tree of one invocation."""

    unit: str
    invocation: str
    main: int
    start_time: int
    uid: int | None
    """The unit's own uid; None if it has none of its own."""
    cgroup: str | None
    runtime: str
    """The runtime directory: other fleets of this host may have units of the same name."""
    adrift: bool = False
    """Begun by an earlier keeper: its orphans are not our children, so only what it carries tells who belongs."""


def read_stat(pid: int) -> Stat | None:
    """The row of one process, None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(pid, fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def lives(pid: int, start_time: int) -> bool:
    """Whether this very process is there, be it as a zombie."""
    row = read_stat(pid)
    return row is not None and row.start_time == start_time


def scan() -> dict[int, Stat]:
    """Every living process (zombies are not)."""
    rows = (read_stat(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    return {row.pid: row for row in rows if row is not None and row.state not in "ZX"}


def own_children() -> set[int] | None:
    """The keeper's children, zombies too; None where the kernel does not list them.

    The list is known to skip entries when a child disappears meanwhile; ours only do when we reap them.
    """
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return set(map(int, file.read().split()))
    except OSError:
        return None


def below(rows: dict[int, Stat], root: int, stop: frozenset[int] = frozenset()) -> dict[int, Stat]:
    """The descendants of root; a pid in ``stop`` and what is below it is left out."""
    children: dict[int, list[Stat]] = {}
    for row in rows.values():
        children.setdefault(row.parent, []).append(row)
    found: dict[int, Stat] = {}
    queue = [root]
    while queue:
        for row in children.get(queue.pop(), ()):
            if row.pid not in stop and row.pid not in found:
                found[row.pid] = row
                queue.append(row.pid)
    return found


def members(
    tree: Tree, rows: Callable[[], dict[int, Stat]], others: frozenset[int], foreign: Callable[[int], bool], alone: bool
) -> list[int]:
    """The living processes of a tree without a cgroup, among ``rows()``.

    ``others`` are main processes that are known to belong elsewhere; ``foreign`` tells of a process without marker
    whether it is in another unit's cgroup. ``alone``: no other unit without a cgroup lives, so an orphan without any
    marker can only be ours.
    """
    if tree.adrift:
        return _adrift(tree, rows(), others)
    children = own_children()
    if children is not None and children <= others:
        return []  # whoever lost its parent is our child now: nobody did
    young = {pid: row for pid, row in rows().items() if row.start_time >= tree.start_time or pid == os.getpid()}
    candidates = below(young, os.getpid(), stop=others)
    mine = {pid for pid, row in candidates.items() if _belongs(tree, row, foreign, alone)}
    for pid in list(mine):
        mine.update(below(candidates, pid))
    return sorted(mine)


def _adrift(tree: Tree, rows: dict[int, Stat], others: frozenset[int]) -> list[int]:
    """Its group, its session, its marker, and what descends from those. Not its uid, which others of this host may
    have; and no group whose number has become somebody else's."""
    main = rows.get(tree.main)
    recycled = main is not None and main.start_time != tree.start_time
    young = {pid: row for pid, row in rows.items() if row.start_time >= tree.start_time and pid not in others}
    young.pop(os.getpid(), None)
    mine = set()
    for pid, row in young.items():
        near = tree.main in (pid, row.group, row.session) and not recycled
        if near or carries(pid, tree.unit, tree.invocation, tree.runtime):
            mine.add(pid)
    for pid in list(mine):
        mine.update(below(young, pid, stop=others))
    return sorted(mine)


def _belongs(tree: Tree, row: Stat, foreign: Callable[[int], bool], alone: bool) -> bool:
    if tree.main in (row.pid, row.group, row.session):
        return True
    marks = environment(row.pid)
    unit, invocation = marks.get(b"AGENTD_UNIT"), marks.get(b"AGENTD_INVOCATION")
    if unit is not None or invocation is not None:
        return (unit, invocation) == (tree.unit.encode(), tree.invocation.encode())
    if tree.uid is not None and _uid(row.pid) == tree.uid:
        return True
    return alone and b"AGENTD_KEEPER" not in marks and not foreign(row.pid)


def environment(pid: int) -> dict[bytes, bytes]:
    """The environment at exec; empty if it may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = (entry.partition(b"=") for entry in file.read().split(b"\0"))
            return {name: value for name, _, value in pairs}
    except OSError:
        return {}


def carries(pid: int, unit: str, invocation: str, runtime: str) -> bool:
    """Whether a process was begun for this invocation, in this very fleet."""
    marks = environment(pid)
    wanted = {b"AGENTD_UNIT": unit, b"AGENTD_INVOCATION": invocation, b"AGENTD_RUNTIME": runtime}
    return all(marks.get(name) == os.fsencode(value) for name, value in wanted.items())


def _uid(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


class Burial:
    """Kills what is left of a tree whose main process is dead, and tells when nothing is.

    ``walk(fresh)`` lists the members where there is no cgroup: without ``fresh`` from any scan that is younger than
    the death of the main process, since whoever is not there then has nobody left to fork it.
    """

    def __init__(
        self,
        loop: Loop,
        tree: Tree,
        walk: Callable[[bool], list[int]],
        done: Callable[[list[int]], None],
    ) -> None:
        self._loop, self._tree, self._walk, self._done = loop, tree, walk, done
        self._end = time.monotonic() + PATIENCE
        self._timers: list[Timer] = []
        self._events = -1
        self._second = False

    def begin(self) -> None:
        """Kill now; ``done`` is called at once if nothing was left."""
        if self._tree.cgroup is not None:
            if not cgroup.populated(self._tree.cgroup):
                self._done([])
                return
            with contextlib.suppress(FileNotFoundError):
                self._events = os.open(f"{self._tree.cgroup}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
                self._loop.watch(self._events, lambda _: self.check(), EPOLLPRI)
        self._timers.append(self._loop.after(PATIENCE, self.check))
        self.check()

    def check(self) -> None:
        """Look again, after a process died or the population changed."""
        left = self._remaining()
        if not left or time.monotonic() >= self._end:
            self._finish(left)

    def _remaining(self) -> list[int]:
        if self._tree.cgroup is None:
            return self._hunt()
        if self._events >= 0:
            with contextlib.suppress(OSError):  # somebody removed it
                os.pread(self._events, 256, 0)  # arms the next notification
        if not cgroup.populated(self._tree.cgroup):
            return []
        cgroup.kill(self._tree.cgroup)
        if not cgroup.populated(self._tree.cgroup):
            return []
        return sorted(cgroup.pids(self._tree.cgroup)) or [0]

    def _hunt(self) -> list[int]:
        found = self._walk(False)
        _kill(found)
        seen = set(found)
        for _ in range(AT_ONCE if found and self._second else 0):
            found = self._walk(True)
            _kill(found)
            if seen.issuperset(found):
                break
            seen.update(found)
        self._second = True
        if found:
            self._timers.append(self._loop.after(RESCAN, self.check))
        return found

    def _finish(self, left: list[int]) -> None:
        for timer in self._timers:
            timer.cancel()
        if self._events >= 0:
            self._loop.unwatch(self._events)
            os.close(self._events)
            self._events = -1
        self._done([pid for pid in left if pid])


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
