"""MAINPID=: whether a process that a unit names as its new main process may be that.

Knows one claim and the tree that it must belong to. A number proves nothing: the process is held by descriptor before
it is looked at, so that what was looked at is what is watched.
"""

from __future__ import annotations

import os

from agentd.keeper import cgroup, pidfd
from agentd.keeper.tree import PROBE, Stat, Tree, carries, environment, read_stat

DIGITS = 10


class NotOurs(Exception):
    """The claim is ignored, for this reason."""


def claim(text: str, tree: Tree, uid: int) -> tuple[Stat, int]:
    """The process and a pidfd of it, which is the caller's; NotOurs in words.

    ``uid``: under which the unit runs.
    """
    if not (text.isascii() and text.isdecimal()) or len(text) > DIGITS:
        raise NotOurs("MAINPID= names no process id")
    pid = int(text)
    row = read_stat(pid) if pid > 1 and pid != os.getpid() else None
    fd = pidfd.opened(pid, row.start_time) if row is not None else -1
    if row is None or fd < 0:
        raise NotOurs(f"MAINPID={pid} is no process that it may name")
    try:
        _judge(pid, tree, uid)
    except NotOurs:
        os.close(fd)
        raise
    return row, fd


def _judge(pid: int, tree: Tree, uid: int) -> None:
    row = read_stat(pid)
    if row is None or row.state in "ZX":
        raise NotOurs(f"MAINPID={pid} is dead already")
    if not _inside(row, tree):
        raise NotOurs(f"MAINPID={pid} is no process of this unit")
    if PROBE.encode() in environment(pid):
        raise NotOurs(f"MAINPID={pid} is a probe of this unit")
    if (owner := _uid(pid)) != uid:
        raise NotOurs(f"MAINPID={pid} runs as uid {owner}, not as the unit's uid {uid}")


def _inside(row: Stat, tree: Tree) -> bool:
    if tree.cgroup is not None:
        return row.pid in cgroup.pids(tree.cgroup)
    near = tree.main in (row.pid, row.group, row.session) and row.start_time >= tree.start_time
    return near or carries(row.pid, tree.unit, tree.invocation, tree.runtime)


def _uid(pid: int) -> int | None:
    """Its real uid; the owner of its directory would be root where it is not dumpable."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("Uid:")), None)
    except (OSError, ValueError):
        return None
