"""The daemon's ears: what router and gateway say of a unit, and what follows from it for its life.

Level-triggered: each conclusion is drawn from the present facts whenever one of them changes, so it does not matter how
often, in which order or how late they come. While a neighbour is away its last facts hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agentd.model.lifecycle import Hold, Life, Release, Stop
from agentd.model.liveness import Call, Held
from agentd.model.quantity import show_count
from agentd.model.unit import Unit
from agentd.wire.facts import Change, Client

Json = dict[str, Any]


def known(invocation: str | None, router: Json, gateway: Json) -> tuple[list[Held], list[Call], str | None]:
    """What an invocation holds, its model calls, and the message that is overdue with it."""
    late = router.get("overdue")
    held = [Held(h["message"], h["since"], h.get("progress") or h["since"]) for h in router.get("held", ())]
    calls = [
        Call(c["started"], c.get("last_byte"), bool(c.get("parked")))
        for c in gateway.get("calls", ())
        if c.get("invocation") == invocation
    ]
    return held, calls, late[1] if late and late[0] == invocation else None


def conclusions(unit: Unit, life: Life, gateway: Json) -> list[Hold | Release | Stop]:
    """The events that the gateway's present facts ask for."""
    events: list[Hold | Release | Stop] = []
    spent = gateway.get("exhausted")
    if spent and unit.budget.on_exhausted == "stop" and life.wanted:
        events.append(Stop("gateway", _spent(spent)))
    elif spent and unit.budget.on_exhausted == "hold" and life.hold is None and life.wanted:
        events.append(Hold(_spent(spent)))
    elif gateway and not spent and life.hold is not None:  # before it has spoken, silence is no release
        events.append(Release("its budget has room again"))
    return events


def _spent(spent: Json) -> str:
    used, limit = show_count(spent.get("used", 0)), show_count(spent.get("limit", 0))
    return f"budget used up ({spent.get('scope', 'unit')}: {used} of {limit} tokens)"


class Links:
    """Two facts clients. ``changed`` is called with the names of the units of which something new is known."""

    def __init__(
        self,
        runtime: Path,
        changed: Callable[[set[str]], None],
        store: Callable[[str, str, list[Json]], Awaitable[None]],
    ) -> None:
        self._changed = changed
        self._store = store
        self.router = self._client(runtime, "router")
        self.gateway = self._client(runtime, "gateway")
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> list[asyncio.Task[None]]:
        """Begin to listen; the tasks that do it."""
        for client in (self.router, self.gateway):
            self._tasks.append(asyncio.create_task(client.run(), name="link"))
        return self._tasks

    async def close(self) -> None:
        """Stop listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def of(self, unit: str) -> tuple[Json, Json]:
        """What router and gateway say of a unit; empty where they say nothing."""
        key = f"unit/{unit}"
        return self.router.facts.get(key, {}), self.gateway.facts.get(key, {})

    def _client(self, runtime: Path, owner: str) -> Client:
        async def keep(records: list[Json]) -> int:
            await self._store(owner, client.epoch, records)
            return int(records[-1]["seq"])

        client = Client(
            runtime / "facts" / f"{owner}.sock", "daemon", on_change=self._hear, on_records=keep, on_link=self._linked
        )
        return client

    def _hear(self, change: Change) -> None:
        units = {key.removeprefix("unit/") for key in (*change.set, *change.gone) if key.startswith("unit/")}
        self._changed(units)

    def _linked(self, up: bool) -> None:
        self._changed(set())
