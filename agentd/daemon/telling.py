"""What the daemon tells router and gateway of each unit: the facts of wire/FACTS.md, derived from lives by level."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentd.host.place import channel
from agentd.model.lifecycle import Ending, Life
from agentd.model.unit import Unit


@lru_cache(maxsize=4096)  # its digest and joints were half of what a fact costs
def _channel(runtime: Path, name: str) -> str:
    return str(channel(runtime, name))


def unit_fact(unit: Unit, life: Life, endings: Iterable[Ending], uid: int | None, runtime: Path) -> dict[str, Any]:
    """The fact ``unit/<name>``."""
    alive = life.invocation is not None and life.started is not None
    return {
        "uid": uid,
        "channel": _channel(runtime, unit.name),
        "phase": str(life.phase),
        "invocation": life.invocation if alive else None,
        "ready": life.ready,
        "down": life.down,
        "hold": life.hold is not None,
        "endings": [[ending.invocation, str(ending.cause)] for ending in endings],
        "bus": {
            "may_send": None if unit.bus.may_send is None else list(unit.bus.may_send),
            "inbox_max": unit.bus.inbox_max,
            "in_flight": unit.bus.in_flight,
            "deadline": unit.bus.deadline,
            "max_deliver": unit.bus.max_deliver,
            "poison_after": unit.bus.poison_after,
            "backoff": list(unit.bus.backoff),
        },
        "budget": {
            "tokens": [unit.budget.tokens.amount, unit.budget.tokens.window],
            "on_exhausted": unit.budget.on_exhausted,
        },
        "llm": {"silence": unit.llm.silence},
    }
