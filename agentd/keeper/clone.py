"""A fork whose child is born in a cgroup.

Moving a process between cgroups (a write to ``cgroup.procs``) makes the kernel wait for all processors to pass a quiet
point: about 10 ms on an otherwise idle host, each time. Being born in a cgroup (Linux 5.7) costs nothing, and no
moment is left in which the child is anywhere else. Knows one system call; nothing of plans.

Kernels from 6.14 on count how often ``cgroup.kill`` was written, to miss no child that is being forked meanwhile, and
take the count of the wrong cgroup for one that is born elsewhere: where the counts of the two differ the child is
killed at once (6.18 still). So both cases are tried once; where it is so, only a cgroup that this very keeper made and
that nobody ever killed is a cradle, and into any other the child moves as ever.
"""

from __future__ import annotations

import ctypes
import os
import signal

_CLONE3 = 435
"""The same number on every architecture."""
_PIDFD = 0x1000
_INTO_CGROUP = 0x200000000
# Calls through PyDLL keep the interpreter's lock: the child, which is this one thread, goes on holding it.
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_Arguments = ctypes.c_uint64 * 11
_WORD = ctypes.sizeof(ctypes.c_uint64)
_TRIAL = ".birth"
"""Beside the first cradle, for the moment of the trial; no unit has such a name."""


class Cradles:
    """Which v2 cgroups a child may be born in."""

    def __init__(self) -> None:
        self._fresh: set[str] = set()
        """Made by us and never killed."""
        self._tried = False
        self._sound = self._always = False
        """Births work at all; births work into a cgroup that was killed before."""

    def made(self, path: str) -> None:
        """We made this cgroup."""
        self._fresh.add(path)

    def spoilt(self, path: str) -> None:
        """It is killed, was, or is gone."""
        self._fresh.discard(path)

    def fit(self, path: str) -> bool:
        """Whether a child can be born there, as far as it is for the cgroup to say."""
        return self._always or path in self._fresh

    def fork(self, path: str) -> tuple[int, int] | None:
        """Fork into the cgroup: pid and pidfd, (0, -1) in the child. None where that is not to be had: the caller forks
        plainly and lets the child move itself, which names what is wrong.

        Only for a process with one thread and signals blocked, and a child that execs: no fork handlers run.
        """
        if not self._tried:
            self._tried = True
            self._try(f"{os.path.dirname(path)}/{_TRIAL}")
        if self._sound and self.fit(path):
            return _into(path)
        return None

    def _try(self, path: str) -> None:
        try:
            os.mkdir(path)
        except OSError:
            return
        try:
            self._sound = _survives(path)
            with open(f"{path}/cgroup.kill", "w") as file:
                file.write("1")
            self._always = self._sound and _survives(path)
        except OSError:
            self._always = self._sound  # no cgroup.kill before 5.14, and nobody who writes it
        finally:
            os.rmdir(path)


def _survives(path: str) -> bool:
    born = _into(path)
    if born is None:
        return False
    pid, pidfd = born
    if pid == 0:
        os._exit(0)
    os.close(pidfd)
    return os.waitpid(pid, 0)[1] == 0


def _into(path: str) -> tuple[int, int] | None:
    try:
        group = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        pidfd = ctypes.c_int(-1)
        # flags, pidfd, child_tid, parent_tid, exit_signal, stack, its size, tls, set_tid, its size, cgroup
        arguments = _Arguments()
        arguments[0], arguments[1] = _INTO_CGROUP | _PIDFD, ctypes.addressof(pidfd)
        arguments[4], arguments[10] = signal.SIGCHLD, group
        size = ctypes.c_size_t(len(arguments) * _WORD)
        pid = _syscall(ctypes.c_long(_CLONE3), ctypes.byref(arguments), size)
    finally:
        os.close(group)
    if pid < 0:
        return None
    return pid, pidfd.value if pid else -1
