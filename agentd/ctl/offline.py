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
    """The findings that ``POST /v1/check`` would have, without those of the host."""
    from agentd.model import reading, verify

    units: dict[str, Unit] = {}
    findings: list[Json] = []
    broken: set[str] = set()
    for file in files:
        path, text, name = file["path"], file["text"], Path(file["path"]).stem
        if name in units:
            message = f"the name {name!r} is taken by {units[name].file}."
            findings.append(_wrong(name, UnitFileError(message, file=path, hint="Rename one of the two.")))
        elif problems := reading.problems(text, name, path):
            broken.add(name)
            findings += [_wrong(name, problem) for problem in problems]
        else:
            units[name] = reading.parse(text, name, path)
            findings += [_wrong(name, error) for error in _program(units[name], text)]
    for found in verify.verify(units, broken):
        section, key = _place(found.key)
        text = next(file["text"] for file in files if file["path"] == units[found.unit].file)
        line = reading.locate(text, section, key) if section else None
        where = UnitFileError(found.message, file=units[found.unit].file, line=line, key=found.key, hint=found.hint)
        findings.append(_wrong(found.unit, where, found.severity))
    return {"findings": findings, "units": sorted(units)}


def explain(path: Path, text: str) -> Json:
    """What ``GET /v1/units/NAME`` would say of a file that is not installed."""
    from agentd.model import explanation, reading

    unit = reading.parse(text, path.stem, str(path))
    return {
        "name": unit.name,
        "file": str(path),
        "settings": [row.to_json() for row in explanation.rows(unit)],
        "argv": list(unit.agent.exec),
        "level": unit.isolation.level,
    }


def reference() -> str:
    """Every setting that there is."""
    from agentd.model import explanation

    return explanation.reference()


def _program(unit: Unit, text: str) -> list[UnitFileError]:
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
    line = reading.locate(text, "agent", "exec")
    message = f"there is no program {program!r} here that can be executed."
    return [UnitFileError(message, file=unit.file, line=line, key="[agent] exec", hint=hint)]


def _place(key: str) -> tuple[str, str | None]:
    """``("bus", "may_send")`` from ``[bus] may_send``."""
    section, _, name = key.partition("]")
    return section.lstrip("["), name.strip() or None


def _wrong(unit: str, error: UnitFileError, severity: str = "error") -> Json:
    where = {"unit": unit, "file": error.file, "line": error.line, "key": error.key}
    return {**where, "message": error.message, "hint": error.hint, "severity": severity}
