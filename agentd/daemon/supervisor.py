"""The fleet: one Agent per unit, and the roads between them and the world.

Brings the keeper's events and the neighbours' facts to the right mailbox; remembers and tells each change before its
effects are executed; starts units in order and stops them in reverse. What a unit should do is the pure core's to say,
how a plan looks is the host room's.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal as signals
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from agentd.daemon import reports
from agentd.daemon.agent import Agent
from agentd.daemon.commands import Commands
from agentd.daemon.dependencies import Dependencies, Stopping
from agentd.daemon.instances import Instances, unknown
from agentd.daemon.links import Links, conclusions
from agentd.daemon.offspring import Offspring
from agentd.daemon.rounds import Rounds
from agentd.daemon.schedules import Schedules, schedule_of
from agentd.daemon.spawning import Spawning
from agentd.daemon.telling import unit_fact
from agentd.daemon.watch import Watch
from agentd.errors import AgentdError, NotActive, TooLate, Unavailable
from agentd.host.dump import add_last_words, dump
from agentd.host.keeper import Keeper
from agentd.host.witness import Witness
from agentd.keeper.plan import Process
from agentd.model.lifecycle import (
    LIVE,
    Asked,
    Ended,
    Ending,
    Life,
    Note,
    Now,
    Phase,
    Policy,
    Stop,
)
from agentd.model.ordering import stop_order
from agentd.model.unit import Unit
from agentd.store.journal import Journal
from agentd.store.memory import Memory
from agentd.wire.facts import Facts
from agentd.wire.log import logger
from agentd.wire.notify import notify
from agentd.wire.rhythm import to_next

Json = dict[str, Any]
T = TypeVar("T")

SPAWNS_AT_ONCE = 8
"""Spawns that the keeper is asked for at once. First starts and restarts have a bound each, so that a crash does not
wait for a fleet that starts; agentd's own units wait for nobody."""
STOPS_A_TURN = 50
"""Units that are told to stop before the keeper hears of them."""
DUMP_WITHIN = 1.0
"""Seconds that writing down the stacks of a hung unit may delay its SIGABRT."""
ALIVE_EVERY = 1.0
"""Seconds between two words to the keeper that supervision turns."""
ALIVE_WITHIN = 3.0
"""Seconds without such a word after which the keeper kills the daemon."""
STOP_MARGIN = 10.0
"""Seconds that stopping everything may take beyond the units' own stop_timeout."""


class Supervisor:
    """All units of this host, agents and system units alike."""

    def __init__(
        self,
        keeper: Keeper,
        spawning: Spawning,
        memory: Memory,
        remembered: dict[str, Json],
        instances: Instances,
        journal: Journal,
    ) -> None:
        self.agents: dict[str, Agent] = {}
        self.keeper = keeper
        """The connection of this moment; another takes its place when it is lost."""
        self.witness = Witness()
        self.spawning = spawning
        self.facts = Facts("daemon")
        self.links = Links(spawning.runtime, self._heard, self._keep)
        self.dependencies = Dependencies(self.agents, self, limit=spawning.config.fleet.parallel_starts)
        self.offspring = Offspring(self, remembered)
        self.watch = Watch(self.links, self.guard, spawning.probe, Commands(self).ask)
        self.rounds = Rounds(
            self.agents,
            lambda names: self._answered(self.keeper.beats(names)),
            lambda name: self._answered(self.keeper.stamps(name)),
        )
        self.schedules = Schedules(self.agents, self, remembered)
        self.stopping = False
        self.starting = True
        self.on_defect: Callable[[BaseException], None] = _raise
        self.statuses: dict[str, str] = {}
        self.losses: dict[str, Json] = dict(keeper.welcome.get("outputs", {}))
        """What is missing in units' logs, as the keeper counts it."""
        self.stores: dict[str, Json] = dict(keeper.welcome.get("stores", {}))
        """How many descriptors units have left with the keeper, as it tells."""
        self.broken: dict[str, Json] = {}
        """What is wrong with unit files that gave no unit: a finding of each, by name."""
        self.instances = instances
        self._memory = memory
        self._journal = journal
        self._unsent: set[str] = set()
        self._starts, self._restarts = asyncio.Semaphore(SPAWNS_AT_ONCE), asyncio.Semaphore(SPAWNS_AT_ONCE)
        self._watchers: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._saved: dict[str, tuple[str | None, bool, int]] = {
            name: (blob["floor"], blob["wanted"], -1)
            for name, blob in remembered.items()
            if {"floor", "wanted"} == blob.keys()
        }
        """What the store says of each unit: newest id, whether it is wanted, serial of its agenda (-1: none)."""
        self._untold: dict[str, Agent] = {}
        """Those whose blob with the keeper is of yesterday."""
        self._log = logger()
        self.tell_fleet()

    @property
    def memory_notice(self) -> str | None:
        """What is wrong with the file in which lives are remembered."""
        if self._unsent:
            return f"cannot be written, kept by the keeper meanwhile: {', '.join(sorted(self._unsent))}"
        return self._memory.notice

    # --- the fleet ----------------------------------------------------------------------------------------------------

    def add(self, unit: Unit | None, name: str, policy: Policy, life: Life, endings: Iterable[Ending] = ()) -> Agent:
        """Supervise a unit (None: a system unit) whose earlier invocations ended like this. It is not started."""
        agent = Agent(name, unit, policy, life, self)
        agent.endings.extend(endings)
        self.agents[name] = agent
        if unit is not None:
            self.dependencies.put(unit)
            self.schedules.put(agent)
        self._tell(agent)
        agent.arm()
        return agent

    def get(self, name: str) -> Agent:
        """The agent of this name; NoSuchUnit names the nearest."""
        if name not in self.agents:
            raise unknown(name, self.agents, self.broken, self.instances.replicas)
        return self.agents[name]

    def units(self) -> Iterator[tuple[str, Unit]]:
        """The agent units, without the system's own."""
        for name, agent in self.agents.items():
            if agent.unit is not None:
                yield name, agent.unit

    def change(self, unit: Unit) -> Agent:
        """Give an agent a new unit; it holds from its next start."""
        agent = self.agents[unit.name]
        before = schedule_of(agent)
        agent.unit = unit
        agent.policy = Policy.of(unit)
        self.dependencies.put(unit)
        self.schedules.put(agent, before)
        self._tell(agent)
        return agent

    async def drop(self, name: str) -> None:
        """Forget a unit that is stopped: mailbox, facts, memory, and what the keeper holds for it."""
        if (agent := self.agents.pop(name, None)) is None:
            return  # a child, whose end was its end
        self.dependencies.drop(name)
        self.schedules.drop(name)
        self.facts.drop(f"unit/{name}")
        self.watch.drop(agent)
        self.rounds.forget(name)
        self.spawning.floors[name] = agent.life.floor
        self._saved.pop(name, None)
        self.losses.pop(name, None)
        self.stores.pop(name, None)
        self.witness.forget(name)
        self.spawning.forget(name)  # all of ours before the first wait: from there on the name may be another's
        try:
            removed = {"floor": agent.life.floor, "wanted": False, "removed": True}
            self._memory.save(name, removed | self.offspring.remains(name))
        finally:
            forgetting = asyncio.ensure_future(self.keeper.forget(name))
            await agent.close()
            with suppress(Unavailable):  # what the next one adopts of a unit that nobody knows is forgotten then
                await forgetting

    # --- starting and stopping ----------------------------------------------------------------------------------------

    def start(self, name: str, asked: Asked, *, turn: bool = False) -> None:
        """Start a unit and what it needs, once all that it comes after is ready; with ``turn`` when it is its turn, and
        a unit that has a schedule when that says so."""
        agent = self.get(name)
        if turn and schedule_of(agent) is not None:
            self.schedules.enlist(agent, asked)
            return
        self.schedules.by_hand(agent, asked)
        self.dependencies.start(name, asked, turn=turn)
        self._wake()

    def start_alone(self, name: str, asked: Asked) -> None:
        """Start a unit, but nothing that it needs: what an operator stopped is not brought back by automation."""
        self.dependencies.start(name, asked, alone=True)
        self._wake()

    def stop(self, name: str, asked: Asked) -> float:
        """Stop a unit and what depends on it, dependants first; the longest time that it takes, in seconds."""
        self.get(name)
        self.dependencies.cancel(name)
        order = Stopping.of(name, asked, self.dependencies.relations)
        for one in order.events:
            if one in self.agents:
                self.schedules.stop(self.agents[one], order.events[one])
        if len(order.generations) == 1:
            self.agents[name].post(order.events[name])
        else:
            self.background(self._stop_in_order(name, order))
        self._wake()
        return sum(self._patience(generation) for generation in order.generations)

    async def _stop_in_order(self, name: str, order: Stopping) -> None:
        kept = []
        for generation in order.generations:
            agents = [self.agents[one] for one in generation if one in self.agents]
            for agent in agents:
                if (stop := order.events.get(agent.name)) is not None:
                    self.dependencies.cancel(agent.name)
                    agent.post(stop)
                else:
                    kept.append(agent.name)
                    self.dependencies.part(agent.name, name)
            if agents:
                await self.until(lambda: not any(a.life.phase in LIVE for a in agents), self._patience(generation))  # noqa: B023
        self.dependencies.parted(kept)

    async def stop_all(self, asked: Asked) -> None:
        """Stop everything in reverse order: dependants first, the bus last. Gateway and router need each other for
        agents only."""
        self.stopping = True
        self.dependencies.cancel()
        self.tell_fleet()
        graph = self.dependencies.relations.graph(name for name, _ in self.units())
        try:
            order = stop_order(graph)
        except AgentdError:  # files changed while we were away, and what runs is a circle: no order is better
            order = [tuple(graph)]
        for generation in order:
            await self._stop_these([name for name in generation if name in self.agents], asked)
        for system in (("gateway", "router"), ("bus",)):
            await self._stop_these([name for name in system if name in self.agents], asked)

    async def _stop_these(self, names: Iterable[str], asked: Asked) -> None:
        agents = [self.agents[name] for name in names]
        for count, agent in enumerate(agents, 1):
            if self.agents.get(agent.name) is agent:  # and not removed meanwhile
                agent.post(Stop(asked.actor, asked.reason, asked.correlation))
            if not count % STOPS_A_TURN:
                await asyncio.sleep(0)  # these go to the keeper, which works on them while we go on
        patience = self._patience(agent.name for agent in agents)
        await self.until(lambda: all(agent.life.phase not in LIVE for agent in agents), patience)
        self.keeper.post("forget", units=[agent.name for agent in agents if agent.life.phase not in LIVE])

    def _patience(self, names: Iterable[str]) -> float:
        timeouts = [self.agents[name].policy.stop_timeout for name in names if name in self.agents]
        return max(timeouts, default=0.0) + STOP_MARGIN

    async def until(self, predicate: Callable[[], object], timeout: float) -> bool:
        """Wait until predicate holds, looking again at each change; whether it came to hold in time."""
        event = asyncio.Event()
        self._watchers.add(event)
        try:
            async with asyncio.timeout(timeout):
                while not predicate():
                    await event.wait()
                    event.clear()
        except TimeoutError:
            return bool(predicate())
        finally:
            self._watchers.discard(event)
        return True

    async def close(self) -> None:
        """Stop supervising; the processes go on."""
        await self.links.close()
        await self.watch.close()
        self.schedules.close()
        for agent in self.agents.values():
            await agent.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.witness.close()

    # --- World: what agents cause -------------------------------------------------------------------------------------

    def now(self) -> Now:
        """This moment, with a random number for jitter."""
        return Now(time.monotonic(), time.time(), random.random())  # noqa: S311 - jitter, not a secret

    def changed(self, agent: Agent, before: Life) -> None:
        """Remember and tell, before any effect is executed. A heartbeat is nothing that others have to know: whoever
        adopts a unit gives it a whole one."""
        life = agent.life
        beats = life == replace(before, beat=life.beat, deadline=life.deadline)
        memory = (life.floor, life.wanted, self.schedules.serial(agent.name))
        if beats and life.phase is Phase.running and memory == self._saved.get(agent.name):
            return
        if memory != self._saved.get(agent.name):
            self._remember(agent)
        self.send_blob(agent)
        self._tell(agent)
        reports.tidy(self, agent)
        self._wake()

    def keep(self, agent: Agent) -> None:
        """Remember what is known of a unit, though its life did not change."""
        self._remember(agent)
        self.send_blob(agent)
        self._wake()

    def passed(self, agent: Agent, before: Life) -> None:
        """What it means for its children, for those that depend on it, or wait for a turn."""
        self.offspring.changed(agent, before)
        if agent.life.phase is not before.phase or agent.life.ready != before.ready:
            self.dependencies.changed(agent)
            self.judge_soon(agent)

    def told(self, agent: Agent) -> None:
        """Something that the facts say of this unit is different, though not its life."""
        self._tell(agent)
        self.send_blob(agent)
        self._wake()

    def note(self, agent: Agent, note: Note) -> None:
        """A line for the journal, and for the log where it is a transition."""
        invocation = note.invocation or agent.life.invocation
        record = {"kind": note.kind, "unit": agent.name, "invocation": invocation, "actor": note.actor}
        record["correlation"] = agent.correlation
        last = agent.life.last
        extra: Json = {}
        if note.kind == "unit.ended" and last is not None:
            extra = {"cause": str(last.cause), "exit": last.exit, "ran": round(last.ran, 3)}
        self.record({**record, "reason": note.text, **extra})
        self._log.info(note.kind, unit=agent.name, reason=note.text)

    def record(self, record: Json) -> None:
        """Append one record of the daemon's own to the journal."""
        self._journal.append([{"at": time.time(), "source": "daemon", **record}])

    async def spawn(self, agent: Agent, invocation: str) -> Process:
        """Compile the plan and have it executed."""
        if agent.name in self._unsent:
            await self._blob(agent)
        if agent.unit is not None:
            await self._channel_ready(agent.name)
        async with self._turn(agent):
            compiled = await self.spawning.compile(agent, invocation)
            try:
                if agent.life.invocation != invocation:
                    raise NotActive(f"{agent.name}: {invocation} is not wanted any more")
                process, listeners = await self._answered(self.keeper.spawn(compiled.plan, compiled.fds))
            finally:
                compiled.close()
        self.witness.see(process, self.spawning.fifo(agent.name))
        agent.level, agent.warnings = compiled.level, compiled.warnings
        self.spawning.learn(agent.name, listeners)
        return process

    def _turn(self, agent: Agent) -> AbstractAsyncContextManager[None]:
        if agent.unit is None:
            return nullcontext()
        return self._restarts if agent.life.restarts else self._starts

    def see_soon(self, process: Process) -> None:
        """Hold what there is of a process that lives, once whatever is more urgent is done."""
        asyncio.get_running_loop().call_soon(self._see, process)

    def _see(self, process: Process) -> None:
        agent = self.agents.get(process.unit)
        if agent is not None and agent.process is process:
            self.witness.see(process, self.spawning.fifo(agent.name))

    async def signal(self, agent: Agent, invocation: str, signal: str) -> None:
        """Send a signal to its main process."""
        await self._answered(self.keeper.signal(agent.name, invocation, signals.Signals[signal]))

    async def kill(self, agent: Agent, invocation: str) -> None:
        """Kill its whole tree."""
        await self._answered(self.keeper.kill(agent.name, invocation))

    async def _answered(self, asked: Awaitable[T]) -> T:
        """The keeper's answer. One that stays away is a lost keeper: what it did of it, its next snapshot tells."""
        keeper = self.keeper
        self._send_blobs()
        try:
            return await asked
        except TooLate as error:
            keeper.give_up()
            raise Unavailable(str(error)) from error

    async def abort(self, agent: Agent, invocation: str) -> None:
        """Write its stacks down, then send SIGABRT. That they cannot be written delays nothing."""
        process, reason = agent.process, agent.life.reason
        if process is not None:
            directory = self.spawning.config.state / "dumps"
            work = asyncio.to_thread(dump, directory, agent.name, invocation, process.pid, reason)
            try:
                path = await asyncio.wait_for(work, DUMP_WITHIN)
            except (OSError, TimeoutError) as error:
                self._log.warning("unit.undumped", unit=agent.name, error=str(error))
            else:
                agent.dump = str(path)
                named = {"unit": agent.name, "invocation": invocation, "correlation": agent.correlation}
                self.record({"kind": "unit.dumped", **named, "reason": agent.dump})
        await self._answered(self.keeper.signal(agent.name, invocation, signals.SIGABRT))

    async def stamps(self, agent: Agent) -> tuple[float | None, float | None]:
        """The keeper's stamps of its last heartbeat and its last output; none where nobody asks for them."""
        asked = agent.policy.heartbeat is not None or (agent.unit is not None and agent.unit.liveness.progress)
        return await self.rounds.stamps(agent) if asked else (None, None)

    def excused(self, agent: Agent) -> bool:
        """Whether its silence is no hang just now: a model call of its moves."""
        return self.watch.excused(agent)

    def judge(self, agent: Agent, output: float | None) -> None:
        """Its stamps were read: this is when it last printed."""
        self.watch.judge(agent, output, fresh=True)

    def judge_soon(self, agent: Agent) -> None:
        """Have it judged once what happens now is over."""

        def judge() -> None:
            if self.agents.get(agent.name) is agent:
                self.watch.judge(agent)

        asyncio.get_running_loop().call_soon(judge)

    async def stay_alive(self) -> None:
        """Tell the keeper again and again that supervision turns: a daemon that stops doing so is killed by it.

        Each keeper anew: one that is away is followed by another, which expects nothing until it is told.
        """
        while True:
            self.say_alive()
            notify("WATCHDOG=1")  # to a service manager, where one started us
            await asyncio.sleep(to_next(ALIVE_EVERY))

    def say_alive(self, within: float = ALIVE_WITHIN) -> None:
        """Once, and at once where the keeper is another. No answer is waited for."""
        self.keeper.post("alive", within=within)

    # --- what the world reports ---------------------------------------------------------------------------------------

    def heard_keeper(self, event: Json) -> None:
        """An event of the keeper."""
        reports.heard(self, event)

    def ended(self, process: Process, left: list[int]) -> None:
        """A process is dead and its tree gone; the keeper may forget it."""
        self.statuses.pop(process.unit, None)
        if left:
            text = f"processes {left} survived SIGKILL (uninterruptible sleep?)"
            self.record({"kind": "unit.left", "unit": process.unit, "invocation": process.invocation, "reason": text})
        self._last_words(process)
        event = Ended(process.invocation, process.exit, process.ended)
        agent = self.agents.get(process.unit)
        if agent is not None:
            self.end(agent, event)
        if agent is not None and agent.spawning is not None:
            agent.predecessor = process  # a successor is on its way, and with it the keeper forgets this one
        elif self._over(agent):
            self.keeper.post("forget", units=[process.unit])  # now: the keeper has time while the others end
        else:
            self.release(process)

    def _over(self, agent: Agent | None) -> bool:
        """Everything is being stopped, and it has: nobody takes it over any more."""
        return self.stopping and agent is not None and agent.life.phase not in LIVE

    def end(self, agent: Agent, event: Ended) -> None:
        """A unit ended; first those that are restarted with it learn so."""
        chain = self.dependencies.ending(agent, event) if event.invocation == agent.life.invocation else None
        agent.post(event, chain)

    def _last_words(self, process: Process) -> None:
        """What it printed on its way out belongs to its dump."""
        agent = self.agents.get(process.unit)
        if agent is None or not agent.dump.endswith(f"-{process.invocation}.txt"):
            return

        async def add(path: Path, log: Path) -> None:
            try:
                await asyncio.to_thread(add_last_words, path, log)
            except OSError as error:
                self._log.warning("unit.undumped", unit=process.unit, error=str(error))

        self.background(add(Path(agent.dump), self.spawning.log(process.unit)))

    def release(self, process: Process) -> None:
        """Let the keeper forget a dead process. A successor's spawn does so too; one that is away tells of it again."""
        self.keeper.post("release", unit=process.unit, invocation=process.invocation)

    def _heard(self, names: set[str]) -> None:
        """Router or gateway have something new about these units."""
        for name in names:
            agent = self.agents.get(name)
            if agent is None or agent.unit is None:
                continue
            for event in conclusions(agent.unit, agent.life, self.links.of(name)[1]):
                if isinstance(event, Stop):
                    self.schedules.stop(agent, event)
                agent.post(event)
            self.watch.judge(agent)
        self._wake()

    async def _keep(self, owner: str, epoch: str, records: list[Json]) -> None:
        await self._journal.store([{**record, "source": owner, "epoch": epoch} for record in records])

    # --- remembering and telling --------------------------------------------------------------------------------------

    def tell_fleet(self) -> None:
        """State the fact about the fleet as a whole."""
        from agentd import __version__

        self.facts.set("fleet", {"version": __version__, "stopping": self.stopping})

    def _tell(self, agent: Agent) -> None:
        if agent.unit is not None:
            uid = self.spawning.uid(agent.unit)
            fact = unit_fact(agent.unit, agent.life, agent.endings, uid, self.spawning.runtime)
            if needs := self.dependencies.relations.of(agent.name).needs:
                fact["requires"] = list(needs)
                fact["degraded"] = list(self.dependencies.degraded.get(agent.name, ()))
            self.offspring.fact(agent.name, fact)
            self.facts.set(f"unit/{agent.name}", fact)

    def _remember(self, agent: Agent) -> None:
        self._saved[agent.name] = (agent.life.floor, agent.life.wanted, self.schedules.serial(agent.name))
        memo = self.schedules.memo(agent.name)
        try:
            self._memory.save(agent.name, {"floor": agent.life.floor, "wanted": agent.life.wanted, **memo})
            self._unsent.discard(agent.name)
        except AgentdError as error:
            self._unsent.add(agent.name)  # the keeper's blob must carry it before the spawn
            self._log.warning("state.unsaved", unit=agent.name, error=str(error))

    def blob(self, agent: Agent) -> Json:
        """What the next daemon needs to go on with this unit."""
        endings = [[e.invocation, str(e.cause), e.exit, e.at, e.ran, e.text] for e in agent.endings]
        unit = agent.unit.model_dump(mode="json", exclude_unset=True) if agent.unit is not None else None
        transient = agent.name in self.spawning.transient
        return {
            "life": agent.life.to_json(),
            "endings": endings,
            "unit": unit,
            "transient": transient,
            "level": agent.level,
            "correlation": agent.correlation,
            "degraded": list(self.dependencies.degraded.get(agent.name, ())),
            "dump": agent.dump,
            **self.offspring.blob(agent.name),
            **self.schedules.memo(agent.name),
        }

    def remember(self, name: str, blob: Json) -> None:
        """Keep this in the store, under a name that is no unit's."""
        try:
            self._memory.save(name, blob)
        except AgentdError as error:
            self._log.warning("state.unsaved", unit=name, error=str(error))

    def forget_past(self, names: Iterable[str]) -> None:
        """Nothing is remembered any more of these units, which are dropped."""
        for name in names:
            self.spawning.floors.pop(name, None)
            self._memory.drop(name)

    def is_router(self, pid: int) -> bool:
        """Whether this is the router's process: the one that may ask in the name of units."""
        router = self.agents.get("router")
        return router is not None and router.process is not None and router.process.pid == pid

    def send_blob(self, agent: Agent) -> None:
        """Leave with the keeper what the next daemon needs, once for all changes of this turn, and before whatever the
        keeper is asked to do for them."""
        if not self._untold:
            asyncio.get_running_loop().call_soon(self._send_blobs)
        self._untold[agent.name] = agent

    def _send_blobs(self) -> None:
        untold, self._untold = self._untold, {}
        for name, agent in untold.items():
            gone = self.agents.get(name) is not agent or self._over(agent)
            if not gone and reports.fits(self, agent, text := self._text(agent)):
                self.keeper.post("blob", unit=name, text=text)  # without a keeper the store has what matters

    async def _blob(self, agent: Agent) -> None:
        if reports.fits(self, agent, text := self._text(agent)):
            with suppress(AgentdError):  # no keeper: the store has what matters
                await self.keeper.blob(agent.name, text)

    def _text(self, agent: Agent) -> str:
        return json.dumps(self.blob(agent), separators=(",", ":"))

    def listen(self) -> None:
        """Begin to hear router and gateway."""
        for task in self.links.start():
            self.guard(task)
        self.background(self.stay_alive())

    def guard(self, task: asyncio.Task[None]) -> None:
        """A task of supervision that fails is a defect of ours: the daemon ends, and the next one adopts what lives. A
        supervisor that goes on without one of its parts would be worse."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.on_defect(error)

        task.add_done_callback(ended)

    def background(self, work: Any) -> None:
        """Run a coroutine whose result nobody waits for; it ends with the supervisor."""
        task = asyncio.ensure_future(work)
        self.guard(task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _channel_ready(self, name: str) -> None:
        """Give the router a moment to open the channel of a unit that it has not met yet."""
        router = self.links.router
        if router.connected and f"unit/{name}" not in router.facts:
            await self.until(lambda: f"unit/{name}" in router.facts or not router.connected, 1.0)

    def _wake(self) -> None:
        for event in self._watchers:
            event.set()


def _raise(error: BaseException) -> None:
    raise error


def settled(agent: Agent) -> bool:
    """It came to rest: runs and is ready, or does not run."""
    life = agent.life
    return life.phase not in (Phase.starting, Phase.stopping) and (life.phase is not Phase.running or life.ready)
