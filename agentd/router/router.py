"""The router: joins the bus, the mailboxes, the channels and the facts.

Level-triggered: what the daemon's facts say now is what is served; whoever comes back is told everything again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentd.bus import topology
from agentd.bus.connection import Connection
from agentd.bus.letters import Letters
from agentd.bus.publisher import Publisher
from agentd.bus.state import State
from agentd.errors import AgentdError, BadInput, BusUnavailable, Full
from agentd.router import offspring, rpc
from agentd.router.calls import Calls
from agentd.router.channel import Line, Listener
from agentd.router.hand import Item, Outcome
from agentd.router.known import Known, known
from agentd.router.mailbox import Bus, Mailbox
from agentd.router.post import Draft, Post, draft
from agentd.router.report import Report
from agentd.wire.facts import Change, Facts
from agentd.wire.log import logger

PROTOCOL = 1
_PREFIX = "unit/"
_VANISHED = 10.0
"""Seconds that a unit may be missing from a new daemon's first facts before it counts as removed."""
_SET_UP_RETRY = 0.2
_ASKS_MAX = 256


@dataclass(slots=True)
class Served:
    """One unit: its mailbox, its socket, and the task of its mailbox."""

    box: Mailbox
    listener: Listener
    task: asyncio.Task[None]
    vanishing: asyncio.TimerHandle | None = None
    asks: int = 0


class Router:
    """One router process, or one in a test."""

    def __init__(self, connection: Connection, bounds: topology.Bounds) -> None:
        self.facts = Facts("router")
        self.served = asyncio.Event()
        self._connection, self._bounds = connection, bounds
        self._publisher = Publisher(connection)
        self._bus = Bus(connection, State(connection, self._publisher), Letters(connection, self._publisher))
        self._boxes: dict[str, Mailbox] = {}
        self._units: dict[str, Served] = {}
        self._report = Report(self.facts, self._boxes, connection)
        self._post = Post(self._boxes, self._publisher)
        self._records: dict[str, dict[str, Any]] | None = None
        self._dead: dict[str, int] = {}
        self._inboxes: set[str] = set()
        """Units, served or not, for which messages may be stored since an earlier time."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._applying = asyncio.Lock()
        self.calls = Calls(self._boxes, self._post, self._bus.letters, self._publisher, self._report).table()
        self._methods: dict[str, Callable[[Served, Line, rpc.Request], None]] = {
            "hello": self._hello,
            "send": self._send,
            "ask": self._ask,
            "progress": self._progress,
            **dict.fromkeys(offspring.METHODS, self._ask_daemon),
        }
        self.daemon: offspring.Daemon | None = None
        """Who decides about children; known once there is a connection to look for it."""

    # --- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect to the bus and keep its side in order, until cancelled."""
        self._connection.listeners.append(self._link)
        self._report.bus()
        await self._connection.start()
        await asyncio.Event().wait()

    async def close(self) -> None:
        """End all channels and tasks. What is in hand stays recorded as held."""
        for served in list(self._units.values()):
            served.task.cancel()
            await served.listener.close()
        await _ended(*(served.task for served in self._units.values()), *self._tasks)
        for box in self._boxes.values():
            box.rest()
        await self._connection.close()

    def beat(self) -> None:
        """About once a second: the metrics."""
        self._report.metrics()

    def changed_facts(self, change: Change) -> None:
        """The daemon's facts changed."""
        self._spawn(self._apply(change))

    def _link(self, up: bool) -> None:
        self._report.bus()
        if up:
            self._spawn(self._set_up())

    async def _set_up(self) -> None:
        """The bus is there (again): streams, records, what was not confirmed, every mailbox."""
        while self._connection.up.is_set():
            try:
                await self._publisher.start()
                await topology.declare(self._connection, self._bounds)
                if self._records is None:
                    self._records = await self._bus.state.load()
                    for unit, box in self._boxes.items():
                        box.load(self._records.get(unit, {}))
                await self._publisher.resend()
                self._inboxes |= await topology.inboxes(self._connection)
                self._bus.ready = True
                self._dead = await self._bus.letters.counts()
                for unit, box in self._boxes.items():
                    box.tally.dead = self._dead.get(unit, 0)
                    if unit in self._inboxes:
                        box.need()
                    box.bus_is_back()
            except BusUnavailable as e:
                logger().warning("the bus is not ready, trying again", error=e.message)
                await asyncio.sleep(_SET_UP_RETRY)  # it says so itself: nothing tells when JetStream is ready
                continue
            return

    # --- units ---------------------------------------------------------------------------------------------------

    async def _apply(self, change: Change) -> None:
        async with self._applying:
            for key, fact in change.set.items():
                if key.startswith(_PREFIX):
                    await self._learn(key.removeprefix(_PREFIX), fact)
            for key in change.gone:
                if key.startswith(_PREFIX):
                    self._vanish(key.removeprefix(_PREFIX), at_once=not change.full)
        self.served.set()

    async def _learn(self, unit: str, fact: Any) -> None:
        try:
            now = known(fact)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            logger().error("a fact of the daemon makes no sense, ignoring", unit=unit, error=repr(e))
            return
        await self._serve(unit, now)

    async def _serve(self, unit: str, now: Known) -> None:
        served = self._units.get(unit)
        if served is not None:
            if served.vanishing is not None:
                served.vanishing.cancel()
                served.vanishing = None
            served.box.know(now)
            if (str(served.listener.path), served.listener.uid) == (now.channel, now.uid):
                return
            await served.listener.close()
            served.listener = self._listener(unit, now)
            await self._open(served)
            return
        box = Mailbox(unit, now, self._bus, self)
        if self._records is not None:
            box.load(self._records.get(unit, {}))
        box.tally.dead = self._dead.get(unit, 0)
        if unit in self._inboxes:
            box.need()
        self._boxes[unit] = box
        task = asyncio.create_task(self._run(box), name=f"mailbox {unit}")
        self._units[unit] = served = Served(box, self._listener(unit, now), task)
        self._report.changed(unit)
        await self._open(served)

    async def _run(self, box: Mailbox) -> None:
        if self._records is not None and self._connection.up.is_set():
            box.bus_is_back()
        await box.run()

    def _listener(self, unit: str, now: Known) -> Listener:
        def heard(line: Line, text: bytes) -> None:
            self._heard(self._units[unit], line, text)

        def ended(line: Line) -> None:
            if unit in self._boxes:
                self._boxes[unit].gone(line)

        return Listener(Path(now.channel), now.uid, heard, ended)

    async def _open(self, served: Served) -> None:
        listener = served.listener
        try:
            await listener.open()
        except (OSError, BadInput) as e:
            logger().error("a channel cannot be opened", unit=served.box.unit, path=str(listener.path), error=str(e))

    def _vanish(self, unit: str, *, at_once: bool) -> None:
        served = self._units.get(unit)
        if served is None or served.vanishing is not None:
            return
        loop = asyncio.get_running_loop()
        served.vanishing = loop.call_later(
            0.0 if at_once else _VANISHED, lambda: self._spawn(self._remove(unit, served))
        )

    async def _remove(self, unit: str, served: Served) -> None:
        async with self._applying:
            if served.vanishing is None or self._units.get(unit) is not served:
                return
            del self._units[unit]
            del self._boxes[unit]
            self._inboxes.add(unit)
            await served.listener.close()
            await _ended(served.task)
            try:
                await served.box.close()
            except BusUnavailable as e:
                logger().warning("giving back at a removal failed, ignoring", unit=unit, error=e.message)
            served.box.rest()
            self._report.changed(unit)

    # --- the channel ---------------------------------------------------------------------------------------------

    def _heard(self, served: Served, line: Line, text: bytes) -> None:
        try:
            said = rpc.parse(text)
            if isinstance(said, rpc.Response):
                if line.invocation is not None:
                    served.box.answered(line, said)
                return
            method = self._methods.get(said.method)
            if method is not None and (line.invocation is not None or said.method == "hello"):
                method(served, line, said)
            elif said.wants_answer and method is None:
                raise rpc.Malformed(f"there is no method {said.method!r}", rpc.NO_METHOD, said.id)
            elif said.wants_answer:
                raise rpc.Malformed("say hello first", rpc.INVALID_REQUEST, said.id)
        except rpc.Malformed as e:
            line.write(rpc.error(e.id, e))

    def _hello(self, served: Served, line: Line, said: rpc.Request) -> None:
        try:
            invocation, holding = _hello(said.params)
            if line.invocation not in (None, invocation):
                raise BadInput("hello: this connection is another invocation's; open a new one")
            box = served.box
            deliver_after = rpc.result(
                said.id,
                {
                    "protocol": PROTOCOL,
                    "unit": box.unit,
                    "in_flight": box.known.in_flight,
                    "max_line": rpc.MAX_LINE,
                },
            )
            box.hello(line, invocation, holding)
            line.write(deliver_after)
            box.tell(line)
        except AgentdError as e:
            line.write(rpc.error(said.id, e))

    def _progress(self, served: Served, line: Line, said: rpc.Request) -> None:
        delivery = said.params.get("delivery")
        if isinstance(delivery, str):
            served.box.progressed(line, delivery)
            if said.wants_answer:
                line.write(rpc.result(said.id, {}))
        elif said.wants_answer:
            line.write(rpc.error(said.id, BadInput("delivery: is missing")))

    def _send(self, served: Served, line: Line, said: rpc.Request) -> None:
        async def sent(words: Draft) -> Any:
            stored = await self._post.send(served.box, line, words, reply=False)
            return {"id": stored.message.id, "stored": True, "duplicate": stored.duplicate}

        line.begin()
        self._spawn(self._answer(served, line, said, sent, then=line.finish))

    def _ask(self, served: Served, line: Line, said: rpc.Request) -> None:
        async def asked(words: Draft) -> Any:
            message, result = await self._post.ask(served.box, line, words)
            return {"id": message.id, "result": result}

        if served.asks >= _ASKS_MAX:
            text = f"ask: {_ASKS_MAX} asks of {served.box.unit} are open"
            line.write(rpc.error(said.id, Full(text, hint="Wait for the results of earlier ones.")))
            return
        served.asks += 1

        def left() -> None:
            served.asks -= 1

        self._spawn(self._answer(served, line, said, asked, then=left))

    def _ask_daemon(self, served: Served, line: Line, said: rpc.Request) -> None:
        async def asked() -> None:
            answer = await offspring.answer(self.daemon, served.box.unit, line, said)
            line.finish()
            if said.wants_answer:
                line.write(answer)

        line.begin()
        self._spawn(asked())

    async def _answer(
        self,
        served: Served,
        line: Line,
        said: rpc.Request,
        work: Callable[[Draft], Coroutine[Any, Any, Any]],
        then: Callable[[], None],
    ) -> None:
        """Do the work of one call and answer it; the sender's mistakes are recorded."""
        try:
            answer = rpc.result(said.id, await work(draft(said.params)))
        except AgentdError as e:
            served.box.tally.rejected += 1
            answer = rpc.error(said.id, e)
            self._report.record(
                "rejected",
                served.box.unit,
                to=_shown(said.params.get("to")),
                type=_shown(said.params.get("kind")),
                code=e.code,
                text=e.message.encode("utf-8", "replace").decode(),
            )
        finally:
            then()
        if said.wants_answer:
            line.write(answer)

    # --- what mailboxes tell -------------------------------------------------------------------------------------

    def changed(self, box: Mailbox) -> None:
        """Something that the facts show is different."""
        self._report.changed(box.unit)

    def arrived(self, box: Mailbox, item: Item) -> None:
        """A message came from the server."""
        self._post.arrived(item)

    def happened(self, box: Mailbox, what: str, item: Item, **more: Any) -> None:
        """History."""
        self._report.record_item(what, box.unit, item, **more)

    def finished(self, box: Mailbox, item: Item, outcome: Outcome) -> None:
        """A message is through."""
        self._post.finished(item, outcome)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger().error("a task of the router failed", exc_info=task.exception())


async def _ended(*tasks: asyncio.Task[None]) -> None:
    """Cancel until it worked: nats-py turns a cancellation into a time-out in places."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.2)


def _hello(params: dict[str, Any]) -> tuple[str, list[str]]:
    """The invocation and what it holds."""
    protocol, invocation, holding = params.get("protocol"), params.get("invocation"), params.get("holding", [])
    if not isinstance(protocol, int) or isinstance(protocol, bool) or protocol < 1:
        raise BadInput("protocol: the version that you speak; this is 1")
    if not isinstance(invocation, str) or not 0 < len(invocation) <= 64 or not invocation.isascii():
        raise BadInput("invocation: the value of AGENTD_INVOCATION")
    if not isinstance(holding, list) or not all(isinstance(delivery, str) for delivery in holding):
        raise BadInput("holding: a list of delivery ids")
    return invocation, holding


def _shown(value: Any) -> str | None:
    return value[:100].encode("utf-8", "replace").decode() if isinstance(value, str) else None
