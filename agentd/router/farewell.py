"""A unit that comes and goes has gone for good: its inbox is taken off the bus, what waits in it is dead-lettered.

Durable steps: 1. each waiting message is a dead letter (the same one if this is repeated) · 2. the consumer is gone ·
3. messages and record are purged. A crash between any two leaves what the next inbox of that name begins with.
"""

from __future__ import annotations

import time
from typing import Protocol

from agentd.bus.inbox import Inbox
from agentd.bus.letters import Letters
from agentd.bus.state import State
from agentd.router.attempts import Attempts
from agentd.router.hand import Hand, Item, Outcome, Stage
from agentd.router.message import decode

REASON = "gone"


class Bus(Protocol):
    """The rooms of the bus that are concerned."""

    state: State
    letters: Letters


async def farewell(unit: str, inbox: Inbox, hand: Hand, bus: Bus) -> list[tuple[Item, Outcome]]:
    """Clear up after a unit; what it left undone."""
    undone = []
    for seq, body in await inbox.waiting():
        if seq in hand.recent or _done(hand.items.get(seq)):
            continue
        item = hand.items.get(seq) or Item(seq, "", decode(body), hand.attempts.get(seq) or Attempts())
        outcome = Outcome(reason=REASON, text=f"{unit} has ended for good")
        letter = {"unit": unit, "seq": seq, "reason": REASON, "text": outcome.text, "at": time.time()}
        tried = {"attempts": item.attempts.counted, "exits": item.attempts.exits}
        await bus.letters.put(unit, seq, letter | tried, body)
        undone.append((item, outcome))
    await inbox.delete()
    await bus.state.drop(unit)
    return undone


def _done(item: Item | None) -> bool:
    return item is not None and item.stage is Stage.ENDING
