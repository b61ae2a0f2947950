"""The keeper replaces its own program in place: children stay children, descriptors stay open, nothing is lost.

Knows how a state travels over an exec and how the program on disk is tried first; not what is in the state.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from agentd.keeper.fleet import Fleet, Refused
from agentd.keeper.loop import Loop, say

Json = dict[str, Any]
VERSION = 1
"""Of the state. A program that reads it says so with exit status 0 to ``--resumes VERSION``."""
TRIAL_TIMEOUT = 10.0
"""Seconds that a new program has to say that it can take over."""


class Upgrade:
    """One upgrade at a time: the program on disk is tried, then the keeper becomes it as soon as its fleet is quiet.

    ``handover`` gives the state and the descriptors; ``may`` tells whether an upgrade makes sense now.
    """

    def __init__(
        self,
        loop: Loop,
        fleet: Fleet,
        arguments: Sequence[str],
        daemon: Sequence[str],
        handover: Callable[[], tuple[Json, list[int]]],
        may: Callable[[], bool],
    ) -> None:
        self._loop, self._fleet, self._handover, self._may = loop, fleet, handover, may
        self._arguments, self._daemon = list(arguments), list(daemon)
        self._answer: Callable[[Json], object] | None = None
        """Whom to tell, while one is under way."""

    def told(self) -> None:
        """By signal."""
        try:
            self.request(lambda _: None)
        except Refused as refusal:
            say(f"not upgraded: {refusal}")

    def request(self, answer: Callable[[Json], object]) -> None:
        """By a client, which is answered before the exec, or when it cannot be; Refused if it makes no sense now."""
        if self._answer is not None or not self._may():
            raise Refused("ending", "the keeper is being upgraded already, or was told to stop")
        try:
            pid = trial()
        except OSError as error:
            raise Refused("bad", f"the new program cannot be executed: {error}") from None
        self._answer = answer
        late = self._loop.after(TRIAL_TIMEOUT, lambda: os.kill(pid, signal.SIGKILL))

        def tried(code: int) -> None:
            late.cancel()
            if code == 0:
                self._fleet.when_quiet(self._exec)
            else:
                how = f"signal {-code}" if code < 0 else f"status {code}"
                self._stay(f"the new program cannot take over: asked, it ended with {how}")

        self._fleet.strangers[pid] = tried

    def _exec(self) -> None:
        if not self._may():
            self._stay("told to stop meanwhile")
            return
        state, fds = self._handover()
        answer, self._answer = self._answer, None
        if answer is not None:
            answer({})
        say("upgrading in place")
        try:
            execute(self._arguments, self._daemon, state | {"version": VERSION, "fds": fds}, fds)
        except OSError as error:
            self._stay(f"the new program cannot be executed: {error}")

    def _stay(self, why: str) -> None:
        """Everything goes on as it was."""
        say(f"not upgraded: {why}")
        answer, self._answer = self._answer, None
        if answer is not None:
            answer({"error": Refused("bad", why).to_wire()})


def program() -> list[str]:
    """How this program was started, without its arguments."""
    count = len(sys.argv) - 1
    return [sys.executable, *(sys.orig_argv[1:-count] if count else sys.orig_argv[1:])]


def trial() -> int:
    """Start the program on disk only to ask whether it can take over; its pid. Exit status 0 means yes."""
    argv = [*program(), "--resumes", str(VERSION)]
    null = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    return os.posix_spawn(argv[0], argv, dict(os.environ), file_actions=null, setsigmask=[])


def execute(arguments: Sequence[str], daemon: Sequence[str], state: Json, fds: Sequence[int]) -> None:
    """Become the program on disk. Comes back only as an OSError, with everything as it was.

    Signals are blocked until the new program has its handlers: one that comes in between waits for it.
    """
    memfd = _written(state)
    kept = [memfd, *fds]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        for fd in kept:
            os.set_inheritable(fd, True)
        argv = [*program(), *arguments, "--resume", str(memfd), *(["--", *daemon] if daemon else [])]
        os.execv(argv[0], argv)  # noqa: S606 - ourselves
    finally:
        for fd in kept:
            os.set_inheritable(fd, False)
        os.close(memfd)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def left(arguments: Sequence[str]) -> Json | None:
    """The state that the program before left with ``--resume FD``; every descriptor in it is private again."""
    own = list(arguments)[: arguments.index("--")] if "--" in arguments else list(arguments)
    if "--resume" not in own:
        return None
    with open(int(own[own.index("--resume") + 1]), "rb") as file:
        file.seek(0)
        state: Json = json.load(file)
    for fd in state["fds"]:
        os.set_inheritable(fd, False)
    return state


def unblock() -> None:
    """Let signals come, once the handlers are there."""
    signal.pthread_sigmask(signal.SIG_SETMASK, frozenset())


def _written(state: Json) -> int:
    memfd = os.memfd_create("agentd-keeper", os.MFD_CLOEXEC)
    view = memoryview(json.dumps(state).encode())
    try:
        while view:
            view = view[os.write(memfd, view) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.close(memfd)
        raise
    return memfd
