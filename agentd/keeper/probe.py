"""One question to a unit, asked by a command: run beside it, under its ids and limits, and killed with all it started.

Knows one execution from fork to the last of its processes; neither how often it is asked nor what the answer means. It
is not the unit: its exit ends nothing, it may not notify, and its output goes into the answer only.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agentd.keeper import cgroup, process, tree
from agentd.keeper.loop import Loop, Timer
from agentd.keeper.plan import Cgroup, SpawnPlan
from agentd.keeper.process import Child
from agentd.keeper.tree import PROBE as MARK

DIRECTORY = "probe"
"""Below the unit's kill-cgroup: so it dies with the unit, and alone when it is late."""
LAST = 1024
"""Bytes of output that are kept."""
CHUNK = 65536
DRAIN = 16
"""Chunks that are read of what it printed at its end."""
Json = dict[str, Any]


class Probe:
    """One running question. ``done(body)`` is called once with the body of the answer."""

    def __init__(self, loop: Loop, plan: SpawnPlan, timeout: float, done: Callable[[Json], object]) -> None:
        self.unit, self.late = plan.unit, False
        self._loop, self._plan, self._done = loop, plan, done
        self._directory = next((group.path for group in plan.cgroups if group.kill), None)
        if self._directory is not None:
            if not cgroup.remove(self._directory):  # of one whose keeper was killed, or that is dying
                cgroup.kill(self._directory)
            cgroup.make(Cgroup(self._directory, kill=True))  # anew each time: no child may be born where one was killed
        self._output, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._output, False)
        self._last = b""
        try:
            self._child: Child = process.fork(plan, [], writer)
        except OSError:
            os.close(self._output)
            raise
        finally:
            os.close(writer)
        loop.watch_bulk(self._output, lambda _: self._read())
        loop.watch(self._child.report, lambda _: self._settle())
        self._timer: Timer = loop.after(timeout, self._overdue)

    @property
    def pid(self) -> int:
        """Of the command itself."""
        return self._child.pid

    def dead(self) -> None:
        """The command is a zombie that is about to be reaped: its group dies while its number is still its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def ended(self, code: int, others: frozenset[int]) -> None:
        """It was reaped: what it left behind is killed, and the answer is given. ``others`` belong elsewhere."""
        self._timer.cancel()
        self._settle()
        self._sweep(others)
        for _ in range(DRAIN):
            if not self._read():
                break
        self._close()
        os.close(self._child.pidfd)
        failure = self._child.failure
        if failure is not None:
            self._done({"error": failure.to_wire()})
        else:
            self._done({"exit": code, "late": self.late, "output": self._last.decode(errors="replace")})

    def kill(self) -> None:
        """SIGKILL for what is known to be its own."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._child.pidfd, signal.SIGKILL)
            os.killpg(self.pid, signal.SIGKILL)
        if self._directory is not None:
            cgroup.kill(self._directory)

    def _overdue(self) -> None:
        self.late = True
        self.kill()

    def _settle(self) -> None:
        if self._child.report >= 0:
            self._loop.unwatch(self._child.report)
            self._child.conclude()

    def _sweep(self, others: frozenset[int]) -> None:
        """What left its group: by its cgroup, else by its mark, if there is any orphan at all."""
        if self._directory is not None:
            if cgroup.populated(self._directory):
                cgroup.kill(self._directory)
            return
        children = tree.own_children()
        if children is not None and children <= others:
            return
        mark = self._plan.env[MARK].encode()
        for pid in tree.below(tree.scan(), os.getpid(), stop=others):
            if tree.environment(pid).get(MARK.encode()) == mark:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def _read(self) -> bool:
        """One chunk; whether there may be more."""
        if self._output < 0:
            return False
        try:
            chunk = os.read(self._output, CHUNK)
        except BlockingIOError:
            return False
        self._last = (self._last + chunk)[-LAST:]
        if not chunk:
            self._close()
        return bool(chunk)

    def _close(self) -> None:
        if self._output >= 0:
            self._loop.unwatch(self._output)
            os.close(self._output)
            self._output = -1


def beside(unit: SpawnPlan, asked: SpawnPlan, number: int) -> SpawnPlan:
    """The plan of a probe: program, environment and directory are asked for, all else is the unit's own."""
    env = {name: value for name, value in asked.env.items() if name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
    return replace(
        unit,
        argv=asked.argv,
        executable=asked.executable,
        env={**env, MARK: f"{os.getpid()}.{number}"},
        cwd=asked.cwd,
        cgroups=tuple(
            replace(group, settings=(), path=f"{group.path}/{DIRECTORY}" if group.kill else group.path)
            for group in unit.cgroups
        ),
        notify=None,
        output=None,
        listeners=(),
        fds=(),
    )
