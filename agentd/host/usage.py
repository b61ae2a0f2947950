"""What a unit uses: memory, CPU time, processes, and how often the kernel killed it for memory.

From its cgroups where it has them, else from its process tree. Reads only; a unit that is gone uses nothing.
"""

from __future__ import annotations

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
    parents = {name: parent / unit for name, parent in capabilities.parents.items()}
    kill = parents.get("kill")
    if level == "cgroup" and kill is not None and "memory" in parents:
        return _of_cgroup(parents["memory"], kill, v2=capabilities.mode == "v2")
    return _of_tree(pid)


def _of_cgroup(memory: Path, whole: Path, *, v2: bool) -> Usage:
    used = _number(memory / ("memory.current" if v2 else "memory.usage_in_bytes"))
    cache = _table(memory / "memory.stat").get("inactive_file" if v2 else "total_inactive_file", 0)
    cpu = _table(whole / "cpu.stat").get("usage_usec")
    events = _table(memory / ("memory.events" if v2 else "memory.oom_control"))
    return Usage(
        memory=None if used is None else max(0, used - cache),
        cpu_seconds=None if cpu is None else cpu / 1e6,
        processes=len(_lines(whole / "cgroup.procs")),
        oom_kills=events.get("oom_kill", 0),
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


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []  # the cgroup went with its unit


def _number(file: Path) -> int | None:
    lines = _lines(file)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _table(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(file))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
