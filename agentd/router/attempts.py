"""Attempts by cause: what counts, and when a message is given up. Pure.

| cause | an attempt | an unexplained exit |
|---|---|---|
| refused (retry) = failed in its handler | yes | no |
| failed, timed_out, crashed, hung, left: its reader ended | yes | yes |
| stopped, held, unstarted, taken back, lost connection | no | no |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXITS = frozenset({"failed", "timed_out", "crashed", "hung", "left"})
INNOCENT = frozenset({"stopped", "held", "unstarted"})
MAX_EFFECTS = 1000
_MAX_EXITS = 32


@dataclass(slots=True)
class Attempts:
    """What one message went through in one inbox. ``exits``: [invocation, cause, unix seconds]."""

    counted: int = 0
    exits: list[list[Any]] = field(default_factory=list)
    effects: dict[str, None] = field(default_factory=dict)
    order: int = 0

    @property
    def number(self) -> int:
        """The number of the present or next attempt, from 1."""
        return self.counted + 1

    @property
    def suspect(self) -> bool:
        """Whether a reader ended over it without explanation."""
        return bool(self.exits)

    def refused(self) -> None:
        """Its reader refused it and wants it again."""
        self.counted += 1

    def ended(self, invocation: str, cause: str, at: float) -> None:
        """Its reader ended. Telling it twice counts once; innocent causes do not count."""
        if cause in INNOCENT or any(invocation == known for known, _, _ in self.exits):
            return
        self.counted += 1
        self.exits.append([invocation, cause if cause in EXITS else "crashed", at])
        del self.exits[:-_MAX_EXITS]

    def verdict(self, max_deliver: int, poison_after: int) -> str | None:
        """Why it must be given up now, or None."""
        if len(self.exits) >= poison_after:
            return "poison"
        return "max_deliver" if self.counted >= max_deliver else None

    def stored(self, effect: str) -> None:
        """This effect of its handler is stored."""
        self.effects[effect] = None
        while len(self.effects) > MAX_EFFECTS:
            del self.effects[next(iter(self.effects))]

    def to_record(self) -> dict[str, Any]:
        """The form in which it outlives the router."""
        return {"counted": self.counted, "exits": self.exits, "effects": list(self.effects), "order": self.order}


def from_record(record: dict[str, Any]) -> Attempts:
    """What ``to_record`` said."""
    effects = dict.fromkeys(record.get("effects", []))
    return Attempts(record.get("counted", 0), list(record.get("exits", [])), effects, record.get("order", 0))
