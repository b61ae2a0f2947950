"""A message as its handler sees it, and as work in hand. Knows the field names of ``deliver``; knows no socket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from agentd.sdk.link import Answer


@dataclass(frozen=True, slots=True)
class Message:
    """One delivered message. ``id`` is the same at every attempt; ``delivery`` names this attempt."""

    id: str
    delivery: str
    kind: str
    data: Any
    sender: str = ""
    attempt: int = 1
    conversation: str | None = None
    correlation: str | None = None
    causation: str | None = None
    hop: int = 0
    time: str | None = None
    deadline: float | None = None
    """Seconds without a result or progress after which its reader counts as hung."""
    reply: bool = False
    """True when the sender waits for the result (an ask)."""
    traceparent: str | None = None

    @property
    def identity(self) -> tuple[str, str, str | None]:
        """What makes it this message: ids are their senders' choice, and may be chosen again another day."""
        return self.sender, self.id, self.time

    @classmethod
    def from_wire(cls, params: dict[str, Any]) -> Message:
        """Read the params of a ``deliver``; raises KeyError when one that must be there is missing."""
        optional = ("conversation", "correlation", "causation", "time", "deadline", "traceparent")
        return cls(
            id=str(params["message"]),
            delivery=str(params["delivery"]),
            kind=str(params["kind"]),
            data=params.get("data"),
            sender=str(params.get("from") or ""),
            attempt=int(params.get("attempt", 1)),
            hop=int(params.get("hop", 0)),
            reply=bool(params.get("reply", False)),
            **{name: params.get(name) for name in optional},
        )


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that is stored, which is what *accepted* means. ``duplicate``: it was stored by an earlier run."""

    id: str
    duplicate: bool = False

    @classmethod
    def from_wire(cls, result: dict[str, Any]) -> Sent:
        """Read the result of a ``send``."""
        return cls(str(result["id"]), bool(result.get("duplicate", False)))


@dataclass(slots=True)
class Work:
    """One message in hand: who works on it, which attempt the outcome answers, and the outcome."""

    message: Message
    delivery: str
    answer: Answer | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)
