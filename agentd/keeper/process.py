"""One execution of a plan: fork, the steps of the child, and the word of which step failed.

Knows the child's side of a plan between fork and exec. What is prepared before (sockets, FIFO, cgroup directories)
and what follows after exec is the unit's business.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from agentd.keeper import cgroup
from agentd.keeper.plan import VERSION, Cgroup, Rlimit, SpawnPlan

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
# Resolved before any fork: no dynamic linking between fork and exec.
_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_mask, _action = _signal.pthread_sigmask, _signal.getsignal
"""Without making an enumeration of each of 62 numbers: a tenth of a spawn."""
_NO_SIGNALS: frozenset[int] = frozenset()
_ALL_SIGNALS = frozenset(map(int, signal.valid_signals()))
_SIGNALS = tuple(sorted(_ALL_SIGNALS - {signal.SIGKILL, signal.SIGSTOP}))
_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
_umask = os.umask(0o022)
os.umask(_umask)
_nice = os.getpriority(os.PRIO_PROCESS, 0)
PRIORITY = -10
"""The nice value of keeper and daemon."""
"""What we were started with: children get it back."""
own: list[int] = []
"""The keeper's lock and its listening socket. A child that holds them when the keeper dies would look like one."""


class StepFailed(Exception):
    """A step of a plan failed: which, with what errno, at which path, and why in words."""

    def __init__(self, step: str, number: int, path: str, note: str = "") -> None:
        self.step, self.number, self.path, self.note = step, number, path, note
        super().__init__(f"{step}: {path}: {os.strerror(number)}" + (f": {note}" if note else ""))

    @classmethod
    def of(cls, step: str, error: OSError, path: str = "") -> StepFailed:
        """From the OSError of a step; words that are not the errno's own become the note."""
        number = error.errno or errno.EIO
        words = error.strerror or str(error)
        return cls(step, number, str(error.filename or path), "" if words == os.strerror(number) else words)

    def to_wire(self) -> dict[str, Any]:
        """The ``error`` of an answer."""
        return {"code": "step", "message": str(self), "step": self.step, "errno": self.number, "path": self.path}


def prctl(option: int, value: int) -> None:
    """Set an attribute of the calling process."""
    if _prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"prctl {option}")


def set_own_limits() -> None:
    """The keeper's own: as many descriptors as it may have (each unit costs about six), modes as they are written."""
    hard = _descriptors[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o022)
    come_first()
    if hasattr(_libc, "malloc_trim"):  # what the imports left behind: half a megabyte, for as long as we run
        _libc.malloc_trim(ctypes.c_size_t(0))


def come_first() -> None:
    """Before all units, for keeper and daemon: little as they do, a unit that burns every processor must not delay it.

    Where we may not (without root), everybody is equal. A session that is not ours alone, a terminal's, stays as it is.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        if os.getsid(0) == os.getpid():  # the kernel shares out by sessions first
            _autogroup(PRIORITY)


def _autogroup(nice: int) -> None:
    with open("/proc/self/autogroup", "w") as file:
        file.write(str(nice))


def given() -> list[int]:
    """The limits, mode mask and priority with which this keeper was started, for itself after an exec."""
    return [*_descriptors, _umask, _nice]


def remember(soft: int, hard: int, mask: int, nice: int = 0) -> None:
    """After an exec in place: what was given at the very first start is what children get."""
    global _descriptors, _umask, _nice
    _descriptors, _umask, _nice = (soft, hard), mask, nice


def restore_limits() -> None:
    """In a child: what the keeper itself was given."""
    resource.setrlimit(resource.RLIMIT_NOFILE, _descriptors)
    os.umask(_umask)
    os.setpriority(os.PRIO_PROCESS, 0, _nice)


def check(plan: SpawnPlan, fds: Sequence[int]) -> None:
    """Refuse a plan that cannot mean what its author thinks; raises StepFailed of step ``check``."""
    _check_types(plan)
    for wrong, path, note in (
        (plan.version > VERSION, "version", f"plan version {plan.version}; this keeper knows {VERSION}"),
        (not plan.unit or "/" in plan.unit or "\0" in plan.unit, plan.unit, "is no unit name"),
        (not plan.argv, "argv", "is empty"),
        (len(fds) != len(plan.fds), "fds", f"{len(plan.fds)} names for {len(fds)} descriptors"),
        (any(":" in n for n in _names(plan)), "fds", "a descriptor's name may not contain ':'"),
        (plan.uid is not None and plan.gid is None, "gid", "a uid needs a gid"),
        (sum(c.kill for c in plan.cgroups) > 1, "cgroups", "more than one kill-cgroup"),
        (plan.output is not None and plan.output.max_bytes < 1, "output.max_bytes", "must be positive"),
        (plan.output is not None and not 1 <= plan.output.keep <= 1000, "output.keep", "must be from 1 to 1000"),
        (plan.output is not None and not plan.output.max_age >= 0, "output.max_age", "must not be negative"),
    ):
        if wrong:
            raise StepFailed("check", errno.EINVAL, path, note)
    for path in _paths(plan):
        if not path.startswith("/") or "\0" in path:
            raise StepFailed("check", errno.EINVAL, path, "is not an absolute path")
    for limit in plan.rlimits:
        if not limit.name.startswith("RLIMIT_") or not hasattr(resource, limit.name):
            raise StepFailed("check", errno.EINVAL, limit.name, "is no resource limit of this host")


def _check_types(plan: SpawnPlan) -> None:
    texts = [
        plan.unit,
        plan.invocation,
        plan.executable,
        plan.cwd,
        *plan.argv,
        *plan.fds,
        *plan.env,
        *plan.env.values(),
    ]
    texts += [text for group in plan.cgroups for setting in group.settings for text in setting]
    texts += [text for listener in plan.listeners for text in (listener.name, listener.address)]
    numbers = [plan.version, plan.umask, plan.uid or 0, plan.gid or 0, *plan.groups]
    if not isinstance(plan.argv, tuple) or not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise StepFailed("check", errno.EINVAL, "plan", "a text is not one")
    if not all(isinstance(number, int) for number in numbers):
        raise StepFailed("check", errno.EINVAL, "plan", "a number is not one")


def _names(plan: SpawnPlan) -> list[str]:
    return [*(x.name for x in plan.listeners), *plan.fds]


def _paths(plan: SpawnPlan) -> list[str]:
    output = [plan.output.fifo, plan.output.file] if plan.output else []
    return [
        plan.executable,
        plan.cwd,
        *(c.path for c in plan.cgroups),
        *([plan.notify] if plan.notify else []),
        *output,
    ]


@dataclass(slots=True)
class Child:
    """A fork that is on its way to exec."""

    pid: int
    pidfd: int
    report: int
    """Read end of a pipe: end of file means that exec succeeded, JSON names the step that failed. -1: concluded."""
    failure: StepFailed | None = None

    def conclude(self) -> None:
        """Read and close the report, which is readable or whose writer is dead."""
        try:
            text = os.read(self.report, 65536)
        finally:
            os.close(self.report)
            self.report = -1
        if text:
            self.failure = StepFailed(*json.loads(text))


def fork(plan: SpawnPlan, fds: Sequence[int], output: int | None) -> Child:
    """Fork a child that executes the plan with these descriptors from 3 on; the caller keeps its own copies.

    The child reports through ``Child.report``; an OSError is the fork's own.
    """
    report, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    keeper = os.getpid()
    # No signal may run our handlers, or use our wake-up pipe, in the child.
    before = _mask(signal.SIG_BLOCK, _ALL_SIGNALS)
    home = next((group for group in plan.cgroups if group.kill), None)
    try:
        born = cgroup.cradles.fork(home.path) if home is not None else None
        pid, pidfd = born or (os.fork(), -1)
        if pid == 0:
            groups = [group for group in plan.cgroups if born is None or group is not home]
            _child(plan, groups, fds, output, write_end, keeper)
    except OSError:
        os.close(report)
        raise
    finally:
        _mask(signal.SIG_SETMASK, before)
        os.close(write_end)
    try:
        return Child(pid, pidfd if pidfd >= 0 else os.pidfd_open(pid), report)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(report)
        raise


def _child(
    plan: SpawnPlan, groups: Sequence[Cgroup], fds: Sequence[int], output: int | None, report: int, keeper: int
) -> NoReturn:
    """Between fork and exec: never returns, whatever happens. ``groups`` are the cgroups that it is not in yet."""
    step, path = "session", ""
    try:
        let_go()
        reset_signals()
        restore_limits()
        os.setsid()
        for step, path, action in _steps(plan, groups):  # noqa: B007 - read when it raises
            action()
        step, path = "descriptors", ""
        report = _arrange(fds, output, report)
        env = environment(plan, len(fds))
        _mask(signal.SIG_SETMASK, _NO_SIGNALS)
        step, path = "exec", plan.executable
        if os.getppid() != keeper:
            os._exit(127)  # it died meanwhile: nobody knows of us, and the next one starts the unit again
        os.execve(plan.executable, plan.argv, env)  # noqa: S606 - the point of it all
    except OSError as error:
        _tell(report, _explained(step, error, path, plan))
    except Exception as error:  # noqa: BLE001 - the child's root: whatever it is, the keeper must hear of it
        _tell(report, StepFailed(step, errno.EINVAL, path, f"{type(error).__name__}: {error}"))
    finally:
        os._exit(127)


def _steps(plan: SpawnPlan, groups: Sequence[Cgroup]) -> list[tuple[str, str, Callable[[], object]]]:
    steps: list[tuple[str, str, Callable[[], object]]] = [
        ("enter", group.path, partial(cgroup.enter, group.path)) for group in groups
    ]
    steps += [("rlimit", limit.name, partial(_limit, limit)) for limit in plan.rlimits]
    if plan.uid is not None and plan.gid is not None:
        uid, gid = plan.uid, plan.gid
        if os.geteuid() == 0:
            steps.append(("group", f"groups {list(plan.groups)}", lambda: os.setgroups(plan.groups)))
        steps.append(("group", f"gid {gid}", lambda: os.setresgid(gid, gid, gid)))
        steps.append(("user", f"uid {uid}", lambda: os.setresuid(uid, uid, uid)))
    if plan.no_new_privs:
        steps.append(("privileges", "no_new_privs", lambda: prctl(PR_SET_NO_NEW_PRIVS, 1)))
    steps.append(("directory", "umask", lambda: os.umask(plan.umask)))
    steps.append(("directory", plan.cwd, lambda: os.chdir(plan.cwd)))
    return steps


def _limit(limit: Rlimit) -> None:
    resource.setrlimit(getattr(resource, limit.name), (limit.soft, limit.hard))


def let_go() -> None:
    """In a fresh child, first of all: close what must not outlive the keeper, not even until the exec."""
    for fd in own:
        os.close(fd)


def reset_signals() -> None:
    """Default actions for all signals, in a fresh child; the mask stays blocked until just before exec."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        if _action(number) != signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)


def _arrange(fds: Sequence[int], output: int | None, report: int) -> int:
    """Put stdin, output and descriptors in their places; the report moves out of the way. All else is close-on-exec."""
    free = 3 + len(fds)
    report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, free)
    sources = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for fd in fds]
    if output is not None:
        output = fcntl.fcntl(output, fcntl.F_DUPFD_CLOEXEC, free)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    if output is not None:
        os.dup2(output, 1)
        os.dup2(output, 2)
    for at, source in enumerate(sources, 3):
        os.dup2(source, at)
    return report


def environment(plan: SpawnPlan, count: int) -> dict[str, str]:
    """The plan's environment with the markers of the unit and of its descriptors."""
    env = {**plan.env, "AGENTD_UNIT": plan.unit, "AGENTD_INVOCATION": plan.invocation}
    if plan.notify:
        env.setdefault("NOTIFY_SOCKET", plan.notify)
    if count:
        env |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": ":".join(_names(plan))}
    return env


def _tell(report: int, failure: StepFailed) -> None:
    text = json.dumps([failure.step, failure.number, failure.path, failure.note])
    os.write(report, text.encode("utf-8", "backslashreplace")[:4096])


def _explained(step: str, error: OSError, path: str, plan: SpawnPlan) -> StepFailed:
    failure = StepFailed.of(step, error, path)
    if step in ("directory", "exec") and failure.number in (errno.EACCES, errno.ENOENT):
        note = _why(failure.path, failure.number, f"uid {os.geteuid()}")
        if step == "exec" and not note and (interpreter := _interpreter(plan.executable)):
            note = _why(interpreter, failure.number, f"uid {os.geteuid()}")
            note = f"its interpreter {interpreter}: {note or os.strerror(failure.number)}"
        failure = StepFailed(step, failure.number, failure.path, note)
    return failure


def _why(path: str, number: int, who: str) -> str:
    """Which component of the path stops this process, if one does. Follows symbolic links step by step."""
    rest, done, links = path.split("/")[1:], "", 0
    while rest:
        if done and not os.access(done, os.X_OK, effective_ids=True):
            return f"{who} may not pass {done}"
        name = rest.pop(0)
        here = f"{done}/{name}" if name else done
        try:
            mode = os.lstat(here or "/").st_mode
            if stat.S_ISLNK(mode) and links < 40:
                links += 1
                target = os.readlink(here)
                rest = target.split("/") + rest
                done = "" if target.startswith("/") else done
                continue
        except FileNotFoundError:
            return f"{here} does not exist" if here != path else ""
        except OSError as error:
            return f"{who} may not pass {done or here}: {error.strerror}"
        done = os.path.normpath(here) if name == ".." else here
    if number == errno.EACCES and os.path.isfile(done) and not os.access(done, os.X_OK, effective_ids=True):
        return f"{who} may not execute {done}"
    return ""


def _interpreter(path: str) -> str | None:
    """The program in the #! line, if the file is a script that can be read."""
    try:
        with open(path, "rb") as file:
            line = file.readline(256)
    except OSError:
        return None
    return line[2:].split()[0].decode(errors="replace") if line.startswith(b"#!") and line[2:].split() else None
