"""Instances of templates that people started by name: remembered over the end of the daemon and of the keeper.

A replica exists because its template says so, an instance with a file because of that; these because somebody once said
``agentctl start NAME@x``. They come back with the fleet until they are removed; who was stopped comes back stopped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from agentd.errors import NoSuchUnit
from agentd.model.template import SAMPLE, instances, is_template, template_of
from agentd.model.verify import meant
from agentd.store.memory import Memory

Json = dict[str, Any]
_KEY = "instance/"


class Instances:
    """The templates of the fleet, and which instances were asked for by name."""

    def __init__(self, memory: Memory, remembered: Mapping[str, Json]) -> None:
        self.replicas: dict[str, int] = {}
        """Template → how many instances it asks for."""
        self._memory = memory
        saved = remembered.items()
        self._wanted = {key.removeprefix(_KEY): bool(blob.get("wanted")) for key, blob in saved if key.startswith(_KEY)}

    @property
    def names(self) -> Collection[str]:
        """All that were started by name and not removed since."""
        return self._wanted.keys()

    @property
    def resting(self) -> set[str]:
        """Those of them that were stopped: they are not started with the fleet."""
        return {name for name, wanted in self._wanted.items() if not wanted}

    def asked_for(self, name: str) -> bool:
        """Whether its template asks for it: it is a replica."""
        return name in self.replicated(template_of(name) or "")

    def replicated(self, template: str) -> set[str]:
        """The replicas of a template."""
        return {f"{template}{number}" for number in range(1, self.replicas.get(template, 0) + 1)}

    def add(self, name: str) -> None:
        """It was started by name. Raises Full or HostCannot where that cannot be remembered."""
        self._save(name, True)

    def turn(self, name: str, *, on: bool) -> None:
        """It was started or stopped by somebody; nothing changes for units that were not started by name."""
        if name in self._wanted:
            self._save(name, on)

    def forget(self, name: str) -> None:
        """It was removed."""
        if self._wanted.pop(name, None) is not None:
            self._memory.drop(f"{_KEY}{name}")

    def _save(self, name: str, wanted: bool) -> None:
        if self._wanted.get(name) is not wanted:
            self._memory.save(f"{_KEY}{name}", {"wanted": wanted})
            self._wanted[name] = wanted


def unknown(name: str, units: Iterable[str], broken: dict[str, Json], replicas: Collection[str]) -> NoSuchUnit:
    """The error for a name that is no unit: because its file is broken, it is a template, or a typing error."""
    names = list(units)
    if found := broken.get(name) or broken.get(template_of(name) or ""):
        message = f"there is no unit {name!r}, because its file is broken: {found['message']}"
        return NoSuchUnit(message, hint=f"Mend it, then: agentctl deploy {found['file']}")
    if is_template(name) and (name in replicas or instances(name, names)):
        first = (instances(name, names) or [f"{name}{SAMPLE}"])[0]
        return NoSuchUnit(f"{name} is a template: it is its instances that run.", hint=f"Name one, such as {first}.")
    hint = meant(name, names, replicas) or "agentctl list shows all units."
    return NoSuchUnit(f"there is no unit {name!r}.", hint=hint)
