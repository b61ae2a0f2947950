"""What a unit uses: memory, CPU time, processes, and how often the kernel killed it for memory.

From its cgroups where it has them, else from its process tree. Reads only; a unit that is gone uses nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from agentd.host.capability import Capabilities


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


def _of_tree(pid: int | None) -> Usage:
    if pid is None:
        return Usage()
    memory, cpu, count = 0, 0.0, 0
    with suppress(psutil.NoSuchProcess):
        main = psutil.Process(pid)
        for process in (main, *main.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied), process.oneshot():
                times = process.cpu_times()
                memory += process.memory_info().rss
                cpu += times.user + times.system
                count += 1
    return Usage(memory, cpu, count) if count else Usage()


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
