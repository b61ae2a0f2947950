"""What this host lets us do: own uids, cgroup controllers and where, and in words why not.

Looks only; ``ensure`` makes the directories above the units' cgroups when the first plan needs them. Unit cgroups are
named ``agentd-<hash of the runtime directory>/<unit>``, so that two fleets on one host never meet.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EBUSY, ENOENT, ENOTEMPTY, ESRCH
from pathlib import Path
from typing import Literal

from agentd.errors import HostCannot

CONTROLLERS = ("memory", "cpu", "pids")
NEEDED = ("kill", "memory", "pids")
"""What the isolation level ``cgroup`` consists of. A cpu limit is refused by name where only cpu is missing."""

ASIDE = "supervisor"
"""Where the keeper and its neighbours sit while the cgroup above them hands controllers down (v2)."""

Mode = Literal["v1", "v2", "none"]


@dataclass(frozen=True, slots=True)
class Mount:
    """One cgroup hierarchy as /proc/self/mountinfo shows it."""

    point: Path
    root: str
    kind: Literal["cgroup", "cgroup2"]
    controllers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The findings. ``parents`` and ``missing`` together name each of memory, cpu, pids and kill once."""

    uid: int
    can_switch_user: bool
    mode: Mode
    parents: dict[str, Path] = field(default_factory=dict)
    """Controller (or ``kill``) → the directory that holds the units' cgroups."""
    missing: dict[str, str] = field(default_factory=dict)
    """Controller (or ``kill``) → why it cannot be had."""
    swap: bool = False
    """Memory and swap can be limited together."""

    @property
    def cgroup(self) -> bool:
        """The isolation level ``cgroup`` can be had."""
        return all(name in self.parents for name in NEEDED)

    @property
    def why_not(self) -> str:
        """Why the level ``cgroup`` cannot be had, in words; ``missing`` has each path."""
        reasons = dict.fromkeys(self.missing[name] for name in NEEDED if name in self.missing)
        closed = _not_ours(self.uid)
        if len(reasons) > 1 and all(reason.endswith(closed) for reason in reasons):
            return f"cgroups are {closed}"
        return "; ".join(reasons)


def fleet(runtime: Path) -> str:
    """The directory name of a fleet's cgroups."""
    return "agentd-" + hashlib.sha256(os.fsencode(runtime.absolute())).hexdigest()[:10]


def probe(runtime: Path, *, pid: int | None = None, proc: Path = Path("/proc")) -> Capabilities:
    """Look at this host. ``pid``: the keeper's, where its cgroup is not our own (its unit may be the delegated one)."""
    uid = os.geteuid()
    switch = can_switch_user(proc)
    mounts = _mounts(proc / "self/mountinfo")
    own = _own(proc / (str(pid) if pid else "self") / "cgroup")
    v2 = next((m for m in mounts if m.kind == "cgroup2"), None)
    if v2 is not None and "memory" in v2.controllers:
        return _probe_v2(uid, switch, v2, own, fleet(runtime))
    return _probe_v1(uid, switch, mounts, own, fleet(runtime))


def _probe_v2(uid: int, switch: bool, mount: Mount, own: dict[str, str], name: str) -> Capabilities:
    base = _base(mount, own.get("", "/"), uid)
    reason = _closed(base, uid, "cgroup.procs", "cgroup.subtree_control")
    parents: dict[str, Path] = {}
    missing: dict[str, str] = {}
    offered = _words(base / "cgroup.controllers")
    for controller in ("kill", *CONTROLLERS):
        if reason:
            missing[controller] = reason
        elif controller != "kill" and controller not in offered:
            missing[controller] = f"{base} does not offer the {controller} controller (unit needs Delegate=yes)"
        else:
            parents[controller] = base / name
    return Capabilities(uid, switch, "v2", parents, missing, swap=Path("/proc/swaps").exists())


def _probe_v1(uid: int, switch: bool, mounts: list[Mount], own: dict[str, str], name: str) -> Capabilities:
    parents: dict[str, Path] = {}
    missing: dict[str, str] = {}
    swap = False
    for controller in (*CONTROLLERS, "kill"):
        mount = _hierarchy(mounts, controller)
        if mount is None:
            what = (
                "cgroup v2 hierarchy (needed to kill whole trees)"
                if controller == "kill"
                else f"{controller} controller"
            )
            missing[controller] = f"no {what} is mounted"
            continue
        base = _base(mount, own.get("" if controller == "kill" else controller, "/"), uid)
        if reason := _closed(base, uid):
            missing[controller] = reason
            continue
        parents[controller] = base / name
        swap = swap or (controller == "memory" and (base / "memory.memsw.limit_in_bytes").exists())
    return Capabilities(uid, switch, "v1" if parents else "none", parents, missing, swap)


def _hierarchy(mounts: list[Mount], controller: str) -> Mount | None:
    if controller == "kill":
        return next((m for m in mounts if m.kind == "cgroup2"), None)
    return next((m for m in mounts if m.kind == "cgroup" and controller in m.controllers), None)


def _base(mount: Mount, own: str, uid: int) -> Path:
    """Where our part of a hierarchy begins: the delegated cgroup that we run in; as root without one, its top."""
    inside = os.path.relpath(own, mount.root)
    here = mount.point if inside == "." or inside.startswith("..") else mount.point / inside
    if uid == 0 and not _delegated(here):
        return mount.point
    # The keeper is moved into <base>/supervisor; what starts from there finds the same base again.
    return here.parent if here.name == ASIDE else here


def _delegated(directory: Path) -> bool:
    """systemd marks what it delegates (Delegate=yes), for root and for users."""
    top = directory.parent if directory.name == ASIDE else directory
    for name in ("trusted.delegate", "user.delegate"):
        with suppress(OSError):
            if os.getxattr(top, name) == b"1":
                return True
    return False


def _closed(directory: Path, uid: int, *files: str) -> str | None:
    for path in (directory, *(directory / f for f in files)):
        if not path.exists():
            return f"{path} does not exist"
        if not os.access(path, os.W_OK, effective_ids=True):
            if uid == 0:
                return f"{path} is not writable (mounted read-only?)"
            return f"{path} is {_not_ours(uid)}"
    return None


def _not_ours(uid: int) -> str:
    return f"not writable by uid {uid} (agentd needs root or Delegate=yes)"


def _mounts(file: Path) -> list[Mount]:
    found = []
    for line in file.read_text().splitlines():
        front, _, back = line.partition(" - ")
        fields, (kind, _, options) = front.split(), back.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        point = Path(fields[4].encode().decode("unicode_escape"))
        names = _words(point / "cgroup.controllers") if kind == "cgroup2" else frozenset(options.split(","))
        found.append(Mount(point, fields[3], "cgroup2" if kind == "cgroup2" else "cgroup", names))
    return found


def _own(file: Path) -> dict[str, str]:
    """Controller → our cgroup in its hierarchy; the empty name is cgroup v2."""
    own: dict[str, str] = {}
    for line in file.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    return own


def _words(file: Path) -> frozenset[str]:
    try:
        return frozenset(file.read_text().split())
    except OSError:
        return frozenset()


def can_switch_user(proc: Path = Path("/proc")) -> bool:
    """We are root with CAP_SETGID (6) and CAP_SETUID (7): a container's root may lack them."""
    for line in (proc / "self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return os.geteuid() == 0 and (int(line.split()[1], 16) >> 6) & 3 == 3
    return False


def ensure(capabilities: Capabilities) -> None:
    """On v2, make the fleet's cgroup and hand the controllers down to it. Repeating it costs one stat.

    The keeper makes the rest; but a cgroup that hands controllers down may hold no process itself, so the keeper and
    its neighbours are moved aside here. Raises HostCannot.
    """
    if capabilities.mode != "v2" or "kill" not in capabilities.parents:
        return
    parent = capabilities.parents["kill"]
    if parent.is_dir():
        return
    try:
        parent.mkdir(exist_ok=True)
        _delegate(parent, [c for c in CONTROLLERS if c in capabilities.parents])
    except OSError as error:
        raise HostCannot(
            f"{error.filename or parent}: cannot prepare the fleet's cgroup: {error.strerror}",
            hint='Give the keeper\'s unit Delegate=yes, or set [isolation] level = "rlimit".',
        ) from error


def _delegate(parent: Path, controllers: list[str]) -> None:
    """Hand the controllers down to ``parent``'s children: no process may sit in a cgroup above them but the root."""
    wanted = " ".join("+" + c for c in controllers)
    try:
        (parent.parent / "cgroup.subtree_control").write_text(wanted)
    except OSError as error:
        if error.errno != EBUSY:
            raise
        _move_aside(parent.parent)
        (parent.parent / "cgroup.subtree_control").write_text(wanted)
    (parent / "cgroup.subtree_control").write_text(wanted)


def _move_aside(base: Path) -> None:
    aside = base / ASIDE
    aside.mkdir(exist_ok=True)
    for pid in (base / "cgroup.procs").read_text().split():
        try:
            (aside / "cgroup.procs").write_text(pid)
        except OSError as error:
            if error.errno != ESRCH:
                raise


def sweep(capabilities: Capabilities) -> None:
    """Remove the fleet's empty directories, at the very end. What still holds a unit stays."""
    for parent in dict.fromkeys(capabilities.parents.values()):
        try:
            parent.rmdir()
        except OSError as error:
            if error.errno not in (EBUSY, ENOENT, ENOTEMPTY):
                raise
