"""What agents ask of the daemon over their channel: to spawn children, to stop them, to see them.

The router authenticates (the socket is the unit, hello named the invocation) and passes on; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from agentd.errors import AgentdError, BadInput, Unavailable
from agentd.router import rpc
from agentd.router.channel import Line

Json = dict[str, Any]

ANSWER_WITHIN = 20.0
"""Seconds for the daemon's answer. It looks at a family's spawns one after the other."""
METHODS = ("spawn", "stop", "list")


class Daemon(Protocol):
    """The owner of all decisions."""

    async def call(self, method: str, params: Json, timeout: float) -> Any:
        """Ask; Unavailable while it is away."""


async def answer(daemon: Daemon | None, unit: str, line: Line, said: rpc.Request) -> bytes:
    """The line that answers one of METHODS."""
    try:
        if daemon is None:
            raise Unavailable("the daemon is away", hint="Try again in a moment.")
        asked = {"parent": unit, "invocation": line.invocation, **_asked(said.method, said.params)}
        return rpc.result(said.id, await daemon.call(f"offspring.{said.method}", asked, ANSWER_WITHIN))
    except AgentdError as error:
        return rpc.error(said.id, error)


def _asked(method: str, params: Mapping[str, Any]) -> Json:
    wanted = {"spawn": ("name", "unit"), "stop": ("unit",), "list": ()}[method]
    for name in wanted:
        if name not in params:
            raise BadInput(f"{name}: is missing")
    if method == "spawn":
        return {"name": params["name"], "spec": params["unit"], "key": params.get("key")}
    return {name: params[name] for name in wanted}
