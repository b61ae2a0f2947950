"""The daemon's eyes: puts the witnesses of a running unit together, has them judged, and posts what follows.

Remembers per invocation what no neighbour remembers: whether it has a channel, when it last waited for a model, when it
last finished a message, what its probe found. Judges (``model.liveness``) when something new is heard, and at the one
moment that each verdict names as the next possible change; never in between. Decides nothing itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agentd.daemon.agent import Agent
from agentd.daemon.links import Links, known
from agentd.daemon.probing import Finding, watch_probe
from agentd.model.lifecycle import Excused, Hang, Phase, Recovered
from agentd.model.liveness import Activity, Held, Probed, Pulse, Sign, Verdict, activity, progress
from agentd.model.probe import Probe
from agentd.wire.rhythm import to_next

Json = dict[str, Any]

GRACE = 2.0
"""Seconds after the daemon came up in which it waits for the gateway's first word: without it nobody can be called hung
who may be waiting for a model."""

_WELL = frozenset({Activity.idle, Activity.working})
"""With nothing but promises to watch: that of the next heartbeat is the lifecycle's deadline, which moves by itself."""


@dataclass(slots=True)
class Seen:
    """What was seen of one invocation."""

    invocation: str
    since: float
    """When the watching began: nothing that is owed counts from before."""
    bound: bool = False
    output: float | None = None
    done: int | None = None
    done_at: float | None = None
    waited: float = 0.0
    thinking: bool = False
    probed: Probed | None = None
    probing: asyncio.Task[None] | None = None


class Watch:
    """Watches over all agents. ``guard`` gets each task that it starts; ``probe_of`` names a unit's probe, and
    ``command`` asks one that is a command."""

    def __init__(
        self,
        links: Links,
        guard: Callable[[asyncio.Task[None]], None],
        probe_of: Callable[[Agent], Probe | None],
        command: Callable[[Agent, Probe], Awaitable[None]],
    ) -> None:
        self._links, self._guard, self._probe_of, self._command = links, guard, probe_of, command
        self._seen: dict[str, Seen] = {}
        self._began = time.monotonic()

    def judge(self, agent: Agent, output: float | None = None, fresh: bool = False) -> None:
        """Look at an agent: post what follows from its state now, and plan the next look.

        ``fresh``: its stamps were read just now, and this is when it last printed.
        """
        now = time.monotonic()
        seen = self._follow(agent, now)
        if seen is None:
            agent.look_at(None)
            return
        seen.output = max(filter(None, (seen.output, output)), default=None)
        if self._blind(now):
            agent.look_at(self._began + GRACE)
            return
        if agent.behind():
            return  # its timer comes again once what was said meanwhile has been heard
        found = self._conclude(agent, seen, now)
        if found.activity is Activity.hung and found.sign is Sign.progress and not fresh:
            agent.look()  # it may have printed since: its stamps are with the keeper until they matter
            return
        if found.activity is Activity.hung and found.sign is not Sign.heartbeat:
            agent.post(Hang(seen.invocation, found.reason, late=self._late(agent, found)))
        elif found.activity is not Activity.hung and agent.life.alarm is not None:
            agent.post(Recovered(seen.invocation, found.reason))
        if agent.life.phase is Phase.running:
            agent.look_at(found.beyond if found.activity in _WELL else found.next_look)

    def verdict(self, agent: Agent) -> Verdict | None:
        """What a running unit is doing, as far as is known; None if it does not run."""
        seen = self._seen.get(agent.name)
        if agent.life.phase is not Phase.running or seen is None or seen.invocation != agent.life.invocation:
            return None
        return self._verdict(agent, seen, time.monotonic())

    def excused(self, agent: Agent) -> bool:
        """Whether silence is no hang just now: a model call of its moves, or nobody can know yet."""
        if agent.unit is None:
            return False
        found = self.verdict(agent)
        unknown = self._blind(time.monotonic()) and not agent.life.mute
        return unknown or (found is not None and found.activity is Activity.thinking)

    def drop(self, agent: Agent) -> None:
        """Forget what was seen of it."""
        seen = self._seen.pop(agent.name, None)
        if seen is not None and seen.probing is not None:
            seen.probing.cancel()

    async def close(self) -> None:
        """Stop asking."""
        tasks = [seen.probing for seen in self._seen.values() if seen.probing is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what is seen -------------------------------------------------------------------------------------------------

    def _follow(self, agent: Agent, now: float) -> Seen | None:
        """What is seen of its present invocation, brought up to date; None if it does not run."""
        seen, invocation = self._seen.get(agent.name), agent.life.invocation
        running = agent.life.phase is Phase.running and invocation is not None
        if seen is not None and not (running and seen.invocation == invocation):
            self.drop(agent)
            seen = None
        if not running or invocation is None:
            return None
        if seen is None:
            seen = self._seen[agent.name] = Seen(invocation, now)
            self._ask(agent, seen)
        router, _ = self._links.of(agent.name)
        seen.bound = seen.bound or router.get("connected") == invocation
        if (done := router.get("done")) != seen.done:
            seen.done_at = seen.done_at if seen.done is None else now
            seen.done = done
        return seen

    def _ask(self, agent: Agent, seen: Seen) -> None:
        probe = self._probe_of(agent)
        if probe is None:
            return

        def told(found: Finding) -> None:
            seen.probed = Probed(found.failures, probe.failures, found.reason)
            self.judge(agent)

        patience = agent.policy.start_timeout
        pause = to_next if agent.unit is None else float  # of many units not all at the same moment
        asking = watch_probe(probe, patience, told, lambda: self._command(agent, probe), pause)
        seen.probing = asyncio.create_task(asking, name=f"probe {agent.name}")
        self._guard(seen.probing)

    def _blind(self, now: float) -> bool:
        return not self._links.gateway.epoch and now < self._began + GRACE

    # --- what it means ------------------------------------------------------------------------------------------------

    def _conclude(self, agent: Agent, seen: Seen, now: float) -> Verdict:
        """The verdict; where a wait for a model just ended, what is owed counts anew from now."""
        found = self._verdict(agent, seen, now)
        before, seen.thinking = seen.thinking, found.activity is Activity.thinking
        if before or seen.thinking:
            seen.waited = now
        if before and not seen.thinking:
            agent.post(Excused(seen.invocation))
            found = self._verdict(agent, seen, now)
        return found

    def _late(self, agent: Agent, found: Verdict) -> bool:
        """Whether it is a message that it made no progress on: that attempt counts as timed out."""
        router, _ = self._links.of(agent.name)
        return found.sign is Sign.message or (found.sign is Sign.progress and bool(router.get("held")))

    def _verdict(self, agent: Agent, seen: Seen, now: float) -> Verdict:
        pulse = Pulse.of(agent.life, agent.policy)
        if agent.unit is None:
            return activity(now, pulse=pulse, probed=seen.probed)
        unit = agent.unit
        router, gateway = self._links.of(agent.name)
        held, calls, overdue = known(agent.life.invocation, router, gateway)
        return activity(
            now,
            pulse=pulse,
            held=held,
            calls=calls,
            cap=unit.llm.silence,
            deadline=unit.bus.deadline,
            overdue=overdue,
            owed=self._owed(agent, seen, held) if router else None,
            probed=seen.probed,
            waited=seen.waited,
        )

    def _owed(self, agent: Agent, seen: Seen, held: list[Held]) -> Any:
        assert agent.unit is not None
        limit = agent.unit.liveness.progress
        return progress(limit, since=seen.since, held=held, bound=seen.bound, output=seen.output, done=seen.done_at)
