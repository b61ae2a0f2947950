"""What ``agentctl status`` shows: lives, kernel numbers and neighbours' facts, put together for people. Reads only."""

from __future__ import annotations

import signal
import time
from typing import Any

from agentd.daemon.agent import Agent
from agentd.daemon.supervisor import Supervisor
from agentd.host import usage
from agentd.model.lifecycle import Ending, Phase
from agentd.model.liveness import Activity, Verdict
from agentd.model.quantity import show_duration

Json = dict[str, Any]

SHOWN_LOSS = 86400.0
"""Seconds for which dropped output stays a warning once the log can be written again."""


def wall(mono: float | None) -> float | None:
    """A CLOCK_MONOTONIC moment as unix seconds."""
    return None if mono is None else round(time.time() - (time.monotonic() - mono), 3)


def unit_status(supervisor: Supervisor, agent: Agent) -> Json:
    """UnitStatus of api/API.md."""
    life, unit = agent.life, agent.unit
    router, gateway = supervisor.links.of(agent.name)
    doing = supervisor.watch.verdict(agent) if unit is not None else None
    schedule = supervisor.schedules.status(agent)
    return {
        "name": agent.name,
        "system": unit is None,
        "file": unit.file if unit else None,
        "dropins": list(unit.dropins) if unit else [],
        "description": unit.agent.description if unit else SYSTEM[agent.name],
        "type": agent.policy.type,
        "state": str(life.phase),
        "activity": str(doing.activity) if doing else None,
        "pid": agent.process.pid if agent.process and life.invocation else None,
        "invocation": life.invocation,
        "since": wall(life.since),
        "started": wall(life.started),
        "restarts": life.restarts,
        "failures": len(life.failures),
        "last": _ending(life.last),
        "reason": _reason(supervisor, agent, doing, router),
        "next": _next(agent, gateway, schedule),
        "schedule": schedule,
        "ready": life.ready,
        "beat_age": None if life.beat is None else round(time.monotonic() - life.beat, 3),
        "status": supervisor.statuses.get(agent.name, ""),
        "alarm": life.alarm,
        "dump": agent.dump or None,
        **_numbers(supervisor, agent),
        "level": agent.level,
        "waits": agent.life.waiting or supervisor.dependencies.queued(agent.name),
        "degraded": list(supervisor.dependencies.degraded.get(agent.name, ())),
        **supervisor.offspring.status(agent.name),
        "tokens": _tokens(gateway) if unit else None,
        "inbox": _inbox(router),
        "holding": _holding(router),
        "call": _call(gateway, life.invocation),
        "stored": supervisor.stores.get(agent.name, {}).get("kept", 0),
        "log_dropped": supervisor.losses.get(agent.name, {}).get("dropped", 0),
        "warnings": [
            *agent.warnings,
            *_alarm(life.alarm),
            *_lost(supervisor.losses.get(agent.name)),
            *([agent.unkept] if agent.unkept else []),
            *_unstored(supervisor.stores.get(agent.name)),
            *supervisor.dependencies.laments(agent.name),
            *supervisor.schedules.laments(agent.name),
        ],
    }


def _alarm(text: str | None) -> list[str]:
    return [f"it hangs, and on_hang is alarm: {text}"] if text else []


SYSTEM = {
    "bus": "messages: nats-server with JetStream",
    "router": "delivers messages between agents",
    "gateway": "proxy to the models: keys, budgets, metering",
}


def _reason(supervisor: Supervisor, agent: Agent, doing: Verdict | None, router: Json) -> str:
    dependencies = supervisor.dependencies
    if agent.life.waiting or dependencies.queued(agent.name):
        return dependencies.why(agent.name)
    if agent.life.phase is Phase.inactive and agent.life.last is None and (why := supervisor.schedules.why(agent.name)):
        return why
    if doing is None or not agent.life.ready:
        return agent.life.reason
    again = router.get("retry")
    if doing.activity is Activity.idle and again and again["at"] > time.monotonic():
        left = show_duration(again["at"] - time.monotonic())
        text = f"retries message {again['message']} in {left} (attempt {again['attempt']} of {again['of']})"
        behind = router.get("pending", 1) - 1
        return f"{text}, {behind} behind it" if behind > 0 else text
    if doing.activity is Activity.idle and not router.get("connected"):
        return "runs; it has not said hello on its channel"
    return doing.reason


def _lost(losses: Json | None) -> list[str]:
    """What is missing in its log: while it goes on, and for a day after."""
    if not losses or losses.get("at") is None:
        return []
    dropped, ago = losses.get("dropped", 0), time.monotonic() - losses["at"]
    if losses.get("losing"):
        return [f"its log cannot be written ({losses.get('error')}): {dropped} bytes of output were dropped so far"]
    if ago < SHOWN_LOSS:
        return [f"{dropped} bytes of its output were dropped ({losses.get('error')}); its log is written again"]
    return []


def _unstored(store: Json | None) -> list[str]:
    """What it wanted kept and there was no room for."""
    if not store or not store.get("refused"):
        return []
    return [f"{store['refused']} descriptors that it wanted stored were closed: there is room for 16"]


def _ending(last: Ending | None) -> Json | None:
    if last is None:
        return None
    name = None
    if last.exit is not None and last.exit < 0:
        try:
            name = signal.Signals(-last.exit).name
        except ValueError:
            name = f"signal {-last.exit}"
    return {
        "invocation": last.invocation,
        "cause": str(last.cause),
        "exit": last.exit,
        "signal": name,
        "text": last.text,
        "at": last.at,
        "ran": round(last.ran, 3),
    }


def _numbers(supervisor: Supervisor, agent: Agent) -> Json:
    if agent.process is None or agent.life.invocation is None:
        return {"memory": None, "cpu_seconds": None, "processes": 0}
    used = usage.read(agent.name, agent.process.pid, agent.level, supervisor.spawning.capabilities)
    return {"memory": used.memory, "cpu_seconds": used.cpu_seconds, "processes": used.processes}


def _tokens(gateway: Json) -> Json | None:
    if "used" not in gateway:
        return None
    return {key: gateway.get(key) for key in ("used", "held", "limit", "window", "resets_at")}


def _next(agent: Agent, gateway: Json, schedule: Json | None) -> float | None:
    """When something happens by itself."""
    if agent.life.phase in (Phase.backoff, Phase.parked):
        return wall(agent.life.deadline)
    if schedule is not None and agent.life.phase in (Phase.inactive, Phase.failed):
        return None if agent.life.waiting else schedule["next"]
    return _rolls(agent, gateway)


def _rolls(agent: Agent, gateway: Json) -> float | None:
    if agent.life.phase is not Phase.held:
        return None
    return (gateway.get("exhausted") or {}).get("resets_at")


def _inbox(router: Json) -> Json | None:
    if not router:
        return None
    return {"pending": router.get("pending", 0), "held": len(router.get("held", ())), "dead": router.get("dead", 0)}


def _holding(router: Json) -> Json | None:
    for held in router.get("held", ()):
        return {
            "message": held["message"],
            "kind": held.get("kind"),
            "from": held.get("from"),
            "since": wall(held.get("since")),
        }
    return None


def _call(gateway: Json, invocation: str | None) -> Json | None:
    for call in gateway.get("calls", ()):
        if call.get("invocation") == invocation:
            return {"model": call.get("model"), "since": wall(call.get("started"))}
    return None
