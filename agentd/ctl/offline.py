"""What agentctl can say of unit files by itself, where no daemon answers. Knows the model, and nothing of this host but
which programs exist."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentd.errors import UnitFileError

if TYPE_CHECKING:
    from agentd.model.unit import Unit

Json = dict[str, Any]


def check(files: list[Json]) -> Json:
    """The findings that ``POST /v1/check`` would have, without those of the host and of what is installed."""
    from agentd.model import fileset, reading, verify

    given = fileset.Fileset()
    findings: list[Json] = []
    for file in files:
        path, text = file["path"], file["text"]
        layer = given.put(path, text)
        if layer.file != path or layer.text != text:
            name = fileset.owner_of(path)[0]
            message = f"the name {name!r} is taken by {layer.file}."
            findings.append(_wrong(name, UnitFileError(message, file=path, hint="Rename one of the two.")))
    read = fileset.read(given)
    texts = {layer.file: layer.text for layer in given.files()}
    findings += [_wrong(name, problem) for name, problem in read.problems]
    for name, unit in read.units.items():
        findings += [_wrong(name, error) for error in _program(unit, texts)]
    for found in verify.verify(read.units, read.broken, templates={*read.replicas, *read.broken}):
        place = read.units[found.unit].origin(*found.place)
        line = reading.locate(texts.get(place or "", ""), *found.place)
        error = UnitFileError(found.message, file=place, line=line, key=found.key, hint=found.hint)
        findings.append(_wrong(found.unit, error, found.severity))
    return {"findings": _once(findings), "units": sorted(read.units), "templates": sorted(read.replicas)}


def explain(path: Path, text: str) -> Json:
    """What ``GET /v1/units/NAME`` would say of a file that is not installed; the drop-ins beside it count."""
    from agentd.model import explanation, fileset

    files = fileset.Fileset()
    files.put(str(path), text)
    for dropin in sorted(path.with_name(f"{path.name}.d").glob("*.toml")):
        files.put(str(dropin), dropin.read_text(encoding="utf-8"))
    read = files.read(fileset.owner_of(str(path))[0])
    if read.unit is None:
        raise read.problems[0]
    unit = read.unit
    return {
        "name": unit.name,
        "file": str(path),
        "dropins": list(unit.dropins),
        "settings": [row.to_json() for row in explanation.rows(unit)],
        "argv": list(unit.agent.exec),
        "level": unit.isolation.level,
    }


def reference() -> str:
    """Every setting that there is."""
    from agentd.model import explanation

    return explanation.reference()


def _once(findings: list[Json]) -> list[Json]:
    """Each finding once: what is wrong with a template is so with each of its instances."""
    return list({(f["file"], f["line"], f["key"], f["message"]): f for f in reversed(findings)}.values())[::-1]


def _program(unit: Unit, texts: dict[str, str]) -> list[UnitFileError]:
    """The program that this unit would run, when it does not exist on this host."""
    from agentd.model import reading

    program = unit.agent.exec[0]
    workdir = Path(unit.file or ".").absolute().parent / (unit.agent.workdir or "")
    if "/" in program:
        found = os.access(workdir / program, os.X_OK) if unit.agent.workdir or program[0] == "/" else True
    else:
        usual = f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}"
        found = shutil.which(program, path=unit.agent.env.get("PATH", usual)) is not None
    if found:
        return []
    hint = "Install it, or give the whole path."
    file = unit.origin("agent", "exec")
    line = reading.locate(texts.get(file or "", ""), "agent", "exec")
    message = f"there is no program {program!r} here that can be executed."
    return [UnitFileError(message, file=file, line=line, key="[agent] exec", hint=hint)]


def _wrong(unit: str, error: UnitFileError, severity: str = "error") -> Json:
    where = {"unit": unit, "file": error.file, "line": error.line, "key": error.key}
    return {**where, "message": error.message, "hint": error.hint, "severity": severity}
