"""A real gateway process, a fake upstream that does what a test tells it, and a daemon that states facts."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from agentd.wire.facts import Client, Facts, Server
from agentd.wire.key import virtual_key
from tests.waiting import until

SECRET = b"the boot secret of a test"
REAL_KEY = "sk-real-key-of-the-operator"
NEWEST = "00000000000000aa"
OLDER = "0000000000000099"

Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def usage(tokens_in: int, tokens_out: int) -> dict[str, int]:
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def chunk(text: str | None, counts: dict[str, int] | None = None) -> bytes:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}}]
    return b"data: %b\n\n" % json.dumps({"id": "c", "choices": choices, "usage": counts}).encode()


async def whole(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
    """A complete answer that costs 10 in and 20 out."""
    return web.json_response({"id": "x", "choices": [{"message": {"content": "hi"}}], "usage": usage(10, 20)})


async def streamed(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
    """Three chunks and the usage chunk, as OpenAI sends them."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for text in ("a", "b", "c"):
        await response.write(chunk(text))
    if (asked.get("stream_options") or {}).get("include_usage"):
        await response.write(chunk(None, usage(7, 3)))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


class FakeUpstream:
    """An OpenAI-compatible server; `answer` is what it does, `seen` what it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = whole
        self.seen: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.gone = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if request.path.endswith("/models"):
            return web.json_response({"data": [{"id": "big"}, {"id": "small"}]})
        body = await request.read()
        self.bodies.append(body)
        asked = json.loads(body)
        self.seen.append(asked)
        try:
            return await self.answer(request, asked)
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise


@asynccontextmanager
async def served(handle: Any) -> AsyncIterator[str]:
    """Any handler at a port of its own."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def fake_upstream() -> AsyncIterator[FakeUpstream]:
    fake = FakeUpstream()
    async with served(fake.handle) as url:
        fake.url = f"{url}/v1"
        yield fake


def unit_fact(limit: int | None, on_exhausted: str = "refuse", **more: Any) -> dict[str, Any]:
    """A unit as the daemon states it."""
    return {
        "invocation": NEWEST,
        "down": False,
        "endings": [[OLDER, "failed"]],
        "budget": {"tokens": None if limit is None else [limit, "day"], "on_exhausted": on_exhausted},
        "llm": {"silence": 120.0},
        **more,
    }


class Rig:
    """A gateway process with its neighbours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon = Facts("daemon")
        self.router = Facts("router")
        self.records: list[dict[str, Any]] = []
        self.gateway = Client(folder / "facts/gateway.sock", "daemon", on_records=self._store)
        self.process: asyncio.subprocess.Process | None = None
        self.session: aiohttp.ClientSession
        self.config: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "runtime": str(folder),
            "state": str(folder / "state"),
            "ollama": "http://127.0.0.1:1",
        }

    @property
    def ledger(self) -> Path:
        return self.folder / "state/ledger"

    @property
    def base(self) -> str:
        return f"http://{self.gateway.facts['listen']['address']}"

    def key(self, unit: str = "a", invocation: str = NEWEST) -> str:
        return virtual_key(SECRET, unit, invocation)

    def standing(self, unit: str = "a") -> dict[str, Any]:
        return self.gateway.facts.get(f"unit/{unit}") or {}

    async def _store(self, records: list[dict[str, Any]]) -> int:
        self.records += records
        return int(records[-1]["seq"])

    def kinds(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]

    async def start(self) -> None:
        """Start the process and wait until it knows the daemon's facts."""
        path = self.folder / "gateway.json"
        path.write_text(json.dumps(self.config))
        secret = self.folder / "secret"
        secret.write_bytes(SECRET)
        epoch = self.gateway.epoch
        log = (self.folder / "log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            # what the keeper does: the secret as descriptor 3, announced by LISTEN_FDS
            "import os,sys; fd=os.open(sys.argv[1],os.O_RDONLY); os.dup2(fd,3); os.set_inheritable(3,True); "
            "os.environ.update(LISTEN_PID=str(os.getpid()),LISTEN_FDS='1',LISTEN_FDNAMES='secret'); "
            "os.execv(sys.executable,[sys.executable,'-m','agentd.gateway.main','--config',sys.argv[2]])",
            str(secret),
            str(path),
            env={**os.environ, "UPSTREAM_KEY": REAL_KEY},
            stderr=log,
        )
        log.close()
        await until(lambda: self.gateway.connected and self.gateway.epoch != epoch, 20, "gateway facts")
        await until(lambda: "listen" in self.gateway.facts, 20, "listening")
        for key in self.daemon.keys("unit/"):
            await until(lambda key=key: key in self.gateway.facts, 20, key)

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Ask the gateway as the daemon does; patient, because a busy disk can stall a whole host."""
        return await self.gateway.call(method, params, timeout=20)

    async def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()

    async def post(self, body: Any, key: str | None = None, path: str = "/v1/chat/completions") -> Any:
        """Ask, and return (status, headers, text)."""
        data = body if isinstance(body, bytes | io.BytesIO) else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {key or self.key()}"}
        async with self.session.post(self.base + path, data=data, headers=headers) as response:
            return response.status, response.headers, await response.text()

    def log(self) -> str:
        return (self.folder / "log").read_text()


def ask(text: str = "hello", model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


@asynccontextmanager
async def rig(
    folder: Path, upstream: FakeUpstream | None = None, config: dict[str, Any] | None = None, **units: dict[str, Any]
) -> AsyncIterator[Rig]:
    """A started gateway; `config` adds to its configuration, `units` are the daemon's facts."""
    (folder / "facts").mkdir()
    made = Rig(folder)
    made.config |= config or {}
    if upstream is not None:
        entry = {"name": "fake", "dialect": "openai", "base_url": upstream.url, "key_env": "UPSTREAM_KEY"}
        made.config["upstream"] = [entry]
    for unit, fact in units.items():
        made.daemon.set(f"unit/{unit}", fact)
    async with contextlib.AsyncExitStack() as stack:
        for owner, facts in (("daemon", made.daemon), ("router", made.router)):
            server = Server(facts, {}, uids=frozenset((os.geteuid(),)))
            await server.start(path=folder / f"facts/{owner}.sock")
            stack.push_async_callback(server.close)
        link = asyncio.create_task(made.gateway.run())
        stack.callback(link.cancel)
        made.session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(20))
        )
        try:
            await made.start()
            yield made
        finally:
            print(made.log())  # noqa: T201 - shown when the test fails
            if made.process is not None:
                await made.kill(signal.SIGTERM)
            link.cancel()
            await asyncio.gather(link, return_exceptions=True)
