"""From a unit to a spawn plan: paths made absolute, ids made numbers, limits resolved, the environment made.

Makes the unit's own directories and a stage where needed; starts nothing. An error is about this one unit and says what
to change. ``check_host`` resolves the same things and touches nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentd.errors import AgentdError, HostCannot, UnitFileError
from agentd.host import capability, environment
from agentd.host.identity import Account
from agentd.host.limits import Level, cgroups, isolate, open_files, weaker
from agentd.host.place import Place, make_directory
from agentd.host.program import closed_error, find, first_closed, search_path
from agentd.host.reach import EXECUTE
from agentd.keeper.plan import Listener, Output, Rlimit, SpawnPlan
from agentd.model.unit import Limits, Unit


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan and what the daemon needs to know besides."""

    plan: SpawnPlan
    fds: dict[str, int]
    """Descriptors for ``Keeper.spawn``; ``close`` them after it."""
    level: str
    warnings: tuple[str, ...] = ()

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of ``check_host``, in the form of the control API."""

    file: str | None
    key: str | None
    message: str
    hint: str | None
    severity: str
    line: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {name: getattr(self, name) for name in ("file", "line", "key", "message", "hint", "severity")}


def compile(unit: Unit, invocation: str, place: Place) -> Compiled:  # noqa: A001 - the module is its name space
    """The plan of one invocation of an agent unit.

    Raises UnitFileError for what is wrong in the file (no such program, unreadable env_file), HostCannot for what this
    host cannot give (a limit, a level, a path that the uid cannot reach).
    """
    isolated = isolate(unit, place.capabilities)
    account = _account(unit, place)
    capability.ensure(place.capabilities)
    home, warning = place.make_home(unit.name, account)
    _require_place(unit, place, account)
    workdir = _workdir(unit, home, account)
    added = _added(unit)
    program = find(unit, account, workdir, added.get("PATH"), place.stage)
    env = environment.basic(
        unit.name, invocation, home, account.name, search_path(account, place.stage), place.notify(unit.name)
    )
    env |= environment.watchdog(unit.liveness.heartbeat)
    env |= environment.agent(unit.name, invocation, home, place.channel(unit.name))
    if place.gateway is not None:
        env |= environment.model(place.gateway, place.secret, unit.name, invocation)
    plan = SpawnPlan(
        unit=unit.name,
        invocation=invocation,
        argv=program.argv,
        executable=str(program.executable),
        env=env | added,
        cwd=str(workdir),
        uid=account.uid if account.switch else None,
        gid=account.gid if account.switch else None,
        groups=account.groups if account.switch else (),
        cgroups=isolated.cgroups,
        rlimits=isolated.rlimits,
        no_new_privs=isolated.level != "none",
        notify=str(place.notify(unit.name)),
        output=_output(unit.name, place),
    )
    return Compiled(plan, {}, isolated.level, isolated.warnings + ((warning,) if warning else ()))


def near(unit: Unit) -> bool:
    """Whether its plan depends only on places without which agentd could not go on either: no mount of a server that
    has gone away, no directory of users, can hold up whoever makes it."""
    agent = unit.agent
    program, *arguments = agent.exec
    elsewhere = (agent.workdir, agent.env_file, agent.user, agent.env.get("PATH"))
    of_the_host = "/" not in program or program.startswith(_HOST)
    return elsewhere == (None,) * 4 and of_the_host and not any("/" in argument for argument in arguments[:1])


_HOST = ("/bin/", "/sbin/", "/usr/bin/", "/usr/sbin/", "/usr/local/bin/")


SYSTEM_PARTS = 8
"""Of processors that are short, what a system unit gets against an ordinary one: all units wait for it, and a thousand
that start together must not make it look hung."""


@dataclass(frozen=True, slots=True)
class System:
    """A system unit (bus, router, gateway): what agentd itself wants to have run."""

    name: str
    argv: tuple[str, ...]
    """The program: absolute, or looked up in agentd's own environment first."""
    listeners: tuple[Listener, ...] = ()
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    """Name → content: each becomes a sealed memfd, inherited under this name. Never in argv or environment."""
    env: Mapping[str, str] = field(default_factory=dict)
    directories: Mapping[Path, int] = field(default_factory=dict)
    """Directories of its own → mode: made, and given to its uid."""
    heartbeat: float | None = None
    limits: Limits = field(default_factory=Limits)


def compile_system(system: System, invocation: str, place: Place) -> Compiled:
    """The plan of one invocation of a system unit; as root it has a uid of its own like any other."""
    account = place.identities.own(system.name)
    level: Level = "cgroup" if place.capabilities.cgroup else "rlimit"
    capability.ensure(place.capabilities)
    home, _ = place.make_home(system.name, account)
    for directory, mode in system.directories.items():
        _give(directory, mode, account)
    bare = Unit.model_validate({"name": system.name, "agent": {"exec": list(system.argv)}})
    _require_place(bare, place, account)
    program = find(bare, account, home, None, place.stage)
    env = environment.basic(
        system.name, invocation, home, account.name, search_path(account, place.stage), place.notify(system.name)
    )
    plan = SpawnPlan(
        unit=system.name,
        invocation=invocation,
        argv=program.argv,
        executable=str(program.executable),
        env=env | environment.watchdog(system.heartbeat) | dict(system.env),
        cwd=str(home),
        uid=account.uid if account.switch else None,
        gid=account.gid if account.switch else None,
        cgroups=cgroups(system.name, system.limits, level, place.capabilities, SYSTEM_PARTS),
        rlimits=(Rlimit("RLIMIT_CORE", 0, 0), open_files(system.limits.open_files)),
        notify=str(place.notify(system.name)),
        output=_output(system.name, place),
        listeners=system.listeners,
        fds=tuple(system.secrets),
    )
    warnings = () if level == "cgroup" else (weaker(place.capabilities),)
    return Compiled(plan, _memfds(system.secrets), level, warnings)


def check_host(unit: Unit, place: Place) -> list[Finding]:
    """What this host would refuse or do more weakly; nothing is made or changed."""
    found: list[Finding] = []
    account: Account | None = None
    try:
        found += [_warning(unit, text) for text in isolate(unit, place.capabilities).warnings]
    except AgentdError as error:
        found.append(_finding(unit, "isolation.level", error))
    try:
        account = _account(unit, place, record=False)
    except AgentdError as error:
        found.append(_finding(unit, "agent.user", error))
    try:
        added = _added(unit)
        if account is not None:
            workdir = _workdir(unit, place.home(unit.name), account)
            find(unit, account, workdir, added.get("PATH"), None)
    except AgentdError as error:
        found.append(_finding(unit, "agent.exec", error))
    return found


def _finding(unit: Unit, key: str, error: AgentdError) -> Finding:
    key = str(error.detail.get("key") or key)
    line = error.line if isinstance(error, UnitFileError) else None
    return Finding(unit.file, key, error.message, error.hint, "error", line)


def _warning(unit: Unit, text: str) -> Finding:
    return Finding(unit.file, "isolation.level", text, None, "warning")


def _account(unit: Unit, place: Place, *, record: bool = True) -> Account:
    agent = unit.agent
    if agent.user is not None:
        return place.identities.named(agent.user, allow_root=agent.allow_root)
    if record:
        account = place.identities.own(unit.name)
    else:
        some = place.identities.uids.start  # any uid of the range finds the same ways closed
        account = place.identities.peek(unit.name) or Account(some, some, (), unit.name, switch=True)
    if account.uid == 0 and not agent.allow_root:
        raise HostCannot(
            f"{unit.file or unit.name}: agentd is root but cannot switch to another uid (no CAP_SETUID, CAP_SETGID)",
            hint="Grant both to the container, run agentd as a user, or say allow_root = true.",
        )
    return account


def _added(unit: Unit) -> dict[str, str]:
    """What the unit file adds to the environment: env_file, then env."""
    if unit.agent.env_file is None:
        return dict(unit.agent.env)
    base = Path(unit.file).parent if unit.file else Path.cwd()
    return environment.read_env_file(base / unit.agent.env_file, unit.file) | unit.agent.env


def _workdir(unit: Unit, home: Path, account: Account) -> Path:
    if unit.agent.workdir is None:
        return home
    base = Path(unit.file).absolute().parent if unit.file else home
    workdir = Path(os.path.normpath(base / unit.agent.workdir))
    component = first_closed(workdir, account, EXECUTE)
    if component is not None:
        raise closed_error(unit, "agent.workdir", workdir, component, account)
    if not os.path.isdir(workdir):
        raise UnitFileError(
            f"{workdir} is not a directory",
            file=unit.file,
            key="agent.workdir",
            hint="Relative paths start at the unit file. Make the directory, or leave workdir out.",
        )
    return workdir


def _require_place(unit: Unit, place: Place, account: Account) -> None:
    """The fleet's own directories must let the account through, or it has neither home nor channel."""
    for path in (place.home(unit.name), place.runtime):
        component = first_closed(path, account, EXECUTE)
        if component is not None:
            raise closed_error(unit, "agent.user", path, component, account)


def _output(name: str, place: Place) -> Output:
    make_directory(place.state / "log", 0o700)
    logs = place.logs
    return Output(str(place.fifo(name)), str(place.log(name)), logs.max_bytes, logs.keep, logs.max_age)


def _give(directory: Path, mode: int, account: Account) -> None:
    """A directory of a system unit's own. Its parents are root's, so the path is safe to follow."""
    make_directory(directory, mode)
    directory.chmod(mode)
    if account.switch:
        os.chown(directory, account.uid, account.gid, follow_symlinks=False)


def _memfds(secrets: Mapping[str, bytes]) -> dict[str, int]:
    made: dict[str, int] = {}
    for name, content in secrets.items():
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        made[name] = fd
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        )
    return made
