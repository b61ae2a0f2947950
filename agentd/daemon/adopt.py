"""Taking over what lives: a daemon that comes back goes on where the last one stopped.

The keeper's snapshot is the truth about processes; the blob that the last daemon left with it is the truth about lives.
What the two say of each unit is fed to its mailbox as events, so that nothing is decided here.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from agentd.daemon.agent import Agent
from agentd.daemon.reports import HELP, tidy
from agentd.daemon.supervisor import Supervisor
from agentd.errors import AgentdError
from agentd.keeper.plan import Process
from agentd.model.lifecycle import (
    LIVE,
    Beat,
    Cause,
    Deadline,
    Ended,
    Ending,
    Extend,
    Hang,
    Interval,
    Life,
    Policy,
    Ready,
    Spawned,
)
from agentd.model.unit import SYSTEM_UNITS, Unit

Json = dict[str, Any]


def restore(supervisor: Supervisor, units: dict[str, Unit]) -> set[str]:
    """Make an agent of every unit that is known from files, blobs or living processes; the names that are new.

    A broken or vanished file does not end a unit that runs: its last definition stands in the blob.
    """
    welcome = supervisor.keeper.welcome
    for name, address in welcome.get("listeners", {}).items():
        unit, _, listener = name.rpartition("/")
        supervisor.spawning.learn(unit, {listener: address})
    blobs = {name: _read(text) for name, text in welcome.get("blobs", {}).items()}
    processes: dict[str, Process] = {process.unit: process for process in welcome["processes"]}
    new: set[str] = set()
    supervisor.spawning.reserve(units.values())
    for name in (*SYSTEM_UNITS, *units, *(n for n in blobs if n not in units and n not in SYSTEM_UNITS)):
        blob = blobs.get(name, {})
        if name not in SYSTEM_UNITS and (unit := units.get(name) or _unit(blob)) is None:
            continue
        made = None if name in SYSTEM_UNITS else unit
        policy = supervisor.spawning.policy(name) if made is None else Policy.of(made)
        if blob.get("transient"):
            supervisor.spawning.transient.add(name)
        supervisor.offspring.adopt(name, blob)
        if not blob and name not in processes:
            new.add(name)
        _restore(supervisor, made, name, policy, blob, processes.pop(name, None))
    supervisor.dependencies.wake()
    supervisor.offspring.wake()
    for process in processes.values():
        supervisor.background(_end(supervisor, process))
    return new


def _restore(
    supervisor: Supervisor, unit: Unit | None, name: str, policy: Policy, blob: Json, process: Process | None
) -> None:
    now = time.monotonic()
    known = _life(blob)
    life = known or Life.new(now, floor=supervisor.spawning.floor(name))
    if known is None and name in supervisor.instances.resting:
        life = replace(life, reason="it was stopped by hand, and remembered so")
    if process is not None and life.invocation != process.invocation and (known is None or process.ended is None):
        life = Life.found(process.invocation, now)  # one that ended meanwhile ran until then: policy says what follows
    agent = supervisor.add(unit, name, policy, life, _endings(blob))
    agent.level = str(blob.get("level", ""))
    agent.correlation = blob.get("correlation")
    if degraded := blob.get("degraded"):
        supervisor.dependencies.degraded[name] = tuple(map(str, degraded))  # told already: once for each change
    agent.dump = str(blob.get("dump", ""))
    supervisor.schedules.recall(agent, blob, supervisor.spawning.floor(name))
    _feed(supervisor, agent, process)
    tidy(supervisor, agent)
    if process is not None and process.ended is not None:
        supervisor.release(process)


def resync(supervisor: Supervisor) -> None:
    """A keeper is there again, the same or its successor: tell the mailboxes, which lived on, what it says now.

    What was asked of the lost one and never answered is decided here: a spawn that it executed is in the snapshot, one
    that it did not is posted as ended, unstarted. A signal or kill that was swallowed is repeated by the lifecycle.
    """
    welcome = supervisor.keeper.welcome
    supervisor.losses = dict(welcome.get("outputs", {}))
    supervisor.stores = dict(welcome.get("stores", {}))
    processes: dict[str, Process] = {process.unit: process for process in welcome["processes"]}
    for name, address in welcome.get("listeners", {}).items():
        unit, _, listener = name.rpartition("/")
        supervisor.spawning.learn(unit, {listener: address})
    for name, agent in supervisor.agents.items():
        process = processes.pop(name, None)
        if process is not None and process.invocation != agent.life.invocation:
            supervisor.background(_end(supervisor, process, known=True))
            process = None
        if process is not None and process.ended is not None:
            if process.exit is None:
                process = replace(process, exit=supervisor.witness.exit(process))
            supervisor.release(process)
        _feed(supervisor, agent, process)
        tidy(supervisor, agent)
        supervisor.send_blob(agent)
    for process in processes.values():
        supervisor.background(_end(supervisor, process))
    for name in welcome.get("blobs", {}):
        if name not in supervisor.agents and name not in processes:
            supervisor.background(_forget(supervisor, name))


def _feed(supervisor: Supervisor, agent: Agent, process: Process | None) -> None:
    """Tell the mailbox what the snapshot says, in the order that the lifecycle asks for."""
    invocation = agent.life.invocation
    if invocation is None:
        return
    if process is None and agent.spawning == invocation:
        return  # its plan is still being made: this very keeper is asked
    if process is None or process.invocation != invocation:
        supervisor.end(agent, Ended(invocation, None))
        return
    agent.process = process
    if process.ended is None:
        supervisor.see_soon(process)
    supervisor.statuses[agent.name] = process.status
    agent.post(Spawned(invocation, process.pid, process.started))
    if process.ready is not None:
        agent.post(Ready(invocation))
    if "interval" in process.extra:
        agent.post(Interval(invocation, process.extra["interval"]))
    if "trigger" in process.extra:
        agent.post(Hang(invocation, HELP))
    if "extended" in process.extra:
        agent.post(Extend(invocation, process.extra["extended"]))
    if process.beat is not None:
        agent.post(Beat(invocation, process.beat))
    if process.ended is not None:
        supervisor.end(agent, Ended(invocation, process.exit, process.ended))
    agent.post(Deadline())
    agent.arm()
    supervisor.judge_soon(agent)


async def _end(supervisor: Supervisor, process: Process, known: bool = False) -> None:
    """A process that nobody knows any more: of a removed unit, or of an invocation that its (known) unit is beyond."""
    try:
        if process.ended is None:
            await supervisor.keeper.kill(process.unit, process.invocation)
        elif known:
            await supervisor.keeper.release(process.unit, process.invocation)
        else:
            await supervisor.keeper.forget(process.unit)
    except AgentdError:
        return  # it ended meanwhile


async def _forget(supervisor: Supervisor, name: str) -> None:
    """A unit that was removed while no keeper was there to hear of it."""
    try:
        await supervisor.keeper.forget(name)
    except AgentdError:
        return  # away again: told again


def _read(text: str) -> Json:
    try:
        blob = json.loads(text)
    except ValueError:
        return {}
    return blob if isinstance(blob, dict) else {}


def _life(blob: Json) -> Life | None:
    """The life that the blob holds; None if it is of a version that we cannot read: the process is still adopted."""
    try:
        return Life.from_json(blob["life"])
    except (KeyError, TypeError, ValueError):
        return None


def _unit(blob: Json) -> Unit | None:
    try:
        return Unit.model_validate(blob["unit"])
    except (KeyError, TypeError, ValueError):
        return None


def _endings(blob: Json) -> list[Ending]:
    try:
        return [Ending(i, Cause(cause), code, at, ran, text) for i, cause, code, at, ran, text in blob["endings"]]
    except (KeyError, TypeError, ValueError):
        return []


def resting(supervisor: Supervisor, name: str) -> bool:
    """The unit has no process and none under way."""
    return supervisor.agents[name].life.phase not in LIVE
