"""The files of one unit, one over the other: a unit file (or its template's), then drop-ins, the last word wins.

A drop-in replaces setting by setting, lists and tables as wholes; only ``agent.env`` is merged variable by variable.
Each file is checked by itself first, so that an error names the file in which it stands; then what they say together.
Relative paths start at the file that they stand in. Reads no file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentd.errors import UnitFileError
from agentd.model import reading
from agentd.model.unit import Unit

Tables = dict[str, dict[str, Any]]

_MERGED = {("agent", "env")}
"""Settings of which a drop-in says one entry, not the whole."""
_PATHS = (("agent", "workdir"), ("agent", "env_file"))
"""Settings whose relative values start at their file."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of a unit."""

    file: str
    text: str
    expands: bool = False
    """It belongs to a template: its texts have specifiers, and it may say how many replicas there are."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a unit's files say together: a unit, or what is wrong."""

    unit: Unit | None
    problems: tuple[UnitFileError, ...] = ()
    replicas: int = 0
    """How many instances a template asks for."""


def read(name: str, layers: Sequence[Layer]) -> Reading:
    """The unit that these files make, the first of which is its unit file; or all that is wrong with each of them."""
    base = layers[0].file
    alone = len(layers) == 1
    problems = [] if alone else reading.misnamed(name, base)
    merged: Tables = {}
    origins: dict[str, str] = {}
    for layer in layers:
        said, wrong = reading.draft(layer.text, name, layer.file, expands=layer.expands, whole=alone)
        problems += wrong
        if not wrong:
            _put(merged, origins, _anchored(said, layer.file, base), layer.file)
    problems = problems or ([] if alone else reading.lacking(name, merged, base))
    if problems:
        return Reading(None, tuple(problems))
    replicas = merged["agent"].pop("replicas", None) or 0
    unit = reading.validated(name, merged, base)
    dropins = tuple(layer.file for layer in layers[1:])
    elsewhere = {key: file for key, file in origins.items() if file != base}
    return Reading(unit.model_copy(update={"dropins": dropins, "origins": elsewhere}), (), replicas)


def merge(under: Mapping[str, Mapping[str, Any]], over: Mapping[str, Mapping[str, Any]]) -> Tables:
    """The settings of both; where both say one, ``over`` has the word."""
    merged = {section: dict(table) for section, table in under.items()}
    _put(merged, {}, over, "")
    return merged


def _put(merged: Tables, origins: dict[str, str], said: Mapping[str, Mapping[str, Any]], file: str) -> None:
    for section, table in said.items():
        known = merged.setdefault(section, {})
        for key, value in table.items():
            known[key] = {**known.get(key, {}), **value} if (section, key) in _MERGED else value
            origins[f"{section}.{key}"] = file


def _anchored(said: Tables, file: str, base: str) -> Tables:
    """With relative paths made absolute, unless they would start at the same place anyway."""
    here = posixpath.dirname(file)
    if here == posixpath.dirname(base):
        return said
    anchored = {section: dict(table) for section, table in said.items()}
    for section, key in _PATHS:
        if key in anchored.get(section, {}):
            anchored[section][key] = posixpath.normpath(posixpath.join(here, anchored[section][key]))
    return anchored
