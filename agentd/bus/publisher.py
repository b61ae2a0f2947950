"""Publishing with confirmation: what was not confirmed is sent again, with the same id, when the bus is back."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass

from nats.aio.msg import Msg

from agentd.bus.connection import Connection, refusal
from agentd.errors import BusUnavailable, Full

TIMEOUT = 2.5
"""Seconds until a publisher hears that the bus is away."""

_FULL = {10077, 10023, 10122, 10047}  # a stream, the server's store, the per-subject or the reserved space is full


@dataclass(frozen=True, slots=True)
class Stored:
    """The server has it: sequence in its stream, and whether it had it before."""

    seq: int
    duplicate: bool


@dataclass(slots=True)
class _Pending:
    subject: str
    body: bytes
    id: str | None
    answer: asyncio.Future[Stored]


class Publisher:
    """Publishes into streams over one connection and one inbox for all confirmations."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tokens = itertools.count(1)
        self._pending: dict[str, _Pending] = {}
        self._by_id: dict[str, str] = {}
        self._prefix = f"{connection.inbox}.ack."
        self._listening = False

    async def start(self) -> None:
        """Listen for confirmations, once the connection is up. Repeating it is harmless."""
        if self._listening:
            return
        await self._connection.subscribe(self._prefix + "*", self._confirmed)
        self._listening = True

    async def publish(self, subject: str, body: bytes, *, id: str | None = None, timeout: float = TIMEOUT) -> Stored:  # noqa: A002
        """Store one message; returns when the server confirmed it.

        Full if there is no room; BusUnavailable if nothing was heard for ``timeout`` seconds: it may be stored all the
        same, so repeat it with the same id.
        """
        token = str(next(self._tokens))
        pending = _Pending(subject, body, id, asyncio.get_running_loop().create_future())
        self._pending[token] = pending
        if id is not None:
            self._by_id[id] = token
        try:
            async with asyncio.timeout(timeout):
                await self._send(token, pending)
                return await pending.answer
        except TimeoutError:
            raise BusUnavailable(
                f"bus: no confirmation within {timeout:g} s", hint="Send again with the same id."
            ) from None
        finally:
            del self._pending[token]
            if id is not None and self._by_id.get(id) == token:
                del self._by_id[id]

    async def resend(self) -> None:
        """After a reconnect: everything that is not confirmed goes out once more."""
        for token, pending in list(self._pending.items()):
            if not pending.answer.done():
                await self._send(token, pending)

    def arrived(self, id: str, seq: int) -> None:  # noqa: A002
        """A message with this id was delivered to us: that confirms it as well."""
        token = self._by_id.get(id)
        if token is not None and not self._pending[token].answer.done():
            self._pending[token].answer.set_result(Stored(seq, duplicate=False))

    async def _send(self, token: str, pending: _Pending) -> None:
        if not self._connection.up.is_set():
            return  # resend() follows when it is up
        headers = {"Nats-Msg-Id": pending.id} if pending.id is not None else None
        try:
            await self._connection.publish(pending.subject, pending.body, reply=self._prefix + token, headers=headers)
        except BusUnavailable:
            return  # lost just now: resend() follows

    def _confirmed(self, message: Msg) -> None:
        pending = self._pending.get(message.subject.rsplit(".", 1)[1])
        if pending is None or pending.answer.done():
            return
        if not message.data:  # "no responders": JetStream is not up yet, or the stream is missing
            pending.answer.set_exception(BusUnavailable("bus: no stream takes this; it is starting up"))
            return
        said = json.loads(message.data)
        if "error" not in said:
            pending.answer.set_result(Stored(said["seq"], said.get("duplicate", False)))
        elif said["error"].get("err_code") in _FULL:
            pending.answer.set_exception(Full(f"bus: no room left: {said['error'].get('description')}"))
        else:
            pending.answer.set_exception(refusal(said["error"], "publish"))
