"""Schedules where the clocks are ours: a wall clock that is set, a daemon that dies before its start leaves it."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from agentd.daemon.agent import Agent
from agentd.daemon.schedules import Schedules
from agentd.host.wallclock import WallClock
from agentd.model import reading
from agentd.model.lifecycle import Asked, Life, Now

Json = dict[str, Any]
DAY = 86400.0
NOON = 20_000 * DAY + DAY / 2


@dataclass
class Unit:
    """As much of an agent as a schedule sees."""

    name: str
    unit: Any
    life: Life


@dataclass
class World:
    """A fleet with clocks that stand still until they are set."""

    clock: Now
    stopping: bool = False
    started: list[str] = field(default_factory=list)
    records: list[Json] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def now(self) -> Now:
        return self.clock

    def record(self, record: Json) -> None:
        self.records.append(record)

    def keep(self, agent: Any) -> None:
        self.kept.append(agent.name)

    def start_alone(self, name: str, asked: Asked) -> None:
        self.started.append(asked.reason)

    def at(self, wall: float, mono: float = 0.0) -> None:
        """Another moment; without ``mono`` only the wall clock is set."""
        self.clock = replace(self.clock, wall=wall, mono=self.clock.mono + mono)


def scene(schedule: str, remembered: Json | None = None, floor: str | None = None) -> tuple[World, Schedules, Unit]:
    """A unit with this schedule at noon of some day."""
    world = World(Now(time.monotonic(), NOON, 0.5))
    text = f'[agent]\nexec = ["true"]\nschedule = {schedule}\n'
    one = Unit("job", reading.parse(text, "job", "job.toml"), Life.new(0.0, floor=floor))
    schedules = Schedules(cast("dict[str, Agent]", {"job": one}), world, {"job": remembered} if remembered else {})
    agent = cast("Agent", one)
    schedules.put(agent)
    schedules.enlist(agent, Asked("agentd"))
    return world, schedules, one


async def test_a_wall_clock_that_is_set_neither_repeats_nor_loses_a_cron_run() -> None:
    """A day forward: the missed run is made, once; a day back: told, and nothing is run twice."""
    world, schedules, _ = scene('"0 3 * * *"')
    schedules.begin()
    world.at(NOON + DAY)
    schedules._look(True)
    assert len(world.started) == 1
    assert "9h00m ago" in world.started[0]
    world.at(NOON)
    schedules._look(True)
    assert "set back" in world.records[-1]["reason"]
    world.at(NOON + DAY - 1)
    schedules._look()
    assert len(world.started) == 1
    world.at(NOON + 2 * DAY - 9 * 3600)
    schedules._look()
    assert len(world.started) == 2
    schedules.close()


async def test_every_does_not_see_the_wall_clock() -> None:
    """Set by a day either way, it goes on in its own time."""
    world, schedules, _ = scene('"every 5m"')
    schedules.begin()
    for wall in (NOON + DAY, NOON - DAY):
        world.at(wall)
        schedules._look(True)
        assert world.started == []
    world.at(NOON, mono=300.0)
    schedules._look()
    assert len(world.started) == 1
    schedules.close()


@pytest.mark.parametrize(("invocation", "runs"), [(None, 2), ("inv-7", 1)])
async def test_a_start_that_never_left_the_daemon_is_made_by_the_next(invocation: str | None, runs: int) -> None:
    """The store knows of a start; whether the keeper has it decides between once more and never twice."""
    world, schedules, one = scene('"0 3 * * *"')
    schedules.begin()
    left = schedules.memo("job")
    world.at(NOON + DAY - 9 * 3600)
    schedules._look()
    saved = schedules.memo("job")
    schedules.close()
    assert saved["schedule"]["serial"] > left["schedule"]["serial"]
    after, again, one = scene('"0 3 * * *"', remembered=saved)
    after.clock = world.clock
    one.life = replace(one.life, invocation=invocation)
    again.recall(cast("Agent", one), left, "inv-7")
    again.begin()
    assert len(world.started) + len(after.started) == runs
    again.close()


async def test_without_a_cron_schedule_no_wall_clock_is_watched() -> None:
    """It costs nothing; with the last cron schedule the descriptor goes."""
    _, schedules, _ = scene('"every 5m"')
    schedules.begin()
    assert schedules._wall is None
    schedules.close()
    _, schedules, _ = scene('"@daily"')
    schedules.begin()
    assert schedules._wall is not None
    schedules.drop("job")
    assert schedules._wall is None


async def test_the_kernel_tells_the_moment_and_that_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment in the past is now; ECANCELED is a clock that was set."""
    told: asyncio.Queue[bool] = asyncio.Queue()
    clock = WallClock(told.put_nowait)
    began = time.time()
    clock.arm(began + 0.05)
    assert await asyncio.wait_for(told.get(), 5) is False
    assert time.time() >= began + 0.05
    real = os.read

    def cancelled(fd: int, count: int) -> bytes:
        real(fd, count)
        raise OSError(errno.ECANCELED, "the clock was set")

    with monkeypatch.context() as patched:
        clock.arm(began)
        patched.setattr(
            "agentd.host.wallclock.os.read", lambda fd, n: cancelled(fd, n) if fd == clock._fd else real(fd, n)
        )
        assert await asyncio.wait_for(told.get(), 5) is True
    clock.close()
