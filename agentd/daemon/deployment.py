"""The units directory against the fleet: what files would mean, installing them, and what follows for whom.

What is deployed is judged together with what is installed: a unit file with its drop-ins, a template with all of its
instances. A template and its instances change together or not at all; one unit's mistake never touches another unit.
Starting, stopping and waiting are the supervisor's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace

from agentd.daemon import unitfiles
from agentd.daemon.config import Config
from agentd.daemon.instances import unknown
from agentd.daemon.ports import Json
from agentd.daemon.schedules import schedule_of
from agentd.daemon.supervisor import Supervisor
from agentd.errors import UnitFileError
from agentd.model import fileset
from agentd.model.fileset import Fileset
from agentd.model.lifecycle import LIVE, Cause, Life, Phase, Policy
from agentd.model.template import instances, is_template, replica, template_of
from agentd.model.unit import Unit


@dataclass
class Change:
    """What became of units, by name."""

    started: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    """Replicas that their template does not ask for any more."""
    templates: list[str] = field(default_factory=list)
    """Templates that were installed."""

    def keep(self, there: Container[str]) -> None:
        """Forget what became of units that somebody has removed meanwhile."""
        for names in (self.started, self.restarted, self.unchanged):
            names[:] = [name for name in names if name in there]


class Deployment:
    """Unit files of this fleet: those that are installed, and those that somebody brings."""

    def __init__(self, config: Config, supervisor: Supervisor) -> None:
        self._directory = config.units
        self._supervisor = supervisor
        self.broken: list[Json] = []
        """What is wrong with installed files."""
        self._one_at_a_time = asyncio.Lock()

    def take(self, loaded: unitfiles.Loaded) -> None:
        """This is what the directory said when the daemon came up."""
        self.broken = [found for found in loaded.findings if found["severity"] == "error"]
        self._supervisor.instances.replicas.update(loaded.replicas)
        self._tell_broken()

    def files(self, name: str) -> list[Json]:
        """The installed files of a unit or template, in the order in which they hold, as they are now."""
        there = unitfiles.there(self._directory, {name})
        return [{"path": layer.file, "text": layer.text} for layer in there.layers(name)]

    # --- judging ------------------------------------------------------------------------------------------------------

    async def judge(self, files: list[Json]) -> tuple[Fileset, unitfiles.Loaded]:
        """The files that were brought, and what would be with them in place: on this host, in this fleet."""
        given, findings = _given(files)
        owners = given.owners()
        view = given.over(unitfiles.there(self._directory, owners))
        loaded = self._read(view, self._wanted(owners), owners)
        problems: dict[str, list[Json]] = {}
        for name in loaded.units:
            problems[name] = self._on_host(view, loaded, name)
            await _breathe()
        loaded = _with(loaded, problems)
        return given, replace(loaded, findings=(*findings, *loaded.findings))

    def made(self, name: str) -> Unit:
        """The unit that a template makes of this name. Raises NoSuchUnit, or the first thing that is wrong with it."""
        supervisor = self._supervisor
        view = unitfiles.there(self._directory, {name})
        if template_of(name) not in view.bases:
            raise unknown(name, supervisor.agents, supervisor.broken, supervisor.instances.replicas)
        loaded = self._read(view, {name}, {name})
        loaded = _with(loaded, {name: self._on_host(view, loaded, name) for name in loaded.units})
        for found in loaded.findings:
            if found["severity"] == "error":
                raise UnitFileError(found["message"], hint=found["hint"])
        return loaded.units[name]

    def _read(self, view: Fileset, wanted: set[str], only: set[str]) -> unitfiles.Loaded:
        supervisor = self._supervisor
        return unitfiles.judge(view, wanted, only, dict(supervisor.units()), supervisor.instances.replicas)

    def _on_host(self, view: Fileset, loaded: unitfiles.Loaded, name: str) -> list[Json]:
        texts = {layer.file: layer.text for layer in view.layers(name)}
        return self._supervisor.spawning.check(name, loaded.units[name], texts)

    def _wanted(self, owners: set[str]) -> set[str]:
        """The instances that these files are about, and that are there by name only."""
        supervisor = self._supervisor
        there = {owner for owner in owners if owner in supervisor.agents or supervisor.instances.asked_for(owner)}
        return there | {name for name in supervisor.instances.names if {name, template_of(name)} & owners}

    # --- installing ---------------------------------------------------------------------------------------------------

    async def install(self, given: Fileset, loaded: unitfiles.Loaded, going_on: Callable[[], None]) -> Change:
        """Put the right ones of the files into the units directory, and their units into the fleet; none is started.

        ``going_on`` raises where this must not go on: when everything is being stopped meanwhile.
        """
        templates = {owner for owner in given.owners() if is_template(owner)}
        groups = {owner: _group(owner, templates) for owner in given.owners()}
        wrong = {_group(name, templates) for name in loaded.broken}
        owners = {owner for owner, group in groups.items() if group not in wrong}
        async with self._one_at_a_time:
            for layer in given.files():
                if fileset.owner_of(layer.file)[0] in owners:
                    going_on()
                    unitfiles.install(self._directory, layer)
                    await _breathe()
            return await self._adopt(owners, going_on)

    async def _adopt(self, owners: set[str], going_on: Callable[[], None]) -> Change:
        read = fileset.read(unitfiles.there(self._directory, owners), self._wanted(owners), owners)
        change = Change(templates=sorted(owners & read.replicas.keys()))
        self._supervisor.instances.replicas.update(read.replicas)
        self._mended(owners | read.units.keys())
        self._supervisor.spawning.reserve(read.units.values())
        for name, unit in read.units.items():
            going_on()
            getattr(change, self.put(unit)).append(name)
            await _breathe()
        going_on()
        change.keep(self._supervisor.agents)
        for above in change.templates:
            there = instances(above, self._supervisor.agents)
            change.surplus += [n for n in there if n not in read.units and self._is_surplus(n, read.replicas[above])]
        return change

    def put(self, unit: Unit) -> str:
        """Put a unit into the fleet, or its new definition in the place of the old: what is to be done now."""
        supervisor = self._supervisor
        supervisor.spawning.transient.discard(unit.name)
        old = supervisor.agents.get(unit.name)
        never_ran = old is not None and old.life.last is not None and old.life.last.cause is Cause.unstarted
        refused = old is not None and never_ran and old.life.phase is Phase.failed
        same = old is not None and old.unit is not None and old.unit.means_the_same(unit)
        runs_on = unit.agent.schedule is not None and old is not None and schedule_of(old) is not None
        if old is None or old.unit != unit:
            self.adopt(unit)
        if (same and not refused) or (old is None and unit.name in supervisor.instances.resting):
            return "unchanged"
        if old is None or old.life.phase not in LIVE or runs_on:  # a run of a schedule is left to end
            return "started"
        return "restarted"

    def adopt(self, unit: Unit) -> None:
        """Supervise this unit from now on, or by this definition; it is not started."""
        if unit.name in self._supervisor.agents:
            self._supervisor.change(unit)
            return
        life = Life.new(time.monotonic(), floor=self._supervisor.spawning.floor(unit.name))
        self._supervisor.add(unit, unit.name, Policy.of(unit), life)

    # --- removing -----------------------------------------------------------------------------------------------------

    def uninstall(self, name: str) -> list[str]:
        """Remove the files of a unit, or of a template and all of its instances; which they were."""
        owners = {name}
        if is_template(name):
            owners |= {
                owner for owner in unitfiles.there(self._directory, {name}).owners() if template_of(owner) == name
            }
            self._supervisor.instances.replicas.pop(name, None)
        removed = [file for owner in sorted(owners) for file in unitfiles.remove(self._directory, owner)]
        self._mended(owners)
        return removed

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _is_surplus(self, name: str, replicas: int) -> bool:
        """Whether it is an instance that only a number of replicas can have made, and is not among so many."""
        unit, number = self._supervisor.agents[name].unit, replica(name)
        if unit is None or number is None or number <= replicas or name in self._supervisor.instances.names:
            return False
        return unit.file == str(self._directory / f"{template_of(name)}.toml")

    def _mended(self, names: set[str]) -> None:
        self.broken = [found for found in self.broken if found["unit"] not in names]
        self._tell_broken()

    def _tell_broken(self) -> None:
        """Who asks for a unit whose file is broken is told so, and not only that there is no such unit."""
        self._supervisor.broken = {str(found["unit"]): found for found in reversed(self.broken) if found["file"]}


def _given(files: list[Json]) -> tuple[Fileset, list[Json]]:
    """The files that somebody brings; of two that want the same place the first has it, the other is a finding."""
    given, findings = Fileset(), []
    for file in files:
        path, text = str(file["path"]), str(file["text"])
        layer = given.put(path, text)
        if layer.file != path or layer.text != text:
            name = fileset.owner_of(path)[0]
            message = f"the name {name!r} is taken by {layer.file}."
            error = UnitFileError(message, file=path, hint="Rename one of the two.")
            findings.append(unitfiles.finding(error, None))
    return given, findings


def _group(name: str, templates: set[str]) -> str:
    """What changes together with this unit, or not at all."""
    above = template_of(name)
    return above if above in templates else name


def _with(loaded: unitfiles.Loaded, problems: Mapping[str, list[Json]]) -> unitfiles.Loaded:
    """With what this host has against units, by name."""
    findings, broken = list(loaded.findings), set(loaded.broken)
    for name, found in problems.items():
        findings += found
        if any(problem["severity"] == "error" for problem in found):
            broken.add(name)
    return replace(loaded, findings=unitfiles.once(findings), broken=frozenset(broken))


async def _breathe() -> None:
    """A thousand files take seconds: everybody else goes on meanwhile."""
    await asyncio.sleep(0)
