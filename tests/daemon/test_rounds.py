"""Looks at units that beat travel together, and a unit that is silent is found in time among them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentd.daemon.rounds import Rounds, Stamps
from agentd.errors import Unavailable
from agentd.model.lifecycle import Phase
from tests.fleet import Fleet, fleet
from tests.waiting import wait_until

LIMIT = 10.0


class Unit:
    """What Rounds sees of an agent: it was heard ``left`` seconds before it would hang."""

    def __init__(self, name: str, left: float, limit: float | None = LIMIT) -> None:
        self.name, self.unit, self.heard = name, None, []  # type: tuple[str, None, list[float]]
        self.policy = SimpleNamespace(heartbeat=limit)
        due = time.monotonic() + left
        self.life = SimpleNamespace(phase=Phase.running, deadline=due, invocation=f"{name}1", interval=None)

    def beat(self, invocation: str, at: float) -> None:
        assert invocation == f"{self.name}1"
        self.heard.append(at)
        self.life.deadline = max(self.life.deadline, at + LIMIT)


class Keeper:
    """Counts what it is asked. ``known`` are the stamps; ``unread`` those that it has not read yet."""

    def __init__(self, units: Sequence[Unit], known: Mapping[str, float], unread: Mapping[str, float]) -> None:
        self.known, self.unread, self.away = dict(known), dict(unread), False
        self.asked: list[list[str]] = []
        self.alone: list[str] = []
        agents: Any = {unit.name: unit for unit in units}
        self.rounds = Rounds(agents, self.company, self.one)

    async def company(self, names: Sequence[str]) -> dict[str, float]:
        self.asked.append(list(names))
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("away")
        return {name: at for name, at in self.known.items() if name in names}

    async def one(self, name: str) -> Stamps:
        self.alone.append(name)
        return {**self.known, **self.unread}.get(name), None

    async def look(self, unit: Any) -> float | None:
        return (await self.rounds.stamps(unit))[0]


async def test_those_that_will_be_due_soon_are_taken_along() -> None:
    """One question for all of them; a unit with time left, and one that owes no beats, are left alone."""
    now = time.monotonic()
    units = [Unit("a", 0), Unit("b", 1), Unit("c", 2), Unit("late", 9), Unit("mute", 1, None)]
    keeper = Keeper(units, {unit.name: now for unit in units}, {})
    assert await keeper.look(units[0]) == now
    assert keeper.asked == [["a", "b", "c"]]
    assert [bool(unit.heard) for unit in units] == [True, True, True, False, False]
    assert keeper.alone == []


async def test_silence_is_never_judged_by_what_was_read_in_company() -> None:
    """The keeper may not have come to its socket: it is asked for this one, which makes it look."""
    now = time.monotonic()
    units = [Unit("a", 0), Unit("b", 1)]
    keeper = Keeper(units, {"a": now - LIMIT, "b": now}, {"a": now})
    assert await keeper.look(units[0]) == now
    assert keeper.alone == ["a"]


async def test_one_that_is_silent_is_asked_about_in_company_once() -> None:
    """Many that fall silent together cost one question each, not one about all of them each."""
    now = time.monotonic()
    units = [Unit(name, 0) for name in "abcdef"]
    keeper = Keeper(units, {unit.name: now - LIMIT for unit in units}, {})
    await asyncio.gather(*map(keeper.look, units))
    for unit in units:
        await keeper.look(unit)
    assert len(keeper.asked) == 1
    assert sorted(keeper.alone) == sorted(2 * "abcdef")


async def test_a_look_meanwhile_waits_for_the_question_that_is_open() -> None:
    """All due at the same moment, as after adoption: one question."""
    now = time.monotonic()
    units = [Unit(name, 0) for name in "abcdef"]
    keeper = Keeper(units, {unit.name: now for unit in units}, {})
    assert await asyncio.gather(*map(keeper.look, units)) == [now] * 6
    assert (len(keeper.asked), keeper.alone) == (1, [])


async def test_a_keeper_that_is_away_fails_its_own_question_only() -> None:
    """Whoever waited along asks for itself."""
    units = [Unit("a", 0), Unit("b", 0)]
    keeper = Keeper(units, {}, {})
    keeper.away = True
    first, second = await asyncio.gather(*map(keeper.look, units), return_exceptions=True)
    assert isinstance(first, Unavailable)
    assert (second, keeper.alone) == (None, ["b"])


COUNT, BEATS, SILENCE = 30, 0.25, 1.0
PROGRAM = f"""
import _socket, os, time
s = _socket.socket(1, 2)
while True:
    s.sendto(b"WATCHDOG=1", os.environ["NOTIFY_SOCKET"])
    time.sleep({BEATS})
"""


@pytest.fixture
def beating(short_dir: Path) -> Iterator[Fleet]:
    argv = json.dumps(["python", "-I", "-S", "-c", PROGRAM])
    unit = f'[agent]\nexec = {argv}\n[liveness]\nheartbeat = "{SILENCE}s"\n'
    with fleet(short_dir, {f"u{n}": unit for n in range(COUNT)}) as f:
        yield f


def test_many_that_beat_cost_few_requests_and_a_silent_one_is_found_in_time(beating: Fleet) -> None:
    """Far fewer requests than looks; and among them a unit that stands still is hung within its limit, and only it."""

    def requests() -> int:
        asked: int = beating.status()["agentd"]["keeper_requests"].get("beats", 0)
        return asked

    before, began = requests(), time.monotonic()
    wait_until(lambda: time.monotonic() > began + 4 * SILENCE, 10, "four times the limit")
    took = time.monotonic() - began
    assert 0 < requests() - before < COUNT * took / SILENCE / 3
    struck = time.time()
    os.kill(beating.unit("u7")["pid"], signal.SIGSTOP)
    after = beating.wait("u7", state="running", restarts=1)
    assert (after["last"]["cause"], after["last"]["text"][:16]) == ("hung", "no heartbeat for")
    found = beating.records(unit="u7", kind="unit.stopping")[0]["at"]
    assert SILENCE - 2 * BEATS < found - struck < SILENCE + 0.5
    assert sum(unit["restarts"] for unit in beating.status()["units"]) == 1
