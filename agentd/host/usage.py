"""What a unit uses: memory, CPU time, processes, and how often the kernel killed it for memory.

From its cgroups where it has them, else from its process tree. Reads only; a unit that is gone uses nothing.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from agentd.host.capability import Capabilities

FRESH = 1.0
"""Seconds for which one look at all processes is good enough."""


@dataclass(frozen=True, slots=True)
class Usage:
    """One reading. None: this host does not tell."""

    memory: int | None = None
    """Bytes in use, without file cache that the kernel would give up at once."""
    cpu_seconds: float | None = None
    """CPU seconds; in a cgroup, since the cgroup was made (over restarts of the unit)."""
    processes: int = 0
    oom_kills: int = 0
    """Grows when the kernel killed for memory: compare with the reading before, the steps differ between kernels."""


def read(unit: str, pid: int | None, level: str, capabilities: Capabilities) -> Usage:
    """The present usage of a unit whose main process is ``pid`` and that runs at this isolation level."""
    parents = capabilities.parents
    if level == "cgroup" and "kill" in parents and "memory" in parents:
        return _of_cgroup(f"{parents['memory']}/{unit}", f"{parents['kill']}/{unit}", v2=capabilities.mode == "v2")
    return _of_tree(pid)


def _of_cgroup(memory: str, whole: str, *, v2: bool) -> Usage:
    used = _read(f"{memory}/{'memory.current' if v2 else 'memory.usage_in_bytes'}").strip()
    cache = _value(_read(f"{memory}/memory.stat"), b"inactive_file" if v2 else b"total_inactive_file") or 0
    cpu = _value(_read(f"{whole}/cpu.stat"), b"usage_usec")
    kills = _value(_read(f"{memory}/{'memory.events' if v2 else 'memory.oom_control'}"), b"oom_kill")
    return Usage(
        memory=max(0, int(used) - cache) if used.isdigit() else None,
        cpu_seconds=None if cpu is None else cpu / 1e6,
        processes=_read(f"{whole}/cgroup.procs").count(b"\n"),
        oom_kills=kills or 0,
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """One process of the host."""

    memory: int
    cpu: float
    children: list[int]


_known: dict[int, _Row] = {}
_read_at = -FRESH


def _of_tree(pid: int | None) -> Usage:
    rows = _processes(pid)
    if pid is None or pid not in rows or not Path(f"/proc/{pid}").exists():
        return Usage()
    tree, todo = [], [pid]
    while todo:
        row = rows[todo.pop()]
        tree.append(row)
        todo += row.children
    return Usage(sum(row.memory for row in tree), sum(row.cpu for row in tree), len(tree))


def _processes(wanted: int | None) -> dict[int, _Row]:
    """The host's processes, read at most once in FRESH seconds: a status of 200 units must not read /proc 200 times."""
    global _known, _read_at
    if time.monotonic() - _read_at < FRESH and (wanted is None or wanted in _known):
        return _known
    table: dict[int, _Row] = {}
    parents: dict[int, int] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error), process.oneshot():
            times = process.cpu_times()
            parents[process.pid] = process.ppid()
            table[process.pid] = _Row(process.memory_info().rss, times.user + times.system, [])
    for pid, parent in parents.items():
        if parent in table and pid in table and parent != pid:
            table[parent].children.append(pid)
    _known, _read_at = table, time.monotonic()
    return table


def _read(path: str) -> bytes:
    """A file of a cgroup, by the shortest way: a status of 1000 units reads 5000. Nothing if it went with its unit."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _value(table: bytes, name: bytes) -> int | None:
    """The number behind this name in lines of ``name number``."""
    _, found, rest = (b"\n" + table).partition(b"\n" + name + b" ")
    number = rest.partition(b"\n")[0]
    return int(number) if found and number.isdigit() else None
