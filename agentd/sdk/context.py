"""What a handler is given besides its data: the message, and the ways to speak while working on it.

Every ``send`` and ``ask`` of a handler names the message it belongs to and a key, its own or its place in the order
of the calls. A handler that runs again after a crash repeats them, and the router stores each one once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

from agentd.sdk.link import Link
from agentd.sdk.offspring import Child, Offspring
from agentd.sdk.typed import to_json
from agentd.sdk.work import Sent, Work

Result = TypeVar("Result")

SEND_FOR = 90.0
"""Seconds that a send is repeated for: well inside the two minutes for which the router knows a repeat."""

LONGEST_NOTE = 2000
"""Characters of a progress note."""

GRACE = 0.5
"""Seconds by which the router's own verdict on a late answer may come before ours."""

CURRENT: ContextVar[Context | None] = ContextVar("agentd_sdk_context", default=None)


class Context:
    """One handling of one message."""

    def __init__(self, work: Work, link: Link, children: Offspring) -> None:
        self.message = work.message
        self._children = children
        self._work, self._link = work, link
        self._order = 0
        self.open = True
        """False once the handler has returned: what is sent later belongs to no message."""

    @property
    def idempotency_key(self) -> str:
        """The same at every attempt of this message: hand it to other systems that know such keys."""
        return self.message.id

    async def send(self, to: str, kind: str, data: Any = None, *, key: str | None = None) -> Sent:
        """Send a message to a unit; returns once it is stored. Raises CallError.

        Give a ``key`` where the order of the sends may differ from one run of the handler to the next.
        """
        params = self._params(to, kind, data, key)
        return Sent.from_wire(await self._link.call("send", params, SEND_FOR))

    async def ask(self, to: str, kind: str, data: Any = None, *, timeout: float = 60, key: str | None = None) -> Any:
        """Send a message and wait for its result, at most ``timeout`` seconds. Raises CallError."""
        params = {**self._params(to, kind, data, key), "timeout": timeout}
        result = await self._link.call("ask", params, timeout + GRACE)
        return result.get("result")

    async def spawn(self, name: str, unit: Mapping[str, Any], *, key: str | None = None) -> Child:
        """Start a unit of one's own (see ``Agent.spawn``); a run of the handler in this process starts it once only."""
        if not self.open:
            raise RuntimeError("the handler has returned, its message is finished: spawn with app.spawn instead")
        self._order += key is None
        return await self._children.spawn(name, unit, f"{key or f'#{self._order}'}/{self.message.id}"[:128])

    async def progress(self, note: str = "") -> None:
        """Say that work goes on: the message's deadline starts anew."""
        self._link.tell("progress", {"delivery": self._work.delivery, "note": note[:LONGEST_NOTE]})

    def _params(self, to: str, kind: str, data: Any, key: str | None) -> dict[str, Any]:
        if not self.open:
            raise RuntimeError("the handler has returned, its message is finished: send with app.send instead")
        if key is None:
            self._order += 1
            key = f"#{self._order}"
        elif key.startswith("#"):
            raise ValueError(f"key {key!r}: keys that begin with # count the calls without a key; choose another")
        return {"to": to, "kind": kind, "data": to_json(data), "delivery": self._work.delivery, "key": key}


class SyncContext:
    """The same for a plain ``def`` handler, which runs in a thread: its calls wait instead of being awaited."""

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self.message = context.message
        self.idempotency_key = context.idempotency_key
        self._context, self._loop = context, loop

    def send(self, to: str, kind: str, data: Any = None, *, key: str | None = None) -> Sent:
        """See Context.send."""
        return asyncio.run_coroutine_threadsafe(self._context.send(to, kind, data, key=key), self._loop).result()

    def ask(self, to: str, kind: str, data: Any = None, *, timeout: float = 60, key: str | None = None) -> Any:
        """See Context.ask."""
        asking = self._context.ask(to, kind, data, timeout=timeout, key=key)
        return asyncio.run_coroutine_threadsafe(asking, self._loop).result()

    def spawn(self, name: str, unit: Mapping[str, Any], *, key: str | None = None) -> Child:
        """See Context.spawn. What the child's own methods return is waited for with ``wait``."""
        return asyncio.run_coroutine_threadsafe(self._context.spawn(name, unit, key=key), self._loop).result()

    def wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for what an ``async`` method of a child returns, such as ``ctx.wait(child.ended())``."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def progress(self, note: str = "") -> None:
        """See Context.progress."""
        asyncio.run_coroutine_threadsafe(self._context.progress(note), self._loop).result()
