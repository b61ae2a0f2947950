"""A message as it is stored and delivered, and how its id is made. Pure.

Sender, id, time, hop and the rest of the envelope are stamped by the router; of an agent's words only kind and data
(and a conversation, if it begins one) are taken over.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from agentd.errors import BadInput
from agentd.router.rpc import MAX_LINE, encode

OPERATOR = "@operator"
"""The sender of messages that come from agentctl; no unit can have this name."""

_ROOM = 8192  # what a deliver line, or a dead letter, has beyond the stored form
_ID = re.compile(r"[!-~]{1,128}")
_TRACE = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``reply``: its sender waits for the result."""

    id: str
    to: str
    kind: str
    sender: str
    data: Any
    conversation: str
    correlation: str
    causation: str | None
    hop: int
    time: str
    reply: bool
    traceparent: str

    @property
    def key(self) -> str:
        """What is stored once: ids are the sender's, so one sender cannot take another's."""
        return f"{self.sender}/{self.id}"

    def encode(self) -> bytes:
        """The stored form; BadInput if it is too large to be delivered on a channel."""
        try:
            body = json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadInput("data: holds a lone surrogate, which is no character") from None
        if len(body) > MAX_LINE - _ROOM:
            raise BadInput(
                f"data: the message has {len(body)} bytes, more than a line of the channel holds",
                hint="Send a path or a reference instead of the content.",
            )
        return body

    def deliver(self, delivery: str, attempt: int, deadline: float) -> dict[str, Any]:
        """The params of its deliver call."""
        return {
            "delivery": delivery,
            "message": self.id,
            "attempt": attempt,
            "kind": self.kind,
            "from": self.sender,
            "data": self.data,
            "conversation": self.conversation,
            "correlation": self.correlation,
            "causation": self.causation,
            "hop": self.hop,
            "time": self.time,
            "deadline": deadline,
            "reply": self.reply,
            "traceparent": self.traceparent,
        }


def decode(body: bytes | str) -> Message:
    """The message from its stored form."""
    return Message(**json.loads(body))


def effect(handled: str, key: str | None, order: int) -> str:
    """The id of what is sent while handling a message: the same again when the handler runs again."""
    name = f"{handled}/{order}" if key is None else f"{handled}/k.{key}"
    return name if _ID.fullmatch(name) else "e." + hashlib.sha256(encode(name)).hexdigest()[:40]


def own_id(value: str) -> str:
    """An id of an agent's or operator's choice; BadInput if it cannot be one."""
    if not _ID.fullmatch(value):
        raise BadInput("id: up to 128 printable ASCII characters without spaces")
    return value


def trace(parent: str | None, span: str, fresh: str) -> str:
    """The traceparent of a new message: the same trace as what caused it, a span of its own."""
    match = _TRACE.fullmatch(parent or "")
    return f"00-{match[1] if match else fresh}-{span}-01"
