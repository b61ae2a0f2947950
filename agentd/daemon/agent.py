"""One unit's mailbox: events in, ``step``, effects out.

Carries events to the pure core and its effects to the world, in order; decides nothing itself. Knows no keeper, bus or
journal: the ``World`` does. All methods are called in the daemon's event loop.

Durable steps, each of which a crash may follow:

spawn   1. the life with its new id is remembered (store, keeper blob) and told (facts) · 2. the keeper executes the
        plan (its own steps: keeper/PROTOCOL.md) · 3. the answer makes it running. After 1 the id is burnt and the next
        daemon starts a successor; after 2 it finds the process in the keeper's snapshot and adopts it.
stop    1. the life is stopping, with its purpose and deadline · 2. the signal is sent · 3. the keeper tells the end.
        After 1 or 2 the next daemon repeats the signal and keeps the deadline; an end meanwhile waits with its status.
hold    as stop, with the reason as ``Life.hold``. Nothing depends on having seen the moment: the gateway says
        ``exhausted`` for as long as it is so, and hold and release are drawn from that whenever anybody comes back.
end     1. the keeper keeps the dead process · 2. the life and its ending are remembered and told to the router before a
        successor is spawned · 3. the keeper is told to forget it. After 1 the next daemon learns it from the snapshot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from agentd.daemon.ports import new_chain
from agentd.errors import AgentdError, Conflict, NotActive, SpawnFailed, TooLate, Unavailable
from agentd.keeper.plan import Process
from agentd.model.lifecycle import (
    Abort,
    Asked,
    Beat,
    Deadline,
    Effect,
    Ended,
    Ending,
    Event,
    Excused,
    Hang,
    Hold,
    Kill,
    Life,
    Note,
    Now,
    Phase,
    Policy,
    Refused,
    Release,
    Signal,
    Spawn,
    Spawned,
    step,
)
from agentd.model.unit import Unit

ENDINGS = 16
"""How many endings are remembered for the router: it may have been away for a while."""

ASK_AGAIN = 1.0
"""Seconds until a keeper that did not answer is asked again for a heartbeat."""

LATE = 0.25
"""Seconds that a timer may be late. By more, and the daemon itself stood still (stopped, or starved of the processor):
what happened meanwhile waits in its sockets, and timers come before them."""
HEARING = 0.5
"""Seconds for hearing what was said while the daemon stood still, before anything is judged by what was known."""

_PASSING = frozenset({11, 12, 16, 23, 24, 28, 98, 110, 122})
"""EAGAIN, ENOMEM, EBUSY, ENFILE, EMFILE, ENOSPC, EADDRINUSE, ETIMEDOUT, EDQUOT: the same plan may work later."""
_BEGINS = (Ended, Refused, Hang, Hold, Release)
"""Events that nobody asked for, with which something new begins."""


class World(Protocol):
    """What an agent may cause and ask. ``changed`` is called before any effect of the change is executed, ``passed``
    once they are under way: what follows for others comes after it, in the journal too."""

    def now(self) -> Now: ...
    def changed(self, agent: Agent, before: Life) -> None: ...
    def passed(self, agent: Agent, before: Life) -> None: ...
    def note(self, agent: Agent, note: Note) -> None: ...
    async def spawn(self, agent: Agent, invocation: str) -> Process: ...
    async def signal(self, agent: Agent, invocation: str, signal: str) -> None: ...
    async def kill(self, agent: Agent, invocation: str) -> None: ...
    def release(self, process: Process) -> None: ...
    def guard(self, task: asyncio.Task[None]) -> None: ...
    async def abort(self, agent: Agent, invocation: str) -> None: ...
    async def stamps(self, agent: Agent) -> tuple[float | None, float | None]: ...
    def excused(self, agent: Agent) -> bool: ...
    def judge(self, agent: Agent, output: float | None) -> None: ...


class Agent:
    """A unit that is being supervised. ``unit`` is None for the system units."""

    def __init__(self, name: str, unit: Unit | None, policy: Policy, life: Life, world: World) -> None:
        self.name = name
        self.unit = unit
        self.policy = policy
        self.life = life
        self.endings: deque[Ending] = deque(maxlen=ENDINGS)
        self.process: Process | None = None
        self.level = ""
        self.warnings: tuple[str, ...] = ()
        self.correlation: str | None = None
        """The request, or the event of the world, that its present state follows from."""
        self.blame: str | None = None
        """The request that the next thing to happen to it follows from: an operator's signal."""
        self.spawning: str | None = None
        """The invocation whose spawn is on its way to the keeper."""
        self.unkept = ""
        """Why the next daemon would not know its state."""
        self.predecessor: Process | None = None
        """A dead process that the keeper forgets with the spawn that is on its way."""
        self._world = world
        self.dump = ""
        """Where the stacks of its last hang are written down."""
        self._effects: asyncio.Queue[Spawn | Signal | Kill | Abort] = asyncio.Queue()
        self._next_look: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._moment = self._hearing = 0.0
        """When the timer is due; and until when nothing is judged, because the daemon stood still."""
        self._task = asyncio.create_task(self._execute(), name=f"agent {name}")
        self._look: asyncio.Task[None] | None = None
        world.guard(self._task)

    def post(self, event: Event, chain: str | None = None) -> None:
        """Something happened: decide, remember, tell, and have the effects executed.

        ``chain`` is the correlation id of what it follows from; without one an event of the world begins a new chain.
        """
        before = self.life
        self.life, effects = step(before, event, self.policy, self._world.now())
        if self.life == before and not effects:
            return
        if self.life.last is not None and self.life.last is not before.last:
            self.endings.append(self.life.last)
        if self.life.invocation is None or self.life.invocation != before.invocation:
            self.process = None
        self._follow(event, before, chain)
        self._world.changed(self, before)
        self._arm()
        for effect in effects:
            self._take(effect)
        self._world.passed(self, before)

    def beat(self, invocation: str, at: float) -> None:
        """It was heard at this moment. That moves a deadline, as a rule, and nobody else has to know."""
        event = Beat(invocation, at)
        life, effects = step(self.life, event, self.policy, self._world.now())
        if effects:
            self.post(event)
        elif life is not self.life:
            self.life = life
            self._arm()

    def _follow(self, event: Event, before: Life, chain: str | None) -> None:
        """What this change follows from; what does not begin anything belongs to what was there before."""
        if isinstance(event, Asked):
            chain = event.correlation or chain
        begins = isinstance(event, _BEGINS) or (isinstance(event, Deadline) and before.phase is Phase.running)
        if chain is None and begins and before.phase is not Phase.stopping:
            chain, self.blame = self.blame or new_chain(), None
        self.correlation = chain or self.correlation

    def arm(self) -> None:
        """Arm the timer for a life that was not made by ``post``."""
        self._arm()

    def look_at(self, moment: float | None) -> None:
        """Have it judged at this moment (monotonic), or only when something new is heard."""
        if moment != self._next_look:
            self._next_look = moment
            self._arm()

    def look(self) -> None:
        """Read its stamps and have it judged now."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_and_judge(), name=f"look at {self.name}")
            self._world.guard(self._look)

    async def close(self) -> None:
        """Stop carrying events. The process goes on."""
        self._disarm()
        tasks = [task for task in (self._task, self._look) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, effect: Effect) -> None:
        if isinstance(effect, Note):
            self._world.note(self, effect)
        else:
            if isinstance(effect, Spawn):
                self.spawning = effect.invocation
            self._effects.put_nowait(effect)

    def _arm(self) -> None:
        self._disarm()
        moments = [moment for moment in (self.life.deadline, self._next_look) if moment is not None]
        if moments:
            self._again_at(max(min(moments), self._hearing, asyncio.get_running_loop().time()))

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again_at(self, moment: float) -> None:
        self._disarm()
        self._moment = moment
        self._timer = asyncio.get_running_loop().call_at(moment, self._due)

    def behind(self) -> bool:
        """Whether the daemon stood still a moment ago, so that of this unit old news only may be known."""
        now = asyncio.get_running_loop().time()
        return now < self._hearing or (self._timer is not None and now > self._moment + LATE)

    def _due(self) -> None:
        """A deadline came. Of what runs the stamps are read first: they stay with the keeper until they matter."""
        now = asyncio.get_running_loop().time()
        if now > self._moment + LATE and self._moment != self._hearing:
            self._hearing = now + HEARING
            self._again_at(self._hearing)
            return
        self._timer = self._next_look = None
        if self.life.phase is Phase.running:
            self.look()
        else:
            self.post(Deadline())

    async def _look_and_judge(self) -> None:
        invocation = self.life.invocation
        try:
            beat, output = await self._world.stamps(self)
        except (Unavailable, TooLate):
            # No answer, no judgement. A keeper that is away is followed by adoption; a busy one is asked again.
            self._again_at(asyncio.get_running_loop().time() + ASK_AGAIN)
            return
        if invocation is not None:
            if beat is not None:
                self.post(Beat(invocation, beat))
            if self._world.excused(self):
                self.post(Excused(invocation))
        self.post(Deadline())
        self._world.judge(self, output)
        self._arm()

    async def _execute(self) -> None:
        while True:
            effect = await self._effects.get()
            try:
                await self._do(effect)
            except (NotActive, Unavailable):
                continue  # gone already: its end is on its way; or no keeper: adoption repeats what is due
            except TooLate:
                if isinstance(effect, Spawn):
                    raise  # it may run or not: the next daemon finds out

    async def _do(self, effect: Spawn | Signal | Kill | Abort) -> None:
        match effect:
            case Spawn(invocation):
                try:
                    await self._spawn(invocation)
                finally:
                    if self.spawning == invocation:
                        self.spawning = None
                    if (dead := self.predecessor) is not None and self.process is None:
                        self._world.release(dead)  # nothing came of the spawn
                    self.predecessor = None
            case Signal(invocation, signal):
                await self._world.signal(self, invocation, signal)
            case Kill(invocation):
                await self._world.kill(self, invocation)
            case Abort(invocation):
                await self._world.abort(self, invocation)

    async def _spawn(self, invocation: str) -> None:
        try:
            process = await self._world.spawn(self, invocation)
        except (NotActive, Unavailable, TooLate):
            raise  # without an answer it may run: whoever adopts what lives finds out
        except OSError as error:  # of making the plan, on a full disk for example
            self.post(Refused(invocation, f"its plan cannot be made: {error}", retry=True))
        except SpawnFailed as error:
            passing = error.detail.get("errno") in _PASSING
            self.post(Refused(invocation, str(error), retry=passing))
        except Conflict as error:
            self.post(Refused(invocation, str(error), retry=True))
        except AgentdError as error:
            self.post(Refused(invocation, str(error)))
        else:
            if self.life.invocation == invocation:
                self.process = process
            self.post(Spawned(invocation, process.pid, process.started))
