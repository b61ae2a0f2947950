"""What units and settings mean together: combinations that parse but cannot be meant, and units among each other.

``reading`` has checked each setting by itself. A finding is a value: an error refuses its unit, a warning is shown and
the unit runs. One unit's finding never touches another unit.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from agentd.model import ordering
from agentd.model.quantity import show_duration as show
from agentd.model.template import SAMPLE, instances, template_of
from agentd.model.unit import SYSTEM_UNITS, Unit

RELATIONS = ("after", "requires", "binds_to")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about one unit that a person should know."""

    unit: str
    key: str
    """``[section] key``"""
    message: str
    """Directive, condition, verdict."""
    hint: str
    severity: Literal["error", "warning"] = "error"

    @property
    def place(self) -> tuple[str, str]:
        """Section and key, as ``reading.locate`` wants them."""
        section, _, key = self.key.partition(" ")
        return section.strip("[]"), key


def verify(
    units: Mapping[str, Unit],
    broken: Collection[str] = (),
    only: Collection[str] | None = None,
    templates: Collection[str] = (),
) -> list[Finding]:
    """All findings on a set of units, or on ``only`` these of it. ``broken`` names units (and templates) whose files
    have errors of their own: waiting for one of those is a warning, so that a broken file stops only itself.
    ``templates`` are known by name, for those who name one where a unit is meant."""
    fleet = _Fleet(units, broken, templates)
    names = [name for name in units if only is None or name in only]
    cycles = ordering.cycles(ordering.graph(units), names)
    findings: list[Finding] = []
    for name in names:
        unit = units[name]
        findings += _name(name)
        findings += _restart(name, unit)
        findings += _times(name, unit)
        findings += _schedule(name, unit)
        findings += _bus(name, unit, fleet)
        for relation in RELATIONS:
            findings += _related(name, relation, getattr(unit.agent, relation), fleet)
        if name in cycles:
            findings.append(_cycle(name, unit, cycles[name]))
    return findings


def _name(name: str) -> Iterator[Finding]:
    if name in SYSTEM_UNITS:
        message = f"{name!r} is the name of one of agentd's own units. Refusing."
        yield Finding(name, "[agent]", message, "Name the unit otherwise.")


def _restart(name: str, unit: Unit) -> Iterator[Finding]:
    restart = unit.restart
    if restart.policy == "never":
        return
    if restart.max_delay < restart.delay:
        message = f"max_delay = {show(restart.max_delay)} is less than delay = {show(restart.delay)}. Refusing."
        yield Finding(name, "[restart] max_delay", message, "Set max_delay to at least delay.")
    if restart.window == 0:
        message = f"no {restart.burst} failures fit into a window of 0s: a crash loop would never be parked. Refusing."
        yield Finding(name, "[restart] window", message, "Set window to the time in which burst failures are a loop.")
    if restart.parked_delay == 0:
        message = "a parked unit would be tried again without pause. Refusing."
        yield Finding(name, "[restart] parked_delay", message, 'Set parked_delay = "5m", or leave it out.')
    elif restart.parked_delay < restart.max_delay:
        message = (
            f"parked_delay = {show(restart.parked_delay)} is less than max_delay = {show(restart.max_delay)}: "
            "a parked unit would be tried more often than one in back-off. Proceeding."
        )
        yield Finding(name, "[restart] parked_delay", message, "Set parked_delay to at least max_delay.", "warning")
    if restart.healthy_after > restart.parked_delay and restart.healthy_after > 3600:
        message = f"a run counts as healthy only after {show(restart.healthy_after)}: the back-off hardly ever resets."
        yield Finding(
            name, "[restart] healthy_after", message, 'Set healthy_after = "10s", or leave it out.', "warning"
        )


def _schedule(name: str, unit: Unit) -> Iterator[Finding]:
    schedule = unit.agent.schedule
    if schedule is None:
        return
    if unit.restart.policy == "always" and "policy" in unit.restart.model_fields_set:
        message = 'policy = "always" with a schedule: a run would never be over. Refusing.'
        yield Finding(name, "[restart] policy", message, 'Set policy = "on-failure" or "never", or leave it out.')
    if schedule.every is not None and schedule.jitter > schedule.every:
        message = f"jitter = {show(schedule.jitter)} is longer than every = {show(schedule.every)}, which bounds it."
        yield Finding(name, "[agent] schedule", message, "Set jitter to at most every.", "warning")


def _times(name: str, unit: Unit) -> Iterator[Finding]:
    zero = {
        "[liveness] heartbeat": (unit.liveness.heartbeat, "it would be hung as soon as it runs"),
        "[bus] deadline": (unit.bus.deadline, "it would be hung with its first message"),
        "[llm] silence": (unit.llm.silence, "every model call would count as stuck"),
    }
    if unit.agent.type == "notify":
        zero["[agent] start_timeout"] = (unit.agent.start_timeout, "it could never say READY=1 in time")
    for key, (value, why) in zero.items():
        if value == 0:
            setting = key.partition(" ")[2]
            yield Finding(name, key, f"{setting} = 0s: {why}. Refusing.", "Set a time greater than 0, or leave it out.")


def _bus(name: str, unit: Unit, fleet: _Fleet) -> Iterator[Finding]:
    bus = unit.bus
    if bus.poison_after > bus.max_deliver and "poison_after" in bus.model_fields_set:
        message = f"poison_after = {bus.poison_after} is never reached: max_deliver = {bus.max_deliver} comes first."
        yield Finding(name, "[bus] poison_after", message, "Lower poison_after or raise max_deliver.", "warning")
    for other in bus.may_send or ():
        if other not in fleet.units and not fleet.is_broken(other):
            message = f"{other!r} is {fleet.what(other)}; sending to it fails until there is one."
            yield Finding(name, "[bus] may_send", message, fleet.hint(other), "warning")


def _cycle(name: str, unit: Unit, way: tuple[str, ...]) -> Finding:
    """The relation that leads to the next unit on the way is the one to change here."""
    relation = next(key for key in RELATIONS if way[1] in getattr(unit.agent, key))
    message = f"cycle {' → '.join(way)}: none of them could ever start. Refusing."
    hint = f"Remove {way[1]} from {relation} here, or break the cycle in another of these files."
    return Finding(name, f"[agent] {relation}", message, hint)


def _related(name: str, relation: str, others: Collection[str], fleet: _Fleet) -> Iterator[Finding]:
    key, needed = f"[agent] {relation}", relation != "after"
    for other in others:
        if other in SYSTEM_UNITS and needed:
            message = f"{other} is one of agentd's own units: every unit needs it anyway. Refusing."
            yield Finding(name, key, message, f"Remove {other} from {relation}.")
        elif other in SYSTEM_UNITS:
            message = f"{other} is one of agentd's own units and always starts before the agents. Ignoring."
            yield Finding(name, key, message, f"Remove {other} from {relation}.", "warning")
        elif fleet.is_broken(other):
            verdict = "this unit waits until it is mended" if needed else "is not waited for"
            message = f"{other} has errors of its own{': ' if needed else ' and '}{verdict}. Proceeding."
            yield Finding(name, key, message, f"Mend {other}.", "warning")
        elif other not in fleet.units:
            message = f"{other!r} is {fleet.what(other)}: it could never be ready. Refusing."
            yield Finding(name, key, message, fleet.hint(other))
        elif fleet.units[other].agent.schedule is not None:
            message = f"{other} has a schedule: between two runs it is not there, so it cannot be waited for. Refusing."
            yield Finding(name, key, message, f"Remove {other} from {relation}, or take its schedule away.")


@dataclass(frozen=True, slots=True)
class _Fleet:
    """All that a unit may name."""

    units: Mapping[str, Unit]
    broken: Collection[str]
    templates: Collection[str]

    def is_broken(self, name: str) -> bool:
        """It, or the template that it would be made from, has errors of its own."""
        return name in self.broken or template_of(name) in self.broken

    def what(self, word: str) -> str:
        """What it is, if it is no unit."""
        return "a template, not a unit" if word in self.templates else "no unit"

    def hint(self, word: str) -> str:
        """What may have been meant."""
        return meant(word, self.units, self.templates) or "agentctl list shows all units."


def meant(word: str, units: Iterable[str], templates: Collection[str]) -> str | None:
    """What somebody may have meant who names no unit: an instance of this template, or the nearest name."""
    above = template_of(word)
    if above in templates:
        return f"Start it first: agentctl start {word} makes it from {above}.toml."
    above = word if word.endswith("@") else f"{word}@"
    names = list(units)
    if above in templates or instances(above, names):
        near = [*instances(above, names), f"{above}{SAMPLE}"]
    else:
        near = difflib.get_close_matches(word, names, n=1)
    return f"Did you mean {near[0]}?" if near else None
