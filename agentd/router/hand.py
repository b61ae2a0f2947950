"""What the router has in hand of one inbox: which messages wait, are open at a reader, or are ending. Pure.

"In hand" is what the server pushed and what was neither acknowledged nor given back yet; it is at most ``in_flight``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agentd.router.attempts import Attempts, from_record
from agentd.router.message import Message

_RECENT = 256
_RECENT_RECORDED = 32


class Stage(StrEnum):
    """Where a message in hand is."""

    WAITING = "waiting"  # for a reader, or for its back-off
    OPEN = "open"  # a reader has it
    ENDING = "ending"  # done or given up; the bus does not know yet


@dataclass(slots=True)
class Item:
    """One message in hand. Times are monotonic seconds."""

    seq: int
    reply: str
    message: Message
    attempts: Attempts
    stage: Stage = Stage.WAITING
    delivery: str = ""
    invocation: str = ""
    since: float = 0.0
    progress: float = 0.0
    not_before: float = 0.0
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended for its reader: a result, or ``reason`` why it is a dead letter with ``text`` in words."""

    result: Any = None
    reason: str | None = None
    text: str = ""


@dataclass(slots=True)
class Hand:
    """All that is in hand, and what must be known of what was."""

    items: dict[int, Item] = field(default_factory=dict)
    attempts: dict[int, Attempts] = field(default_factory=dict)
    recent: OrderedDict[int, str] = field(default_factory=OrderedDict)  # acknowledged: sequence → delivery id
    earlier: dict[int, str] = field(default_factory=dict)  # held when the last router ended: sequence → invocation

    def take(self, seq: int, reply: str, message: Message) -> Item:
        """A message came from the server."""
        attempts = self.attempts.setdefault(seq, Attempts())
        item = Item(seq, reply, message, attempts)
        item.delivery = self._delivery(item)
        owner = self.earlier.pop(seq, "")
        if owner:
            item.stage, item.invocation = Stage.OPEN, owner
        self.items[seq] = item
        return item

    def _delivery(self, item: Item) -> str:
        name = f"{item.message.id}.{item.attempts.number}"
        taken = any(i.delivery == name for i in self.items.values() if i is not item)
        return f"{name}~{item.seq}" if taken else name  # two senders may choose the same id

    def of(self, delivery: str) -> Item | None:
        """The open item with this delivery id."""
        for item in self.items.values():
            if item.delivery == delivery and item.stage is Stage.OPEN:
                return item
        return None

    def at(self, stage: Stage) -> Iterator[Item]:
        """The items in this stage, in order."""
        return (item for _, item in sorted(self.items.items()) if item.stage is stage)

    def back(self, item: Item, not_before: float = 0.0) -> None:
        """It waits again for a reader."""
        item.stage, item.invocation, item.not_before = Stage.WAITING, "", not_before
        item.delivery = self._delivery(item)

    def give(self, item: Item, invocation: str, now: float) -> None:
        """A reader gets it."""
        item.stage, item.invocation = Stage.OPEN, invocation
        item.since = item.progress = now
        item.attempts.order = 0

    def end(self, item: Item, outcome: Outcome) -> None:
        """Its reader is through with it, or it is given up."""
        item.stage, item.outcome = Stage.ENDING, outcome

    def forget(self, item: Item) -> None:
        """The bus was told; remember that it was done."""
        self.items.pop(item.seq, None)
        self.attempts.pop(item.seq, None)
        self.recent[item.seq] = item.delivery
        while len(self.recent) > _RECENT:
            self.recent.popitem(last=False)

    def release(self, item: Item) -> None:
        """It goes back to the server; its attempts are remembered."""
        self.items.pop(item.seq, None)
        if not (item.attempts.counted or item.attempts.effects):
            self.attempts.pop(item.seq, None)

    def prune(self, floor: int) -> None:
        """Everything up to ``floor`` is acknowledged: nothing of it can come again."""
        for kept in (self.attempts, self.earlier):
            for seq in [seq for seq in kept if seq <= floor and seq not in self.items]:
                del kept[seq]

    def next(self, in_flight: int, now: float) -> list[Item]:
        """What a reader may get now. One that a reader died of goes alone, so that the guilty one is found."""
        busy = [item for item in self.items.values() if item.stage is Stage.OPEN]
        ready = [item for item in self.at(Stage.WAITING) if item.not_before <= now]
        if any(item.attempts.suspect for item in busy):
            return []
        suspects = [item for item in ready if item.attempts.suspect]
        if suspects:
            return suspects[:1] if not busy else []
        return ready[: max(0, in_flight - len(busy))]

    def wake_at(self, deadline: float) -> tuple[float | None, Item | None]:
        """When the next back-off ends; and the open item whose deadline comes first."""
        waits = [item.not_before for item in self.items.values() if item.stage is Stage.WAITING]
        opened = [item for item in self.items.values() if item.stage is Stage.OPEN]
        return min(waits, default=None), min(opened, key=lambda item: item.progress, default=None)

    def to_record(self) -> dict[str, Any]:
        """What must outlive the router."""
        held = self.earlier | {i.seq: i.invocation for i in self.items.values() if i.stage is Stage.OPEN}
        return {
            "held": {str(seq): owner for seq, owner in held.items()},
            "attempts": {str(seq): a.to_record() for seq, a in self.attempts.items() if a.counted or a.effects},
            "acked": list(self.recent.items())[-_RECENT_RECORDED:],
        }


def from_hand_record(record: dict[str, Any]) -> Hand:
    """The hand of a router that has just started."""
    return Hand(
        attempts={int(seq): from_record(a) for seq, a in record.get("attempts", {}).items()},
        recent=OrderedDict((int(seq), delivery) for seq, delivery in record.get("acked", [])),
        earlier={int(seq): owner for seq, owner in record.get("held", {}).items()},
    )
