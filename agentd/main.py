"""The daemon process: joins keeper, store, supervisor, facts, control API and metrics. Nobody imports this file."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import fcntl
import gc
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentd import __version__
from agentd.daemon import config as configuration
from agentd.daemon import unitfiles
from agentd.daemon.adopt import resting, restore, resync
from agentd.daemon.config import Config
from agentd.daemon.control import Controller
from agentd.daemon.dependencies import in_order
from agentd.daemon.instances import Instances
from agentd.daemon.intention import Intention
from agentd.daemon.ports import Actor
from agentd.daemon.spawning import Spawning
from agentd.daemon.supervisor import Supervisor
from agentd.errors import AgentdError, Conflict, Unavailable
from agentd.host.capability import probe
from agentd.host.keeper import Keeper
from agentd.host.witness import raise_limit
from agentd.model.lifecycle import Asked
from agentd.model.unit import SYSTEM_UNITS
from agentd.store.journal import Journal
from agentd.store.memory import Memory
from agentd.wire import log
from agentd.wire.facts import Server
from agentd.wire.leaving import leave
from agentd.wire.notify import notify

if TYPE_CHECKING:
    from agentd.api import metrics as scrape
    from agentd.api import server as api

READY_WITHIN = 15.0
"""Seconds that agents wait at a cold start for router and gateway; then they start all the same."""
FIRST_DELAY, LAST_DELAY = 0.02, 0.5
"""Seconds between two attempts to reach a keeper that is lost: doubling, for ever."""
PR_SET_DUMPABLE = 4
ASKED = Asked("agentd", "agentd came up")

Json = dict[str, Any]


class Kept:
    """What is on our own disk. It is read before the keeper is asked: from then on units wait to be supervised."""

    def __init__(self, config: Config) -> None:
        self.memory = Memory(config.state / "units.log")
        self.lives = self.memory.load()
        self.instances = Instances(self.memory, self.lives)
        self.units = unitfiles.load(config.units, self.instances.names)
        self.journal = Journal.open(config.state / "journal.db")

    async def close(self) -> None:
        """Let go of it; the journal is written first."""
        await self.journal.close()
        self.memory.close()


class Daemon:
    """The daemon's parts, in the order in which they come and go."""

    def __init__(self, config: Config, keeper: Keeper, keeper_path: Path, kept: Kept) -> None:
        self._config = config
        self._keeper_path = keeper_path
        self._ended = False
        """The keeper was told to end: it is not looked for any more."""
        self._looking = False
        """The keeper is lost and looked for."""
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._kept, self._journal = kept, kept.journal
        capabilities = probe(config.runtime, pid=keeper.welcome["keeper"]["pid"])
        spawning = Spawning(config, capabilities, kept.lives)
        self._supervisor = Supervisor(keeper, spawning, kept.memory, kept.lives, kept.instances, self._journal)
        self._controller = Controller(config, self._supervisor, self._journal, self.go_down)
        self._facts = Server(
            self._supervisor.facts,
            self._supervisor.offspring.table(),
            uids=spawning.peers(),
            callers=self._supervisor.is_router,
        )
        self._control: api.Server | None = None
        self._scrape: scrape.Listener | None = None
        self._new: set[str] = set()
        self._going_down: asyncio.Task[None] | None = None
        self._intention = Intention(config.runtime)
        self._asked_down: Actor | None = None
        self._supervisor.on_defect = self.fail

    def adopt(self) -> None:
        """Take over what lives. From here on the keeper's events find their mailboxes."""
        self._controller.take(self._kept.units)
        self._new = restore(self._supervisor, self._kept.units.units) - self._supervisor.instances.resting
        living = sum(agent.process is not None for agent in self._supervisor.agents.values())
        text = f"agentd {__version__} came up as pid {os.getpid()}; {living} processes were running"
        self._supervisor.record({"kind": "daemon.started", "actor": "agentd", "reason": text})

    def adopted(self, seconds: float) -> None:
        """Every unit is supervised again: the snapshot is applied, and each deadline armed."""
        self._supervisor.say_alive(READY_WITHIN)  # first of all: what ends us from here on is no failed start
        living = sum(agent.process is not None for agent in self._supervisor.agents.values())
        gc.freeze()  # what is there by now stays; a collection meanwhile would have been a pause for nothing
        gc.set_threshold(10_000, 20, 100)  # little of what we make is circular, and a look at a thousand units is long
        gc.enable()
        text = f"{living} processes in {1000 * seconds:.0f} ms since it went to the keeper"
        record = {"kind": "daemon.adopted", "actor": "agentd", "reason": text}
        self._supervisor.record({**record, "seconds": seconds, "processes": living})
        log.logger().info("daemon.adopted", seconds=round(seconds, 6), processes=living, pid=os.getpid())

    async def come_up(self) -> None:
        """Serve, and start what is missing."""
        supervisor = self._supervisor
        await self._facts.start(path=self._config.runtime / "facts" / "daemon.sock")
        os.chmod(self._config.runtime / "facts" / "daemon.sock", 0o666)  # noqa: S103 - peers are checked by uid
        supervisor.listen()
        from agentd.api import server as api  # a third of a daemon's start: units are supervised before

        self._control = await api.serve(self._controller, self._config.runtime / "control.sock")
        await self._listen_for_scrapes()
        if supervisor.keeper.welcome.get("stopping"):
            self.go_down(Actor("keeper", None, "it was told to stop"))
            return
        if (actor := self._intention.read(supervisor.keeper.welcome["keeper"]["epoch"])) is not None:
            self.go_down(actor)  # as the daemon before us was doing
            return
        notify("READY=1")
        await self._start(self._new)

    async def _start(self, new: set[str]) -> None:
        """Start the system's own units, then, once they are ready, the agents that nobody has started yet."""
        supervisor = self._supervisor
        await supervisor.spawning.prepare()
        for name in SYSTEM_UNITS:
            if not supervisor.stopping and (name in new or resting(supervisor, name)):
                supervisor.start(name, ASKED)
        agents = [supervisor.agents[name] for name in ("router", "gateway")]
        await supervisor.until(lambda: all(a.life.satisfied for a in agents), READY_WITHIN)
        waiting = in_order(new - set(SYSTEM_UNITS), supervisor.dependencies.relations)
        for name in waiting:
            if name in supervisor.agents and not supervisor.stopping:
                supervisor.start(name, ASKED, turn=True)
        supervisor.schedules.begin()
        supervisor.starting = False

    def go_down(self, actor: Actor) -> None:
        """Stop everything in order, once, and end."""
        if self._going_down is None:
            self._asked_down = actor
            self._intend(actor)
            self._supervisor.stopping = True  # from now on: the task itself begins a moment later
            self._going_down = asyncio.create_task(self._go_down(actor))
            self._going_down.add_done_callback(self.ended_well)

    def _intend(self, actor: Actor) -> None:
        """Before anything is stopped, and before whoever asked is answered: the next daemon is to know."""
        try:
            self._intention.write(self._supervisor.keeper.welcome["keeper"]["epoch"], actor)
        except OSError as error:
            log.logger().warning("down.unwritten", error=str(error), hint="Ignoring: only a daemon's death would ask.")

    async def _go_down(self, actor: Actor) -> None:
        notify("STOPPING=1")
        record = {"kind": "fleet.down", "actor": actor.name, "reason": actor.reason}
        self._supervisor.record({**record, "correlation": actor.correlation})
        asked = Asked(actor.name, actor.reason or "agentd goes down", actor.correlation)
        await self._supervisor.stop_all(asked)
        self._ended = True
        try:
            await asyncio.gather(self._journal.flush(), self._supervisor.keeper.end())
        except AgentdError as error:
            log.logger().warning("keeper.end", error=str(error))
        else:
            self._intention.remove()
        self._supervisor.spawning.sweep()
        self.end(0)

    def ended_well(self, task: asyncio.Task[None]) -> None:
        """Coming up, or going down, is over; if it failed, so does the daemon."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Something of ours broke: end, with the error in the log. Units go on; the next daemon adopts them."""
        log.logger().error("daemon.failed", exc_info=error)
        if not self.done.done():
            self.done.set_exception(error)

    def lost(self) -> None:
        """The keeper is gone, or the connection to it: look for it, or its successor, for ever. The units go on."""
        if self._ended or self._looking or self.done.done():
            return
        self._looking = True
        log.logger().warning("keeper.lost", hint="The units go on. It is looked for until it is back.")
        self._supervisor.record({"kind": "keeper.lost", "actor": "agentd", "reason": "its connection was lost"})
        self._supervisor.background(self._find_keeper())

    async def _find_keeper(self) -> None:
        delay, told = FIRST_DELAY, ""
        while not self._ended:
            early: list[Json] = []
            try:
                keeper = await Keeper.connect(self._keeper_path, on_event=early.append)
            except AgentdError as error:  # nobody there yet, or one whose protocol we do not speak
                if not isinstance(error, Unavailable) and str(error) != told:
                    told = str(error)
                    log.logger().error("keeper.unusable", error=told, hint=error.hint)
            else:
                self._found(keeper, early)
                return
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_DELAY)

    def _found(self, keeper: Keeper, early: list[Json]) -> None:
        """Its snapshot first, then what it told meanwhile."""
        self._looking = False
        self._supervisor.keeper = keeper
        keeper.on_lost = self.lost
        self._supervisor.say_alive()
        resync(self._supervisor)
        keeper.on_event = self.hear
        for event in early:
            self.hear(event)
        about = keeper.welcome["keeper"]
        living = sum(agent.process is not None for agent in self._supervisor.agents.values())
        text = f"keeper {about['version']} as pid {about['pid']}; {living} processes are running"
        self._supervisor.record({"kind": "keeper.found", "actor": "agentd", "reason": text})
        log.logger().info("keeper.found", pid=about["pid"], running=living)
        if self._asked_down is not None:
            self._intend(self._asked_down)
        if keeper.welcome.get("stopping"):
            self.go_down(Actor("keeper", None, "it was told to stop"))
        elif not keeper.connected:
            self.lost()

    def end(self, status: int) -> None:
        """Let ``done`` be done."""
        if not self.done.done():
            self.done.set_result(status)

    def hear(self, event: Json) -> None:
        """An event of the keeper."""
        if event["event"] == "stopping":
            self.go_down(Actor("keeper", None, f"signal {event.get('signal')}"))
        else:
            self._supervisor.heard_keeper(event)

    async def close(self) -> None:
        """Stop serving. Units go on unless they were stopped."""
        if self._control is not None:
            await self._control.close()
        if self._scrape is not None:
            await self._scrape.close()
        await self._facts.close()
        await self._supervisor.close()
        await self._kept.close()
        self._supervisor.keeper.close()

    def _page(self) -> bytes:
        """The metrics of this moment, the neighbours' included."""
        from agentd.daemon.metrics import render

        links = self._supervisor.links
        owners = {"router": links.router.facts.get("metrics"), "gateway": links.gateway.facts.get("metrics")}
        return render(self._controller.status(), owners)

    async def _listen_for_scrapes(self) -> None:
        from agentd.api import metrics as scrape

        address = self._config.metrics.listen
        try:
            self._scrape = await scrape.listen(address, self._page)
        except AgentdError as error:
            self._controller.warnings.append(str(error))
            log.logger().error("metrics.unavailable", error=str(error))
        else:
            self._controller.metrics = self._scrape.address


async def run(config: Config, keeper_path: Path) -> int:
    """Run the daemon until it is told to go; the exit status."""
    early: list[Json] = []
    kept = Kept(config)
    begun = time.monotonic()
    try:
        keeper = await Keeper.connect(keeper_path, on_event=early.append)
    except BaseException:
        await kept.close()
        raise
    daemon = Daemon(config, keeper, keeper_path, kept)
    keeper.on_lost = daemon.lost
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, daemon.end, 0)
    try:
        daemon.adopt()
        keeper.on_event = daemon.hear
        for event in early:
            daemon.hear(event)
        daemon.adopted(time.monotonic() - begun)
        coming = asyncio.create_task(daemon.come_up())
        coming.add_done_callback(daemon.ended_well)
        return await daemon.done
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        await daemon.close()


@contextmanager
def alone(state: Path, runtime: Path) -> Iterator[None]:
    """Hold the state directory, and say for which runtime directory; Conflict if another daemon does."""
    file = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"{state}: another agentd uses this state directory.",
                hint="agentctl status shows it; choose another --state to run a second one.",
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} {runtime}\n".encode(), 0)
        yield
    finally:
        os.close(file)


def main() -> int:
    """The program: ``python -m agentd.main``, started by the keeper or by systemd."""
    parser = argparse.ArgumentParser(prog="agentd")
    for option in ("config", "units", "state", "runtime"):
        parser.add_argument(f"--{option}", type=Path)
    given = parser.parse_args()
    gc.disable()
    log.setup("agentd")
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us through the keeper, in order
    os.umask(0o077)
    raise_limit()
    try:
        config = configuration.load(given.config, units=given.units, state=given.state, runtime=given.runtime)
        configuration.prepare(config)
        keeper = Path(os.environ.get("AGENTD_KEEPER") or config.runtime / "keeper.sock")
        with alone(config.state, config.runtime):
            return asyncio.run(run(config, keeper))
    except AgentdError as error:
        log.logger().error("agentd cannot run", error=error.message, hint=error.hint)
        return error.exit_code


if __name__ == "__main__":
    leave(main())
