"""What a spawn that cannot be had makes of a unit: tried again where it may pass, and never two truths."""

from __future__ import annotations

import asyncio
import errno
import time
from typing import Any

import pytest

from agentd.daemon.agent import Agent
from agentd.errors import SpawnFailed, TooLate
from agentd.model.lifecycle import Life, Now, Phase, Policy, Start


class World:
    """A world in which every spawn fails in one way."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.tasks: list[asyncio.Task[None]] = []

    def now(self) -> Now:
        return Now(time.monotonic(), time.time(), 0.5)

    def changed(self, *_: Any) -> None: ...

    def passed(self, *_: Any) -> None: ...

    def note(self, *_: Any) -> None: ...

    def release(self, *_: Any) -> None:
        raise AssertionError

    def guard(self, task: asyncio.Task[None]) -> None:
        self.tasks.append(task)

    async def spawn(self, *_: Any) -> Any:
        raise self.error


async def begun(world: World) -> Agent:
    agent = Agent("bus", None, Policy.system(type="simple"), Life.new(time.monotonic()), world)  # type: ignore[arg-type]
    agent.post(Start("test"))
    await asyncio.sleep(0.02)
    return agent


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/run/agentd/etc/nats.conf.new"),
        SpawnFailed("fork: no space", step="fork", errno=errno.ENOSPC, path="/run/agentd/keeper/x.json"),
        SpawnFailed("exec: no exec within 10 s", step="exec", errno=errno.ETIMEDOUT, path="/bin/x"),
    ],
)
async def test_what_may_pass_is_tried_again(error: Exception) -> None:
    """A full disk or a slow one neither parks a unit in ``failed`` for good nor breaks the daemon."""
    world = World(error)
    agent = await begun(world)
    assert agent.life.phase in (Phase.backoff, Phase.starting)
    assert not any(task.done() for task in world.tasks)
    await agent.close()


async def test_a_spawn_without_an_answer_is_not_taken_for_a_refusal() -> None:
    """The process may run: the daemon ends, and the next one finds it in the snapshot."""
    world = World(TooLate("the keeper did not answer spawn within 30 s"))
    agent = await begun(world)
    assert agent.life.phase is Phase.starting
    assert isinstance(world.tasks[0].exception(), TooLate)
    await agent.close()
