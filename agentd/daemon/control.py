"""The control API's requests, carried out: each method is one row of api/API.md. Knows no HTTP."""

from __future__ import annotations

import os
import signal as signals
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from agentd import __version__
from agentd.daemon import logs, unitfiles
from agentd.daemon.agent import Agent
from agentd.daemon.config import Config
from agentd.daemon.dependencies import in_order
from agentd.daemon.ports import Actor, Json
from agentd.daemon.schedules import schedule_of
from agentd.daemon.status import unit_status
from agentd.daemon.supervisor import Supervisor, settled
from agentd.errors import BadInput, Conflict, Denied, NoSuchUnit, NotActive, Unavailable, UnitFileError
from agentd.host import doctor
from agentd.model import explanation, reading, verify
from agentd.model.lifecycle import LIVE, Asked, Cause, Life, Phase, Policy
from agentd.model.unit import SYSTEM_UNITS, Unit
from agentd.store.journal import Journal

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
        self._since = time.time()
        self.broken: list[Json] = []
        self.warnings: list[str] = []
        self.metrics: str | None = None

    # --- looking ------------------------------------------------------------------------------------------------------

    def status(self, unit: str | None = None) -> Json:
        """Everything, or one unit."""
        supervisor = self._supervisor
        agents = [supervisor.get(unit)] if unit else list(supervisor.agents.values())
        return {"agentd": self._about(), "units": [unit_status(supervisor, agent) for agent in agents]}

    def explain(self, unit: str) -> Json:
        """Each setting with its value and where it comes from, and what would be executed."""
        agent = self._supervisor.get(unit)
        if agent.unit is None:
            raise BadInput(f"{unit} is a system unit: it has no unit file.", hint="agentctl status shows it.")
        host = {("isolation", "level"): agent.level} if agent.level else {}
        rows = [row.to_json() for row in explanation.rows(agent.unit, host)]
        argv = list(agent.unit.agent.exec)
        return {"name": unit, "file": agent.unit.file, "settings": rows, "argv": argv, "level": agent.level}

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
        agent = self._permit(unit, "start")
        self._supervisor.start(unit, _asked(actor))
        await self._supervisor.until(lambda: self._rests(agent), DONE_WITHIN if wait is None else wait)
        return unit_status(self._supervisor, agent)

    async def stop(self, unit: str, actor: Actor, wait: float | None = None) -> Json:
        """Stop it; the answer comes when its tree is gone."""
        agent = self._permit(unit, "stop")
        patience = self._supervisor.stop(unit, _asked(actor))
        await self._gone(agent, patience if wait is None else wait)
        return unit_status(self._supervisor, agent)

    async def restart(self, unit: str, actor: Actor, wait: float | None = None) -> Json:
        """Stop it if it runs, and run it."""
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
        """Stop it and forget it, with its file."""
        agent = self._permit(unit, "remove")
        if not await self._gone(agent, self._supervisor.stop(unit, _asked(actor))):
            raise Conflict(f"{unit} does not stop: it is {agent.life.phase}.", hint="agentctl status shows why.")
        unitfiles.remove(self._config.units, unit)
        await self._supervisor.drop(unit)
        record = {"kind": "unit.removed", "unit": unit, "actor": actor.name, "reason": actor.reason}
        self._supervisor.record({**record, "correlation": actor.correlation})
        return {"removed": unit}

    # --- unit files ---------------------------------------------------------------------------------------------------

    async def check(self, files: list[Json]) -> Json:
        """Read, verify and try the files against this host; touches nothing."""
        loaded = self._read(files)
        findings = list(loaded.findings)
        texts = {str(file["path"]): str(file["text"]) for file in files}
        for name, unit in loaded.units.items():
            findings += self._supervisor.spawning.check(name, unit, texts[str(unit.file)])
        return {"findings": findings, "units": sorted(loaded.units)}

    async def deploy(self, files: list[Json], actor: Actor) -> Json:
        """Install what is right, then start what is new and restart what changed."""
        self._going_on()
        loaded = self._read(files)
        findings = list(loaded.findings)
        done: dict[str, list[str]] = {"started": [], "restarted": [], "unchanged": []}
        texts = {str(file["path"]): str(file["text"]) for file in files}
        ready: list[tuple[str, str]] = []
        for name, unit in loaded.units.items():
            text = texts[str(unit.file)]
            problems = self._supervisor.spawning.check(name, unit, text)
            findings += problems
            if not any(p["severity"] == "error" for p in problems):
                ready.append((self._install(unit, text), name))
        outcomes = {name: outcome for outcome, name in ready}
        for name in in_order(outcomes, self._supervisor.dependencies.relations):
            if outcomes[name] == "started":
                self._supervisor.start(name, _asked(actor), turn=True)
            elif outcomes[name] == "restarted":
                asked = Asked(actor.name, actor.reason or "its unit file changed", actor.correlation)
                self._supervisor.dependencies.restart(name, asked)
            done[outcomes[name]].append(name)
        record = {"kind": "fleet.deployed", "actor": actor.name, "reason": actor.reason, **done}
        self._supervisor.record({**record, "correlation": actor.correlation})
        return {"findings": findings, **done}

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
        self._adopt_unit(made)
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
        self.broken = [f for f in loaded.findings if f["severity"] == "error"]
        self._tell_broken()

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
            "broken": [{"file": f["file"], "message": f["message"], "hint": f["hint"]} for f in self.broken],
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

    def _read(self, files: list[Json]) -> unitfiles.Loaded:
        known = dict(self._supervisor.units())
        return unitfiles.read([(str(f["path"]), str(f["text"])) for f in files], known)

    def _install(self, unit: Unit, text: str) -> str:
        """Put the file into the units directory and the unit into the fleet; what became of it."""
        target = self._config.units / f"{unit.name}.toml"
        if unit.file != str(target):
            text = unitfiles.anchored(text, unit)
            unitfiles.install(self._config.units, unit.name, text)
            unit = reading.parse(text, unit.name, str(target))
        self.broken = [f for f in self.broken if f["file"] != str(target)]
        self._tell_broken()
        self._supervisor.spawning.transient.discard(unit.name)
        old = self._supervisor.agents.get(unit.name)
        never_ran = old is not None and old.life.last is not None and old.life.last.cause is Cause.unstarted
        if old is not None and old.unit == unit and not (never_ran and old.life.phase is Phase.failed):
            return "unchanged"
        runs_on = unit.agent.schedule is not None and old is not None and schedule_of(old) is not None
        self._adopt_unit(unit)
        if old is None or old.life.phase not in LIVE or runs_on:  # a run of a schedule is left to end
            return "started"
        return "restarted"

    def _tell_broken(self) -> None:
        """Who asks for a unit whose file is broken is told so, and not only that there is no such unit."""
        self._supervisor.broken = {Path(str(f["file"])).stem: f for f in reversed(self.broken) if f["file"]}

    def _adopt_unit(self, unit: Unit) -> None:
        if unit.name in self._supervisor.agents:
            self._supervisor.change(unit)
            return
        life = Life.new(time.monotonic(), floor=self._supervisor.spawning.floor(unit.name))
        self._supervisor.add(unit, unit.name, Policy.of(unit), life)


def _asked(actor: Actor) -> Asked:
    return Asked(actor.name, actor.reason, actor.correlation)
