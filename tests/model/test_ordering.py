"""Start and stop order: for every graph, not for three examples."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings

from agentd.errors import BadInput
from agentd.model import ordering
from agentd.model.ordering import start_order, stop_order
from tests.model.laws import ORDERING_LAWS, cyclic_graphs, graphs


@pytest.mark.parametrize("law", ORDERING_LAWS)
def test_order_laws(law) -> None:  # type: ignore[no-untyped-def]
    """Each law of the order holds for every graph without a cycle."""

    @settings(derandomize=True, max_examples=150, deadline=None, database=None)
    @given(graphs())
    def check(graph: dict[str, tuple[str, ...]]) -> None:
        law(ordering, graph)

    check()


@settings(derandomize=True, max_examples=150, deadline=None, database=None)
@given(cyclic_graphs())
def test_cycles_are_found_with_their_way(graph: dict[str, tuple[str, ...]]) -> None:
    """A cycle is refused, and each unit on one gets a way round that really exists."""
    with pytest.raises(BadInput, match=r"cycle in the start order: .* → "):
        start_order(graph)
    ways = ordering.cycles(graph)
    assert ways
    for name, way in ways.items():
        assert way[0] == way[-1] == name
        assert len(set(way)) == len(way) - 1
        assert all(b in graph[a] for a, b in pairwise(way))


def test_a_fleet() -> None:
    """The pipeline starts from its source and stops from its end; unknown names hold nobody up."""
    graph = {"reviewer": ("writer",), "writer": ("researcher", "ghost"), "researcher": (), "clock": ()}
    assert start_order(graph) == [("clock", "researcher"), ("writer",), ("reviewer",)]
    assert stop_order(graph) == [("reviewer",), ("writer",), ("clock", "researcher")]
    assert ordering.cycles(graph) == {}
