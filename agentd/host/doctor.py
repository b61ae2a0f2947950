"""Checks of this host for ``agentctl doctor``, each by really doing the thing. Under two seconds; leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentd.errors import HostCannot
from agentd.host import capability, stage
from agentd.host.capability import Capabilities
from agentd.host.place import Place
from agentd.model.quantity import show_size

WITHIN = 1.5
"""Seconds for one probe process."""
LOW_SPACE = 1 << 30
SOCKET_PATH = 107
"""Bytes that the kernel takes for the path of a unix socket."""
SLOW_CLOCKS = frozenset({"acpi_pm", "hpet", "jiffies"})
DELEGATE = "Run agentd as root, or give the keeper's unit Delegate=yes."


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``ok`` None: it does not apply here, or weaker than it could be but nothing is broken."""

    name: str
    ok: bool | None
    text: str
    hint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"name": self.name, "ok": self.ok, "text": self.text, "hint": self.hint}


def examine(place: Place) -> list[dict[str, Any]]:
    """All checks, in the order of the screen. Blocks: call it in a thread."""
    checks: tuple[Callable[[Place], Check], ...] = (
        _level, _kill, _memory, _users, _python, _sockets, _space, _open_files, _pidfd, _clock,
    )  # fmt: skip
    return [check(place).to_dict() for check in checks]


def _level(place: Place) -> Check:
    found = place.capabilities
    if found.cgroup and "cpu" in found.parents:
        return Check("isolation", True, f"level cgroup ({found.mode}): limits of memory, cpu and processes hold")
    if found.cgroup:
        return Check("isolation", None, f"level cgroup without cpu limits: {found.missing['cpu']}", DELEGATE)
    text = f"level rlimit: no limit of memory, cpu or processes holds, as {found.why_not}"
    return Check("isolation", None, text, DELEGATE)


def _kill(place: Place) -> Check:
    found = place.capabilities
    if "kill" not in found.parents:
        text = "no cgroup to kill by: a unit's processes are found in /proc, by ancestry and environment"
        return Check("tree kill", None, text, "A process that detaches and clears its environment can escape.")
    try:
        with _probe(found, ("kill",)) as groups, _child(["sleep", "60"], groups) as child:
            (groups["kill"] / "cgroup.kill").write_text("1")
            code = child.wait(WITHIN)
    except FileNotFoundError as error:
        return Check("tree kill", None, f"{error.filename}: this kernel has no cgroup.kill", "Linux 5.14 has it.")
    except (OSError, HostCannot, subprocess.TimeoutExpired) as error:
        return Check("tree kill", False, f"cgroup.kill failed: {error}", DELEGATE)
    return Check("tree kill", code == -signal.SIGKILL, f"cgroup.kill ended a probe process (exit {code})")


def _memory(place: Place) -> Check:
    found = place.capabilities
    if not found.cgroup:
        return Check(
            "memory limit", None, "none at level rlimit: a unit that asks for one is refused", "See isolation."
        )
    hog = [sys.executable, "-I", "-S", "-c", "input(); x = bytearray(96 << 20); x[::4096] = b'x' * (96 << 8)"]
    limit = "memory.max" if found.mode == "v2" else "memory.limit_in_bytes"
    try:
        with _probe(found, ("memory", "kill")) as groups:
            (groups["memory"] / limit).write_text(str(48 << 20))
            with _child(hog, groups, swap_off=found.mode == "v1") as child:
                child.communicate(b"\n", timeout=WITHIN)
                code = child.returncode
    except (OSError, HostCannot, subprocess.TimeoutExpired) as error:
        return Check("memory limit", False, f"a limited probe was not killed: {error}", DELEGATE)
    if code == -signal.SIGKILL:
        return Check("memory limit", True, "a probe with a limit of 48M that took 96M was killed")
    return Check(
        "memory limit", False, f"a probe with a limit of 48M took 96M and lived (exit {code})", "Turn off swap."
    )


def _users(place: Place) -> Check:
    if not place.identities.switch:
        text = f"all units run as uid {os.geteuid()}: an agent can read files and keys of its neighbours"
        return Check("own users", None, text, "Run agentd as root for a uid per unit.")
    uid = place.identities.uids.start
    try:
        subprocess.run(["/bin/true"], user=uid, group=uid, extra_groups=[], check=True, timeout=WITHIN)
    except (OSError, subprocess.SubprocessError) as error:
        hint = "Grant CAP_SETUID and CAP_SETGID (a container may lack them), or run agentd as a user."
        return Check("own users", False, f"cannot run a program as uid {uid}: {error}", hint)
    uids = place.identities.uids
    return Check("own users", True, f"each unit has a uid of its own from {uids.start}-{uids.stop - 1}")


def _python(place: Place) -> Check:
    python = stage.ours()
    if python is None or not place.identities.switch:
        return Check("python", True, f"{sys.executable}: used where it is")
    uid = place.identities.uids.start
    component = stage.closed(python, uid, uid)
    if component is None:
        return Check("python", True, f"{sys.executable}: the units' uids can reach it")
    text = f"{component} is closed to the units' uids: Python environments are staged in {place.stage.directory}"
    return Check("python", True, text)


def _sockets(place: Place) -> Check:
    longest = len(os.fsencode(place.notify("x").absolute()))
    if longest <= SOCKET_PATH:
        return Check("socket paths", True, f"{longest} of {SOCKET_PATH} bytes used")
    return Check("socket paths", False, f"{place.runtime}: {longest} bytes, the kernel takes {SOCKET_PATH}",
                 "Choose a shorter --runtime directory.")  # fmt: skip


def _space(place: Place) -> Check:
    low = []
    for path in (place.state, Path("/tmp")):  # noqa: S108 - it is measured, not used
        here = next(p for p in (path, *path.absolute().parents) if p.exists())
        if (free := shutil.disk_usage(here).free) < LOW_SPACE:
            low.append(f"{path} has {show_size(free)} left")
    if low:
        return Check("disk space", False, "; ".join(low), "Make room: logs, bus and ledger stop when it is full.")
    return Check("disk space", True, f"{show_size(shutil.disk_usage('/').free)} free")


def _open_files(place: Place) -> Check:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= 4096:
        return Check("open files", True, f"{'no limit' if hard == resource.RLIM_INFINITY else hard} per process")
    return Check("open files", False, f"only {hard} per process", "Raise LimitNOFILE (ulimit -Hn) for agentd.")


def _pidfd(place: Place) -> Check:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Check("pidfd", False, f"pidfd_open: {error.strerror}", "agentd needs Linux 5.3 or newer.")
    return Check("pidfd", True, f"Linux {os.uname().release}")


def _clock(place: Place) -> Check:
    file = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    source = file.read_text().strip() if file.exists() else "unknown"
    if source in SLOW_CLOCKS:
        return Check("clock", None, f"clock source {source}: reading the time is slow", "Prefer tsc or kvm-clock.")
    return Check("clock", True, f"clock source {source}")


@contextmanager
def _probe(found: Capabilities, names: tuple[str, ...]) -> Iterator[dict[str, Path]]:
    """Probe cgroups beside the units' own, removed afterwards."""
    capability.ensure(found)
    groups = {name: found.parents[name] / f".probe-{os.getpid()}" for name in names}
    try:
        for path in groups.values():
            path.mkdir(parents=True, exist_ok=True)
        yield groups
    finally:
        for path in groups.values():
            with suppress(FileNotFoundError):
                path.rmdir()
        capability.sweep(found)


@contextmanager
def _child(argv: list[str], groups: dict[str, Path], *, swap_off: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A process in these cgroups, dead and reaped afterwards."""
    swap = groups.get("memory", Path()) / "memory.memsw.limit_in_bytes"
    if swap_off and swap.exists():
        swap.write_text((groups["memory"] / "memory.limit_in_bytes").read_text())
    quiet = subprocess.DEVNULL
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet) as child:
        try:
            for path in dict.fromkeys(groups.values()):
                (path / "cgroup.procs").write_text(str(child.pid))
            yield child
        finally:
            child.kill()
            child.wait()
