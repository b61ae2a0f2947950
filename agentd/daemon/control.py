"""The control API's requests, carried out: each method is one row of api/API.md. Knows no HTTP."""

from __future__ import annotations

import asyncio
import os
import signal as signals
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from agentd import __version__
from agentd.daemon import logs, unitfiles
from agentd.daemon.agent import Agent
from agentd.daemon.config import Config
from agentd.daemon.dependencies import in_order
from agentd.daemon.deployment import Deployment
from agentd.daemon.ports import Actor, Json
from agentd.daemon.status import unit_status
from agentd.daemon.supervisor import Supervisor, settled
from agentd.errors import AgentdError, BadInput, Conflict, Denied, NoSuchUnit, NotActive, Unavailable, UnitFileError
from agentd.host import doctor
from agentd.model import explanation, reading, verify
from agentd.model.lifecycle import LIVE, Asked
from agentd.model.template import instances, is_template, template_of
from agentd.model.unit import SYSTEM_UNITS
from agentd.store.journal import Journal
from agentd.wire.log import logger

Ask = Callable[[str, Actor, float | None], Awaitable[Json]]
"""A request about one unit: who asks, and how long it waits."""

DONE_WITHIN = 60.0
"""Seconds that a request waits for its effect when it does not say how long."""
KEEPER_HINT = "Start it again with: agentctl up (under systemd it comes back by itself)."


class Controller:
    """Implements ``ports.Control`` on the supervisor."""

    def __init__(self, config: Config, supervisor: Supervisor, journal: Journal, end: Callable[[Actor], None]) -> None:
        self._config = config
        self._supervisor = supervisor
        self._journal = journal
        self._end = end
        self._deployment = Deployment(config, supervisor)
        self._since = time.time()
        self.warnings: list[str] = []
        self.metrics: str | None = None

    # --- looking ------------------------------------------------------------------------------------------------------

    def status(self, unit: str | None = None) -> Json:
        """Everything, or one unit."""
        supervisor = self._supervisor
        agents = [supervisor.agents[name] for name in self._meant(unit)] if unit else list(supervisor.agents.values())
        return {"agentd": self._about(), "units": [unit_status(supervisor, agent) for agent in agents]}

    def explain(self, unit: str) -> Json:
        """Each setting with its value and where it comes from, and what would be executed."""
        agent = self._supervisor.get(unit)
        if agent.unit is None:
            raise BadInput(f"{unit} is a system unit: it has no unit file.", hint="agentctl status shows it.")
        host = {("isolation", "level"): agent.level} if agent.level else {}
        rows = [row.to_json() for row in explanation.rows(agent.unit, host)]
        argv = list(agent.unit.agent.exec)
        where = {"file": agent.unit.file, "dropins": list(agent.unit.dropins)}
        return {"name": unit, **where, "settings": rows, "argv": argv, "level": agent.level}

    def files(self, unit: str) -> Json:
        """The files that a unit, or a template, is made of, as they are now."""
        found = self._deployment.files(unit)
        if not found and (agent := self._supervisor.get(unit)).unit is None:
            raise BadInput(f"{unit} is a system unit: it has no unit file.", hint="agentctl status shows it.")
        return {"name": unit, "file": None if found else agent.unit.file if agent.unit else None, "files": found}

    def logs(
        self,
        unit: str,
        lines: int | None,
        follow: bool,
        *,
        since: float | None = None,
        until: float | None = None,
        json: bool = False,
    ) -> AsyncIterator[bytes]:
        """The unit's output, as it was printed or as JSON lines."""
        if not self._supervisor.offspring.known(unit):
            self._supervisor.get(unit)
        path = self._supervisor.spawning.log(unit)
        if json:
            return logs.read_lines(path, unit, lines, follow, since=since, until=until)
        return logs.read(path, lines, follow, since=since, until=until)

    async def journal(self, query: Json) -> Json:
        """Records of the journal."""
        return {"records": await self._journal.query(**query)}

    async def doctor(self) -> Json:
        """What this host gives, tried."""
        return {"checks": await self._supervisor.spawning.examine(doctor.examine)}

    def is_unit_process(self, pid: int) -> bool:
        """Whether this process belongs to a unit."""
        supervisor = self._supervisor
        mains = (agent.process.pid for agent in supervisor.agents.values() if agent.process is not None)
        return supervisor.spawning.owns(pid, frozenset({*mains, supervisor.keeper.welcome["keeper"]["pid"]}))

    # --- one unit -----------------------------------------------------------------------------------------------------

    async def start(self, unit: str, actor: Actor, wait: float | None = None) -> Json:
        """Start it; the answer comes when it is ready, or has come to rest otherwise."""
        if is_template(unit):
            return await self._each(self.start, unit, actor, wait)
        if unit not in self._supervisor.agents:
            self._make(unit)
        agent = self._permit(unit, "start")
        self._supervisor.start(unit, _asked(actor))
        self._turned(unit, on=True)
        await self._supervisor.until(lambda: self._rests(agent), DONE_WITHIN if wait is None else wait)
        return unit_status(self._supervisor, agent)

    async def stop(self, unit: str, actor: Actor, wait: float | None = None) -> Json:
        """Stop it; the answer comes when its tree is gone."""
        if is_template(unit):
            return await self._each(self.stop, unit, actor, wait)
        agent = self._permit(unit, "stop")
        patience = self._supervisor.stop(unit, _asked(actor))
        self._turned(unit, on=False)
        await self._gone(agent, patience if wait is None else wait)
        return unit_status(self._supervisor, agent)

    async def restart(self, unit: str, actor: Actor, wait: float | None = None) -> Json:
        """Stop it if it runs, and run it."""
        if is_template(unit):
            return await self._each(self.restart, unit, actor, wait)
        agent = self._permit(unit, "restart")
        if agent.life.phase not in LIVE:
            return await self.start(unit, actor, wait)
        before = agent.life.invocation
        self._supervisor.schedules.by_hand(agent, _asked(actor))
        self._supervisor.dependencies.restart(unit, _asked(actor))
        done = lambda: agent.life.invocation != before and self._rests(agent)  # noqa: E731
        await self._supervisor.until(done, self._patience(agent) if wait is None else wait)
        return unit_status(self._supervisor, agent)

    async def kill(self, unit: str, signal: str, actor: Actor) -> Json:
        """Send a signal to its main process; what follows is policy."""
        agent = self._supervisor.get(unit)
        name = signal if signal.startswith("SIG") else f"SIG{signal}"
        if name not in signals.Signals.__members__:
            raise BadInput(f"{signal!r} is not a signal.", hint="For example SIGKILL, SIGTERM or SIGUSR1.")
        if agent.life.invocation is None:
            raise NotActive(f"{unit} is not running: it is {agent.life.phase}.", hint=f"agentctl start {unit}")
        record = {"kind": "unit.signalled", "unit": unit, "invocation": agent.life.invocation}
        reason = f"{name} {actor.reason}".strip()
        self._supervisor.record({**record, "actor": actor.name, "reason": reason, "correlation": actor.correlation})
        agent.blame = actor.correlation
        await self._supervisor.signal(agent, agent.life.invocation, name)
        return unit_status(self._supervisor, agent)

    async def remove(self, unit: str, actor: Actor) -> Json:
        """Stop it and forget it, with its files; a template with all of its instances."""
        instances = self._supervisor.instances
        if is_template(unit):
            return await self._remove_template(unit, actor)
        if unit not in self._supervisor.agents and unit in instances.names:
            instances.forget(unit)  # its template is gone or broken: there is nothing to stop
            return {"removed": unit, "files": []}
        self._permit(unit, "remove")
        if instances.asked_for(unit):
            above = template_of(unit)
            message = f"{unit} is one of the {instances.replicas[above or '']} replicas that {above}.toml asks for."
            hint = f"agentctl stop {unit} keeps it down; lower replicas and deploy, or agentctl remove {above}."
            raise Conflict(message, hint=hint)
        await self._forget(unit, actor)
        return {"removed": unit, "files": self._deployment.uninstall(unit)}

    async def _remove_template(self, template: str, actor: Actor) -> Json:
        there = self._deployment.files(template)
        names = instances(template, self._supervisor.agents) if there else self._meant(template)
        self._going_on()
        for name in names:
            self._supervisor.stop(name, _asked(actor))
        for name in names:
            if name in self._supervisor.agents:
                await self._forget(name, actor)
        for name in instances(template, list(self._supervisor.instances.names)):
            self._supervisor.instances.forget(name)
        return {"removed": template, "units": names, "files": self._deployment.uninstall(template)}

    async def _forget(self, unit: str, actor: Actor) -> None:
        """Stop a unit and forget it; its files are another matter."""
        agent = self._supervisor.get(unit)
        if not await self._gone(agent, self._supervisor.stop(unit, _asked(actor))):
            raise Conflict(f"{unit} does not stop: it is {agent.life.phase}.", hint="agentctl status shows why.")
        self._supervisor.instances.forget(unit)
        await self._supervisor.drop(unit)
        record = {"kind": "unit.removed", "unit": unit, "actor": actor.name, "reason": actor.reason}
        self._supervisor.record({**record, "correlation": actor.correlation})

    # --- unit files ---------------------------------------------------------------------------------------------------

    async def check(self, files: list[Json]) -> Json:
        """Read, verify and try the files against this host; touches nothing."""
        _, loaded = await self._deployment.judge(files)
        return {"findings": list(loaded.findings), "units": sorted(loaded.units), "templates": sorted(loaded.replicas)}

    async def deploy(self, files: list[Json], actor: Actor) -> Json:
        """Install what is right, then start what is new, restart what changed, and end what is asked for no more."""
        self._going_on()
        given, loaded = await self._deployment.judge(files)
        self._going_on()
        change = await self._deployment.install(given, loaded, self._going_on)
        for name in in_order([*change.started, *change.restarted], self._supervisor.dependencies.relations):
            if name in change.started:
                self._supervisor.start(name, _asked(actor), turn=True)
            else:
                asked = Asked(actor.name, actor.reason or "its unit file changed", actor.correlation)
                self._supervisor.dependencies.restart(name, asked)
        done = {"started": change.started, "restarted": change.restarted, "unchanged": change.unchanged}
        done |= {"removed": change.surplus, "templates": change.templates}
        record = {"kind": "fleet.deployed", "actor": actor.name, "reason": actor.reason, **done}
        self._supervisor.record({**record, "correlation": actor.correlation})
        fewer = replace(actor, reason=actor.reason or "its template asks for fewer replicas")
        await asyncio.gather(*(self._forget(name, fewer) for name in change.surplus))
        return {"findings": list(loaded.findings), **done}

    async def run(self, name: str, unit: Json, actor: Actor) -> Json:
        """A transient unit: it is gone when the fleet goes down."""
        self._going_on()
        if name in SYSTEM_UNITS:
            raise UnitFileError(f"{name!r} is the name of one of agentd's own units.", hint="Choose another --name.")
        if name in self._supervisor.agents and self._supervisor.agents[name].life.phase in LIVE:
            raise Conflict(f"{name} is running already.", hint="Choose another --name, or stop it first.")
        made = reading.from_dict(name, unit)
        for finding in verify.verify({**dict(self._supervisor.units()), name: made}, only=[name]):
            if finding.severity == "error":
                raise UnitFileError(f"{finding.key}: {finding.message}", hint=finding.hint)
        if name in self._supervisor.agents and self._supervisor.agents[name].unit != made:
            if name not in self._supervisor.spawning.transient:
                raise Conflict(f"{name} is a unit with a file.", hint="Choose another --name, or deploy the change.")
            self._supervisor.change(made)
        for problem in self._supervisor.spawning.check(name, made):
            if problem["severity"] == "error":
                raise UnitFileError(str(problem["message"]), hint=problem.get("hint"))
        self._supervisor.spawning.transient.add(name)
        self._deployment.adopt(made)
        return await self.start(name, actor)

    # --- neighbours ---------------------------------------------------------------------------------------------------

    async def send(self, message: Json, actor: Actor) -> Json:
        """A message from a person."""
        wait = float(message.get("wait") or 0.0)
        self._agent_unit(str(message.get("to")))
        answer = await self._supervisor.links.router.call("send", message, timeout=wait + 10.0)
        return dict(answer)

    async def letters(self, method: str, params: Json, actor: Actor) -> Json:
        """Dead letters: list, show, replay, purge."""
        answer = await self._supervisor.links.router.call(f"dlq.{method}", params, timeout=30.0)
        if method in ("replay", "purge"):
            self._supervisor.record({"kind": f"letters.{method}", "actor": actor.name, **params, **answer})
        return dict(answer)

    async def budget(self, method: str, params: Json, actor: Actor) -> Json:
        """Budgets: show, raise, reset."""
        if params.get("unit"):
            self._agent_unit(str(params["unit"]))
        if method != "show":
            params = {**params, "actor": actor.name, "reason": actor.reason}
        answer = await self._supervisor.links.gateway.call(f"budget.{method}", params)
        return dict(answer)

    def down(self, actor: Actor) -> Json:
        """Stop everything in order and end. Refused while no keeper is there: the units would go on."""
        if not self._supervisor.keeper.connected:
            raise Unavailable("the keeper is away, and nobody else can stop units.", hint=KEEPER_HINT)
        self._end(actor)
        return {"stopping": True}

    # --- pieces -------------------------------------------------------------------------------------------------------

    def take(self, loaded: unitfiles.Loaded) -> None:
        """Remember which unit files are broken, to show them."""
        self._deployment.take(loaded)

    def _about(self) -> Json:
        supervisor, config = self._supervisor, self._config
        bus = supervisor.links.router.facts.get("bus")
        warnings = list(self.warnings)
        if not self._journal.healthy:
            warnings.append(f"journal: {self._journal.error}; supervision goes on")
        if self._journal.notice:
            warnings.append(f"journal: {self._journal.notice}")
        if self._supervisor.memory_notice:
            warnings.append(f"state: {self._supervisor.memory_notice}")
        keeper = supervisor.keeper
        if not keeper.connected:
            warnings.append(f"keeper: lost; the units go on, nothing is started or stopped. {KEEPER_HINT}")
        return {
            "version": __version__,
            "pid": os.getpid(),
            "keeper_pid": keeper.welcome["keeper"]["pid"] if keeper.connected else None,
            "keeper_requests": dict(keeper.asked),
            "started": self._since,
            "units": sum(1 for _ in supervisor.units()),
            "state_dir": str(config.state),
            "runtime_dir": str(config.runtime),
            "units_dir": str(config.units),
            "gateway": supervisor.spawning.gateway,
            "metrics": self.metrics,
            "bus": bus,
            "upstreams": supervisor.links.gateway.facts.get("upstreams"),
            "journal": {"healthy": self._journal.healthy, "dropped": self._journal.dropped},
            "warnings": warnings,
            "broken": [
                {"file": f["file"], "message": f["message"], "hint": f["hint"]} for f in self._deployment.broken
            ],
            "starting": supervisor.starting or supervisor.dependencies.pending(),
            "stopping": supervisor.stopping,
        }

    def _permit(self, unit: str, what: str) -> Agent:
        """The agent, unless it is one of agentd's own that nobody may stop."""
        agent = self._supervisor.get(unit)
        if agent.unit is None and what in ("stop", "remove"):
            raise Denied(f"{unit} is one of agentd's own units.", hint="agentctl down stops everything.")
        self._going_on()
        return agent

    def _going_on(self) -> None:
        """Nothing is begun any more once everything is being stopped."""
        if self._supervisor.stopping:
            raise Conflict("agentd is going down.", hint="agentctl up starts it again.")

    def _agent_unit(self, name: str) -> Agent:
        agent = self._supervisor.get(name)
        if agent.unit is None:
            raise NoSuchUnit(f"{name} is one of agentd's own units: it has no inbox and no budget.")
        return agent

    def _patience(self, agent: Agent) -> float:
        return agent.policy.stop_timeout + agent.policy.start_timeout + 5.0

    async def _gone(self, agent: Agent, wait: float) -> bool:
        gone = lambda: agent.life.phase not in LIVE and not agent.life.wanted  # noqa: E731
        return await self._supervisor.until(gone, wait)

    def _rests(self, agent: Agent) -> bool:
        """It came to rest: runs and is ready, does not run, or waits for something that does not come."""
        dependencies = self._supervisor.dependencies
        if dependencies.queued(agent.name) or (agent.life.waiting and not dependencies.blocked(agent.name)):
            return False
        return settled(agent)

    def _meant(self, name: str) -> list[str]:
        """The units that a name stands for: itself, or all instances of a template. Raises NoSuchUnit."""
        found = instances(name, self._supervisor.agents) if is_template(name) else []
        return found or [self._supervisor.get(name).name]

    async def _each(self, do: Ask, template: str, actor: Actor, wait: float | None) -> Json:
        """The same for all instances of a template, at once."""
        units = await asyncio.gather(*(do(name, actor, wait) for name in self._meant(template)))
        return {"template": template, "units": units}

    def _make(self, name: str) -> None:
        """An instance that is there no longer than somebody wants it."""
        self._going_on()
        unit = self._deployment.made(name)
        self._supervisor.instances.add(name)
        self._deployment.adopt(unit)

    def _turned(self, unit: str, *, on: bool) -> None:
        """An instance that was started by name comes back as somebody last wanted it."""
        try:
            self._supervisor.instances.turn(unit, on=on)
        except AgentdError as error:
            logger().warning("instance.unsaved", unit=unit, error=str(error))


def _asked(actor: Actor) -> Asked:
    return Asked(actor.name, actor.reason, actor.correlation)
