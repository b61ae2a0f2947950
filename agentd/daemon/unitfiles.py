"""The units directory: which files there are, what they say, and changing them. Knows nothing of processes.

Which of the files make which unit is ``model.fileset``'s to say. One broken file never stops the others: it is reported
with its error, and its unit stays as it was.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentd.errors import AgentdError, ConfigError, UnitFileError
from agentd.model import fileset, reading, verify
from agentd.model.fileset import Fileset
from agentd.model.layers import Layer
from agentd.model.template import is_template, template_of
from agentd.model.unit import Unit

Json = dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """What a set of unit files says."""

    units: dict[str, Unit] = field(default_factory=dict)
    findings: tuple[Json, ...] = ()
    broken: frozenset[str] = frozenset()
    """Names of units, and templates, with an error."""
    replicas: dict[str, int] = field(default_factory=dict)
    """The templates, and how many instances each asks for."""


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


def judge(
    files: Fileset,
    wanted: Collection[str] = (),
    only: Collection[str] | None = None,
    known: Mapping[str, Unit] | None = None,
    templates: Collection[str] = (),
) -> Loaded:
    """What these files say, each by itself and among each other, together with units and templates ``known`` already.

    ``wanted`` and ``only`` are those of ``fileset.read``.
    """
    read = fileset.read(files, wanted, only)
    findings = [finding(error, name) for name, error in read.problems]
    findings += [_lonely(owner, layer) for owner, layer in read.lonely.items()]
    refused: set[str] = set()
    texts = {layer.file: layer.text for layer in files.files()}
    around = {**{name: unit for name, unit in (known or {}).items() if name not in read.broken}, **read.units}
    named = {*templates, *read.replicas, *filter(is_template, read.broken)}
    for problem in verify.verify(around, read.broken, read.units, named):
        if problem.unit in read.units:
            findings.append(_of_fleet(problem, read.units[problem.unit], texts))
            if problem.severity == "error":
                refused.add(problem.unit)
    units = {name: unit for name, unit in read.units.items() if name not in refused}
    return Loaded(units, once(findings), frozenset(read.broken | refused), read.replicas)


def once(findings: Iterable[Json]) -> tuple[Json, ...]:
    """Each finding once: what is wrong with a template is so with each of its instances."""
    seen: dict[tuple[Any, ...], Json] = {}
    for found in findings:
        seen.setdefault((found["file"], found["line"], found["key"], found["message"]), found)
    return tuple(seen.values())


def _lonely(owner: str, layer: Layer) -> Json:
    what = "template" if owner.endswith("@") else "unit"
    hint = f"Its directory is named after a {what}, {owner}, that has no file: deploy {owner}.toml, or remove this one."
    error = UnitFileError(f"there is no {owner}.toml that it could change. Ignoring.", file=layer.file, hint=hint)
    return {**finding(error, owner), "severity": "warning"}


def _of_fleet(problem: verify.Finding, unit: Unit, texts: Mapping[str, str]) -> Json:
    file = unit.origin(*problem.place) or ""
    line = reading.locate(texts.get(file, ""), *problem.place)
    error = UnitFileError(problem.message, file=file, line=line, key=problem.key, hint=problem.hint)
    return {**finding(error, problem.unit), "severity": problem.severity}


def of_host(error: AgentdError, unit: Unit, texts: Mapping[str, str] | None = None) -> AgentdError:
    """What this host has against a setting of the unit, with file, line and key; any other error as it is.

    ``texts``: those of its files that are at hand; any other is read once more.
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
    file = unit.origin(section, name)
    line = reading.locate((texts or {}).get(file or "") or _text(file), section, name)
    told = message.startswith(f"{key} ")
    placed = UnitFileError(message, file=file, line=line, key=None if told else key, hint=error.hint)
    placed.key = key
    return placed


def _text(file: str | None) -> str:
    """The text of a unit file; nothing if it is gone or cannot be read, which is another error's to tell."""
    try:
        return Path(file).read_text(encoding="utf-8") if file else ""
    except (OSError, UnicodeDecodeError):
        return ""


def there(directory: Path, names: Collection[str] | None = None) -> Fileset:
    """The files of a units directory, or those of it that these units and templates are made of.

    A template brings its instances along, an instance its template. A file that cannot be read is noted as such.
    """
    files = Fileset()
    for path in _entries(directory, names):
        for file in [path] if path.suffix == ".toml" else _dropins(path, files):
            _read(file, files)
    return files


def load(directory: Path, wanted: Collection[str] = ()) -> Loaded:
    """All that the files of a directory say. One that cannot be read is a finding like any other."""
    return judge(there(directory), wanted)


def _entries(directory: Path, names: Collection[str] | None) -> list[Path]:
    """Unit files and directories of drop-ins, by name; without a look at all the others where names are given."""
    if names is not None and not any(map(is_template, names)):
        owners = {*names, *(above for name in names if (above := template_of(name)))}
        wanted = (f"{owner}{suffix}" for owner in owners for suffix in _SUFFIXES)
        return [directory / name for name in sorted(wanted) if os.path.lexists(directory / name)]
    try:
        found = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [directory / name for name in sorted(found) if name.endswith(_SUFFIXES) and _concerns(name, names)]


def _concerns(file: str, names: Collection[str] | None) -> bool:
    """Whether the file belongs to one of these, to an instance of one, or to the template of one."""
    owner = file.removesuffix(fileset.DROPINS).removesuffix(".toml")
    return names is None or owner in names or template_of(owner) in names or owner in map(template_of, names)


def _dropins(directory: Path, files: Fileset) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.suffix == ".toml")
    except OSError as error:
        hint = _NO_DIRECTORY.get(error.errno or 0, "Mend the directory, or remove it.")
        files.refuse(f"{directory}/*.toml", _unreadable(str(directory), error, hint))
        return []


def _read(path: Path, files: Fileset) -> None:
    try:
        files.put(str(path), path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = UnitFileError("this is not UTF-8 text.", file=str(path), line=line, hint="Save it as UTF-8.")
        files.refuse(str(path), problem)
    except OSError as error:
        hint = _UNREADABLE.get(error.errno or 0, "Mend the file, or remove it.")
        files.refuse(str(path), _unreadable(str(path), error, hint))


def _unreadable(path: str, error: OSError, hint: str) -> UnitFileError:
    return UnitFileError(f"cannot be read: {error.strerror}.", file=path, hint=hint)


_NO_DIRECTORY = {
    errno.EACCES: "Let agentd's user read it (chmod), or remove it.",
    errno.ENOTDIR: "Drop-ins are files NAME.toml in a directory of this name: make it one, or remove it.",
}
"""What to do about a directory of drop-ins that cannot be read, by errno."""
_SUFFIXES = (".toml", fileset.DROPINS)

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


def anchored(layer: Layer) -> str:
    """Its text with relative paths made absolute: the file is about to move, what it names is not."""
    base = Path(layer.file).absolute().parent

    def absolute(match: re.Match[str]) -> str:
        value, start = match["value"][1:-1], str(base)
        path = os.path.normpath(os.path.join(start.replace("%", "%%") if layer.expands else start, value))
        return f"{match['key']}{json.dumps(path)}"

    return _PATH_KEYS.sub(absolute, layer.text)


def place(directory: Path, layer: Layer) -> Path:
    """Where this file belongs in the units directory."""
    owner, dropin = fileset.owner_of(layer.file)
    return directory / f"{owner}{fileset.DROPINS}" / Path(layer.file).name if dropin else directory / f"{owner}.toml"


def install(directory: Path, layer: Layer) -> Path:
    """Write one file into the units directory, whole or not at all; where it is."""
    target = place(directory, layer)
    in_place = layer.file == str(target)
    if in_place and _holds(target, layer.text):
        return target
    fresh = target.with_name(f".{target.name}.new")
    try:
        if target.parent != directory:
            target.parent.mkdir(mode=0o755, exist_ok=True)
        fresh.write_text(layer.text if in_place else anchored(layer), encoding="utf-8")
        fresh.chmod(0o644)
        os.replace(fresh, target)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise ConfigError(f"{target}: cannot be written: {error.strerror}.", hint="Nothing was changed.") from error
    return target


def _holds(file: Path, text: str) -> bool:
    """Whether this file says this already."""
    try:
        return file.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def remove(directory: Path, name: str) -> list[str]:
    """Remove the files of a unit or template, drop-ins too; which. What else lies among the drop-ins stays."""
    removed = []
    dropins = directory / f"{name}{fileset.DROPINS}"
    for path in (directory / f"{name}.toml", *(_dropins(dropins, Fileset()) if dropins.is_dir() else ())):
        with suppress(FileNotFoundError):
            path.unlink()
            removed.append(str(path))
    with suppress(OSError):  # none, or not empty
        dropins.rmdir()
    return removed
