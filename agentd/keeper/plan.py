"""The spawn plan: what the daemon asks the keeper to execute, once. Plain values, versioned.

The daemon has decided everything before a plan exists: paths are absolute, ids are numbers, limits are resolved. The
keeper executes the steps in the order of STEPS and names the one that failed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

VERSION = 1

STEPS = (
    "check",
    "notify",
    "output",
    "listen",
    "cgroup",
    "fork",
    "session",
    "enter",
    "rlimit",
    "group",
    "user",
    "privileges",
    "directory",
    "descriptors",
    "exec",
)
"""Each may be the ``step`` of a refusal, with errno and path."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One cgroup directory: made if missing, settings written, entered by the child before exec."""

    path: str
    settings: tuple[tuple[str, str], ...] = ()
    kill: bool = False
    """This is the directory (on a v2 mount) whose cgroup.kill ends the whole tree and whose population is truth."""


@dataclass(frozen=True, slots=True)
class Rlimit:
    """One resource limit by its Python name, for example RLIMIT_NOFILE; -1 is unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Output:
    """Where stdout and stderr go: through a FIFO that the keeper splices into ``file``."""

    fifo: str
    file: str
    max_bytes: int = 16 << 20
    """Rotate at this size: the file becomes ``file + ".1"``, that one ``.2``, and so on."""
    keep: int = 1
    """Rotated files that are kept."""
    max_age: float = 0.0
    """Seconds: rotate a file whose beginning is so old, remove rotated ones whose end is; 0: never."""


INDEX_MAGIC = b"agentdx1"
INDEX_HEADER = "<8sQQ8x"
"""``<log>.idx`` begins with this: INDEX_MAGIC, the inode of the log file that it is about, and the number of that file
among all of the unit, which grows by one at each rotation."""
INDEX_RECORD = "<QqqII"
"""Each record: offset in the log, unix nanoseconds, CLOCK_BOOTTIME nanoseconds, bytes that are missing before the
offset, first 32 bits of the boot id. The bytes from an offset to the next record's were printed at that time or within
20 ms after it. Offsets never fall."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that the keeper opens once, keeps open over restarts of the unit and hands to each invocation."""

    name: str
    address: str
    """``unix:/path`` or ``tcp:127.0.0.1:4180`` (port 0 is chosen once and kept)."""
    mode: int = 0o600
    uid: int = -1
    gid: int = -1


@dataclass(frozen=True, slots=True)
class SpawnPlan:
    """One execution of one unit."""

    unit: str
    invocation: str
    argv: tuple[str, ...]
    executable: str
    env: dict[str, str]
    cwd: str
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    umask: int = 0o077
    cgroups: tuple[Cgroup, ...] = ()
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privs: bool = True
    notify: str | None = None
    """Path of the notify socket (datagram) that the keeper binds, gives to the unit's uid and drains."""
    output: Output | None = None
    """None: the child inherits the keeper's stdout and stderr."""
    listeners: tuple[Listener, ...] = ()
    fds: tuple[str, ...] = ()
    """Names of the descriptors that came with the request. After exec they follow the listeners, from fd 3 on;
    LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID announce all of them."""
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SpawnPlan:
        """Read the JSON form; unknown keys of a newer neighbour are ignored, missing ones take their default."""

        def build(kind: Any, value: dict[str, Any]) -> Any:
            known = kind.__dataclass_fields__
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k in known})

        data = dict(data)
        data["cgroups"] = tuple(
            build(Cgroup, {**c, "settings": [tuple(s) for s in c.get("settings", ())]}) for c in data.get("cgroups", ())
        )
        data["rlimits"] = tuple(build(Rlimit, r) for r in data.get("rlimits", ()))
        data["listeners"] = tuple(build(Listener, x) for x in data.get("listeners", ()))
        data["output"] = build(Output, data["output"]) if data.get("output") else None
        plan: SpawnPlan = build(cls, data)
        return plan


@dataclass(frozen=True, slots=True)
class Process:
    """What the keeper knows of one unit's process: a row of the snapshot."""

    unit: str
    invocation: str
    pid: int
    start_time: int
    """Field 22 of /proc/PID/stat: clock ticks since boot. With pid it names a process for ever."""
    started: float
    """CLOCK_MONOTONIC seconds at fork."""
    beat: float | None = None
    """CLOCK_MONOTONIC seconds of the last WATCHDOG=1, as stamped by the keeper; None before the first."""
    ready: float | None = None
    """CLOCK_MONOTONIC seconds of READY=1."""
    status: str = ""
    """The last STATUS= text, at most 256 characters, control characters replaced."""
    ended: float | None = None
    """CLOCK_MONOTONIC seconds at which the main process was seen dead and its whole tree gone."""
    exit: int | None = None
    """Exit code, or minus the signal number; None while it lives or where the kernel did not tell."""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form. Fifty times as fast as ``asdict``, which a thousand ends at once would feel."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"extra": dict(self.extra)}
