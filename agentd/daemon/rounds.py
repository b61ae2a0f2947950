"""Reading the stamps of many units at once: a look that is due takes along those that will soon be.

Knows which beats are owed until when, and what the keeper was asked; decides nothing. A beat that was heard in company
only moves a deadline away. What could make a unit count as hung is read for it alone, at its own moment: the keeper
then looks into its socket first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agentd.daemon.agent import Agent
from agentd.model.lifecycle import Phase, heartbeat

SOON = 0.25
"""The part of its limit before its deadline in which a unit is taken along."""

Stamps = tuple[float | None, float | None]
Company = Callable[[Sequence[str]], Awaitable[Mapping[str, float]]]
Alone = Callable[[str], Awaitable[Stamps]]


@dataclass(slots=True)
class Round:
    """One question about several units."""

    invocations: dict[str, str]
    """Whom it asks about."""
    beats: Mapping[str, float] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Rounds:
    """Reads stamps for agents. ``company`` asks the keeper for several units' beats, ``alone`` for one's stamps."""

    def __init__(self, agents: Mapping[str, Agent], company: Company, alone: Alone) -> None:
        self._agents, self._company, self._alone = agents, company, alone
        self._asked: dict[str, float] = {}
        """The deadline before which each unit was asked about in company: once is enough."""
        self._open: dict[str, Round] = {}

    async def stamps(self, agent: Agent) -> Stamps:
        """Its last heartbeat and its last output, as the keeper stamped them. Raises Unavailable, TooLate."""
        if agent.unit is None or agent.unit.liveness.progress is None:
            beat = await self._beat(agent)
            if beat is not None:
                return beat, None
        return await self._alone(agent.name)

    def forget(self, name: str) -> None:
        """This unit is gone."""
        self._asked.pop(name, None)

    async def _beat(self, agent: Agent) -> float | None:
        """A beat of its that moves its deadline away; None if no other is asked about, or nobody heard one."""
        limit, before = heartbeat(agent.life, agent.policy), agent.life.deadline
        if limit is None or before is None or agent.life.phase is not Phase.running:
            return None
        if (found := self._open.get(agent.name)) is not None:
            await found.over.wait()
        elif self._asked.get(agent.name) != before:
            found = await self._go_round(agent)
        beat = found.beats.get(agent.name) if found is not None else None
        return beat if beat is not None and beat + limit > time.monotonic() else None

    async def _go_round(self, first: Agent) -> Round | None:
        others = {agent.name: agent.life.invocation for agent in self._soon() if agent is not first}
        if not others or first.life.invocation is None:
            return None
        found = Round({first.name: first.life.invocation, **{n: i for n, i in others.items() if i is not None}})
        for name in found.invocations:
            self._asked[name] = self._agents[name].life.deadline or 0.0
            self._open[name] = found
        try:
            found.beats = await self._company(list(found.invocations))
        finally:
            for name in found.invocations:
                self._open.pop(name, None)
            found.over.set()
        self._hand_out(found)
        return found

    def _soon(self) -> Iterator[Agent]:
        """Those that owe a beat soon and were not asked about since they last beat."""
        now = time.monotonic()
        for agent in self._agents.values():
            life = agent.life
            if life.deadline is None or life.phase is not Phase.running or agent.name in self._open:
                continue
            limit = heartbeat(life, agent.policy)
            soon = limit is not None and life.deadline < now + SOON * limit
            if soon and self._asked.get(agent.name) != life.deadline:
                yield agent

    def _hand_out(self, found: Round) -> None:
        for name, invocation in found.invocations.items():
            beat, agent = found.beats.get(name), self._agents.get(name)
            if beat is not None and agent is not None:
                agent.beat(invocation, beat)
