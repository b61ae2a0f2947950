"""Sending: from an agent's or operator's words to a stored message, and from a result back to who asked.

Durable steps of a send: 1. checked, stamped, given its id · 2. stored on the bus · 3. the effect is noted with the
handled message and recorded · 4. answered (3 and 4 do not wait for each other). A crash before 2: nothing happened, the
sender repeats it. After 2: the repeat has the same id and is stored once, for two minutes by the server's own memory,
beyond that by the note of 3.

Who asks waits in this process's memory only: after a crash of the router the asker repeats its ask (same id) and waits
again; if the receiver was through in between, the ask ends with too_late.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentd.bus.publisher import Publisher
from agentd.bus.topology import DUPLICATE_WINDOW, message_subject
from agentd.errors import AgentdError, BadInput, BusUnavailable, Denied, Full, NoSuchUnit, TooLate
from agentd.router import message as messages
from agentd.router.channel import Line
from agentd.router.hand import Item, Outcome
from agentd.router.mailbox import Mailbox
from agentd.router.message import Message

ASK_TIMEOUT = 60.0
_TIMEOUT = 2.5
_SEEN = 20_000
_RESULTS = 512
_KIND_MAX = 128


@dataclass(frozen=True, slots=True)
class Draft:
    """What a sender says. Checked for its form only."""

    to: str
    kind: str
    data: Any
    delivery: str | None
    key: str | None
    conversation: str | None
    id: str | None
    timeout: float


@dataclass(frozen=True, slots=True)
class Sent:
    """A stored message."""

    message: Message
    duplicate: bool


def draft(params: dict[str, Any]) -> Draft:
    """From the params of send or ask; BadInput names the parameter."""
    if "to" not in params or "kind" not in params:
        raise BadInput(f"{'kind' if 'to' in params else 'to'}: is missing")
    timeout = params.get("timeout", ASK_TIMEOUT)
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout <= 86400:
        raise BadInput("timeout: a number of seconds above 0 and up to 86400")
    chosen = _text(params, "id")
    return Draft(
        to=_text(params, "to") or "",
        kind=_name(params, "kind") or "",
        data=params.get("data"),
        delivery=_text(params, "delivery"),
        key=_name(params, "key"),
        conversation=_name(params, "conversation"),
        id=None if chosen is None else messages.own_id(chosen),
        timeout=float(timeout),
    )


def _text(params: dict[str, Any], name: str) -> str | None:
    value = params.get(name)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"{name}: must be a string")
    return value


def _name(params: dict[str, Any], name: str) -> str | None:
    value = _text(params, name)
    if value is None and name != "kind":
        return None
    if not value or len(value) > _KIND_MAX or not value.isprintable():
        raise BadInput(f"{name}: 1 to {_KIND_MAX} printable characters")
    return value


class Post:
    """Takes messages for ``boxes`` and stores them."""

    def __init__(self, boxes: Mapping[str, Mailbox], publisher: Publisher) -> None:
        self._boxes, self._publisher = boxes, publisher
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._asks: dict[str, list[asyncio.Future[Outcome]]] = {}
        self._outcomes: OrderedDict[str, Outcome] = OrderedDict()

    async def send(self, box: Mailbox | None, line: Line | None, said: Draft, *, reply: bool) -> Sent:
        """Store one message from the unit of ``box``, or from the operator. Returns when it is stored."""
        handled = await self._handled(box, line, said)
        target = self._target(box, said.to)
        message = self._stamp(box, handled, said, reply=reply)
        if handled is not None and message.id in handled.attempts.effects:
            return Sent(message, duplicate=True)
        if self._was_seen(message.key):
            return Sent(message, duplicate=True)
        duplicate = await self._store(target, message)
        if handled is not None and box is not None:
            handled.attempts.stored(message.id)
            box.note()
        if box is not None and not duplicate:
            box.tally.sent += 1
        return Sent(message, duplicate)

    async def ask(self, box: Mailbox | None, line: Line | None, said: Draft) -> tuple[Message, Any]:
        """Send, and wait for the receiver's result. TooLate; or AgentdError with the receiver's own words."""
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        key = ""
        try:
            async with asyncio.timeout(said.timeout):
                sent = await self._send_asking(box, line, said, answer)
                key = sent.message.key
                outcome = await answer
        except TimeoutError:
            raise TooLate(f"ask: no result from {said.to} within {said.timeout:g} s") from None
        finally:
            self._leave(key, answer)
        if outcome.reason is not None:
            raise AgentdError(outcome.text or f"{said.to} could not: {outcome.reason}")
        return sent.message, outcome.result

    def replayed(self, message: Message) -> None:
        """A message is stored anew on purpose: its earlier outcome is no answer any more."""
        self._outcomes.pop(message.key, None)

    def arrived(self, item: Item) -> None:
        """A message is on its way to its reader, so it is stored, whatever was confirmed."""
        self._publisher.arrived(item.message.key, item.seq)
        self._see(item.message.key)

    def finished(self, item: Item, outcome: Outcome) -> None:
        """A message is through: whoever asked gets the outcome."""
        if not item.message.reply:
            return
        key = item.message.key
        self._outcomes[key] = outcome
        while len(self._outcomes) > _RESULTS:
            self._outcomes.popitem(last=False)
        for waiter in self._asks.pop(key, ()):
            if not waiter.done():
                waiter.set_result(outcome)

    async def _send_asking(
        self, box: Mailbox | None, line: Line | None, said: Draft, answer: asyncio.Future[Outcome]
    ) -> Sent:
        """Send with the asker in place before the result can be there."""
        sent = await self.send(box, line, said, reply=True)
        known = self._outcomes.get(sent.message.key)
        if known is not None:
            answer.set_result(known)
        else:
            self._asks.setdefault(sent.message.key, []).append(answer)
        return sent

    def _leave(self, key: str, answer: asyncio.Future[Outcome]) -> None:
        waiting = self._asks.get(key)
        if waiting and answer in waiting:
            waiting.remove(answer)
            if not waiting:
                del self._asks[key]

    async def _handled(self, box: Mailbox | None, line: Line | None, said: Draft) -> Item | None:
        if said.delivery is None or box is None or line is None:
            return None
        item = await box.opened(line, said.delivery, _TIMEOUT)
        if item is None:
            raise BadInput(f"delivery: {said.delivery!r} is not open at this connection")
        return item

    def _target(self, box: Mailbox | None, to: str) -> Mailbox:
        target = self._boxes.get(to)
        if target is None:
            raise NoSuchUnit(f"to: there is no unit {to!r}")
        allowed = box.known.may_send if box is not None else None
        if allowed is not None and to not in allowed:
            raise Denied(
                f"to: {box.unit if box else ''} may not send to {to}", hint="See bus.may_send of its unit file."
            )
        return target

    def _stamp(self, box: Mailbox | None, handled: Item | None, said: Draft, *, reply: bool) -> Message:
        parent = handled.message if handled else None
        if handled is not None:
            handled.attempts.order += 1
            key = said.key if said.key is not None else said.id
            ident = messages.effect(handled.message.id, key, handled.attempts.order)
        else:
            ident = said.id or secrets.token_hex(8)
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        return Message(
            id=ident,
            to=said.to,
            kind=said.kind,
            sender=box.unit if box is not None else messages.OPERATOR,
            data=said.data,
            conversation=(parent.conversation if parent else said.conversation) or ident,
            correlation=parent.correlation if parent else ident,
            causation=parent.id if parent else None,
            hop=parent.hop + 1 if parent else 0,
            time=now.replace("+00:00", "Z"),
            reply=reply,
            traceparent=messages.trace(
                parent.traceparent if parent else None, secrets.token_hex(8), secrets.token_hex(16)
            ),
        )

    async def _store(self, target: Mailbox, message: Message) -> bool:
        """Store it unless the inbox is full; whether it was there before."""
        body = message.encode()
        tally = target.tally
        target.need()
        try:
            async with asyncio.timeout(_TIMEOUT):
                await target.declared.wait()
        except TimeoutError:
            raise BusUnavailable("bus: no answer", hint="Send again with the same id.") from None
        waiting = tally.total + tally.sending - len(target.hand.items)
        if waiting >= target.known.inbox_max:
            raise Full(f"to: the inbox of {target.unit} holds {waiting} messages (inbox_max)", hint="Try again later.")
        tally.sending += 1
        try:
            stored = await self._publisher.publish(message_subject(target.unit), body, id=message.key)
        finally:
            tally.sending -= 1
        self._see(message.key)
        if not stored.duplicate:
            target.stored()
        return stored.duplicate

    def _see(self, key: str) -> None:
        self._seen[key] = time.monotonic()
        self._seen.move_to_end(key)
        while len(self._seen) > _SEEN:
            self._seen.popitem(last=False)

    def _was_seen(self, key: str) -> bool:
        """Stored within the window; the server's own memory of it does not outlive a purge and its restart."""
        at = self._seen.get(key)
        return at is not None and time.monotonic() - at < DUPLICATE_WINDOW
