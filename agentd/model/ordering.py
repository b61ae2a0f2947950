"""In which order units start and stop. Pure graph work on all relations; what ready means is the lifecycle's."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agentd.errors import BadInput
from agentd.model.relations import Ties
from agentd.model.unit import Unit

Graph = Mapping[str, Collection[str]]
"""Name → the names that it comes after. Names that are no key are ignored: nobody can wait for them."""


def graph(units: Mapping[str, Unit]) -> dict[str, tuple[str, ...]]:
    """The graph of some units: ``after``, ``requires`` and ``binds_to`` alike."""
    return {name: Ties.of(unit).all for name, unit in units.items()}


def generations(units: Mapping[str, Unit]) -> list[tuple[str, ...]]:
    """Start order of units, as ``start_order``."""
    return start_order(graph(units))


def start_order(graph: Graph) -> list[tuple[str, ...]]:
    """Generations, sorted by name within: each unit comes after all it waits for, as early as it can.

    BadInput if there is a cycle; ``verify`` refuses those units before.
    """
    waiting = {name: {other for other in others if other in graph} for name, others in graph.items()}
    order: list[tuple[str, ...]] = []
    while waiting:
        free = tuple(sorted(name for name, others in waiting.items() if not others))
        if not free:
            raise BadInput(f"cycle in the start order: {' → '.join(next(iter(cycles(waiting).values())))}.")
        order.append(free)
        waiting = {name: others.difference(free) for name, others in waiting.items() if name not in free}
    return order


def stop_order(graph: Graph) -> list[tuple[str, ...]]:
    """The start order backwards: nobody loses what it depends on before it has stopped itself."""
    return start_order(graph)[::-1]


def cycles(graph: Graph, names: Collection[str] | None = None) -> dict[str, tuple[str, ...]]:
    """For each unit (of ``names``) that waits for itself, the shortest way round: ``a`` → ``(a, b, a)``."""
    found = ((name, _way_round(name, graph)) for name in (graph if names is None else names))
    return {name: way for name, way in found if way}


def _way_round(name: str, graph: Graph) -> tuple[str, ...]:
    """Breadth first from a unit back to itself; empty if there is no way."""
    seen: set[str] = set()
    edge: list[tuple[str, ...]] = [(name,)]
    while edge:
        longer = [(*way, other) for way in edge for other in sorted(graph.get(way[-1], ())) if other in graph]
        for way in longer:
            if way[-1] == name:
                return way
        edge = []
        for way in longer:
            if way[-1] not in seen:
                seen.add(way[-1])
                edge.append(way)
    return ()
