"""Who depends on whom: the relations of units, both ways round. Pure data; knows no state of any unit.

    after      it starts once they are ready
    requires   and it needs them: they are started with it, and it stops when an operator stops one
    binds_to   and it stops whenever one of them stops, and starts again with it

Each change and each question costs what the units concerned cost, whatever the size of the fleet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agentd.model.unit import Unit


@dataclass(frozen=True, slots=True)
class Ties:
    """What one unit says of others."""

    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    binds_to: tuple[str, ...] = ()

    @classmethod
    def of(cls, unit: Unit) -> Ties:
        """The ties that a unit file asks for."""
        return cls(unit.agent.after, unit.agent.requires, unit.agent.binds_to)

    @property
    def needs(self) -> tuple[str, ...]:
        """Those without which it is not started."""
        return _once((*self.requires, *self.binds_to))

    @property
    def all(self) -> tuple[str, ...]:
        """Those that start before it and stop after it."""
        return _once((*self.after, *self.requires, *self.binds_to))


NONE = Ties()


class Relations:
    """The ties of a fleet. Names that are no unit (yet) are kept: somebody may wait for them."""

    def __init__(self) -> None:
        self._ties: dict[str, Ties] = {}
        self._named_by: dict[str, set[str]] = {}

    def put(self, name: str, ties: Ties) -> None:
        """This is what the unit says now."""
        self.drop(name)
        if ties.all:
            self._ties[name] = ties
            for other in ties.all:
                self._named_by.setdefault(other, set()).add(name)

    def drop(self, name: str) -> None:
        """The unit says nothing any more."""
        for other in self._ties.pop(name, NONE).all:
            named_by = self._named_by[other]
            named_by.discard(name)
            if not named_by:
                del self._named_by[other]

    def of(self, name: str) -> Ties:
        """What a unit says of others."""
        return self._ties.get(name, NONE)

    def dependants(self, name: str) -> list[str]:
        """Those that name this unit in any way."""
        return sorted(self._named_by.get(name, ()))

    def needing(self, name: str) -> list[str]:
        """Those that require this unit or are bound to it."""
        return [other for other in self.dependants(name) if name in self.of(other).needs]

    def bound(self, name: str) -> list[str]:
        """Those that are bound to this unit."""
        return [other for other in self.dependants(name) if name in self.of(other).binds_to]

    def graph(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The order among these units, for ``ordering``."""
        return {name: self.of(name).all for name in names}


def reached(name: str, neighbours: Callable[[str], Iterable[str]]) -> set[str]:
    """All that can be reached from a unit, itself included."""
    found, edge = {name}, [name]
    while edge:
        edge = [other for one in edge for other in neighbours(one) if other not in found]
        found.update(edge)
    return found


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
