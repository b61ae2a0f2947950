"""The units directory: which files there are, what they say, and changing them. Knows nothing of processes.

One broken file never stops the others: it is reported with its error, and its unit stays as it was.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentd.errors import AgentdError, ConfigError, UnitFileError
from agentd.model import reading, verify
from agentd.model.unit import Unit

Json = dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """What a set of unit files says."""

    units: dict[str, Unit] = field(default_factory=dict)
    findings: tuple[Json, ...] = ()

    @property
    def broken(self) -> set[str]:
        """Names of units with an error."""
        return {str(f["unit"]) for f in self.findings if f["severity"] == "error" and f.get("unit")}


def finding(error: UnitFileError, unit: str | None) -> Json:
    """An error of a unit file, as the control API tells it."""
    return {
        "unit": unit,
        "file": error.file,
        "line": error.line,
        "key": error.key,
        "message": error.message,
        "hint": error.hint,
        "severity": "error",
    }


def read(texts: Iterable[tuple[str, str]], known: dict[str, Unit] | None = None) -> Loaded:
    """Parse and verify files, given as (path, text), together with units that are known already."""
    units: dict[str, Unit] = {}
    findings: list[Json] = []
    sources: dict[str, str] = {}
    refused: set[str] = set()
    for path, text in texts:
        name = Path(path).stem
        sources[name] = text
        if name in units:
            other = units[name].file
            error = UnitFileError(f"the name {name!r} is taken by {other}.", file=path, hint="Rename one of the two.")
            findings.append(finding(error, None))
            continue
        problems = reading.problems(text, name, path)
        if problems:
            findings += [finding(problem, name) for problem in problems]
        else:
            units[name] = reading.parse(text, name, path)
    broken = {str(f["unit"]) for f in findings if f["unit"]}
    for problem in verify.verify({**(known or {}), **units}, broken, only=units):
        if problem.unit in units:
            findings.append(_of_fleet(problem, units[problem.unit].file, sources.get(problem.unit, "")))
            if problem.severity == "error":
                refused.add(problem.unit)
    return Loaded({name: unit for name, unit in units.items() if name not in refused}, tuple(findings))


def _of_fleet(problem: verify.Finding, file: str | None, text: str) -> Json:
    line = reading.locate(text, *problem.place)
    error = UnitFileError(problem.message, file=file, line=line, key=problem.key, hint=problem.hint)
    return {**finding(error, problem.unit), "severity": problem.severity}


def of_host(error: AgentdError, unit: Unit, text: str | None = None) -> AgentdError:
    """What this host has against a setting of the unit, with file, line and key; any other error as it is.

    ``text`` is the unit file's; without it the file is read once more.
    """
    setting = str(error.detail.get("key") or "")
    if "." not in setting:
        return error
    section, _, name = setting.partition(".")
    key, message = f"[{section}] {name}", error.message
    for prefix in (f"{unit.file}: ", f"{unit.name}: ", f"{setting}: ", f"{key}: "):
        message = message.removeprefix(prefix)
    if message.startswith(f"{name} = "):
        message = f"[{section}] {message}"
    message += "" if message.endswith(".") else "."
    line = reading.locate(_text(unit.file) if text is None else text, section, name)
    told = message.startswith(f"{key} ")
    placed = UnitFileError(message, file=unit.file, line=line, key=None if told else key, hint=error.hint)
    placed.key = key
    return placed


def _text(file: str | None) -> str:
    """The text of a unit file; nothing if it is gone or cannot be read, which is another error's to tell."""
    try:
        return Path(file).read_text(encoding="utf-8") if file else ""
    except (OSError, UnicodeDecodeError):
        return ""


def load(directory: Path) -> Loaded:
    """Read all unit files of a directory. A file that cannot be read is a finding like any other."""
    texts, findings = [], []
    for path in sorted(directory.glob("*.toml")):
        try:
            texts.append((str(path), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            problem = UnitFileError("this is not UTF-8 text.", file=str(path), line=line, hint="Save it as UTF-8.")
            findings.append(finding(problem, path.stem))
        except OSError as error:
            hint = _UNREADABLE.get(error.errno or 0, "Mend the file, or remove it.")
            problem = UnitFileError(f"cannot be read: {error.strerror}.", file=str(path), hint=hint)
            findings.append(finding(problem, path.stem))
    loaded = read(texts)
    return Loaded(loaded.units, (*findings, *loaded.findings))


_UNREADABLE = {
    errno.EACCES: "Let agentd's user read it (chmod), or remove it.",
    errno.EISDIR: "A unit is a file: rename or remove this directory.",
    errno.ENOENT: "It is a link to nothing: mend the link, or remove it.",
    errno.ELOOP: "It is a link to itself: mend the link, or remove it.",
}
"""What to do about a unit file that cannot be read, by errno."""

_PATH_KEYS = re.compile(
    r"^(?P<key>[ \t]*(?:workdir|env_file)[ \t]*=[ \t]*)(?P<value>\"[^\"\n]*\"|'[^'\n]*')", re.MULTILINE
)


def anchored(text: str, unit: Unit) -> str:
    """The text with its relative paths made absolute: the file is about to move, what it names is not."""
    if unit.file is None:
        return text
    base = Path(unit.file).absolute().parent

    def absolute(match: re.Match[str]) -> str:
        path = os.path.normpath(base / match["value"][1:-1])
        return f"{match['key']}{json.dumps(path)}"

    return _PATH_KEYS.sub(absolute, text)


def install(directory: Path, name: str, text: str) -> Path:
    """Write one unit file into the directory, whole or not at all."""
    target = directory / f"{name}.toml"
    fresh = directory / f".{name}.toml.new"
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o644)
        os.replace(fresh, target)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ConfigError(f"{target}: cannot be written: {error.strerror}.", hint="Nothing was changed.") from error
    return target


def remove(directory: Path, name: str) -> None:
    """Remove a unit's file, if there is one."""
    (directory / f"{name}.toml").unlink(missing_ok=True)
