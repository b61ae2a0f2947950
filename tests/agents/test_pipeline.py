"""The whole pipeline on the real router and bus, with faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agents.conftest import Model
from tests.router.world import World
from tests.sdk.stand_in import DEADLINE, ROOT, spawn
from tests.waiting import until

AGENTS = ROOT / "agents"
TEXT = "".join(f"# Section {n}\n\nText {n}.\n\n" for n in range(4))


class Fleet:
    """The three agents as processes, and the facts that a daemon would state of them."""

    def __init__(self, world: World, model: Model, directory: Path) -> None:
        self.world, self.model, self.directory = world, model, directory
        self.running: dict[str, tuple[asyncio.subprocess.Process, str]] = {}
        self.ended: list[asyncio.subprocess.Process] = []

    async def start(self, name: str, number: int = 1) -> None:
        invocation = f"{number:016x}"
        state = self.directory / "home" / name
        state.mkdir(parents=True, exist_ok=True)
        env = {
            **self.model.env,
            "AGENTD_CHANNEL": str(self.world.directory / "c" / name),
            "AGENTD_INVOCATION": invocation,
            "AGENTD_STATE_DIR": str(state),
        }
        self.world.started(name, invocation)
        self.running[name] = await spawn(AGENTS / f"{name}.py", env, AGENTS), invocation

    async def kill(self, name: str) -> None:
        """SIGKILL, and the fact of it."""
        process, invocation = self.running.pop(name)
        process.kill()
        await process.wait()
        self.ended.append(process)
        self.world.ended(name, invocation, "crashed")

    async def close(self) -> None:
        for name in list(self.running):
            await self.kill(name)
        for process in self.ended:
            await asyncio.wait_for(process.communicate(), DEADLINE)

    def results(self) -> list[Path]:
        return list((self.directory / "home/reviewer").glob("results/*.json"))


@pytest.fixture
async def fleet(apart: World, model: Model, short_dir: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(apart, model, short_dir)
    for name in ("researcher", "writer", "reviewer"):
        await apart.unit(name)
        await fleet.start(name)
    yield fleet
    await fleet.close()


async def done(fleet: Fleet) -> None:
    """Every inbox is empty again and the reviewer has finished one message."""
    world = fleet.world

    def quiet() -> bool:
        facts = [world.of(name) or {} for name in ("researcher", "writer", "reviewer")]
        return facts[2].get("done") == 1 and all(f.get("pending") == 0 and f.get("held") == [] for f in facts)

    await until(quiet, 15, "the pipeline is through")


async def test_a_text_becomes_one_result(fleet: Fleet) -> None:
    """researcher → writer → reviewer, in one conversation, and the result is kept once."""
    await fleet.world.send("researcher", "text", {"title": "T", "text": TEXT}, conversation="talk")
    await done(fleet)
    [path] = fleet.results()
    kept = json.loads(path.read_text())
    assert (path.name, kept["conversation"], kept["title"]) == ("talk.json", "talk", "T")
    assert len(kept["text"].split("\n\n")) == 4


async def test_a_killed_writer_changes_nothing(fleet: Fleet) -> None:
    """SIGKILL in the middle of a message: its successor gets it, and the result arrives exactly once."""
    model = fleet.model
    model.slow = "paragraph about 'Section 1'"
    await fleet.world.send("researcher", "text", {"title": "T", "text": TEXT}, conversation="talk")
    await until(lambda: any(model.slow in prompt for prompt in model.prompts), DEADLINE, "the writer writes")
    await fleet.kill("writer")
    model.go.set()
    await fleet.start("writer", 2)
    await done(fleet)
    [path] = fleet.results()
    assert len(json.loads(path.read_text())["text"].split("\n\n")) == 4
    assert len([prompt for prompt in model.prompts if model.slow in prompt]) == 2


async def test_a_killed_router_changes_nothing(fleet: Fleet) -> None:
    """SIGKILL of the router while the writer works: agents keep their work, reconnect, and the result comes once."""
    model, world = fleet.model, fleet.world
    model.slow = "paragraph about 'Section 1'"
    await world.send("researcher", "text", {"title": "T", "text": TEXT}, conversation="talk")
    await until(lambda: any(model.slow in prompt for prompt in model.prompts), DEADLINE, "the writer writes")
    await world.kill_router()
    await until(lambda: not world.router.connected, DEADLINE, "the router is gone")
    await world.start_router()
    await until(lambda: world.router.connected, DEADLINE, "the router is back")
    model.go.set()
    await until(fleet.results, 15, "there is a result")
    await until(lambda: all((world.of(n) or {}).get("pending") == 0 for n in fleet.running), 15, "inboxes are empty")
    assert len(fleet.results()) == 1
    assert all(process.returncode is None for process, _ in fleet.running.values())
    assert len([prompt for prompt in model.prompts if model.slow in prompt]) == 1
