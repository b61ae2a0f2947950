"""What the router tells: facts of units and bus, records of history, metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from agentd.bus.connection import Connection
from agentd.router.hand import Item, Stage
from agentd.router.mailbox import Mailbox
from agentd.wire.facts import Facts

_COUNTERS = (
    ("agentd_messages_sent_total", "sent", "Messages stored that this unit sent."),
    ("agentd_messages_delivered_total", "delivered", "Deliveries written to this unit."),
    ("agentd_messages_done_total", "done", "Messages that this unit acknowledged."),
    ("agentd_messages_refused_total", "refused", "Deliveries that this unit refused."),
    ("agentd_messages_dead_total", "buried", "Messages of this unit that were dead-lettered."),
    ("agentd_messages_rejected_total", "rejected", "Sends of this unit that were rejected."),
)


class Report:
    """Keeps the router's facts true. Changes of one loop iteration are told together."""

    def __init__(self, facts: Facts, boxes: Mapping[str, Mailbox], connection: Connection) -> None:
        self._facts, self._boxes, self._connection = facts, boxes, connection
        self._dirty: set[str] = set()
        self._planned = False

    def changed(self, unit: str) -> None:
        """Something of this unit is different."""
        self._dirty.add(unit)
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._tell)

    def bus(self) -> None:
        """The bus came or went."""
        connection = self._connection
        self._facts.set(
            "bus",
            {"connected": connection.up.is_set(), "server": connection.server, "error": connection.error},
        )

    def record(self, what: str, unit: str | None, **fields: Any) -> None:
        """History for the journal."""
        self._facts.record(f"message.{what}", unit, **{k: v for k, v in fields.items() if v is not None})

    def record_item(self, what: str, unit: str, item: Item, **more: Any) -> None:
        """History of a message in hand."""
        message = item.message
        self.record(
            what,
            unit,
            message=message.id,
            **{"from": message.sender},
            to=message.to,
            type=message.kind,
            conversation=message.conversation,
            attempt=item.attempts.number,
            invocation=item.invocation or None,
            **more,
        )

    def metrics(self) -> None:
        """State the metrics; at most once a second."""
        boxes = sorted(self._boxes.items())
        table: dict[str, Any] = {}
        for name, field, text in _COUNTERS:
            table[name] = _metric("counter", text, [[[u], getattr(b.tally, field)] for u, b in boxes])
        table["agentd_inbox_pending"] = _metric(
            "gauge", "Messages that wait in the inbox.", [[[u], pending(b)] for u, b in boxes]
        )
        table["agentd_inbox_held"] = _metric(
            "gauge", "Messages that the unit holds.", [[[u], len(list(b.hand.at(Stage.OPEN)))] for u, b in boxes]
        )
        table["agentd_message_handling_seconds_total"] = _metric(
            "counter", "Time from delivery to answer.", [[[u], round(b.tally.seconds, 6)] for u, b in boxes]
        )
        self._facts.set("metrics", table)

    def _tell(self) -> None:
        self._planned = False
        dirty, self._dirty = self._dirty, set()
        for unit in dirty:
            box = self._boxes.get(unit)
            if box is None:
                self._facts.drop(f"unit/{unit}")
            else:
                self._facts.set(f"unit/{unit}", _unit(box))


def pending(box: Mailbox) -> int:
    """Messages that wait: stored, not held, not done."""
    return max(0, box.tally.total - len(list(box.hand.at(Stage.OPEN))))


def _unit(box: Mailbox) -> dict[str, Any]:
    late = box.overdue(time.monotonic())
    return {
        "pending": pending(box),
        "dead": box.tally.dead,
        "connected": box.line.invocation if box.line is not None else None,
        "held": [_held(item) for item in box.hand.at(Stage.OPEN)],
        "retry": _retry(box),
        "overdue": [late.invocation, late.message.id] if late is not None else None,
        "done": box.tally.done,
        "sent": box.tally.sent,
    }


def _retry(box: Mailbox) -> dict[str, Any] | None:
    """The refused message that is next, while its back-off lasts: at in_flight 1 all others wait behind it."""
    now = time.monotonic()
    item = next((item for item in box.hand.at(Stage.WAITING) if item.not_before > now), None)
    if item is None:
        return None
    number, of = item.attempts.number, box.known.max_deliver
    return {"message": item.message.id, "at": item.not_before, "attempt": number, "of": of}


def _held(item: Item) -> dict[str, Any]:
    return {
        "message": item.message.id,
        "attempt": item.attempts.number,
        "kind": item.message.kind,
        "from": item.message.sender,
        "conversation": item.message.conversation,
        "since": item.since,
        "progress": item.progress,
        "invocation": item.invocation,
    }


def _metric(kind: str, text: str, samples: list[Any]) -> dict[str, Any]:
    return {"type": kind, "help": text, "labels": ["unit"], "samples": samples}
