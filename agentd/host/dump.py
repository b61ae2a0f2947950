"""What the kernel says of a hung tree, written down before it is killed: status and stacks of each process.

Knows /proc, not why anybody wants to know. Reads nothing there that may wait for a lock of the process (its memory).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]

PROCESSES = 64
THREADS = 64
"""Of one process."""
TAIL = 16 << 10
"""Bytes of the log's end."""
KEPT = 5
"""Dumps of one unit; the oldest go first."""


def dump(directory: Path, unit: str, invocation: str, pid: int, reason: str) -> Path:
    """Write down what the processes from ``pid`` on are at, and where it stands. Raises OSError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"{unit}-{invocation}.txt"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(f"{unit}, invocation {invocation}: {reason}\n")
        for one in _family(pid):
            file.writelines(_process(one))
    for old in sorted(directory.glob(f"{unit}-{'[0-9a-f]' * len(invocation)}.txt"))[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def add_last_words(path: Path, log: Path) -> None:
    """Add the end of its log: what the program itself had to say, up to its death. Raises OSError."""
    with open(log, "rb") as source:
        source.seek(max(0, log.stat().st_size - TAIL))
        text = source.read(TAIL)
    with open(path, "ab") as file:
        file.write(b"\n=== the end of its output ===\n" + text)


def _family(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))][:PROCESSES]
    except psutil.Error:
        return [pid]


def _process(pid: int) -> Iterator[str]:
    base = Path(f"/proc/{pid}")
    yield f"\n=== process {pid} ===\n"
    yield _read(base / "status")
    try:
        threads = sorted((base / "task").iterdir(), key=lambda path: int(path.name))[:THREADS]
    except OSError:
        threads = []
    for thread in threads:
        name = _read(thread / "comm").strip()
        yield f"\n--- thread {thread.name} ({name}) ---\n"
        for what in ("wchan", "syscall", "stack"):
            yield f"{what}: {_read(thread / what).strip()}\n"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        return f"({error.strerror})\n"
