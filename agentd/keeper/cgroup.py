"""Cgroup directories of a plan: make, set, look, kill, remove. v1 hierarchies and v2 alike.

Knows files below /sys/fs/cgroup and nothing of units. Errors are OSErrors whose ``filename`` is the path that failed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator

from agentd.keeper.clone import Cradles
from agentd.keeper.plan import Cgroup

cradles = Cradles()
"""Which of the kill-cgroups a child may be born in."""


def make(group: Cgroup) -> list[str]:
    """Make the directory and its missing parents, write the settings; the directories made, outermost first.

    A kill-cgroup that no child can be born in any more (clone.py says why) is made anew, if nobody is in it.
    """
    if group.kill and not cradles.fit(group.path):
        remove(group.path)
    made = _directories(group.path)
    try:
        if not os.path.exists(f"{group.path}/cgroup.procs"):
            raise OSError(errno.ENODEV, "is not below a mounted cgroup hierarchy", group.path)
        _enable(group, made or [group.path])
        for name, value in group.settings:
            write(f"{group.path}/{name}", value)
    except OSError:
        for path in reversed(made):
            remove(path)
        raise
    if group.kill and group.path in made:
        cradles.made(group.path)
    return made


def _directories(path: str) -> list[str]:
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    missing.reverse()
    for at, directory in enumerate(missing):
        try:
            os.mkdir(directory, 0o755)
        except OSError:
            for undo in reversed(missing[:at]):
                os.rmdir(undo)
            raise
    return missing


def _enable(group: Cgroup, directories: list[str]) -> None:
    """On v2, the controllers that the settings need are switched on in each parent on the way down."""
    for directory in directories:
        parent = os.path.dirname(directory)
        if not os.path.exists(f"{parent}/cgroup.subtree_control"):
            continue
        offered = read(f"{parent}/cgroup.controllers").split()
        needed = {name.partition(".")[0] for name, _ in group.settings} & set(offered)
        enabled = set(read(f"{parent}/cgroup.subtree_control").split())
        if needed - enabled:
            write(f"{parent}/cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(needed - enabled)))


def write(path: str, text: str) -> None:
    """Write a setting; an OSError names the path."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def read(path: str) -> str:
    """The text of a cgroup file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode("ascii", "replace")


def enter(path: str) -> None:
    """Move the calling process, which has one thread, into the cgroup.

    On v1 by ``tasks``: for a thread that moves itself the kernel waits for nobody else, unlike ``cgroup.procs``.
    """
    try:
        write(f"{path}/tasks", "0")
    except FileNotFoundError:  # v2
        write(f"{path}/cgroup.procs", "0")


def populated(path: str) -> bool:
    """Whether any process lives in this cgroup or below it. A missing directory holds none."""
    try:
        return "populated 1" in read(f"{path}/cgroup.events")
    except OSError:
        return any(True for _ in pids(path))  # v1 has no cgroup.events


def pids(path: str) -> Iterator[int]:
    """Every process in the cgroup and below it, as far as it can still be read."""
    for directory, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            yield from map(int, read(f"{directory}/cgroup.procs").split())


def kill(path: str) -> None:
    """SIGKILL everything in the cgroup and below it. A kernel before 5.14 is served one process at a time."""
    cradles.spoilt(path)
    try:
        write(f"{path}/cgroup.kill", "1")
    except OSError:
        for pid in pids(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def remove(path: str) -> bool:
    """Remove the directory and what is below it; whether it is gone. One that is busy or not empty stays."""
    cradles.spoilt(path)
    with contextlib.suppress(OSError):  # most have nothing below them
        os.rmdir(path)
        return True
    for directory, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.EROFS):
                return False
            raise
    return True
