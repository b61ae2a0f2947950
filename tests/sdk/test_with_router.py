"""An SDK agent on the real router: every row of the contract that tests/router/channel_conformance.py states."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.router.world import Agent, World
from tests.sdk.stand_in import DEADLINE, ROOT, spawn
from tests.waiting import until

CLIENT = ROOT / "tests/sdk/conformance_agent.py"


class Pair:
    """The client, a process on the SDK, and a tester who speaks the channel by hand."""

    def __init__(self, world: World, tester: Agent) -> None:
        self.world, self.tester = world, tester
        self.processes: list[asyncio.subprocess.Process] = []

    @property
    def client(self) -> asyncio.subprocess.Process:
        return self.processes[-1]

    async def start(self) -> None:
        """The next invocation of the client."""
        invocation = f"{len(self.processes) + 1:016x}"
        path = str(self.world.directory / "c" / "client")
        env = {"AGENTD_CHANNEL": path, "AGENTD_INVOCATION": invocation, "AGENTD_UNIT": "client"}
        self.world.started("client", invocation)
        self.processes.append(await spawn(CLIENT, env, self.world.directory))

    async def ask(self, kind: str, data: Any) -> dict[str, Any]:
        """The whole answer to an ask of the client."""
        return await self.tester.call("ask", {"to": "client", "kind": kind, "data": data, "timeout": 10})

    async def result(self, kind: str, data: Any) -> Any:
        answer = await self.ask(kind, data)
        return answer["result"]["result"]

    def ended(self, cause: str) -> None:
        """The daemon's fact that the client's process is no more."""
        self.world.ended("client", f"{len(self.processes):016x}", cause)

    async def close(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
            await asyncio.wait_for(process.communicate(b""), DEADLINE)


async def _pair(world: World) -> AsyncIterator[Pair]:
    for name in ("client", "tester"):
        await world.unit(name)
    pair = Pair(world, await world.agent("tester"))
    await pair.start()
    yield pair
    await pair.close()


@pytest.fixture
async def pair(world: World) -> AsyncIterator[Pair]:
    async for pair in _pair(world):
        yield pair


@pytest.fixture
async def pair_apart(apart: World) -> AsyncIterator[Pair]:
    async for pair in _pair(apart):
        yield pair


async def test_results_and_refusals(pair: Pair) -> None:
    """echo, describe, again, progress return; fail and unknown kinds are refused with their words."""
    assert await pair.result("echo", {"a": "ü"}) == {"a": "ü"}
    described = await pair.result("describe", None)
    assert (described["kind"], described["from"], described["attempt"]) == ("describe", "tester", 1)
    assert (described["invocation"], described["unit"]) == (f"{1:016x}", "client")
    assert await pair.result("progress", 5) == 5
    assert await pair.result("again", None) == {"attempt": 2}
    assert "just so" in (await pair.ask("fail", {"why": "just so"}))["error"]["message"]
    assert "no handler" in (await pair.ask("unheard", {}))["error"]["message"]


async def test_calls_of_a_handler(pair: Pair) -> None:
    """A send and an ask from within a delivery reach their unit; errors come back with their words."""
    sent = await pair.result("forward", {"to": "tester", "n": 1})
    assert (sent["stored"], sent["duplicate"]) == (True, False)
    delivery = await pair.tester.next()
    assert (delivery["message"], delivery["kind"], delivery["from"]) == (sent["id"], "echoed", "client")
    pair.tester.done(delivery)
    asking = asyncio.create_task(pair.result("question", {"to": "tester", "data": 7}))
    question = await pair.tester.next()
    pair.tester.done(question, question["data"] + 1)
    assert await asking == {"answer": 8}
    refused = await pair.ask("question", {"to": "nobody", "data": 7})
    assert "nobody" in refused["error"]["message"]


async def test_a_crash_gives_the_message_to_the_next_invocation(pair: Pair) -> None:
    """The process dies of a message; the next one gets what waited, and the one that kills is put aside."""
    await pair.world.send("client", "crash")
    for _ in range(3):
        assert await asyncio.wait_for(pair.client.wait(), DEADLINE) == 7
        pair.ended("crashed")
        await pair.start()
    await until(lambda: (pair.world.of("client") or {}).get("dead") == 1, DEADLINE, "the message is put aside")
    assert await pair.result("echo", 1) == 1


async def test_work_outlives_the_router(pair_apart: Pair, short_dir: Path) -> None:
    """SIGKILL of the router while a message is in hand: no second attempt, one result, over the new connection."""
    pair, world = pair_apart, pair_apart.world
    started, free = short_dir / "started", short_dir / "free"
    ident = await world.send("client", "hold", {"started": str(started), "until": str(free)})
    await until(started.exists, DEADLINE, "the client works")
    started.unlink()
    await world.kill_router()
    await until(lambda: not world.router.connected, DEADLINE, "the router is gone")
    await world.start_router()
    await until(lambda: world.router.connected, DEADLINE, "the router is back")
    await until(lambda: [h["message"] for h in (world.of("client") or {}).get("held", [])] == [ident], DEADLINE)
    free.touch()
    await until(lambda: (world.of("client") or {}).get("done") == 1, DEADLINE, "it is acknowledged")
    assert not started.exists()
    assert pair.client.returncode is None


async def test_sigterm(pair: Pair) -> None:
    """It leaves with status 0, and what comes later waits for its successor."""
    assert await pair.result("echo", 1) == 1
    pair.client.terminate()
    assert await asyncio.wait_for(pair.client.wait(), DEADLINE) == 0
    pair.ended("stopped")
    later = asyncio.create_task(pair.result("echo", 2))
    await pair.start()
    assert await later == 2
