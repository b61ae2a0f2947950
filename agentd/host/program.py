"""Which program a unit's exec names, where its uid can execute it.

A Python whose interpreter the uid cannot reach is taken from a stage; any other program that it cannot reach is an
error that names the first closed component.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from agentd.errors import HostCannot, UnitFileError
from agentd.host import environment, stage
from agentd.host.identity import Account
from agentd.host.reach import EXECUTE, READ, closed_component
from agentd.model.unit import Unit


@dataclass(frozen=True, slots=True)
class Program:
    """An executable and the argument list that goes with it."""

    executable: Path
    argv: tuple[str, ...]


def search_path(account: Account, stages: stage.Stage | None) -> str:
    """The PATH of a unit: agentd's own environment (staged where its uid cannot reach it), then the host's programs."""
    return f"{_own_bin(account, stages)}:{environment.PATH}"


def find(unit: Unit, account: Account, workdir: Path, path: str | None, stages: stage.Stage | None) -> Program:
    """The unit's program. ``path``: its own PATH, if it sets one. Without ``stages`` nothing is staged (for a check).

    Raises UnitFileError where there is no such program, HostCannot where the account cannot reach it.
    """
    given, *arguments = unit.agent.exec
    named = _named(unit, account, workdir, path or search_path(account, None))
    python, script = _python(named)
    component = _closed(python, account) if python is not None else None
    if python is not None and component is not None:
        if not account.switch:
            raise closed_error(unit, "agent.exec", named, component, account)
        stage.require_roots(python)
        if script:
            _require_file(unit, account, named)
            arguments.insert(0, str(named))
            named = python.top / "bin" / "python"
        if stages is not None:
            named = stages.translate(named, python)
            given = str(named)
    if component is None or stages is not None:
        _require_open(unit, account, named)
    if stage.interpreter(named) is not None and arguments and not arguments[0].startswith("-"):
        _require_file(unit, account, workdir / arguments[0])
    return Program(named, (given, *arguments))


def closed_error(unit: Unit, key: str, path: Path, component: Path, account: Account) -> HostCannot:
    """The unit's uid cannot reach ``path``: says which component closes the way, and what to do."""
    info = component.stat()
    return HostCannot(
        f"{unit.file or unit.name}: [{key.replace('.', '] ')}: uid {account.uid} cannot reach {path}: {component} is "
        f"closed to it (mode {stat.S_IMODE(info.st_mode):04o}, uid {info.st_uid})",
        hint=f"Open it (chmod o+{'rx' if component == path else 'x'} {component}), move the program to a place that "
        "every user can reach, or name its owner with `user`.",
        key=key,
    )


def _own_bin(account: Account, stages: stage.Stage | None) -> Path:
    python = stage.ours()
    if python is None:
        return Path(sys.prefix) / "bin"
    if stages is None or not account.switch or _closed(python, account) is None:
        return python.top / "bin"
    return stages.bin(python)


def _closed(python: stage.Interpreter, account: Account) -> Path | None:
    return stage.closed(python, account.uid, account.gid, account.groups)


def first_closed(path: Path, account: Account, want: int) -> Path | None:
    """The first component that is closed to the account; None also where the path ends at something missing."""
    try:
        return closed_component(path, account.uid, account.gid, account.groups, want)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _named(unit: Unit, account: Account, workdir: Path, path: str) -> Path:
    """The file that exec names, before anybody asked who may run it."""
    given = unit.agent.exec[0]
    if "/" not in given:
        return _on_path(unit, given, path)
    candidate = Path(os.path.normpath(workdir / given))
    if _is_program(candidate):
        return candidate
    component = first_closed(candidate, account, EXECUTE)
    if component is not None and component != candidate:
        raise closed_error(unit, "agent.exec", candidate, component, account)
    file = os.path.isfile(candidate)
    what = "is not executable" if file else "is no file" if os.path.lexists(candidate) else "does not exist"
    raise UnitFileError(
        f"{candidate} {what}",
        file=unit.file,
        key="agent.exec",
        hint=f"Run: chmod +x {candidate}" if file else "Relative paths start at workdir.",
    )


def _on_path(unit: Unit, given: str, path: str) -> Path:
    for directory in path.split(":"):
        candidate = Path(directory or ".") / given
        if _is_program(candidate):
            return candidate
    raise UnitFileError(
        f"there is no program {given!r} on its PATH ({path})",
        file=unit.file,
        key="agent.exec",
        hint="Install it, or write its full path.",
    )


def _is_program(path: Path) -> bool:
    """An executable file, as far as we ourselves can see."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _python(named: Path) -> tuple[stage.Interpreter | None, bool]:
    """The Python that ``named`` is, lies beside, or (then True) names in its first line from elsewhere."""
    beside = stage.interpreter(named) or stage.interpreter(named.parent / "python")
    if beside is not None:
        return beside, False
    try:
        with open(named, "rb", opener=_at_once) as stream:
            first = stream.readline(256)
    except PermissionError:  # executable but not readable: no script
        return None, False
    if not first.startswith(b"#!"):
        return None, False
    words = first[2:].split()
    python = stage.interpreter(Path(os.fsdecode(words[0]))) if len(words) == 1 else None
    return python, python is not None


def _at_once(path: str, flags: int) -> int:
    """Open without waiting: the unit may have put a FIFO in the place of its program meanwhile."""
    return os.open(path, flags | os.O_NONBLOCK)


def _require_open(unit: Unit, account: Account, path: Path) -> None:
    component = first_closed(path, account, EXECUTE)
    if component is not None:
        raise closed_error(unit, "agent.exec", path, component, account)


def _require_file(unit: Unit, account: Account, script: Path) -> None:
    """A script that a Python is to run: there, and readable for the account."""
    want = READ | EXECUTE if os.path.isdir(script) else READ
    component = first_closed(script, account, want)
    if component is not None:
        raise closed_error(unit, "agent.exec", script, component, account)
    if not os.path.exists(script):
        raise UnitFileError(
            f"{script} does not exist", file=unit.file, key="agent.exec", hint="Relative paths start at workdir."
        )
