"""The stage as those see it whose unit another unit has made: agentd's own environment, and nothing else.

Staging copies what only root can read to where the unit's uid can. An operator's unit file may ask for that; a program
may not, or it would be shown whatever environment of root's it names.
"""

from __future__ import annotations

from pathlib import Path

from agentd.errors import HostCannot
from agentd.host.stage import Interpreter, Stage, ours


class OwnOnly(Stage):
    """Stages agentd's own environment only."""

    def stage(self, python: Interpreter) -> Path:
        """The stage of agentd's own environment; HostCannot for any other."""
        if python != ours():
            raise HostCannot(
                f"{python.top} is closed to the unit's uid",
                hint="Open it, or let the unit run a Python that every uid can reach.",
                key="agent.exec",
            )
        return super().stage(python)
