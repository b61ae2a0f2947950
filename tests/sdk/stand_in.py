"""A small router that speaks CHANNEL.md to one agent and does what a test tells it, plus a socket for its notify."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

DEADLINE = 10.0
ROOT = Path(__file__).parents[2]


class Router:
    """Answers hello and send, keeps asks for the test, and never redelivers by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hellos: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.asks: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sends: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.progress: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.stored: dict[str, dict[str, Any]] = {}
        self.send_errors: list[dict[str, Any]] = []
        self.hello_errors: list[dict[str, Any]] = []
        self.mute = False
        self.max_line = 1 << 20
        self.time = "2026-11-21T00:00:00.000Z"
        self._outcomes: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._readers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=4 << 20)

    async def stop(self) -> None:
        """As if killed: the listener and the connection go at once."""
        assert self._server is not None
        self._server.close()
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self._server.wait_closed()
        self.path.unlink(missing_ok=True)

    def deliver(self, kind: str, data: Any = None, message: str = "m1", attempt: int = 1) -> str:
        delivery = f"{message}.{attempt}"
        params = {"delivery": delivery, "message": message, "attempt": attempt, "kind": kind, "data": data}
        params |= {
            "from": "tester",
            "conversation": "c1",
            "hop": 1,
            "deadline": 300.0,
            "reply": True,
            "time": self.time,
        }
        self.say({"id": delivery, "method": "deliver", "params": params})
        return delivery

    def say(self, line: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps({"jsonrpc": "2.0", **line}).encode() + b"\n")

    def say_raw(self, line: bytes) -> None:
        assert self._writer is not None
        self._writer.write(line)

    def reply(self, ask: dict[str, Any], result: Any) -> None:
        self.say({"id": ask["id"], "result": {"id": "r", "result": result}})

    async def outcome(self) -> dict[str, Any]:
        return await asyncio.wait_for(self._outcomes.get(), DEADLINE)

    async def result(self, kind: str, data: Any = None, message: str = "m1", attempt: int = 1) -> Any:
        """Deliver, and the result of it."""
        delivery = self.deliver(kind, data, message, attempt)
        outcome = await self.outcome()
        assert outcome["id"] == delivery
        return outcome["result"]

    async def error(self, kind: str, data: Any = None) -> dict[str, Any]:
        """Deliver, and the refusal of it."""
        delivery = self.deliver(kind, data)
        outcome = await self.outcome()
        assert outcome["id"] == delivery
        error = outcome["error"]
        assert isinstance(error, dict)
        return error

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._readers.add(task)
        self._writer = writer
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
        except ConnectionError:
            pass
        finally:
            self._readers.discard(task)
            writer.close()

    def _take(self, line: dict[str, Any]) -> None:
        assert line["jsonrpc"] == "2.0"
        method = line.get("method")
        if method is None:
            self._outcomes.put_nowait(line)
        elif method == "hello":
            self._hello(line)
        elif method == "send":
            self._send(line)
        elif method == "ask":
            self.asks.put_nowait(line)
        elif method == "progress":
            self.progress.put_nowait(line["params"])

    def _hello(self, line: dict[str, Any]) -> None:
        if self.hello_errors:
            self.say({"id": line["id"], "error": self.hello_errors.pop(0)})
        else:
            result = {"protocol": 1, "unit": "subject", "in_flight": 1, "max_line": self.max_line}
            self.say({"id": line["id"], "result": result})
        self.hellos.put_nowait(line["params"])

    def _send(self, line: dict[str, Any]) -> None:
        params = line["params"]
        self.sends.put_nowait(params)
        if self.mute:
            return
        if self.send_errors:
            self.say({"id": line["id"], "error": self.send_errors.pop(0)})
            return
        effect = params.get("id") or params["delivery"].rpartition(".")[0] + "/" + params["key"]
        duplicate = effect in self.stored
        self.stored.setdefault(effect, params)
        self.say({"id": line["id"], "result": {"id": effect, "stored": True, "duplicate": duplicate}})


class Notifications:
    """What the agent says to NOTIFY_SOCKET, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.words: asyncio.Queue[str] = asyncio.Queue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    async def word(self, start: str, timeout: float = DEADLINE) -> str:
        """The next word that starts so; what comes before it is dropped."""
        async with asyncio.timeout(timeout):
            while True:
                word = await self.words.get()
                if word.startswith(start):
                    return word

    def forget(self) -> None:
        while not self.words.empty():
            self.words.get_nowait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.words.put_nowait(self._socket.recv(4096).decode())


async def spawn(script: Path, env: dict[str, str], cwd: Path) -> asyncio.subprocess.Process:
    """The agent as a process, with a clean environment."""
    pipe = asyncio.subprocess.PIPE
    full = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env}
    return await asyncio.create_subprocess_exec(
        sys.executable, str(script), env=full, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe
    )
