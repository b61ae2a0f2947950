"""All units of this keeper: who may be spawned, who died, and what is told about it.

Executes requests and reports events through ``emit``; knows no sockets and no policy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from agentd.keeper import cgroup, process, record, tree
from agentd.keeper.blobs import Blobs
from agentd.keeper.forgetting import Forgetting
from agentd.keeper.loop import Loop, say
from agentd.keeper.plan import SpawnPlan
from agentd.keeper.probe import Probe, beside
from agentd.keeper.process import StepFailed
from agentd.keeper.record import Record
from agentd.keeper.tree import Burial
from agentd.keeper.unit import Unit

Json = dict[str, Any]
SPAWN_TIMEOUT = 10.0
"""Seconds from fork to exec; a child that hangs there (a dead network file system) is killed."""
BLOB_SIZE = 1 << 20
_SIGNALS = signal.valid_signals()
END_TIMEOUT = 5.0
"""Seconds that the last units have to disappear after SIGKILL."""


class Refused(Exception):
    """A request that cannot be granted as things are; ``code`` is for the client."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)

    def to_wire(self) -> Json:
        """The ``error`` of an answer."""
        return {"code": self.code, "message": str(self)}


class Fleet:
    """The units. ``directory`` holds their files; ``emit`` gets each event without its revision."""

    def __init__(self, loop: Loop, directory: str, emit: Callable[[Json], None]) -> None:
        self._loop, self._directory, self._emit = loop, directory, emit
        self._units: dict[str, Unit] = {}
        self.blobs = Blobs(loop, directory)
        """What the daemon leaves for its successor."""
        self._forgetting = Forgetting(loop, self._forget, self.blobs.write)
        self._mains: dict[int, Unit] = {}
        self._answers: dict[str, Callable[[Json], bool]] = {}
        self._late: set[str] = set()
        self._burials: dict[str, Burial] = {}
        self._scan: dict[int, tree.Stat] | None = None
        """One look at /proc, shared by the burials of one ``reap`` and by nothing later."""
        self._sharing = False
        self._dead: list[tuple[Unit | None, int, int]] = []
        """Reaped, not yet buried: unit, pid, exit code."""
        self._parents: list[str] = []
        self._when_empty: Callable[[], None] | None = None
        self._when_quiet: Callable[[], None] | None = None
        self.on_parents: Callable[[], None] = lambda: None
        """Called when directories above the units' cgroups were made: whoever comes after us is to remove them."""
        self._probes: dict[int, Probe] = {}
        """Commands that ask units how they are, by pid."""
        self._asked = 0
        self.strangers: dict[int, Callable[[int], None]] = {}
        """Children that are no units (the daemon): called with their exit code."""

    # What is known

    def snapshot(self) -> Json:
        """Processes, blobs, listeners and what was lost of outputs: the truth of a ``welcome``."""
        rows = (unit.row() for unit in self._units.values())
        return {
            "processes": [row.to_dict() for row in rows if row is not None],
            "blobs": self.blobs.all(),
            "listeners": {f"{u.name}/{x}": s.address for u in self._units.values() for x, s in u.listeners.items()},
            "stores": {name: kept for name, unit in self._units.items() if any((kept := _stored(unit)).values())},
            "outputs": {name: asdict(unit.losses) for name, unit in self._units.items() if unit.losses.dropped},
        }

    def beats(self, names: list[str] | None = None) -> Json:
        """The last WATCHDOG=1, and the last output, of each living unit that has sent one; or of these only."""
        among = self._mains.values() if names is None else map(self._units.get, names)
        units = [unit for unit in among if unit is not None and self._main(unit)]
        return {
            "beats": {u.name: u.stamps.beat for u in units if u.stamps.beat is not None},
            "output": {u.name: u.printed for u in units if u.printed is not None},
        }

    def stamps(self, name: str) -> Json:
        """The same of one unit, about which much is to be decided: what it said while we were busy is heard first."""
        unit = self._units.get(name)
        if unit is not None and self._main(unit):
            unit.voice.catch_up()
        return self.beats([name])

    @property
    def lives(self) -> bool:
        """Whether any unit's process or tree lives."""
        return any(unit.alive for unit in self._units.values())

    def owner(self, pid: int) -> str | None:
        """The unit to whose tree this process belongs, as far as its ancestors and cgroups tell.

        Offspring of ours that is neither the daemon nor started by it belongs to some unit: it is an orphan. So does,
        for all we know, a process that is gone already: it may have passed the connection on.
        """
        for unit in self._mains.values():
            if unit.kill_cgroup is not None and pid in cgroup.pids(unit.kill_cgroup):
                return unit.name
        while pid > 1:
            if pid in self._mains:
                return self._mains[pid].name
            if pid in self.strangers:
                return None
            row = tree.read_stat(pid)
            if row is None or row.state in "ZX":
                return "(gone)"
            if row.parent == os.getpid():
                return "(orphan)"
            pid = row.parent
        return None

    # Requests

    def spawn(self, data: Json, fds: list[int], answer: Callable[[Json], bool]) -> None:
        """Execute a plan once; ``answer`` is called after exec or after the failed step was cleaned up.

        ``answer`` returns False if nobody is there to hear it.
        """
        plan = _plan(data, fds, self._directory)
        unit = self._vacant(plan)
        unit.vacate()
        try:
            unit.prepare(plan)
            child = unit.fork(fds)
        except StepFailed:
            unit.release()
            raise
        finally:
            self._adopt_parents(unit)
        self._answers[unit.name] = answer
        self._mains[child.pid] = unit
        unit.watch_exit(self.reap)
        deadline = self._loop.after(SPAWN_TIMEOUT, lambda: self._overdue(unit, child))

        def decided(_: int) -> None:
            deadline.cancel()
            self._settle(unit)

        self._loop.watch(child.report, decided)

    def signal(self, name: str, invocation: str, number: int, whole: bool) -> None:
        """Signal a living invocation."""
        if number not in _SIGNALS:
            raise Refused("bad", f"{number} is no signal")
        try:
            self._living(name, invocation).signal(number, whole)
        except ProcessLookupError:
            raise Refused("gone", f"{name}: {invocation} has just ended") from None

    def kill(self, name: str, invocation: str) -> None:
        """SIGKILL a whole tree; ``ended`` follows."""
        self._living(name, invocation).kill()

    def release(self, name: str, invocation: str) -> None:
        """Forget a dead process."""
        unit = self._units.get(name)
        if unit is None or unit.process is None or unit.process.invocation != invocation:
            raise Refused("gone", f"{name}: {invocation} is not known")
        if unit.alive:
            raise Refused("exists", f"{name}: {invocation} still lives")
        unit.release()

    def probe(self, name: str, invocation: str, data: Json, timeout: float, answer: Callable[[Json], object]) -> None:
        """Execute a command beside a living invocation; ``answer`` is called when it ended or was killed."""
        unit = self._living(name, invocation)
        if unit.child is not None or unit.plan is None or any(p.unit == name for p in self._probes.values()):
            raise Refused("exists", f"{name} is not past its exec, or another probe of it runs")
        if self._when_quiet is not None or self._when_empty is not None:
            raise Refused("ending", f"{name}: the keeper ends or is being upgraded")
        self._asked += 1
        plan = beside(unit.plan, _plan(data, [], self._directory), self._asked)
        try:
            probe = Probe(self._loop, plan, timeout, answer)
        except OSError as error:
            raise StepFailed.of("fork", error, name) from None
        self._probes[probe.pid] = probe

    def set_blob(self, name: str, text: str | None) -> None:
        """Keep a text for a unit; None drops it."""
        if text is not None and len(text.encode()) > BLOB_SIZE:
            raise Refused("too_long", f"{name}: the blob is over {BLOB_SIZE} bytes")
        self._forgetting.first(name)
        self.blobs.put(name, text)

    def forget(self, name: str) -> None:
        """Give back all that is held for a unit that is removed. Nothing happens if there is none."""
        unit = self._units.get(name)
        if unit is not None and unit.alive:
            raise Refused("exists", f"{name} still lives: stop it first")
        self._forget(name)
        self.blobs.write()

    def forget_all(self, names: list[str]) -> None:
        """The same for many, soon; of one that lives nothing is given back."""
        self._forgetting.add(names)

    def _forget(self, name: str) -> None:
        unit = self._units.get(name)
        if unit is None or not unit.alive:
            self._units.pop(name, None)
            self.blobs.put(name, None)
            if unit is not None:
                unit.forget()

    def drop(self, name: str) -> None:
        """Close what a unit has stored: it was stopped for good. Nothing happens if there is none."""
        if (unit := self._units.get(name)) is not None:
            unit.voice.store.clear()

    def end(self, done: Callable[[], None]) -> None:
        """Kill everything; ``done`` is called when it is gone and cleaned up, at the latest after END_TIMEOUT."""
        self._when_empty = done
        for unit in self._mains.values():
            unit.kill()
        self._loop.after(END_TIMEOUT, self._clean)
        if not self.lives:
            self._clean()

    # From one keeper to the next

    @property
    def parents(self) -> list[str]:
        """Directories above the units' cgroups that a keeper of this runtime directory made, outermost first."""
        return self._parents

    def adopt(self, parents: list[str]) -> int:
        """Take over what the files of an earlier keeper tell of; how many processes live."""
        self._parents = [*parents, *(p for p in self._parents if p not in parents)]
        for saved in record.saved(self._directory):
            unit = self._unit(saved.unit)
            lives = unit.adopt(saved)
            if lives:
                self._watch_adrift(unit)
            elif unit.alive:
                self._bury(unit, None)
            elif saved.state == "spawning":
                self._discard(unit)
        return len(self._mains)

    def handover(self) -> tuple[list[Json], list[int]]:
        """All units for this same keeper after its exec, and the descriptors that must stay open."""
        states = [unit.handover() for unit in self._units.values()]
        texts = self.blobs.all()
        return [s | {"blob": texts.get(s["unit"])} for s, _ in states], [fd for _, fds in states for fd in fds]

    def resume(self, states: list[Json], parents: list[str]) -> None:
        """Take over what ``handover`` gave; blobs are resumed before."""
        self._parents = list(parents)
        for state in states:
            unit = self._unit(state["unit"])
            if not unit.resume(state):
                continue
            if unit.adrift:
                self._watch_adrift(unit)
            elif unit.moved:
                self._moved(unit)
            else:
                self._mains[unit.known().pid] = unit
                unit.watch_exit(self.reap)

    def when_quiet(self, action: Callable[[], None]) -> None:
        """Call action as soon as nothing is between two states: no child before its exec, no tree half dead."""
        self._when_quiet = action
        self._look_quiet()

    def _look_quiet(self) -> None:
        if self._when_quiet is None:
            return
        between = any(unit.child is not None for unit in self._units.values())
        if not (between or self._burials or self._dead or self._probes):
            action, self._when_quiet = self._when_quiet, None
            self._loop.after(0, action)  # not in the middle of whatever brought us here

    def _watch_adrift(self, unit: Unit) -> None:
        """An adopted process: nobody tells us of its death but its pidfd."""
        self._mains[unit.known().pid] = unit
        unit.watch_exit(lambda: self._departed(unit))

    def _moved(self, unit: Unit) -> None:
        """It has another main process, which may be our child (an orphan of its own) or not."""
        for pid in [pid for pid, one in self._mains.items() if one is unit]:
            del self._mains[pid]
        pid = unit.known().pid
        self._mains[pid] = unit

        def died() -> None:
            self.reap()
            if self._mains.get(pid) is unit:
                self._departed(unit)

        unit.watch_exit(died)

    def _departed(self, unit: Unit) -> None:
        pid = unit.known().pid
        self._last_words(unit)
        if unit.known().pid != pid:
            return  # it named its successor
        code = unit.departed()
        if self._mains.get(pid) is unit:
            del self._mains[pid]
        unit.dead()
        self._bury(unit, code)

    def _discard(self, unit: Unit) -> None:
        """A spawn that died with its keeper before the exec: what it left in its cgroup goes, and it never was."""
        if unit.kill_cgroup is not None and cgroup.populated(unit.kill_cgroup):
            cgroup.kill(unit.kill_cgroup)
        unit.release()

    # Death

    def reap(self) -> None:
        """Take every child that died, units or not; then bury all of them by one look at /proc."""
        waiting = list(self._burials.values())
        with contextlib.suppress(ChildProcessError):
            while (child := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                code = child.si_status if child.si_code == os.CLD_EXITED else -child.si_status
                self._dead.append((self._died(child.si_pid), child.si_pid, code))
        if not self._dead:
            return
        self._scan, self._sharing = None, True
        try:
            while self._dead:
                self._mourn(*self._dead.pop(0))
            for burial in waiting:
                burial.check()
        finally:
            self._sharing = False
            if self._dead:  # one went wrong; the others are not forgotten
                self._loop.after(0, self.reap)
            self._look_quiet()

    def _mourn(self, unit: Unit | None, pid: int, code: int) -> None:
        if unit is not None:
            self._bury(unit, code)
        elif pid in self.strangers:
            self.strangers.pop(pid)(code)
        elif (probe := self._probes.pop(pid, None)) is not None:
            probe.ended(code, frozenset((*self._mains, *self.strangers, *self._probes)))

    def _died(self, pid: int) -> Unit | None:
        """Reap one; the unit whose main process it was."""
        if (unit := self._mains.get(pid)) is not None:
            self._last_words(unit)  # it may name its successor
        elif (probe := self._probes.get(pid)) is not None:
            probe.dead()
        unit = self._mains.pop(pid, None)
        if unit is not None:
            unit.dead()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        return unit

    def _last_words(self, unit: Unit) -> None:
        self._settle(unit)
        unit.hear()

    def _bury(self, unit: Unit, code: int | None) -> None:
        self._settle(unit)
        failure = unit.child.failure if unit.child else None
        for probe in [probe for probe in self._probes.values() if probe.unit == unit.name]:
            probe.kill()

        def gone(left: list[int]) -> None:
            self._burials.pop(unit.name, None)
            self._buried(unit, code, left, failure)

        trunk = unit.tree()
        burial = Burial(self._loop, trunk, lambda fresh: self._members(unit, trunk, fresh), gone)
        self._burials[unit.name] = burial
        burial.begin()

    def _members(self, unit: Unit, trunk: tree.Tree, fresh: bool) -> list[int]:
        neighbours = [u for u in self._units.values() if u.alive and u is not unit]
        groups = [u.kill_cgroup for u in neighbours if u.kill_cgroup is not None]
        firsts = (u.origin[0] for u in neighbours if u.moved and tree.lives(*u.origin))
        probes = (pid for pid, probe in self._probes.items() if probe.unit != unit.name)
        others = frozenset((*self._mains, *self.strangers, *firsts, *probes))
        if fresh or not self._sharing:
            self._scan = None
        return tree.members(
            trunk,
            self._rows,
            others,
            lambda pid: any(pid in cgroup.pids(g) for g in groups),
            len(groups) == len(neighbours),
        )

    def _rows(self) -> dict[int, tree.Stat]:
        if self._scan is None:
            self._scan = tree.scan()
        return self._scan

    def _buried(self, unit: Unit, code: int | None, left: list[int], failure: StepFailed | None) -> None:
        if failure is not None and self._answer(unit, {"error": failure.to_wire()}):
            unit.release()
        else:
            # A failed spawn whose client went away is in the snapshot of the next one: it hears of the end.
            row = unit.end(code).to_dict()
            row["extra"] |= {"error": failure.to_wire()} if failure else {}
            self._emit({"event": "ended", "process": row, "left": left})
        self._look_quiet()
        if self._when_empty is not None and not self.lives:
            self._clean()

    # Spawning

    def _vacant(self, plan: SpawnPlan) -> Unit:
        """The unit, if nothing of it lives."""
        if self._when_empty is not None:
            raise Refused("ending", f"{plan.unit}: the keeper ends and starts nothing more")
        self._forgetting.first(plan.unit)
        unit = self._unit(plan.unit)
        if unit.alive:
            raise Refused("exists", f"{plan.unit}: a process of this unit lives (pid {unit.known().pid})")
        for group in plan.cgroups:
            if group.kill and cgroup.populated(group.path):
                found = ", ".join(map(str, list(cgroup.pids(group.path))[:8]))
                raise Refused("exists", f"{plan.unit}: {group.path} is populated (pid {found})")
        if unit.process is None and (pid := unit.record.alive()) is not None:
            raise Refused("exists", f"{plan.unit}: pid {pid} of an earlier keeper lives")
        return unit

    def _settle(self, unit: Unit) -> None:
        """The report of the child is decided. Success is answered here; a failure when the child is reaped."""
        child = unit.child
        if child is None or child.report < 0:
            return
        self._loop.unwatch(child.report)
        child.conclude()
        if unit.name in self._late:
            self._late.discard(unit.name)
            path = unit.plan.executable if unit.plan else ""
            child.failure = StepFailed("exec", errno.ETIMEDOUT, path, f"no exec within {SPAWN_TIMEOUT} s")
        if child.failure is None:
            unit.started()
            self._look_quiet()
            self._answer(unit, {"process": unit.known().to_dict(), "listeners": _addresses(unit)})

    def _overdue(self, unit: Unit, child: process.Child) -> None:
        if child.report >= 0:  # else it was concluded, at its death perhaps, and its number may be another's
            self._late.add(unit.name)
            os.kill(child.pid, signal.SIGKILL)

    def _answer(self, unit: Unit, body: Json) -> bool:
        answer = self._answers.pop(unit.name, None)
        return answer is not None and answer(body)

    def _adopt_parents(self, unit: Unit) -> None:
        if unit.parents:
            self._parents += unit.parents
            unit.parents = []
            self.on_parents()

    # Small things

    def _unit(self, name: str) -> Unit:
        if name not in self._units:
            self._units[name] = Unit(self._loop, name, Record(self._directory, name), self._said)
        return self._units[name]

    def _living(self, name: str, invocation: str) -> Unit:
        unit = self._units.get(name)
        if unit is not None and self._main(unit) and unit.known().invocation == invocation:
            return unit
        raise Refused("gone", f"{name}: {invocation} does not live")

    def _main(self, unit: Unit) -> bool:
        """Its main process lives."""
        return unit.process is not None and self._mains.get(unit.process.pid) is unit

    def _said(self, unit: Unit, event: str) -> None:
        if event == "output":
            self._emit({"event": event, "unit": unit.name} | asdict(unit.losses))
            return
        if event == "store":
            self._emit({"event": event, "unit": unit.name} | _stored(unit))
            return
        if event == "main":
            self._moved(unit)
        row = unit.known()
        body: Json = {"event": event, "unit": row.unit, "invocation": row.invocation}
        said = unit.stamps
        more: dict[str, Json] = {
            "ready": {"at": row.ready},
            "extend": {"until": said.extended},
            "interval": {"seconds": said.interval},
            "trigger": {"at": said.trigger},
            "main": {"pid": row.pid, "start_time": row.start_time},
            "ignored": {"text": unit.voice.note},
        }
        status = {"at": said.said, "status": row.status, "stopping": said.stopping, "reloading": said.reloading}
        self._emit(body | more.get(event, status))

    def _clean(self) -> None:
        done, self._when_empty = self._when_empty, None
        if done is None:
            return
        self._forgetting.finish()
        for unit in self._units.values():
            if unit.alive:
                say(f"{unit.name} does not die; its cgroup and file stay")
                continue
            try:
                unit.forget()
            except OSError as error:
                say(f"something of {unit.name} stays: {error}; going on")
        self.blobs.close()
        for path in reversed(self._parents):
            cgroup.remove(path)
        done()


def _addresses(unit: Unit) -> dict[str, str]:
    return {name: open_one.address for name, open_one in unit.listeners.items()}


def _plan(data: Json, fds: list[int], directory: str) -> SpawnPlan:
    try:
        plan = SpawnPlan.from_dict(data)
        process.check(plan, fds)
        return replace(plan, env={**plan.env, "AGENTD_RUNTIME": os.path.dirname(directory)})
    except (TypeError, AttributeError, ValueError, KeyError) as error:
        raise StepFailed("check", errno.EINVAL, "plan", str(error)) from None


def _stored(unit: Unit) -> dict[str, int]:
    store = unit.voice.store
    return {"kept": len(store.fds), "refused": store.refused}
