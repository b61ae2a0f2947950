"""The laws hold for every history that hypothesis thinks of."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from hypothesis import given, settings

from agentd.model import lifecycle, liveness, relations, strategy
from agentd.model.life import Event, Life, Now, Policy
from tests.model.laws import (
    Fleet,
    Move,
    Scene,
    fleets,
    histories,
    lifecycle_law,
    liveness_law,
    random_histories,
    relations_law,
    scenes,
    strategy_law,
)


@settings(derandomize=True, max_examples=700, deadline=None, database=None)
@given(histories())
def test_lifecycle(history: tuple[Policy, list[Move]]) -> None:
    """No history breaks a law of tests/model/laws.py."""
    lifecycle_law(lifecycle, history)


@settings(derandomize=True, max_examples=400, deadline=None, database=None)
@given(scenes())
def test_liveness(scene: Scene) -> None:
    """No scene is judged otherwise than the plain rule says."""
    liveness_law(liveness, scene)


@settings(derandomize=True, max_examples=200, deadline=None, database=None)
@given(fleets())
def test_relations_and_strategies(fleet: Fleet) -> None:
    """No fleet is indexed, restarted, stopped or started otherwise than the naive rule says."""
    relations_law(relations, fleet)
    strategy_law(strategy, fleet)


def test_the_histories_visit_every_cell_of_the_table() -> None:
    """No pair of event and phase that the law lists goes untried, so the laws watch over all of it."""
    visited: set[tuple[type, str]] = set()

    def watched(life: Life, event: Event, policy: Policy, now: Now) -> Any:
        visited.add((type(event), life.phase))
        return lifecycle.step(life, event, policy, now)

    spy = ModuleType("spy")
    spy.step = watched  # type: ignore[attr-defined]
    for history in random_histories(2000):
        lifecycle_law(spy, history)
    assert {(kind, phase) for kind, row in lifecycle.TABLE.items() for phase in row} - visited == set()
