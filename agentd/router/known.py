"""What the daemon's facts say of one unit. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Known:
    """One unit, as the daemon knows it. Times in seconds."""

    uid: int | None
    channel: str
    invocation: str | None
    down: bool
    endings: tuple[tuple[str, str], ...]
    may_send: frozenset[str] | None
    inbox_max: int
    in_flight: int
    deadline: float
    max_deliver: int
    poison_after: int
    backoff: tuple[float, ...]
    leaving: bool = False
    """It is being stopped: it finishes what it holds and gets nothing more."""
    hold: bool = False
    """It is being held for its budget: what it cannot finish now is nobody's fault."""
    requires: tuple[str, ...] = ()
    degraded: frozenset[str] = frozenset()
    """Those that it requires and that are gone."""
    children: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Those that it spawned: ``state`` and what else there is to say."""
    parent: str | None = None
    """Whose child it is: it comes and goes with its parent."""

    def news(self, before: Known | None) -> list[dict[str, Any]]:
        """What changed for those that it requires or has spawned, as params of ``unit_changed``; without a before, how
        each of them is."""
        was = {} if before is None else before.others()
        return [{"unit": unit, **told} for unit, told in self.others().items() if was.get(unit) != told]

    def others(self) -> dict[str, Mapping[str, Any]]:
        """How those are that it requires or has spawned."""
        return {**{unit: {"state": self.state(unit)} for unit in self.requires}, **self.children}

    def state(self, unit: str) -> str:
        """How a unit that it requires is: ``ready`` or ``gone``."""
        return "gone" if unit in self.degraded else "ready"

    def over(self, invocation: str) -> str | None:
        """The cause if this invocation is known to have ended, else None."""
        for ended, cause in reversed(self.endings):
            if ended == invocation:
                return cause
        newest = max((ended for ended, _ in self.endings), default="")
        return "crashed" if invocation < max(newest, self.invocation or "") else None

    def delay(self, attempt: int) -> float:
        """Seconds until a message comes again that was refused in this attempt (from 1)."""
        return self.backoff[min(attempt, len(self.backoff)) - 1] if self.backoff else 0.0


def known(fact: dict[str, Any]) -> Known:
    """From the daemon's fact `unit/NAME`; what is missing has its default."""
    bus = fact.get("bus") or {}
    may_send = bus.get("may_send")
    return Known(
        uid=fact.get("uid"),
        channel=fact["channel"],
        invocation=fact.get("invocation"),
        down=bool(fact.get("down", False)),
        endings=tuple((ended, cause) for ended, cause in fact.get("endings") or ()),
        may_send=None if may_send is None else frozenset(may_send),
        inbox_max=bus.get("inbox_max", 10_000),
        in_flight=bus.get("in_flight", 1),
        deadline=bus.get("deadline", 300.0),
        max_deliver=bus.get("max_deliver", 5),
        poison_after=bus.get("poison_after", 3),
        backoff=tuple(bus.get("backoff", (1.0, 5.0, 30.0))),
        leaving=fact.get("phase") == "stopping",
        hold=bool(fact.get("hold", False)),
        requires=tuple(map(str, fact.get("requires") or ())),
        degraded=frozenset(map(str, fact.get("degraded") or ())),
        children=dict(fact.get("children") or {}),
        parent=fact.get("parent"),
    )
