"""The agent: handlers by kind, and the life of the process around them.

    start → connect and hello → on_start → READY=1 → messages … → SIGTERM → STOPPING=1, drain → exit 0

Knows the order of things. How messages travel is the link's business, how they end the desk's.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from agentd.sdk.channel import Channel
from agentd.sdk.console import Console
from agentd.sdk.context import CURRENT, GRACE, SEND_FOR, Context
from agentd.sdk.desk import Desk
from agentd.sdk.errors import AgentError, Refuse, Rejected
from agentd.sdk.handler import Handler, in_thread
from agentd.sdk.link import Link
from agentd.sdk.notify import Notifier
from agentd.sdk.offspring import Child, Offspring
from agentd.sdk.typed import to_json
from agentd.sdk.work import Sent, Work

Function = TypeVar("Function", bound=Callable[..., Any])
Start = TypeVar("Start", bound=Callable[[], Any])
Changed = TypeVar("Changed", bound=Callable[[str, str], Any])

ANY = "*"


class Agent:
    """A program that takes messages. ``drain`` is the longest time, in seconds, that SIGTERM waits for work in hand."""

    def __init__(self, *, drain: float = 8.0) -> None:
        self._handlers: dict[str, Handler] = {}
        self._on_start: list[Callable[[], Any]] = []
        self._on_unit_changed: list[Callable[[str, str], Any]] = []
        self._drain = drain
        self._desk: Desk | None = None
        self._notifier: Notifier | None = None

    def on(self, kind: str) -> Callable[[Function], Function]:
        """Register a handler ``(ctx, data)`` for a kind; ``"*"`` takes every kind that has none of its own.

        ``async def`` runs on the loop that beats; ``def`` runs in a thread. The annotation of ``data`` is checked
        before the handler is called. What it returns is the result. The function itself stays as it is.
        """

        def register(function: Function) -> Function:
            if kind in self._handlers:
                raise ValueError(f"two handlers for the kind {kind!r}")
            self._handlers[kind] = Handler(kind, function)
            return function

        return register

    def on_start(self, function: Start) -> Start:
        """Register a function to be run once, connected but before READY and before the first message."""
        self._on_start.append(function)
        return function

    def on_unit_changed(self, function: Changed) -> Changed:
        """Register a function ``(unit, state)`` for news of units that this one requires (``"gone"`` or ``"ready"``)
        or has spawned (also ``"ended"``).

        Called after ``on_start``, one piece of news after the other. After a reconnect each is told again.
        """
        self._on_unit_changed.append(function)
        return function

    async def send(self, to: str, kind: str, data: Any = None, *, key: str | None = None) -> Sent:
        """Send a message to a unit, also outside a handler; returns once it is stored. Raises CallError.

        Outside a handler the ``key`` is the message's id: repeating it within two minutes stores nothing new.
        """
        if (context := _current()) is not None:
            return await context.send(to, kind, data, key=key)
        return Sent.from_wire(await self._link().call("send", _outside(to, kind, data, key), SEND_FOR))

    async def ask(self, to: str, kind: str, data: Any = None, *, timeout: float = 60, key: str | None = None) -> Any:
        """Send a message and wait for its result, also outside a handler. Raises CallError."""
        if (context := _current()) is not None:
            return await context.ask(to, kind, data, timeout=timeout, key=key)
        params = {**_outside(to, kind, data, key), "timeout": timeout}
        result = await self._link().call("ask", params, timeout + GRACE)
        return result.get("result")

    async def spawn(self, name: str, unit: Mapping[str, Any], *, key: str | None = None) -> Child:
        """Start a unit of one's own: ``unit`` is what would stand in its file, as tables. Returns once it is remembered
        and on its way, which it begins when this agent is ready. Raises CallError; its unit file bounds it (may_spawn).

        The child's name is ``<this unit>~<name>``, and it ends with this process at the latest. With a ``key`` a spawn
        that is repeated starts nothing twice, even if the child has ended meanwhile.
        """
        if (context := _current()) is not None:
            return await context.spawn(name, unit, key=key)
        return await self._children().spawn(name, unit, key or uuid.uuid4().hex)

    async def children(self) -> list[dict[str, Any]]:
        """The descendants of this process: ``unit``, ``state`` (ready, gone, ended), and of an end cause and exit."""
        return await self._children().listed()

    def status(self, text: str) -> None:
        """One line that ``agentctl status`` shows for this unit."""
        if self._notifier is not None:
            self._notifier.say("STATUS=" + " ".join(text.split()))

    def run(self) -> None:
        """Run until SIGTERM, then exit 0. Without agentd (no AGENTD_CHANNEL) messages are read from stdin."""
        path = os.environ.get("AGENTD_CHANNEL")
        try:
            code = asyncio.run(self._serve(path) if path else self._converse())
        except AgentError as error:
            sys.exit(f"agentd.sdk: {error}")
        except KeyboardInterrupt:  # at a terminal; under agentd SIGINT drains
            code = 130
        sys.exit(code)

    async def _serve(self, path: str) -> int:
        """Under agentd."""
        stop = _stop_event()
        self._desk = desk = Desk(self._handle)
        desk.link = desk.children.link = channel = Channel(path, os.environ.get("AGENTD_INVOCATION", ""), desk)
        self._notifier = Notifier.from_environment()
        self._notifier.start_beating()
        running = asyncio.create_task(channel.run(), name="channel")
        telling = asyncio.create_task(self._tell(desk), name="news")
        if await _unless(stop, running, self._begin(channel)):
            self._notifier.say("READY=1")
            desk.started.set()
            await _unless(stop, running, stop.wait())
        self._notifier.say(f"STOPPING=1\nSTATUS=draining: {len(desk)} in hand")
        drained = await desk.drain(self._drain if desk.started.is_set() else 0)
        await desk.close()
        running.cancel()
        telling.cancel()
        await channel.flush()
        self._notifier.close()
        if not drained:
            _leave_at_once()
        return 0

    async def _begin(self, channel: Channel) -> None:
        await channel.up.wait()
        await self._prepare()

    async def _converse(self) -> int:
        """Without agentd: messages from stdin, one after the other."""
        self._desk = desk = Desk(self._handle)
        desk.link = desk.children.link = console = Console(desk)
        await self._prepare()
        desk.started.set()
        return await console.run()

    async def _prepare(self) -> None:
        for function in self._on_start:
            if inspect.iscoroutinefunction(function):
                await function()
            else:
                await in_thread(function)

    async def _tell(self, desk: Desk) -> None:
        await desk.started.wait()
        while True:
            news = await desk.news.get()
            for function in self._on_unit_changed:
                try:
                    if inspect.iscoroutinefunction(function):
                        await function(*news)
                    else:
                        await in_thread(function, *news)
                except Exception:  # noqa: BLE001 - the author's function: its failure ends neither the news nor the agent
                    traceback.print_exc()

    async def _handle(self, work: Work) -> Any:
        message = work.message
        handler = self._handlers.get(message.kind) or self._handlers.get(ANY)
        if handler is None:
            known = ", ".join(sorted(self._handlers)) or "none"
            raise Refuse(f"no handler for the kind {message.kind!r}; this agent takes: {known}")
        context = Context(work, self._link(), self._children())
        token = CURRENT.set(context)
        try:
            return await handler(context, message.data)
        finally:
            context.open = False
            CURRENT.reset(token)

    def _children(self) -> Offspring:
        if self._desk is None:
            raise RuntimeError("the agent does not run yet: spawn from a handler or from on_start")
        return self._desk.children

    def _link(self) -> Link:
        if self._desk is None:
            raise RuntimeError("the agent does not run yet: send from a handler or from on_start")
        return self._desk.link


def _current() -> Context | None:
    context = CURRENT.get()
    return context if context is not None and context.open else None


def _outside(to: str, kind: str, data: Any, key: str | None) -> dict[str, Any]:
    return {"to": to, "kind": kind, "data": to_json(data), "id": key or uuid.uuid4().hex}


def _stop_event() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second one ends the process as if there were no handler."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def asked() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    return stop


async def _unless(stop: asyncio.Event, channel: asyncio.Task[None], doing: Awaitable[Any]) -> bool:
    """Await ``doing`` until the stop is asked for. Raises what ended the channel. True if it was done."""
    task = asyncio.ensure_future(doing)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped, channel}, return_when=asyncio.FIRST_COMPLETED)
        if channel.done():
            await channel
            raise Rejected("the channel ended")
        if stop.is_set():
            return False
        await task
        return True
    finally:
        task.cancel()
        stopped.cancel()


def _leave_at_once() -> None:
    """End although a thread still works: it cannot be cancelled, and waiting for it would end in SIGKILL."""
    print("agentd.sdk: work in hand did not end in time; it will be delivered again", file=sys.stderr)  # noqa: T201
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
