"""One unit's mailbox: takes messages from the server, gives them to the reader, and accounts for every end.

Everything that changes the bus happens in one task per mailbox (``run``), in turns; events only change the hand and
wake it.

Durable steps of a delivery: 1. the record says who gets which messages · 2. they are written to the socket · 3. the
result arrives · 4. it is acknowledged on the bus · 5. forgotten, remembered as done. After a crash between
- 1 and 2: the reader does not name it in ``holding``, so it is written again, uncounted;
- 2 and 4: the reader names it in ``holding`` or repeats its result; if it ended meanwhile, the record names it as the
  holder and its ending counts;
- 4 and 5: the server has it acknowledged; should it forget, the next record remembers.
Ending of a holder: 1. the daemon's fact (or, one second after a successor's hello, our own conclusion) names the
cause · 2. the record has the attempt counted · 3. it is dead-lettered (agentd/bus/letters.py) or goes to the successor.
A refusal with retry: 1. the record has it counted · 2. it waits. A crash forgets the rest of the wait only.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

from agentd.bus.connection import Connection
from agentd.bus.inbox import Arrival, Inbox, Standing
from agentd.bus.letters import Letters
from agentd.bus.state import State
from agentd.errors import BusUnavailable, Denied
from agentd.router import rpc
from agentd.router.channel import Line
from agentd.router.farewell import farewell
from agentd.router.hand import Hand, Item, Outcome, Stage, from_hand_record
from agentd.router.known import Known
from agentd.router.message import decode
from agentd.router.todo import PURGE_AFTER, Tally, Todo
from agentd.wire.log import logger

_FACT_WAIT = 1.0
_CLAIM_LIFE = 30.0
_CLAIMS = 512
_PURGE_EVERY = 20
_SECOND_LOOK = 1.0
_RETRY = 0.1


class Watcher(Protocol):
    """Who hears what happens in mailboxes."""

    def changed(self, box: Mailbox) -> None:
        """Something that the facts show is different."""

    def arrived(self, box: Mailbox, item: Item) -> None:
        """A message came from the server."""

    def happened(self, box: Mailbox, what: str, item: Item, **more: Any) -> None:
        """History: delivered, done, refused, dead."""

    def finished(self, box: Mailbox, item: Item, outcome: Outcome) -> None:
        """A message is through; its sender may wait for the result."""


class Bus:
    """The bus rooms that every mailbox uses."""

    def __init__(self, connection: Connection, state: State, letters: Letters) -> None:
        self.connection, self.state, self.letters = connection, state, letters
        self.ready = False  # until streams are declared and records read, no mailbox may act


class Mailbox:
    """The mailbox of ``unit``; ``know`` tells it the daemon's facts."""

    def __init__(self, unit: str, known: Known, bus: Bus, watcher: Watcher) -> None:
        self.unit, self.known = unit, known
        self.tally = Tally()
        self.hand = Hand()
        self.line: Line | None = None
        self.declared = asyncio.Event()
        self._bus, self._watcher = bus, watcher
        self._inbox = Inbox(bus.connection, unit, self._arrived)
        self._todo = Todo()
        self._claims: dict[str, rpc.Response | None] = {}
        self._claimant = ""

    # --- what others tell it -------------------------------------------------------------------------------------

    def load(self, record: dict[str, Any]) -> None:
        """What an earlier router recorded; before the first turn."""
        if not self.declared.is_set() and not self.hand.items:
            self.hand = from_hand_record(record)
            if self.hand.items:
                self.need()

    def need(self) -> None:
        """Somebody reads it or sends to it, or something waits in it: from now on it has a consumer on the server.

        A unit that never says hello, and to which nobody writes, costs the server nothing.
        """
        if not self.declared.is_set():
            self._todo.declare = True
            self.wake()

    def know(self, known: Known) -> None:
        """The daemon's facts of this unit changed."""
        if known.in_flight != self.known.in_flight:
            self._todo.declare = self._todo.declare or self.declared.is_set()
        before, self.known = self.known, known
        if self.line and self.line.invocation and known.over(self.line.invocation) is not None:
            self.line.close()
        elif self.line and self.line.invocation:
            self.tell(self.line, before)
        self.wake()

    def tell(self, line: Line, before: Known | None = None) -> None:
        """Tell the reader how those are that its unit requires or has spawned; only what is new since ``before``.

        A reader that does not read is disconnected: its next hello tells it everything again.
        """
        for news in self.known.news(before):
            if line.deaf:
                line.abort()
                return
            line.write(rpc.notification("unit_changed", news))

    def bus_is_back(self) -> None:
        """The connection was lost and is there again: the server may have forgotten things."""
        self._todo.declare = self._todo.declare or self.declared.is_set()
        self._todo.look = True
        self.wake()

    def stored(self) -> None:
        """One more message is in the inbox."""
        self.tally.total += 1
        self.tally.moves += 1
        self._watcher.changed(self)

    def note(self) -> None:
        """A handler's effect is stored: record it soon."""
        self._todo.record = True
        self.wake()

    def wake(self) -> None:
        """There is something to do."""
        self._todo.event.set()

    def hello(self, line: Line, invocation: str, holding: list[str]) -> None:
        """A reader says hello. Denied if its invocation is over."""
        cause = self.known.over(invocation)
        if cause is not None:
            raise Denied(f"hello: invocation {invocation} of {self.unit} is over ({cause})")
        self.need()
        before, self.line = self.line, line
        if before is not None and before is not line:
            before.close()
        if invocation != self._claimant:
            self._claims.clear()
            self._claimant = invocation
        line.invocation, line.since = invocation, time.monotonic()
        self._claims |= dict.fromkeys(holding[:_CLAIMS])
        for item in list(self.hand.at(Stage.OPEN)):
            if item.invocation == invocation and item.delivery not in self._claims:
                self.hand.back(item)
        for item in list(self.hand.at(Stage.WAITING)):
            self._adopt(item)
        self._watcher.changed(self)
        self.wake()

    def gone(self, line: Line) -> None:
        """A connection ended. This releases nothing."""
        if self.line is line:
            self.line = None
            self._watcher.changed(self)

    def answered(self, line: Line, response: rpc.Response) -> None:
        """A reader answers a delivery, perhaps one of an earlier connection or router."""
        delivery = str(response.id)
        item = self.hand.of(delivery)
        if item is not None and item.invocation == line.invocation:
            self._end(item, response)
        elif self._may_claim(line, delivery):
            self._claims[delivery] = response
            for waiting in list(self.hand.at(Stage.WAITING)):
                self._adopt(waiting)

    def progressed(self, line: Line, delivery: str) -> None:
        """A reader says that work goes on."""
        item = self.hand.of(delivery)
        if item is not None and item.invocation == line.invocation:
            item.progress = time.monotonic()
            self._watcher.changed(self)
            self.wake()

    async def opened(self, line: Line, delivery: str, timeout: float) -> Item | None:
        """The open item that the reader of ``line`` names; waits for it if it was claimed at hello."""
        end = time.monotonic() + timeout
        while True:
            item = self.hand.of(delivery)
            if item is not None:
                return item if item.invocation == line.invocation else None
            left = end - time.monotonic()
            if delivery not in self._claims or left <= 0:
                return None
            await self._todo.turned(left)

    def overdue(self, now: float) -> Item | None:
        """The open item that had neither result nor progress for the deadline."""
        _, item = self.hand.wake_at(self.known.deadline)
        return item if item is not None and item.progress and now >= item.progress + self.known.deadline else None

    # --- its task ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn after turn, until cancelled. What goes wrong with the bus is tried again."""
        while True:
            await self._todo.event.wait()
            self._todo.event.clear()
            if not (self._bus.ready and self._bus.connection.up.is_set()):
                continue  # bus_is_back() follows
            try:
                await self._turn()
            except BusUnavailable as e:
                logger().warning("the bus did not follow, trying again", unit=self.unit, error=e.message)
                self._todo.declare = self._todo.declare or self.declared.is_set()
                self._todo.look = True
                self._todo.later(_RETRY)
            except Exception:  # noqa: BLE001  the root of this task: one mailbox must not stop the others
                logger().error("a turn of the mailbox failed, trying again", unit=self.unit, exc_info=True)
                self._todo.look = True
                self._todo.later(1.0)
            self._watcher.changed(self)
            self._todo.tell()

    def rest(self) -> None:
        """No timer may fire any more."""
        self._todo.cancel()

    async def close(self) -> None:
        """The unit is gone: give everything back."""
        if self._bus.ready and self._bus.connection.up.is_set():
            await self._give_back()
            if self.known.parent is not None:
                for item, outcome in await farewell(self.unit, self._inbox, self.hand, self._bus):
                    self._watcher.happened(self, "dead", item, cause=outcome.reason, text=outcome.text)
                    self._watcher.finished(self, item, outcome)

    async def _turn(self) -> None:
        if self._todo.declare:
            await self._declare()
        self._settle()
        await self._finish()
        if self.known.down:
            await self._give_back()
        elif self.line is not None and not self._inbox.bound:
            await self._inbox.bind()
            self._todo.look = True
        if self._todo.look and self._inbox.bound:
            await self._look()
        await self._deliver()
        await self._purge()
        self._plan()

    async def _declare(self) -> None:
        await self._inbox.declare(self.known.in_flight)
        await self._standing()
        self._todo.declare = False
        self.declared.set()

    def _settle(self) -> None:
        """Count the end of every invocation that still holds something."""
        now = time.monotonic()
        for item in list(self.hand.at(Stage.OPEN)):
            cause = self._cause(item.invocation, now)
            if cause is None:
                continue
            item.attempts.ended(item.invocation, cause, time.time())
            self._todo.record = True
            self._again_or_dead(item, f"its reader ended: {cause}", 0.0)

    def _cause(self, invocation: str, now: float) -> str | None:
        """Why this invocation ended, as soon as that is known; None while it may live."""
        cause = self.known.over(invocation)
        if cause is not None or self.line is None or self.line.invocation in (None, invocation):
            return cause
        newer = self.known.invocation == self.line.invocation or (self.line.invocation or "") > invocation
        return "crashed" if newer and now >= self.line.since + _FACT_WAIT else None

    def _again_or_dead(self, item: Item, text: str, delay: float) -> None:
        reason = item.attempts.verdict(self.known.max_deliver, self.known.poison_after)
        if reason is not None:
            self.hand.end(item, Outcome(reason=reason, text=text))
        else:
            self.hand.back(item, time.monotonic() + delay if delay else 0.0)

    async def _finish(self) -> None:
        """Tell the bus what is through. A dead letter is stored before its message is acknowledged."""
        for item in list(self.hand.at(Stage.ENDING)):
            outcome = item.outcome
            assert outcome is not None
            if outcome.reason is not None:
                letter = self._letter(item, outcome)
                await self._bus.letters.put(self.unit, item.seq, letter, item.message.encode())
                self.tally.dead += 1
                self.tally.buried += 1
            await self._inbox.ack(item.reply)
            self.hand.forget(item)
            self._todo.acked += 1
            self._todo.record = True
            self.tally.total = max(0, self.tally.total - 1)
            self.tally.moves += 1
            if outcome.reason is None:
                self.tally.done += 1
            else:
                self._watcher.happened(self, "dead", item, cause=outcome.reason, text=outcome.text)
            self._watcher.finished(self, item, outcome)

    def _letter(self, item: Item, outcome: Outcome) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "seq": item.seq,
            "reason": outcome.reason,
            "text": outcome.text,
            "attempts": max(1, item.attempts.counted),
            "exits": item.attempts.exits,
            "at": time.time(),
        }

    async def _give_back(self) -> None:
        """The unit stays down: unbind properly, then return what is in hand, uncounted."""
        if self._inbox.idle:
            return
        await self._record()
        await self._inbox.unbind()
        for item in list(self.hand.items.values()):
            if item.stage is not Stage.ENDING:
                await self._inbox.nak(item.reply)
                self.hand.release(item)
        await self._record()

    async def _look(self) -> None:
        """Compare with the server: what it wrongly believes to be with us comes again; what is done is said again."""
        standing = await self._standing()
        missing = 0
        for seq in await self._inbox.unacknowledged(standing, self.known.in_flight):
            if seq in self.hand.recent:
                await self._inbox.ack_seq(seq, standing)
            elif seq not in self.hand.items:
                await self._inbox.nak_seq(seq, standing)
                missing += 1
        self.hand.prune(standing.floor)
        self._todo.look = False
        if missing or standing.unacknowledged > len(self.hand.items):
            self._todo.look_again(_SECOND_LOOK)

    async def _deliver(self) -> None:
        """Record who gets what, then write it."""
        line, now = self.line, time.monotonic()
        chosen: list[Item] = []
        known = self.known
        if line is not None and line.invocation is not None and not (known.down or known.leaving or known.hold):
            chosen = self.hand.next(self.known.in_flight, now)
            for item in chosen:
                self.hand.give(item, line.invocation, now)
        if not chosen and not self._todo.record:
            return
        try:
            await self._record()
        except BusUnavailable:
            for item in chosen:
                self.hand.back(item)
            raise
        for item in chosen:
            if item.stage is Stage.OPEN and line is not None and line is self.line:
                self._write(line, item)
            elif item.stage is Stage.OPEN:
                self.hand.back(item)  # the reader left meanwhile and never saw it
                self.wake()

    def _write(self, line: Line, item: Item) -> None:
        params = item.message.deliver(item.delivery, item.attempts.number, self.known.deadline)
        line.write(rpc.call(item.delivery, "deliver", params))
        self.tally.delivered += 1
        self._watcher.happened(self, "delivered", item)

    async def _record(self) -> None:
        self._todo.record = False
        try:
            await self._bus.state.write(self.unit, self.hand.to_record())
        except BusUnavailable:
            self._todo.record = True
            raise

    async def _purge(self) -> None:
        if self._todo.acked >= _PURGE_EVERY or (self._todo.acked and self._todo.purge_due()):
            standing = await self._standing()
            await self._inbox.purge(standing.floor)
            self._todo.acked = 0

    async def _standing(self) -> Standing:
        """Ask the server, and take over its count unless ours changed while the answer was on its way."""
        before = self.tally.moves
        standing = await self._inbox.standing()
        if self.tally.sending == 0 and self.tally.moves == before:
            self.tally.total = standing.total
        return standing

    def _plan(self) -> None:
        """Wake for the next thing that time alone brings."""
        now = time.monotonic()
        waits, oldest = self.hand.wake_at(self.known.deadline)
        if waits is not None and waits > now:
            self._todo.later(waits - now)
        if oldest is not None:
            self._todo.later(max(0.001, oldest.progress + self.known.deadline - now), if_past=False)
        if self._todo.acked:
            self._todo.later(PURGE_AFTER)
        line = self.line
        if line is not None and any(i.invocation != line.invocation for i in self.hand.at(Stage.OPEN)):
            self._todo.later(max(0.001, line.since + _FACT_WAIT - now))

    # --- events --------------------------------------------------------------------------------------------------

    def _arrived(self, arrival: Arrival) -> None:
        known = self.hand.items.get(arrival.seq)
        if known is not None:
            known.reply = arrival.reply
            return
        if arrival.seq in self.hand.recent:
            self._todo.look = True  # the server forgot the acknowledgement
            self.wake()
            return
        item = self.hand.take(arrival.seq, arrival.reply, decode(arrival.body))
        if item.stage is Stage.OPEN and self.line is not None and item.invocation == self.line.invocation:
            self.hand.back(item)
        self._adopt(item)
        self._watcher.arrived(self, item)
        self.wake()

    def _adopt(self, item: Item) -> None:
        """The reader has it already, or has answered it: from an earlier router or connection."""
        line = self.line
        if line is None or line.invocation is None or item.delivery not in self._claims:
            return
        if time.monotonic() > line.since + _CLAIM_LIFE or item.stage is not Stage.WAITING:
            return
        response = self._claims.pop(item.delivery)
        now = time.monotonic()
        order = item.attempts.order
        self.hand.give(item, line.invocation, now)
        item.attempts.order = order
        if response is not None:
            self._end(item, response)
        self._todo.record = True
        self.wake()

    def _may_claim(self, line: Line, delivery: str) -> bool:
        fresh = time.monotonic() <= line.since + _CLAIM_LIFE
        return line is self.line and fresh and len(self._claims) < _CLAIMS and delivery not in self.hand.recent.values()

    def _end(self, item: Item, response: rpc.Response) -> None:
        """A reader's answer to what it holds."""
        self.tally.handled += 1
        self.tally.seconds += time.monotonic() - item.since
        if response.error is None:
            self.hand.end(item, Outcome(result=response.result))
            self._watcher.happened(self, "done", item)
        else:
            self._refused(item, response.error)
        self._watcher.changed(self)
        self.wake()

    def _refused(self, item: Item, error: dict[str, Any]) -> None:
        text = str(error.get("message", ""))[:500].encode("utf-8", "replace").decode()
        data = error.get("data") if isinstance(error.get("data"), dict) else {}
        self.tally.refused += 1
        retry = bool(data and data.get("retry"))
        self._watcher.happened(self, "refused", item, cause="failed" if retry else "refused", text=text)
        if not retry:
            self.hand.end(item, Outcome(reason="refused", text=text))
            return
        if self.known.hold:
            self.hand.back(item)  # out of budget: innocent, and its successor gets it at once
            return
        delay = data.get("delay") if data else None
        if not isinstance(delay, int | float) or isinstance(delay, bool) or not 0 <= delay <= 86400:
            delay = self.known.delay(item.attempts.number)
        item.attempts.refused()
        self._todo.record = True
        self._again_or_dead(item, text, float(delay))
