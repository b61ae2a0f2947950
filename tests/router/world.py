"""A small world for router tests: a real nats-server, a real router process, a stand-in daemon that owns facts, and
agents that speak the channel by hand."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agentd.router import main
from agentd.wire.facts import Client, Facts, Server
from tests.bus.servers import PASSWORD, NatsServer
from tests.waiting import until

Json = dict[str, Any]


class World:
    """Everything that the router needs around it. Invocations are numbered from 1."""

    def __init__(self, directory: Path, *, process: bool) -> None:
        self.directory = directory
        self._apart = process
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.nats = NatsServer(directory)
        self.daemon = Facts("daemon")
        self.records: list[Json] = []
        self.router = Client(
            directory / "facts" / "router.sock", "daemon", on_records=self._keep, on_change=lambda _: None
        )
        self._server = Server(self.daemon, {}, uids=frozenset({os.geteuid()}))
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._agents: list[Agent] = []
        self._units: dict[str, Json] = {}

    async def open(self) -> None:
        """Start bus, daemon facts and router."""
        (self.directory / "facts").mkdir()
        self.nats.start()
        await self._server.start(path=self.directory / "facts" / "daemon.sock")
        self.daemon.set("fleet", {"version": "0", "stopping": False})
        await self.start_router()
        self._reading = asyncio.create_task(self.router.run())
        await until(lambda: self.router.connected)

    async def close(self) -> None:
        """End everything."""
        for agent in self._agents:
            await agent.close()
        if self._process is not None or self._task is not None:
            await self.stop_router()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._server.close()
        self.nats.close()

    async def start_router(self) -> None:
        """A router process, as agentd starts it; or the same in this process, which is quicker."""
        config = self.directory / "router.json"
        nats = {"url": self.nats.url, "user": "router", "password": PASSWORD}
        settings = {"runtime": str(self.directory), "uids": [os.geteuid()], "nats": nats}
        config.write_text(json.dumps(settings))
        if not self._apart:
            self._task = asyncio.create_task(main.serve(settings, {}, self._stop))
            return
        log = (self.directory / "router.log").open("ab")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agentd.router.main", "--config", str(config), stdout=log, stderr=log
        )
        log.close()

    async def kill_router(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop_router(self) -> None:
        """SIGTERM; it must end by itself, with status 0."""
        if self._task is not None:
            self._stop.set()
            await self._task
            return
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                await self._process.wait()
            assert self._process.returncode == 0, self.log()
        self._process = None

    def log(self) -> str:
        """What the router logged."""
        return (self.directory / "router.log").read_text()

    async def unit(self, name: str, **bus: Any) -> None:
        """A unit, not running yet; returns when its channel is served."""
        self._units[name] = {
            "uid": None,
            "channel": str(self.directory / "c" / name),
            "phase": "inactive",
            "invocation": None,
            "ready": False,
            "down": False,
            "endings": [],
            "bus": {"may_send": None, "inbox_max": 10_000, "in_flight": 1, "deadline": 300.0, "max_deliver": 5,
                    "poison_after": 3, "backoff": [0.05], **bus},
        }  # fmt: skip
        self.fact(name)
        await until(lambda: (self.directory / "c" / name).exists() and self.of(name) is not None, 10)

    def fact(self, name: str, **changes: Any) -> None:
        """The daemon states (changed) facts of a unit."""
        self._units[name] = {**self._units[name], **changes}
        self.daemon.set(f"unit/{name}", self._units[name])

    def of(self, name: str) -> Json | None:
        """The router's facts of a unit."""
        return self.router.facts.get(f"unit/{name}")

    def started(self, name: str, invocation: str) -> None:
        """The daemon spawned an invocation."""
        self.fact(name, invocation=invocation, phase="running", down=False)

    def ended(self, name: str, invocation: str, cause: str, *, down: bool = False) -> None:
        """The daemon saw an invocation end."""
        endings = [*self._units[name]["endings"], [invocation, cause]]
        self.fact(name, invocation=None, endings=endings[-16:], down=down)

    async def agent(self, name: str, number: int = 1, holding: list[str] | None = None) -> Agent:
        """An agent of this invocation that has said hello."""
        invocation = f"{number:016x}"
        if (self._units[name]["invocation"] or "") < invocation:
            self.started(name, invocation)
        agent = await self.connect(name)
        answer = await agent.call("hello", {"protocol": 1, "invocation": invocation, "holding": holding or []})
        assert answer["result"]["unit"] == name, answer
        return agent

    async def connect(self, name: str) -> Agent:
        """A connection without hello."""
        agent = Agent(self.directory / "c" / name)
        await agent.open()
        self._agents.append(agent)
        return agent

    async def send(self, to: str, kind: str = "work", data: Any = None, **more: Any) -> str:
        """The operator sends; the message id."""
        answer = await self.router.call("send", {"to": to, "kind": kind, "data": data, **more})
        return str(answer["id"])

    def kinds(self, message: str | None = None) -> list[str]:
        """The kinds of the records so far (of one message)."""
        return [r["kind"] for r in self.records if message is None or r.get("message") == message]

    async def _keep(self, records: list[Json]) -> int:
        self.records += records
        return int(records[-1]["seq"])


class Agent:
    """A client of the channel, by hand."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.deliveries: asyncio.Queue[Json] = asyncio.Queue()
        self.other: asyncio.Queue[Json] = asyncio.Queue()
        self._answers: dict[Any, asyncio.Future[Json]] = {}
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.closed = asyncio.Event()

    async def open(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(self._path, limit=1 << 22)
        self._task = asyncio.create_task(self._read(reader))

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def raw(self, data: bytes) -> None:
        """Write bytes as they are."""
        assert self._writer is not None
        self._writer.write(data)

    def write(self, value: Json) -> None:
        self.raw(json.dumps(value).encode() + b"\n")

    async def call(self, method: str, params: Json, timeout: float = 10) -> Json:
        """Call the router; its whole answer."""
        answer = self.begin(method, params)
        ended = asyncio.ensure_future(self.closed.wait())
        await asyncio.wait([answer, ended], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if answer.done():
            return answer.result()
        raise ConnectionError("the router ended the connection" if self.closed.is_set() else "no answer")

    def begin(self, method: str, params: Json) -> asyncio.Future[Json]:
        """Call without waiting."""
        self._number += 1
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._answers[self._number] = answer
        self.write({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        return answer

    async def send(self, to: str, kind: str = "work", data: Any = None, **more: Any) -> Json:
        """Send; the result, or the error."""
        answer = await self.call("send", {"to": to, "kind": kind, "data": data, **more})
        return dict(answer.get("result") or answer["error"])

    async def next(self, timeout: float = 5) -> Json:
        """The params of the next delivery."""
        async with asyncio.timeout(timeout):
            return dict((await self.deliveries.get())["params"])

    def done(self, delivery: Json, result: Any = None) -> None:
        self.write({"jsonrpc": "2.0", "id": delivery["delivery"], "result": result})

    def refuse(self, delivery: Json, **data: Any) -> None:
        error = {"code": -32000, "message": "no", "data": data}
        self.write({"jsonrpc": "2.0", "id": delivery["delivery"], "error": error})

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                value = json.loads(line)
                if value.get("method") == "deliver":
                    self.deliveries.put_nowait(value)
                elif value.get("id") in self._answers:
                    self._answers.pop(value["id"]).set_result(value)
                else:
                    self.other.put_nowait(value)
        except ConnectionError:
            pass
        finally:
            self.closed.set()
