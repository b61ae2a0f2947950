"""The desk: the messages that this process has in hand, and how each one ends.

Knows handlers and answers. Knows no socket: a Link carries the answers. A message is in hand from ``take`` until its
answer was written to a connection. That does not mean that it was read: a router that was killed may never have seen
it. So the last answers, as many as may be in flight, stay *unconfirmed* until others take their place; ``holding``
names both, a router that comes back leaves them here, and the answers are repeated to it.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any

from agentd.sdk.errors import Refuse, Retry
from agentd.sdk.link import Answer, Link, Params
from agentd.sdk.offspring import Offspring
from agentd.sdk.work import Message, Work

Identity = tuple[str, str, str | None]

LONGEST = 2000
"""Characters of a reason."""

REMEMBERED = 64
"""Outcomes kept after they were sent, for a router that died before it had read them."""


class Desk:
    """Takes deliveries, runs ``handle`` for each in a task of its own, and gives the answers to the link."""

    def __init__(self, handle: Callable[[Work], Awaitable[Any]]) -> None:
        self._handle = handle
        self.news: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        """What is told of units that this one requires or has spawned: (unit, state)."""
        self.children = Offspring()
        self._works: dict[Identity, Work] = {}
        self._done: OrderedDict[Identity, Answer] = OrderedDict()
        self._unconfirmed: deque[Work] = deque(maxlen=1)
        self._empty = asyncio.Event()
        self._empty.set()
        self._closing = False
        self.started = asyncio.Event()
        """Handlers wait for it: what ``on_start`` prepares is there before the first message is looked at."""
        self.link: Link

    def __len__(self) -> int:
        return len(self._works)

    def holding(self) -> list[str]:
        """Delivery ids in hand."""
        return [work.delivery for work in (*self._works.values(), *self._unconfirmed)]

    def take(self, params: Params) -> None:
        """A delivery: begin it, or recognise it.

        A router that was killed may deliver again what is in hand here or what it was already told the result of.
        Then the work that runs answers the newest attempt, or the remembered result is repeated: no handler runs
        twice in one process for a message that succeeded.
        """
        message = Message.from_wire(params)
        if (work := self._works.get(message.identity)) is not None:
            work.delivery = message.delivery
        elif (answer := self._done.get(message.identity)) is not None:
            self._begin(message).answer = answer
            self._hand_over(self._works[message.identity])
        elif not self._closing:
            work = self._begin(message)
            work.task = asyncio.create_task(self._work(work), name=f"message {message.id}")

    def told(self, unit: str, state: str, params: Params) -> None:
        """A unit that this one requires or has spawned is ``ready`` or ``gone``; a spawned one also ``ended``."""
        self.children.told(params)
        self.news.put_nowait((unit, state))

    def linked(self, in_flight: int) -> None:
        """A new connection stands: repeat what may never have been read, and send what waited for it."""
        self._unconfirmed = deque(self._unconfirmed, maxlen=in_flight)
        for work in self._unconfirmed:
            if work.answer is not None:
                self.link.answer(work.delivery, work.answer)
        for work in list(self._works.values()):
            self._hand_over(work)

    async def drain(self, timeout: float) -> bool:
        """Take nothing new and wait for what is in hand, at most ``timeout`` seconds. True if the desk is empty.

        What is left is not answered: agentd gives it to the next invocation, and it counts as nobody's failure.
        """
        self._closing = True
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Cancel what is left."""
        tasks = [work.task for work in self._works.values() if work.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=0.2)

    def _begin(self, message: Message) -> Work:
        self._unconfirmed = deque(
            (one for one in self._unconfirmed if one.message.identity != message.identity), self._unconfirmed.maxlen
        )
        work = self._works[message.identity] = Work(message, message.delivery)
        self._empty.clear()
        return work

    async def _work(self, work: Work) -> None:
        await self.started.wait()
        work.answer = await self._outcome(work)
        self._hand_over(work)

    async def _outcome(self, work: Work) -> Answer:
        """Run the handler: the root of its task, so every exception ends here and becomes an answer."""
        try:
            return {"result": await self._handle(work)}
        except Refuse as error:
            return _error(str(error) or "refused without a reason", retry=False)
        except Retry as error:
            return _error(str(error), retry=True, delay=error.delay)
        except Exception as error:  # noqa: BLE001 - a task root; recorded on stderr and told to the router
            traceback.print_exc()
            return _error(f"{type(error).__name__}: {error}", retry=True)

    def _hand_over(self, work: Work) -> None:
        if work.answer is None or not self.link.answer(work.delivery, work.answer):
            return
        del self._works[work.message.identity]
        self._unconfirmed.append(work)
        if "result" in work.answer:
            self._done[work.message.identity] = work.answer
            if len(self._done) > REMEMBERED:
                self._done.popitem(last=False)
        if not self._works:
            self._empty.set()


def _error(why: str, *, retry: bool, delay: float | None = None) -> Answer:
    data: dict[str, Any] = {"retry": retry} if delay is None else {"retry": retry, "delay": delay}
    return {"error": {"code": -32000, "message": why[:LONGEST], "data": data}}
