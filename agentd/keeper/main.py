"""The keeper process: ``agentd-keeper --runtime DIR [--state DIR] [-- DAEMON ARGV...]``.

Puts the parts together, holds the lock on the runtime directory, and stops in order.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from agentd.keeper import process, record, tree, upgrade
from agentd.keeper.fleet import Fleet
from agentd.keeper.loop import Loop, say
from agentd.keeper.server import Server
from agentd.keeper.slot import Slot
from agentd.keeper.upgrade import Upgrade

Json = dict[str, Any]
USAGE = "usage: agentd-keeper --runtime DIR [--state DIR] [-- DAEMON ARGV...]"
OUR_MANAGER = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
"""What a service manager above us says to us, and not to the daemon."""
STOP_TIMEOUT = 30.0
"""Seconds that the daemon has to stop all units in order after the first signal."""
DAEMON_TIMEOUT = 5.0
"""Seconds that the daemon has to exit once everything else is gone."""


class Keeper:
    """One keeper over one runtime directory. ``resumed``: what the program before it left at an exec in place."""

    def __init__(self, runtime: str, held: int, daemon: Sequence[str], resumed: Json | None = None) -> None:
        self.code = 0
        self._runtime, self._lock = runtime, held
        self._loop = Loop()
        self._directory = f"{runtime}/keeper"
        socket_path = f"{runtime}/keeper.sock"
        self._server = Server(self._loop, socket_path, self._end, resumed and resumed["server"])
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        self._fleet = Fleet(self._loop, self._directory, self._server.emit)
        self._server.fleet = self._fleet
        self._server.on_client = self._client_changed
        arguments = ["--runtime", runtime]
        self._upgrade = Upgrade(self._loop, self._fleet, arguments, daemon, self._handover, self._may_upgrade)
        self._server.upgrade = self._upgrade.request
        env = {name: value for name, value in os.environ.items() if name not in OUR_MANAGER}
        env["AGENTD_KEEPER"] = socket_path
        self._slot = Slot(self._loop, self._fleet, daemon, env) if daemon else None
        if resumed is None:
            self._adopt()
        else:
            self._resume(resumed)
        self._fleet.on_parents = self._write
        if self._slot:
            self._slot.changed = self._write
            self._server.on_alive = self._slot.alive
            self._server.on_hello = self._slot.expect

    def run(self) -> int:
        """Serve until told to end; the exit status."""
        actions: dict[int, Callable[[], None]] = {signal.SIGCHLD: self._fleet.reap}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            actions[number] = self._told(number)
        actions[signal.SIGUSR2] = self._upgrade.told
        self._loop.on_signals(actions)
        upgrade.unblock()
        if self._slot:
            self._slot.ended = self._daemon_ended
            if self._slot.pid is None:
                self._slot.start()
        self._loop.after(0, self._fleet.reap)  # who died during an exec told nobody
        self._loop.run()
        return self.code

    # From one keeper to the next

    def _adopt(self) -> None:
        """Take over what a keeper left that was killed."""
        own = record.read(f"{self._directory}/{record.OWN}") or {}
        began = time.monotonic()
        count = self._fleet.adopt([str(path) for path in own.get("parents", ())])
        daemon = own.get("daemon") or {}
        named = daemon.get("pid", 0), daemon.get("start_time", 0), daemon.get("within", 0.0)
        taken = self._slot is not None and self._slot.adopt(*named)
        if count or taken:
            whose = f" and its daemon (pid {daemon['pid']})" if taken else ""
            took = (time.monotonic() - began) * 1000
            say(f"adopted {count} running units of an earlier keeper{whose} in {took:.0f} ms")
            self._write()

    def _resume(self, resumed: Json) -> None:
        own = {unit["unit"]: unit["blob"] for unit in resumed["units"] if unit["blob"] is not None}
        self._fleet.blobs.resume(resumed.get("blobs", own))
        self._fleet.resume(resumed["units"], resumed["parents"])
        if self._slot and resumed["daemon"]:
            pid, start_time, greeted = resumed["daemon"]
            self._slot.resume(pid, start_time, greeted, resumed.get("within", 0.0))

    def _write(self) -> None:
        """Write down for a next keeper what belongs to no single unit."""
        slot = self._slot
        daemon = {"pid": slot.pid, "start_time": slot.start_time, "within": slot.within} if slot and slot.pid else None
        try:
            record.write(f"{self._directory}/{record.OWN}", {"parents": self._fleet.parents, "daemon": daemon})
        except OSError as error:
            say(f"{self._directory}/{record.OWN} cannot be written: {error}; proceeding")

    def _may_upgrade(self) -> bool:
        return not self._server.stopping and (self._slot is None or self._slot.wanted)

    def _handover(self) -> tuple[Json, list[int]]:
        """Everything that this same keeper needs after an exec, and the descriptors that stay open."""
        units, fds = self._fleet.handover()
        server, more = self._server.handover()
        slot = self._slot
        return {
            "units": units,
            "blobs": self._fleet.blobs.all(),
            "parents": self._fleet.parents,
            "server": server,
            "daemon": [slot.pid, slot.start_time, slot.greeted] if slot and slot.pid else None,
            "within": slot.within if slot else 0.0,
            "given": process.given(),
            "lock": self._lock,
        }, [*fds, *more, self._lock]

    def _told(self, number: int) -> Callable[[], None]:
        def stop() -> None:
            if self._server.stopping and number == signal.SIGHUP:
                return  # a shell and the terminal both tell of one hang-up
            if self._server.stopping:
                say("told a second time; killing everything")
                self._end(lambda: None)
                return
            self._server.stopping = True
            self._server.emit({"event": "stopping", "signal": number})
            self._loop.after(STOP_TIMEOUT, lambda: self._end(lambda: None))
            self._end_alone()

        return stop

    def _client_changed(self) -> None:
        """A client came or went."""
        if self._slot:
            self._slot.connected(self._server.connected)
        self._end_alone()

    def _end_alone(self) -> None:
        """Told to stop with nobody to do it in order, we do it ourselves."""
        alone = self._slot is None or not self._fleet.lives
        if self._server.stopping and not self._server.connected and alone:
            self._end(lambda: None)

    def _end(self, answer: Callable[[], object]) -> None:
        """Kill what lives, give everything back, let the daemon go, leave."""
        if self._slot:
            self._slot.wanted = False
        self._fleet.end(lambda: self._ended(answer))

    def _ended(self, answer: Callable[[], object]) -> None:
        answer()
        slot = self._slot
        if slot is None or slot.pid is None:
            self._leave()
            return
        slot.ended = lambda _: self._leave()
        if self._server.stopping:
            slot.signal(signal.SIGTERM)
        self._loop.after(DAEMON_TIMEOUT, lambda: slot.signal(signal.SIGKILL))

    def _daemon_ended(self, code: int) -> None:
        """Nobody will come back: without an ``end`` before, this is the status of the daemon."""
        self.code = code
        self._end(lambda: None)

    def _leave(self) -> None:
        for pid in tree.below(tree.scan(), os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._directory}/{record.OWN}")
        for name in ("keeper", "n", "o"):
            with contextlib.suppress(OSError):  # another's file is in it, or it never was
                os.rmdir(f"{self._runtime}/{name}")
        self._loop.stop()


def lock(runtime: str) -> int:
    """Take the runtime directory; raises BlockingIOError if another keeper has it."""
    path = f"{runtime}/keeper.lock"
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(fd)):
                    return fd
        except BlockingIOError:
            os.close(fd)
            raise
        os.close(fd)  # the one who held it removed it meanwhile


def arguments(argv: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """Runtime directory, state directory, daemon's argv; raises ValueError."""
    options: dict[str, str] = {}
    rest = list(argv)
    while rest:
        option = rest.pop(0)
        if option == "--":
            break
        name, equals, value = option.partition("=")
        if name not in ("--runtime", "--state", "--resume"):
            raise ValueError(f"unknown option {option}")
        if not equals:
            if not rest:
                raise ValueError(f"{name} needs a directory")
            value = rest.pop(0)
        options[name] = os.path.abspath(value) if name != "--resume" else value
    if "--runtime" not in options:
        raise ValueError("--runtime DIR is needed")
    return options["--runtime"], options.get("--state"), rest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the keeper; the exit status."""
    given = sys.argv[1:] if argv is None else argv
    if given in (["--help"], ["-h"]):
        sys.stdout.write(USAGE + "\n")
        return 0
    if list(given[:1]) == ["--resumes"]:
        return 0 if list(given[1:]) == [str(upgrade.VERSION)] else 2
    resumed = upgrade.left(given)
    try:
        runtime, state, daemon = arguments(given)
    except ValueError as error:
        say(f"{error}. {USAGE}")
        return 2
    try:
        for directory in filter(None, (runtime, state)):
            os.makedirs(directory, mode=0o711, exist_ok=True)
        held = lock(runtime) if resumed is None else int(resumed["lock"])
        try:
            keeper = _set_up(runtime, daemon, held, resumed)
        except OSError:
            os.unlink(f"{runtime}/keeper.lock")
            raise
    except BlockingIOError:
        say(f"{runtime}: another keeper runs on this directory. Use another --runtime, or stop it first.")
        return 1
    except OSError as error:
        say(f"{error.filename or runtime}: {error.strerror}. The keeper cannot start here.")
        return 1
    code = keeper.run()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{runtime}/keeper.lock")
    os.close(held)
    return code


def _set_up(runtime: str, daemon: Sequence[str], held: int = -1, resumed: Json | None = None) -> Keeper:
    for name in os.listdir("/proc/self/fd"):  # what our parent leaked to us ends with us
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)
    if resumed is not None:
        process.remember(*resumed["given"])
    if held >= 0:
        process.own.append(held)
    process.set_own_limits()
    process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)
    process.prctl(process.PR_SET_DUMPABLE, 0)
    return Keeper(runtime, held, daemon, resumed)


if __name__ == "__main__":
    sys.exit(main())
