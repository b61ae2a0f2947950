"""A Control of the tests: it notes what it was asked and answers with that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from agentd.daemon.ports import Actor, Control
from agentd.errors import NoSuchUnit

Json = dict[str, Any]


class Fleet:
    """Implements agentd.daemon.ports.Control over one unit, ``writer``."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.actors: list[Actor] = []
        self.inside: Callable[[int], bool] = lambda pid: False
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.followers = 0

    def _note(self, *what: Any, actor: Actor | None = None) -> Json:
        self.asked.append(what)
        if actor is not None:
            self.actors.append(actor)
        return {"asked": what[0]}

    def status(self, unit: str | None = None) -> Json:
        if unit not in (None, "writer"):
            raise NoSuchUnit(f"{unit}: no such unit.", hint="`agentctl list` shows all.")
        return self._note("status", unit)

    async def start(self, unit: str, actor: Actor, wait: float | None = None) -> Json:
        return self._note("start", unit, wait, actor=actor)

    async def stop(self, unit: str, actor: Actor, wait: float | None = None) -> Json:
        self._note("stop", unit, wait, actor=actor)
        await self.may_stop.wait()
        return self._note("stopped", unit)

    async def restart(self, unit: str, actor: Actor, wait: float | None = None) -> Json:
        return self._note("restart", unit, wait, actor=actor)

    async def kill(self, unit: str, signal: str, actor: Actor) -> Json:
        return self._note("kill", unit, signal, actor=actor)

    async def check(self, files: list[Json]) -> Json:
        return self._note("check", files)

    async def deploy(self, files: list[Json], actor: Actor) -> Json:
        return self._note("deploy", files, actor=actor)

    async def run(self, name: str, unit: Json, actor: Actor) -> Json:
        return self._note("run", name, unit, actor=actor)

    def files(self, unit: str) -> Json:
        return self._note("files", unit)

    async def remove(self, unit: str, actor: Actor) -> Json:
        return self._note("remove", unit, actor=actor)

    def explain(self, unit: str) -> Json:
        return self._note("explain", unit)

    async def logs(self, unit: str, lines: int | None, follow: bool, **wanted: Any) -> AsyncIterator[bytes]:
        if unit != "writer":
            raise NoSuchUnit(f"{unit}: no such unit.")
        self._note("logs", unit, lines, follow, *([wanted] if wanted else []))
        if lines:
            yield b"one\n"
            yield b"two\n"
        self.followers += 1
        try:
            if follow:
                await asyncio.Event().wait()
        finally:
            self.followers -= 1

    async def send(self, message: Json, actor: Actor) -> Json:
        return self._note("send", message, actor=actor)

    async def letters(self, method: str, params: Json, actor: Actor) -> Json:
        return self._note(f"letters.{method}", params, actor=actor)

    async def budget(self, method: str, params: Json, actor: Actor) -> Json:
        return self._note(f"budget.{method}", params, actor=actor)

    async def journal(self, query: Json) -> Json:
        return self._note("journal", query)

    async def doctor(self) -> Json:
        raise ZeroDivisionError("a defect")

    def down(self, actor: Actor) -> Json:
        return self._note("down", actor=actor)

    def is_unit_process(self, pid: int) -> bool:
        return self.inside(pid)


def as_control(fleet: Fleet) -> Control:
    """Lets mypy check that it is one."""
    return fleet
