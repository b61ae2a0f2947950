"""A set of unit files: which of them make which unit, by their names alone.

    NAME.toml     a unit                        NAME.toml.d/*.toml    drop-ins over it, in the order of their names
    NAME@.toml    a template                    NAME@.toml.d/*.toml   drop-ins over each of its instances
    NAME@x.toml   an instance that has a file   NAME@x.toml.d/*.toml  drop-ins over this one, after those

A file of the instance's own stands in the place of the template's, which it does not extend. Reads no file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from agentd.errors import UnitFileError
from agentd.model.layers import Layer, Reading
from agentd.model.layers import read as read_layers
from agentd.model.template import is_template, template_of
from agentd.model.unit import Unit

DROPINS = ".toml.d"


@dataclass
class Fileset:
    """Unit files and drop-ins, by the name of the unit or template that they belong to."""

    bases: dict[str, Layer] = field(default_factory=dict)
    dropins: dict[str, dict[str, Layer]] = field(default_factory=dict)
    """Owner → name of the drop-in → drop-in."""
    unread: dict[str, list[UnitFileError]] = field(default_factory=dict)
    """Owner → what is wrong with files of it that could not even be read."""

    def put(self, path: str, text: str) -> Layer:
        """Add a file, or replace the one of its name. Returns the one in whose place it would be, or itself."""
        owner, dropin = owner_of(path)
        layer = Layer(path, text, expands=is_template(owner))
        if dropin:
            return self.dropins.setdefault(owner, {}).setdefault(posixpath.basename(path), layer)
        return self.bases.setdefault(owner, layer)

    def refuse(self, path: str, error: UnitFileError) -> None:
        """This file is there, and cannot be read."""
        self.unread.setdefault(owner_of(path)[0], []).append(error)

    def over(self, under: Fileset) -> Fileset:
        """These files, and those of ``under`` that they leave in place."""
        dropins = {owner: {**found, **self.dropins.get(owner, {})} for owner, found in under.dropins.items()}
        replaced = {layer.file for layer in self.files()}
        unread = {
            owner: [error for error in errors if error.file not in replaced] for owner, errors in under.unread.items()
        }
        unread = {owner: errors for owner, errors in unread.items() if errors}
        return Fileset({**under.bases, **self.bases}, {**self.dropins, **dropins}, {**unread, **self.unread})

    def files(self) -> Iterator[Layer]:
        """All files."""
        yield from self.bases.values()
        for found in self.dropins.values():
            yield from found.values()

    def owners(self) -> set[str]:
        """The units and templates that any file belongs to."""
        return {*self.bases, *self.dropins, *self.unread}

    def layers(self, name: str) -> list[Layer]:
        """The files of a unit or template, in the order in which they hold; empty where there is none to begin with."""
        above = template_of(name) or ""
        base = self.bases.get(name) or self.bases.get(above)
        if base is None:
            return []
        return [base, *self._dropins(above), *self._dropins(name)]

    def read(self, name: str) -> Reading:
        """The unit that its files make."""
        if unread := [*self.unread.get(template_of(name) or "", ()), *self.unread.get(name, ())]:
            return Reading(None, tuple(unread))
        return read_layers(name, self.layers(name))

    def _dropins(self, owner: str) -> list[Layer]:
        found = self.dropins.get(owner, {})
        return [found[name] for name in sorted(found)]


@dataclass
class Units:
    """What a set of files says."""

    units: dict[str, Unit] = field(default_factory=dict)
    problems: list[tuple[str, UnitFileError]] = field(default_factory=list)
    """(unit or template, what is wrong with one of its files); each once."""
    broken: set[str] = field(default_factory=set)
    """Units and templates that their files do not give."""
    replicas: dict[str, int] = field(default_factory=dict)
    """The templates, and how many instances each asks for."""
    lonely: dict[str, Layer] = field(default_factory=dict)
    """Drop-ins that belong to nobody, one for each name."""


def owner_of(path: str) -> tuple[str, bool]:
    """The unit or template that a file belongs to, by its path; and whether it is a drop-in."""
    folder = posixpath.basename(posixpath.dirname(path))
    if folder.endswith(DROPINS):
        return folder.removesuffix(DROPINS), True
    return posixpath.basename(path).removesuffix(".toml"), False


def read(files: Fileset, wanted: Collection[str] = (), only: Collection[str] | None = None) -> Units:
    """All units that the files give: plain ones, replicas, instances with a file, and ``wanted`` instances.

    ``only``: units, and templates with their instances, that are to be read of them.
    """
    found = Units()
    owned = files.bases.keys() | files.unread.keys()
    for name in sorted(name for name in owned if is_template(name) and (only is None or name in only)):
        _take(found, name, files.read(name) if name in files.bases else Reading(None, tuple(files.unread[name])))
    for name in _named(files, found.replicas, wanted):
        above = template_of(name)
        if only is not None and name not in only and above not in only:
            continue
        if above in found.broken and name not in files.bases:
            found.broken.add(name)  # by its template, which is told
        else:
            _take(found, name, files.read(name))
    present = {*owned, *(template_of(name) for name in owned)}
    for owner, dropins in files.dropins.items():
        if owner not in present and template_of(owner) not in owned:
            found.lonely[owner] = next(iter(dropins.values()))
    return found


def _named(files: Fileset, replicas: dict[str, int], wanted: Collection[str]) -> list[str]:
    names = [name for name in sorted(files.bases.keys() | files.unread.keys()) if not is_template(name)]
    for above, count in replicas.items():
        names += [f"{above}{number}" for number in range(1, count + 1)]
    names += [name for name in wanted if template_of(name) in files.bases]
    return list(dict.fromkeys(names))


def _take(found: Units, name: str, read: Reading) -> None:
    told = {(error.file, error.line, error.message) for _, error in found.problems}
    if read.problems:
        found.broken.add(name)
    elif is_template(name):
        found.replicas[name] = read.replicas
    elif read.unit is not None:
        found.units[name] = read.unit
    found.problems += [(name, p) for p in read.problems if (p.file, p.line, p.message) not in told]
