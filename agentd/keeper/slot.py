"""The daemon slot: the one thing that the keeper keeps running by itself, with back-off.

Knows an argv and nothing of what the daemon does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence

from agentd.keeper import pidfd, process
from agentd.keeper.fleet import Fleet
from agentd.keeper.loop import Loop, Timer, say
from agentd.keeper.tree import read_stat

HEALTHY = 1.0
"""Seconds: a daemon that lived so long is restarted at once."""
FIRST_DELAY = 0.1
LAST_DELAY = 2.0
START_WITHIN = 30.0
"""Seconds that a daemon has from its start until it says hello: it reads its own program from a cold disk."""
RETURN_WITHIN = 10.0
"""Seconds that one that runs has until it says hello again, after its connection or its keeper was lost, where it never
said how long it may be silent."""
BAD_INPUT = 2
"""Exit status of a daemon that could not read what a person wrote: it would be the same again."""


class Slot:
    """Starts the daemon and starts it again. ``ended(code)`` is called when it will not be started again."""

    def __init__(self, loop: Loop, fleet: Fleet, argv: Sequence[str], env: dict[str, str]) -> None:
        self.pid: int | None = None
        self.wanted = True
        self.ended: Callable[[int], None] = lambda _: None
        self.greeted = False
        """Whether a client has ever said hello to this keeper."""
        self.changed: Callable[[], None] = lambda: None
        """Called when the daemon is another process: whoever comes after us is to know."""
        self.start_time = 0
        self.within = 0.0
        """Seconds between two signs of life that the daemon said last; 0: none ever did, and none is expected."""
        self._pidfd = -1
        """Of a daemon that is not our child."""
        self._loop, self._fleet, self._argv, self._env = loop, fleet, list(argv), env
        self._delay = FIRST_DELAY
        self._started = 0.0
        self._watchdog: Timer | None = None

    def start(self) -> None:
        """Start it now, unless it is no longer wanted."""
        if not self.wanted:
            return
        self._started = time.monotonic()
        try:
            self.pid = self._fork()
        except OSError as error:
            say(f"the daemon cannot be started: {error}; trying again")
            self._again()
            return
        row = read_stat(self.pid)
        self.start_time = row.start_time if row else 0
        self._fleet.strangers[self.pid] = self._exited
        self.within = 0.0
        self.expect(START_WITHIN)
        self.changed()

    def adopt(self, pid: int, start_time: int, within: float = 0.0) -> bool:
        """Make the daemon of an earlier keeper ours, if that very process lives: there is never a second one."""
        self.within = within
        self._pidfd = pidfd.opened(pid, start_time)
        if self._pidfd < 0:
            return False
        self.pid, self.start_time, self.greeted = pid, start_time, True
        self._started = time.monotonic()
        self._loop.watch(self._pidfd, lambda _: self._departed())
        self._return()
        return True

    def resume(self, pid: int, start_time: int, greeted: bool, within: float = 0.0) -> None:
        """Go on with a daemon that was ours before an exec in place."""
        self.within = within
        if os.getpid() != (row.parent if (row := read_stat(pid)) else 0):
            if not self.adopt(pid, start_time, within):
                self.start()
            return
        self.pid, self.start_time, self.greeted, self._started = pid, start_time, greeted, time.monotonic()
        self._fleet.strangers[pid] = self._exited
        if greeted:
            self._return()
        else:
            self.expect(START_WITHIN)

    def signal(self, number: int) -> None:
        """Signal the daemon if it lives."""
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            elif self.pid is not None:
                os.kill(self.pid, number)

    def _departed(self) -> None:
        assert self.pid is not None
        code = pidfd.status(self._pidfd, self.pid, self.start_time)
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._exited(1 if code is None else code)

    def alive(self, within: float) -> None:
        """The daemon says that its supervision turns, and will say so again in this many seconds: else it is killed."""
        self._delay = FIRST_DELAY  # it supervised: what ends it from here on is no failed start
        new, self.within = self.within != within, within
        self.expect(within)
        if new:
            self.changed()

    def expect(self, within: float) -> None:
        """It is killed if it says nothing for so many seconds: one that is stopped would be there for ever."""
        self.unwatch()
        if self.pid is not None:
            self._watchdog = self._loop.after(within, lambda: self._silent(within))

    def connected(self, there: bool) -> None:
        """A client came: one that said that it lives has as long again to say so here, of another nothing is expected
        until it says what. Or it went away: the daemon is to come back."""
        self.greeted = self.greeted or there
        if there and not self.within:
            self.unwatch()
        else:
            self._return()

    def _return(self) -> None:
        self.expect(self.within or RETURN_WITHIN)

    def unwatch(self) -> None:
        """Expect nothing any more: it said nothing of being alive, or it is dead."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _silent(self, within: float) -> None:
        say(f"the daemon has not been heard for {within:g} s; killing it")
        self.signal(signal.SIGKILL)

    def _fork(self) -> int:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._child()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    def _child(self) -> None:
        try:
            process.let_go()
            process.reset_signals()
            process.restore_limits()
            os.setsid()  # Ctrl-C is for the keeper, which stops all in order
            process.come_first()
            os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, frozenset())
            os.execvpe(self._argv[0], self._argv, self._env)  # noqa: S606 - a program, not a shell line
        except OSError as error:
            say(f"the daemon {self._argv[0]} cannot be executed: {error.strerror}")
        finally:
            os._exit(127)

    def _exited(self, code: int) -> None:
        self.pid = None
        self.unwatch()
        hopeless = code == BAD_INPUT and not self.greeted and not self._fleet.lives
        if not self.wanted or hopeless:
            self.wanted = False
            self.ended(code)
            return
        self.changed()
        say(f"the daemon ended with {f'signal {-code}' if code < 0 else f'status {code}'}; restarting it")
        if time.monotonic() - self._started >= HEALTHY:
            self._delay = FIRST_DELAY
            self.start()
        else:
            self._again()

    def _again(self) -> None:
        self._loop.after(self._delay, self.start)
        self._delay = min(2 * self._delay, LAST_DELAY)
