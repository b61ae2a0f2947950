"""Probes that are commands: executed by the keeper beside their unit, and what their end says about it.

Knows the keeper's answer and its words; how often is asked and what a failure means is for others.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from agentd.daemon.probing import Unasked, Unwell
from agentd.errors import AgentdError, Conflict, NotActive, ProtocolError, TooLate, Unavailable
from agentd.model.probe import Probe
from agentd.model.quantity import show_duration

if TYPE_CHECKING:
    from agentd.daemon.agent import Agent
    from agentd.daemon.supervisor import Supervisor

SHOWN = 200
"""Characters of its last line that are told."""


class Commands:
    """Asks the units of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def ask(self, agent: Agent, probe: Probe) -> None:
        """Put the question once; Unwell with the last line that the command printed, Unasked where it did not run."""
        invocation = agent.life.invocation
        if invocation is None or probe.exec is None:
            raise Unasked
        try:
            plan = await self._supervisor.spawning.command(agent, invocation, probe.exec)
            asked = self._supervisor.keeper.probe(agent.name, invocation, plan, probe.timeout)
            code, late, output = await asked
        except (NotActive, Conflict, Unavailable, TooLate, ProtocolError):
            raise Unasked from None  # it ended, or the keeper is away, or busy with itself
        except (AgentdError, OSError) as error:
            raise Unwell(f"its command cannot be executed: {error}") from error
        if late:
            raise Unwell(f"no exit within {show_duration(probe.timeout)}{_last(output)}")
        if code:
            raise Unwell(f"{_exited(code)}{_last(output)}")


def _exited(code: int) -> str:
    if code > 0:
        return f"exited {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _last(output: str) -> str:
    """Its last line, if it said anything: printable, and short."""
    lines = [line for line in output.splitlines() if line.strip()]
    if not lines:
        return ""
    return ": " + "".join(c if c.isprintable() else "\ufffd" for c in lines[-1].strip()[:SHOWN])
