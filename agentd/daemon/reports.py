"""What the keeper reports of units, brought to the right mailbox or remembered for ``status``.

Knows the keeper's events (keeper/PROTOCOL.md) and who is to hear them; decides nothing, except that what a unit had
stored is dropped once it is at rest for good.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentd.errors import AgentdError
from agentd.host.keeper import BLOB_MOST
from agentd.model.lifecycle import Extend, Hang, Interval, Phase, Ready
from agentd.wire.log import logger

if TYPE_CHECKING:
    from agentd.daemon.agent import Agent
    from agentd.daemon.supervisor import Supervisor

Json = dict[str, Any]
HELP = "it called for help (WATCHDOG=trigger)"


def heard(supervisor: Supervisor, event: Json) -> None:
    """An event of the keeper about a unit."""
    kind, name = event["event"], event.get("unit", "")
    if kind == "ended":
        supervisor.ended(event["process"], event.get("left", []))
    elif kind == "status":
        supervisor.statuses[name] = event.get("status", "")
    elif kind == "output":
        supervisor.losses[name] = event
    elif (agent := supervisor.agents.get(name)) is None:
        return
    elif kind == "store":
        supervisor.stores[name] = event
        tidy(supervisor, agent)
    else:
        _tell(supervisor, agent, event)


def _tell(supervisor: Supervisor, agent: Agent, event: Json) -> None:
    invocation = event.get("invocation", "")
    match event["event"]:
        case "ready":
            agent.post(Ready(invocation))
        case "extend":
            agent.post(Extend(invocation, event["until"]))
        case "interval":
            agent.post(Interval(invocation, event["seconds"]))
        case "trigger":
            agent.post(Hang(invocation, HELP))
        case "main":
            _moved(supervisor, agent, event)
        case "ignored":
            _note(supervisor, agent, event, "unit.ignored", f"{event.get('text')}: ignored")


def _moved(supervisor: Supervisor, agent: Agent, event: Json) -> None:
    """It has another main process: that one is watched, dumped and shown from now on."""
    before = agent.process
    if before is None or before.invocation != event["invocation"]:
        return
    agent.process = replace(before, pid=event["pid"], start_time=event["start_time"])
    supervisor.witness.see(agent.process, supervisor.spawning.fifo(agent.name))
    _note(supervisor, agent, event, "unit.main", f"names pid {event['pid']} as its main process, not {before.pid}")


def _note(supervisor: Supervisor, agent: Agent, event: Json, kind: str, reason: str) -> None:
    named = {"unit": agent.name, "invocation": event.get("invocation"), "correlation": agent.correlation}
    supervisor.record({"kind": kind, **named, "reason": reason})


def tidy(supervisor: Supervisor, agent: Agent) -> None:
    """Have what it stored dropped, if it is at rest for good: it was stopped, done, or failed. A restart keeps it."""
    phase = agent.life.phase
    rests = phase is Phase.failed or (phase is Phase.inactive and not agent.life.wanted)
    if rests and supervisor.stores.get(agent.name, {}).get("kept"):
        supervisor.background(_drop(supervisor, agent.name))


def fits(supervisor: Supervisor, agent: Agent, text: str) -> bool:
    """Whether the keeper takes what the next daemon is to know of it. One that is too long is told of, once."""
    size = len(text.encode())
    if size <= BLOB_MOST:
        agent.unkept = ""
        return True
    if not agent.unkept:
        agent.unkept = f"its state ({size} bytes) is more than the keeper takes ({BLOB_MOST})"
        reason = f"{agent.unkept}: after a death of the daemon restart counters and reasons of it are old or unknown"
        supervisor.record({"kind": "unit.unkept", "unit": agent.name, "reason": reason})
        logger().warning("unit.unkept", unit=agent.name, error=reason, hint="Make its unit file (env) smaller.")
    return False


async def _drop(supervisor: Supervisor, name: str) -> None:
    try:
        await supervisor.keeper.drop(name)
    except AgentdError:
        return  # away: its successor's snapshot says what there still is; or too old to know of any
