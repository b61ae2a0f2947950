"""The laws have teeth: each planted bug breaks one."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Stage

from agentd.model import liveness
from tests.model import laws, schedule_laws
from tests.model.mutants import MUTANTS, Mutant

ROOM = Path(liveness.__file__).parent
QUICK = settings(
    derandomize=True,
    max_examples=300,
    deadline=None,
    database=None,
    phases=[Stage.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def load(file: str, mutant: Mutant | None = None) -> ModuleType:
    """A fresh copy of a module of the room, with the mutant in it where it belongs there."""
    source = (ROOM / f"{file}.py").read_text(encoding="utf-8")
    if mutant is not None and mutant.file == file:
        assert source.count(mutant.old) == 1, f"{mutant.old!r} stands {source.count(mutant.old)} times in {file}.py"
        source = source.replace(mutant.old, mutant.new)
    module = ModuleType(f"agentd.model.{file}")
    import_module(module.__name__)  # its dataclasses look for the module of their name
    exec(compile(source, f"{file}.py (mutant)", "exec"), module.__dict__)
    return module


def checks(mutant: Mutant | None, file: str) -> list[Callable[[], object]]:
    """The laws that watch over a file, each to be called on many examples."""
    if file in ("lifecycle", "restart"):
        module: Any = load("lifecycle", mutant)
        module.restart = load("restart", mutant)
        return [lambda: [laws.lifecycle_law(module, history) for history in laws.random_histories(2000)]]
    module = load(file, mutant)
    if file == "due":
        return [_many(schedule_laws.worlds(), lambda world: schedule_laws.schedule_law(module, world), 150)]
    if file == "liveness":
        return [_many(laws.scenes(), lambda scene: laws.liveness_law(module, scene), 1000)]
    if file == "relations":
        return [_many(laws.fleets(), lambda fleet: laws.relations_law(module, fleet))]
    if file == "strategy":
        return [_many(laws.fleets(), lambda fleet: laws.strategy_law(module, fleet))]
    return [_many(laws.graphs(), lambda graph, law=law: law(module, graph)) for law in laws.ORDERING_LAWS]


def _many(examples: Any, law: Callable[[Any], None], count: int = 300) -> Callable[[], None]:
    @settings(QUICK, max_examples=count)
    @given(examples)
    def check(example: Any) -> None:
        law(example)

    return check


def broken(mutant: Mutant) -> bool:
    """Whether some law notices."""
    for check in checks(mutant, mutant.file):
        try:
            check()
        except Exception:  # noqa: BLE001 - however a bug shows itself, it shows
            return True
    return False


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.bug.replace(" ", "-"))
def test_each_bug_breaks_a_law(mutant: Mutant) -> None:
    """A bug that could be written is noticed."""
    assert broken(mutant), f"no law notices that {mutant.bug}"


@pytest.mark.parametrize("file", ["lifecycle", "liveness", "due", "ordering", "relations", "strategy"])
def test_the_copies_are_sound(file: str) -> None:
    """Without a bug the same examples break nothing, so it is the bug that is noticed."""
    for check in checks(None, file):
        check()
