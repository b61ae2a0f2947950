"""Children: units that this one spawns at run time. Knows the channel's words for it; decides nothing.

What may be spawned stands in the unit file (``[agent] may_spawn``). A child is a unit of its own and ends with the
process that spawned it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentd.sdk.link import Link, Params

SPAWN_FOR = 90.0
"""Seconds that a spawn is repeated for while daemon or router are away, or too many are asked for at once."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended for good: ``cause`` and ``exit`` as ``agentctl status`` says them."""

    cause: str
    exit: int | None
    text: str

    @property
    def done(self) -> bool:
        """A oneshot that did what it was for."""
        return self.cause == "done"


class Child:
    """A unit that this one spawned. ``unit`` is its name, for ``send`` and ``ask``."""

    def __init__(self, unit: str, duplicate: bool, family: Offspring, before: str | None) -> None:
        self.unit, self.duplicate = unit, duplicate
        self._family, self._before = family, before

    async def ended(self) -> Ended:
        """Wait until it has ended for good."""
        return await self._family.end_of(self.unit, self._before)

    async def stop(self) -> Ended:
        """Stop it, and wait until it has ended. Raises CallError."""
        await self._family.call("stop", {"unit": self.unit})
        return await self.ended()


class Offspring:
    """What this process knows of its children."""

    def __init__(self) -> None:
        self._ends: dict[str, Params] = {}
        self._news = asyncio.Event()
        self.link: Link | None = None

    def told(self, params: Params) -> None:
        """News of a child."""
        if params.get("state") == "ended":
            self._ends[str(params["unit"])] = params
            news, self._news = self._news, asyncio.Event()
            news.set()

    async def spawn(self, name: str, unit: Mapping[str, Any], key: str) -> Child:
        """See ``Agent.spawn``."""
        before = self._invocation(f"{os.environ.get('AGENTD_UNIT', '')}~{name}")
        made = await self.call("spawn", {"name": name, "unit": unit, "key": key})
        duplicate = bool(made.get("duplicate"))
        return Child(str(made["unit"]), duplicate, self, None if duplicate else before)

    async def listed(self) -> list[Params]:
        """See ``Agent.children``."""
        answer = await self.call("list", {})
        return list(answer["children"])

    async def end_of(self, unit: str, before: str | None) -> Ended:
        """The end of a unit, other than that of the invocation ``before``."""
        while (end := self._ends.get(unit)) is None or (before is not None and end.get("invocation") == before):
            await self._news.wait()
        return Ended(str(end.get("cause")), end.get("exit"), str(end.get("text") or ""))

    async def call(self, method: str, params: Params) -> Params:
        """Ask over the link. Raises CallError."""
        if self.link is None:
            raise RuntimeError("the agent does not run yet: spawn from a handler or from on_start")
        return dict(await self.link.call(method, params, SPAWN_FOR))

    def _invocation(self, unit: str) -> str | None:
        return self._ends.get(unit, {}).get("invocation")
