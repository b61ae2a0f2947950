"""What the keeper holds for one unit: its sockets, its FIFO, its cgroups, its process.

Mechanism of one unit, step by step; which unit may do what when is the fleet's business.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from agentd.keeper import cgroup, pidfd, process, record
from agentd.keeper.listener import ListenerSocket
from agentd.keeper.loop import Loop, Timer, say
from agentd.keeper.notify import FLOOD_GAP, NotifySocket, Stamps
from agentd.keeper.output import Losses, OutputPipe
from agentd.keeper.plan import Process, SpawnPlan
from agentd.keeper.process import Child, StepFailed
from agentd.keeper.record import Record, Saved
from agentd.keeper.tree import Tree, read_stat

Json = dict[str, Any]

LAST_WORDS = 4096
"""Datagrams that are read at the end of an invocation, or dropped before the next."""
STATUS_GAP = 0.1
"""Seconds between two events of one unit about what it said, READY apart."""
WRITE_GAP = 0.05
"""Seconds in which READY and STATUS gather before they are written for a next keeper. The daemon has them too, so only
the death of both within that time can lose one."""
FIRST_FD = 3
"""Where the descriptors that a unit inherits begin."""
LOSS_GAP = 1.0
"""Seconds between two output events of one unit."""
ASKED = {"extend": "extended", "interval": "interval", "trigger": "trigger"}
"""Events about what it asked for, and the stamps that they tell of."""

_Status = tuple[str, bool, bool]
_NOTHING: _Status = ("", False, False)


class Unit:
    """One unit. ``said(unit, event)`` is called when ``ready``, ``status`` or ``output`` is to be told."""

    def __init__(self, loop: Loop, name: str, record: Record, said: Callable[[Unit, str], None]) -> None:
        self.name, self.record = name, record
        self.plan: SpawnPlan | None = None
        self.child: Child | None = None
        """A fork that has not answered yet."""
        self.process: Process | None = None
        """The last process, dead or alive, without its stamps."""
        self.stamps = Stamps()
        self.listeners: dict[str, ListenerSocket] = {}
        self.parents: list[str] = []
        """Directories above its cgroups that were made for it, outermost first."""
        self.adrift = False
        """Its process was begun by an earlier keeper: it lives, but is not our child."""
        self._addresses: dict[str, str] = {}
        """Where listeners stood that an earlier keeper had open."""
        self._unwritten: Timer | None = None
        self._loop, self._said = loop, said
        self._pidfd = -1
        self._notify: NotifySocket | None = None
        self._output: OutputPipe | None = None
        self.losses = Losses()
        self._told_losses: tuple[int, bool] = (0, False)
        self._counting: Timer | None = None
        """Runs after an output event; until then the next one waits."""
        self._quiet: Timer | None = None
        """Runs after a status event; until then the next one waits."""
        self._told_ready = False
        self._told_status: _Status = _NOTHING
        self._told: dict[str, float | None] = {}
        """What was told last of each of ASKED."""
        self.printed: float | None = None
        """When its output last moved."""

    @property
    def alive(self) -> bool:
        """Whether its process lives or its tree is not gone yet."""
        return self.child is not None or (self.process is not None and self.process.ended is None)

    @property
    def kill_cgroup(self) -> str | None:
        """The directory that holds its tree, None without one."""
        return next((c.path for c in self.plan.cgroups if c.kill), None) if self.plan else None

    def row(self) -> Process | None:
        """Its process as the snapshot shows it."""
        if self.process is None:
            return None
        return _stamped(self.process, self.stamps, self._extra())

    def known(self) -> Process:
        """The same where there is one for certain."""
        row = self.row()
        assert row is not None
        return row

    def tree(self) -> Tree:
        """What identifies the tree of its running invocation."""
        assert self.plan is not None
        assert self.process is not None
        own = self.plan.uid if self.plan.uid not in (None, 0, os.geteuid()) else None
        row = self.process
        return Tree(
            self.name, row.invocation, row.pid, row.start_time, own, self.kill_cgroup, self.record.runtime, self.adrift
        )

    # From one keeper to the next

    def adopt(self, saved: Saved) -> bool:
        """Take over what the files of an earlier keeper say; whether its main process lives.

        One of which they say nothing certain is looked for by its marker. What cannot be opened again is left to the
        next spawn, which says why.
        """
        self.plan = saved.plan
        self._addresses = dict(saved.listeners)
        row = (
            saved.process
            if saved.state != "spawning" or saved.plan is None
            else _found(saved.plan, self.record.runtime)
        )
        if row is not None:
            self._remember(row)
            if row.ended is None:
                self.adrift = True
                self._pidfd = pidfd.opened(row.pid, row.start_time)
        if self.plan is not None:
            self._reopen(self.plan)
        return self._pidfd >= 0

    def departed(self) -> int | None:
        """How the adopted process ended, as far as the kernel tells."""
        assert self.process is not None
        return pidfd.status(self._pidfd, self.process.pid, self.process.start_time)

    def handover(self) -> tuple[Json, list[int]]:
        """All of it for this same keeper after its exec, and the descriptors that must stay open."""
        row = self.row()
        sockets = {name: [open_one.fileno(), open_one.address] for name, open_one in self.listeners.items()}
        fds: dict[str, int] = {
            "pidfd": self._pidfd,
            "notify": self._notify.fileno() if self._notify else -1,
            "output": self._output.fileno() if self._output else -1,
        }
        state = {
            "unit": self.name,
            "plan": self.plan and self.plan.to_dict() | {"env": {}},
            "process": row and row.to_dict(),
            "stamps": asdict(self.stamps),
            "told": self._told,
            "printed": self.printed,
            "adrift": self.adrift,
            "addresses": self._addresses,
            "listeners": sockets,
            "losses": asdict(self.losses),
            "notify_dropped": self._notify.dropped if self._notify else 0,
            **fds,
        }
        every = (*fds.values(), *(open_one.fileno() for open_one in self.listeners.values()))
        return state, [fd for fd in every if fd >= 0]

    def resume(self, state: Json) -> bool:
        """Take over what ``handover`` of the program before gave; whether its main process lives."""
        plan = self.plan = SpawnPlan.from_dict(state["plan"]) if state["plan"] else None
        if state["process"]:
            self._remember(_process(state["process"]))
        self.stamps = Stamps(**{k: v for k, v in state["stamps"].items() if k in Stamps.__dataclass_fields__})
        self._told, self.printed = state.get("told", self._told), state.get("printed")
        self.adrift, self._pidfd = state["adrift"], state["pidfd"]
        self._addresses = state["addresses"]
        self.losses = Losses(**{k: v for k, v in state["losses"].items() if k in Losses.__dataclass_fields__})
        self._told_losses = (self.losses.dropped, self.losses.losing)
        for listener in plan.listeners if plan else ():
            if listener.name in state["listeners"]:
                fd, address = state["listeners"][listener.name]
                self.listeners[listener.name] = ListenerSocket(listener, address, socket.socket(fileno=fd))
        if plan is not None:
            sock = socket.socket(fileno=state["notify"]) if state["notify"] >= 0 else None
            self._hear_again(plan, sock)
            self._reopen(plan)
        if state["output"] >= 0:
            os.close(state["output"])  # it kept the content while nobody else had the FIFO open
        if self._notify:
            self._notify.dropped = state["notify_dropped"]
        self._write_soon()
        return self.process is not None and self.process.ended is None

    def _remember(self, row: Process) -> None:
        """An invocation that was known before us, and of which READY and STATUS were told."""
        named = (row.unit, row.invocation, row.pid, row.start_time, row.started)
        self.process = Process(*named, ended=row.ended, exit=row.exit)
        said = row.extra
        stopping, reloading = bool(said.get("stopping")), bool(said.get("reloading"))
        asked = {field: said.get(field) for field in ("extended", "interval")}
        self.stamps = Stamps(ready=row.ready, status=row.status, stopping=stopping, reloading=reloading, **asked)
        self._told_ready, self._told_status = row.ready is not None, (row.status, stopping, reloading)
        self._told = {event: asked.get(field) for event, field in ASKED.items()}

    def _reopen(self, plan: SpawnPlan) -> None:
        for action in (self._hear_again, self._open_output, self._relisten):
            try:
                action(plan)
            except OSError as error:
                say(f"{self.name}: {error} while it was adopted; going on without")

    def _hear_again(self, plan: SpawnPlan, inherited: socket.socket | None = None) -> None:
        """Its notify socket, with all that waits in it."""
        if plan.notify is not None and self._notify is None:
            self._notify = NotifySocket(plan.notify, plan.uid, plan.gid, inherited)
            self._loop.watch(self._notify.fileno(), lambda _: self._heard())

    def _relisten(self, plan: SpawnPlan) -> None:
        """The listeners of an earlier keeper: from the living process that holds them, else opened again."""
        for at, listener in enumerate(plan.listeners):
            address = self._addresses.get(listener.name)
            if address is None or listener.name in self.listeners:
                continue
            held = pidfd.listener(self._pidfd, FIRST_FD + at, address) if self._pidfd >= 0 else None
            if held is None and self._pidfd >= 0:
                say(f"{self.name}: {address} stays with pid {self.process and self.process.pid} until that ends")
            else:
                self.listeners[listener.name] = ListenerSocket(listener, address, held)

    # Spawn

    def prepare(self, plan: SpawnPlan) -> None:
        """All steps before the fork; raises StepFailed."""
        self.plan = plan
        for step, action in (
            ("notify", self._bind_notify),
            ("output", self._open_output),
            ("listen", self._listen),
            ("cgroup", self._make_cgroups),
        ):
            try:
                action(plan)
            except OSError as error:
                raise StepFailed.of(step, error, self.name) from None

    def fork(self, fds: list[int]) -> Child:
        """Fork the prepared plan; raises StepFailed."""
        assert self.plan is not None
        writer = self._output.writer() if self._output else None
        try:
            self.record.write("spawning", self.plan, None, self._open_addresses())
            handed = [*(self.listeners[x.name].fileno() for x in self.plan.listeners), *fds]
            self.child = process.fork(self.plan, handed, writer)
        except OSError as error:
            raise StepFailed.of("fork", error, self.name) from None
        finally:
            if writer is not None:
                os.close(writer)
        self._fresh()
        self.adrift = False
        row = read_stat(self.child.pid)
        start_time = row.start_time if row else 0
        self.process = Process(self.name, self.plan.invocation, self.child.pid, start_time, time.monotonic())
        self._pidfd = self.child.pidfd
        return self.child

    def watch_exit(self, action: Callable[[], None]) -> None:
        """Call action when the main process is dead."""
        self._loop.watch(self._pidfd, lambda _: action())

    def started(self) -> None:
        """Exec succeeded."""
        self.child = None
        self._write("running")

    # Life and death

    def signal(self, number: int, whole: bool) -> None:
        """Signal the main process, or with ``whole`` its process group and cgroup. ProcessLookupError: it is gone."""
        if not whole:
            signal.pidfd_send_signal(self._pidfd, number)
            return
        assert self.process is not None
        inside = set(cgroup.pids(self.kill_cgroup)) if self.kill_cgroup else set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(pid) != self.process.pid:
                    os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL for all that is known to be its own."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL, whole=False)
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.kill_cgroup:
            with contextlib.suppress(FileNotFoundError):
                cgroup.kill(self.kill_cgroup)

    def dead(self) -> None:
        """The main process is a zombie that is about to be reaped: its group dies while its number is still its own.

        An adopted one may be reaped by anybody at any time: its group is left to the burial.
        """
        assert self.process is not None
        if not self.adrift:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        if self._pidfd >= 0:
            self._loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def hear(self) -> None:
        """Take and tell what it said before it died."""
        if self._quiet:
            self._quiet.cancel()
            self._quiet = None
        if self._notify:
            self._notify.drain(self.stamps, LAST_WORDS)
            self._tell()

    def end(self, code: int | None) -> Process:
        """Its tree is gone: drain what it printed, and this is how it ended."""
        assert self.process is not None
        if self._output:
            self._output.drain()
        self.process, self.child = _ended(self.process, code), None
        if self.plan is not None and self._addresses:
            try:  # what the dead one still held of an earlier keeper is free now
                self._relisten(self.plan)
            except OSError as error:
                say(f"{self.name}: {error}; its next invocation tries again")
        self._write("ended")
        return self.known()

    def vacate(self) -> None:
        """Forget the dead process: a spawn follows, and with it another file."""
        self.process = self.child = None
        self._fresh()

    def release(self) -> None:
        """Forget the dead process."""
        self.vacate()
        if self.plan is not None and (self.listeners or self._addresses):
            self._write("idle")
        else:
            self.record.remove()

    def forget(self) -> None:
        """Give back everything."""
        self.process = self.child = None
        self._fresh()
        if self._unwritten is not None:
            self._unwritten.cancel()
            self._unwritten = None
        self.record.remove()
        for closing in (self._notify, self._output, *self.listeners.values()):
            if closing is not None:
                self._loop.unwatch(closing.fileno())
                closing.close()
        self._notify = self._output = None
        if self._counting:
            self._counting.cancel()
            self._counting = None
        self.losses, self._told_losses = Losses(), (0, False)
        self.listeners.clear()
        self._addresses.clear()
        for group in self.plan.cgroups if self.plan else ():
            if not cgroup.remove(group.path):
                say(f"cgroup {group.path} of {self.name} is busy and stays")
        self.plan = None

    def _fresh(self) -> None:
        """No invocation has said anything yet."""
        self.stamps, self._told_ready, self._told_status = Stamps(), False, _NOTHING
        self._told, self.printed = {}, None
        if self._quiet:
            self._quiet.cancel()
            self._quiet = None

    # Preparation, piece by piece

    def _bind_notify(self, plan: SpawnPlan) -> None:
        if self._notify and self._notify.path != plan.notify:
            self._loop.unwatch(self._notify.fileno())
            self._notify.close()
            self._notify = None
        if plan.notify is None:
            return
        if self._notify is None:
            self._notify = NotifySocket(plan.notify, plan.uid, plan.gid)
            self._loop.watch(self._notify.fileno(), lambda _: self._heard())
        self._notify.give(plan.uid, plan.gid)
        self._notify.drain(None, LAST_WORDS)

    def _open_output(self, plan: SpawnPlan) -> None:
        if self._output and plan.output and self._output.follows(plan.output):
            self._output.output = plan.output
        if self._output and self._output.output != plan.output:
            self._output.drain()
            self._loop.unwatch(self._output.fileno())
            self._output.close()
            self._output = None
        if plan.output is None:
            return
        if self._output is None:
            self._output = OutputPipe(plan.output, plan.uid, plan.gid, self.losses, self._lost)
            self._loop.watch_bulk(self._output.fileno(), self._pump)
        self._output.give(plan.uid, plan.gid)

    def _pump(self, quota: int) -> None:
        if self._output is not None and self._output.pump(quota):
            self.printed = time.monotonic()

    def _listen(self, plan: SpawnPlan) -> None:
        wanted = {x.name: x for x in plan.listeners}
        for name in [n for n, open_one in self.listeners.items() if wanted.get(n) != open_one.listener]:
            self.listeners.pop(name).close()
        for name, listener in wanted.items():
            if name not in self.listeners:
                before = self._addresses.get(name) if listener.address.endswith(":0") else None
                self.listeners[name] = ListenerSocket(listener, before)

    def _make_cgroups(self, plan: SpawnPlan) -> None:
        for group in plan.cgroups:
            self.parents += [path for path in cgroup.make(group) if path != group.path]

    # Notify

    def _heard(self) -> None:
        assert self._notify is not None
        count = self._notify.drain(self.stamps if self.alive else None)
        if self._notify.flooded(count, time.monotonic()):
            self._loop.rest(self._notify.fileno(), FLOOD_GAP)
        self._tell()

    def _tell(self) -> None:
        if self.stamps.ready is not None and not self._told_ready:
            self._told_ready = True
            self._write_soon()
            self._said(self, "ready")
        if self._quiet is not None:
            return
        told: list[str] = []
        status = (self.stamps.status, self.stamps.stopping, self.stamps.reloading)
        if status != self._told_status:
            self._told_status = status
            told.append("status")
        for event, field in ASKED.items():
            value = getattr(self.stamps, field)
            if value is not None and value != self._told.get(event):
                self._told[event] = value
                told.append(event)
        if told:
            self._quiet = self._loop.after(STATUS_GAP, self._again)
            self._write_soon()
        for event in told:
            self._said(self, event)

    def _again(self) -> None:
        """The gap is over: what was said meanwhile is told now."""
        self._quiet = None
        self._tell()

    def _lost(self) -> None:
        """Output was dropped, or is written again: told at once, then at most once in LOSS_GAP."""
        told = (self.losses.dropped, self.losses.losing)
        if told != self._told_losses and self._counting is None:
            self._told_losses = told
            self._counting = self._loop.after(LOSS_GAP, self._lost_again)
            self._said(self, "output")

    def _lost_again(self) -> None:
        self._counting = None
        self._lost()

    def _extra(self) -> dict[str, float]:
        counts: dict[str, float | None] = {
            "adopted": self.adrift,
            "stopping": self.stamps.stopping,
            "reloading": self.stamps.reloading,
            "extended": self.stamps.extended,
            "interval": self.stamps.interval,
            "output_dropped": self.losses.dropped,
            "notify_dropped": self._notify.dropped if self._notify else 0,
        }
        return {name: count for name, count in counts.items() if count}

    def _open_addresses(self) -> dict[str, str]:
        return self._addresses | {name: open_one.address for name, open_one in self.listeners.items()}

    def _write(self, state: str) -> None:
        assert self.plan is not None
        try:
            self.record.write(state, self.plan, self.row(), self._open_addresses())
        except OSError as error:
            say(f"{self.record.path} cannot be written: {error}; proceeding")

    def _write_soon(self) -> None:
        if self._unwritten is None:
            self._unwritten = self._loop.after(WRITE_GAP, self.write_now)

    def write_now(self) -> None:
        """Write what has gathered for a next keeper."""
        self._unwritten = None
        if self.process is not None and self.process.ended is None and self.child is None:
            self._write("running")


def _found(plan: SpawnPlan, runtime: str) -> Process | None:
    """The process of a spawn whose keeper died before it could write down the pid."""
    pid = record.marked(plan.unit, plan.invocation, runtime)
    row = read_stat(pid) if pid is not None else None
    if row is not None and row.session != row.pid and (leader := read_stat(row.session)) is not None:
        row = leader
    return Process(plan.unit, plan.invocation, row.pid, row.start_time, time.monotonic()) if row else None


def _process(row: Json) -> Process:
    return Process(**{name: value for name, value in row.items() if name in Process.__dataclass_fields__})


def _stamped(base: Process, stamps: Stamps, extra: dict[str, float]) -> Process:
    return Process(
        base.unit,
        base.invocation,
        base.pid,
        base.start_time,
        base.started,
        stamps.beat,
        stamps.ready,
        stamps.status,
        base.ended,
        base.exit,
        dict(extra),
    )


def _ended(base: Process, code: int | None) -> Process:
    return Process(
        base.unit, base.invocation, base.pid, base.start_time, base.started, ended=time.monotonic(), exit=code
    )
