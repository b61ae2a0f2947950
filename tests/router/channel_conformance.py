"""Conformance of a client of the channel, in any language, against the real router (agentd/router/CHANNEL.md).

The client is a program, started as a child process by the command line that is given. To try one of your own:

    AGENTD_CHANNEL_AGENT="sh my_agent.sh" pytest tests/router/test_conformance.py

What the program must do (this is the whole contract):

- It finds `AGENTD_CHANNEL` (path of the socket), `AGENTD_INVOCATION` and `AGENTD_UNIT` in its environment, connects,
  says hello and serves deliveries one at a time until it gets SIGTERM; then it exits with status 0 at once.
- When the connection breaks it connects again (trying for at least 10 seconds, at least every 0.2 seconds) and says
  hello with the delivery that it still works on in `holding`. It repeats the last result that it wrote before.
- It ignores notifications and fields that it does not know.
- What it does is decided by the `kind` of the message:

    echo      returns `data` unchanged
    describe  returns {"kind", "from", "attempt", "message", "conversation", "hop", "invocation", "unit"} of this
              delivery (the last two from its environment)
    forward   sends `data` to the unit data["to"] with kind `echoed`, naming this delivery and the key `forward`;
              returns the router's result of the send: {"id", "stored", "duplicate"}; on an error it refuses as
              `question` does
    question  asks the unit data["to"], kind `echo`, data data["data"], naming this delivery; returns
              {"answer": <the receiver's result>}; when the router answers with an error, it refuses with that
              error's message, without retry
    fail      refuses: error -32000, message data["why"], data {"retry": false}
    again     on attempt 1 refuses with data {"retry": true, "delay": 0}; later returns {"attempt": n}
    progress  sends one `progress` notification with the note `half`, then returns `data`
    hold      creates the file data["started"], waits until the file data["until"] exists (looks at least every
              50 ms), then returns {"invocation", "attempt"}; while it waits it notices a broken connection
    crash     exits at once with status 7, without an answer
    others    refuses: error -32000, data {"retry": false}
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from agentd.errors import AgentdError
from tests.router.world import Json, World
from tests.waiting import until

UNIT = "client"


class Program:
    """The client under test as a child process, as unit `client`."""

    def __init__(self, world: World, command: list[str]) -> None:
        self.world = world
        self.number = 0
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    @property
    def invocation(self) -> str:
        """The present invocation."""
        return f"{self.number:016x}"

    async def start(self, *, greets: bool = True) -> None:
        """A new invocation; returns when it said hello (unless it may be gone at once)."""
        self.number += 1
        self.world.started(UNIT, self.invocation)
        env = {
            **os.environ,
            "AGENTD_CHANNEL": str(self.world.directory / "c" / UNIT),
            "AGENTD_INVOCATION": self.invocation,
            "AGENTD_UNIT": UNIT,
        }
        self._process = await asyncio.create_subprocess_exec(*self._command, env=env, start_new_session=True)
        if greets:
            await until(lambda: (self.world.of(UNIT) or {}).get("connected") == self.invocation, 10, "hello")

    async def ended(self, cause: str) -> int:
        """Wait for its end and tell the router of it; its exit status."""
        assert self._process is not None
        async with asyncio.timeout(10):
            status = await self._process.wait()
        self._process = None
        self.world.ended(UNIT, self.invocation, cause)
        return status

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    async def close(self) -> None:
        """End it if it still runs."""
        if self._process is not None and self._process.returncode is None:
            self.signal(signal.SIGKILL)
            await self._process.wait()

    async def ask(self, kind: str, data: Any = None, timeout: float = 10) -> Any:
        """Send it a message as the operator and wait for its result."""
        params = {"to": UNIT, "kind": kind, "data": data, "wait": timeout}
        answer = await self.world.router.call("send", params, timeout=timeout + 1)
        return answer["result"]


class ChannelConformance:
    """Derive from this, give a fixture `command`, and get the tests."""

    @pytest.fixture
    async def program(self, apart: World, command: list[str]) -> Any:
        """The client, running, in a world with two more units: `peer` that listens and `echo`."""
        for name in (UNIT, "peer"):
            await apart.unit(name)
        program = Program(apart, command)
        await program.start()
        yield program
        await program.close()

    async def test_answers(self, program: Program) -> None:
        """Results, refusals, retries and progress; data of every JSON type comes back unchanged."""
        values: list[Any] = [None, True, 0, -1.5, "", 'zażółć \U0001f600 "\\\n\u2028', [], {}, {"a": [1, {"b": None}]}]
        for value in values:
            assert await program.ask("echo", value) == value
        large = "x" * 300_000
        assert await program.ask("echo", large) == large
        assert await program.ask("progress", {"n": 1}) == {"n": 1}
        assert await program.ask("again") == {"attempt": 2}
        with pytest.raises(AgentdError, match="that is why"):
            await program.ask("fail", {"why": "that is why"})
        with pytest.raises(AgentdError):
            await program.ask("a kind that nobody knows")
        assert await program.ask("echo", "still there") == "still there"

    async def test_envelope(self, program: Program) -> None:
        """It reads the envelope."""
        said = await program.ask("describe")
        assert (said["kind"], said["from"], said["attempt"], said["hop"]) == ("describe", "@operator", 1, 0)
        assert (said["unit"], said["invocation"]) == (UNIT, program.invocation)
        assert said["conversation"] == said["message"]

    async def test_sends_and_asks(self, program: Program) -> None:
        """It sends and asks while it handles a message; the router's refusal reaches it."""
        peer = await program.world.agent("peer")
        forwarding = asyncio.create_task(program.ask("forward", {"to": "peer", "n": 1}))
        delivery = await peer.next()
        assert (delivery["kind"], delivery["from"], delivery["data"]) == ("echoed", UNIT, {"to": "peer", "n": 1})
        assert (delivery["hop"], delivery["causation"] is not None) == (1, True)
        peer.done(delivery)
        sent = await forwarding
        assert (sent["id"], sent["stored"], sent["duplicate"]) == (delivery["message"], True, False)
        asking = asyncio.create_task(program.ask("question", {"to": "peer", "data": [7]}))
        delivery = await peer.next()
        assert (delivery["reply"], delivery["data"]) == (True, [7])
        peer.done(delivery, {"got": [7]})
        assert await asking == {"answer": {"got": [7]}}
        with pytest.raises(AgentdError, match="nobody"):
            await program.ask("question", {"to": "nobody", "data": 1})

    async def test_a_crash_and_its_successor(self, program: Program) -> None:
        """Killed in a message: the successor gets attempt 2. A message that kills every reader is dead-lettered."""
        holding = await _hold(program)
        program.signal(signal.SIGKILL)
        assert await program.ended("crashed") == -signal.SIGKILL
        await program.start()
        holding.release()
        assert await holding.result == {"invocation": program.invocation, "attempt": 2}
        poison = await program.world.send(UNIT, "crash")
        for _ in range(3):
            assert await program.ended("failed") == 7
            await program.start(greets=False)
        assert await program.ask("echo", "next") == "next"
        letters = (await program.world.router.call("dlq.list", {}))["letters"]
        assert [(x["message"], x["reason"]) for x in letters] == [(poison, "poison")]

    async def test_a_kill_of_the_router(self, program: Program) -> None:
        """The router dies while it works: it comes back with `holding`, works once, and its result counts."""
        holding = await _hold(program, wait=False)
        await program.world.kill_router()
        await program.world.start_router()
        await until(lambda: _held(program) == 1 and program.world.router.connected, 15, "held again")
        holding.release()
        await until(lambda: (program.world.of(UNIT) or {}).get("done") == 1, 10)
        assert await program.ask("echo", "after") == "after"
        assert holding.begun.read_text() == ""

    async def test_stop(self, program: Program) -> None:
        """SIGTERM: it ends with status 0."""
        program.signal(signal.SIGTERM)
        assert await program.ended("stopped") == 0


class _Holding:
    """A `hold` message that is being worked on."""

    def __init__(self, directory: Path, result: asyncio.Future[Any]) -> None:
        self.begun, self._until, self.result = directory / "begun", directory / "until", result

    def release(self) -> None:
        """Let it finish."""
        self._until.touch()


async def _hold(program: Program, *, wait: bool = True) -> _Holding:
    directory = program.world.directory
    data: Json = {"started": str(directory / "begun"), "until": str(directory / "until")}
    if wait:
        result: asyncio.Future[Any] = asyncio.ensure_future(program.ask("hold", data, 20))
    else:
        await program.world.send(UNIT, "hold", data)
        result = asyncio.get_running_loop().create_future()
    holding = _Holding(directory, result)
    await until(holding.begun.exists, 10, "it works on the message")
    return holding


def _held(program: Program) -> int:
    fact = program.world.of(UNIT) or {}
    return len(fact.get("held", ())) if fact.get("connected") == program.invocation else 0
