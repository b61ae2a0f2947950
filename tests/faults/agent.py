"""The unit of the fault matrix: an agent that stays in the moment in which a fault is to strike it.

Runs as a program under agentd, not in the test. What happened to it stands in files of its home: ``starts`` (each
invocation), ``attempts`` (of a message), ``done`` (results), ``outlived`` (what of the last invocation was still there
when this one began). ``go`` there lets it finish what it holds. SIGUSR1: exit 0 at once; SIGUSR2: a busy loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from agentd.sdk import Agent, Context

HOME = Path(os.environ["HOME"])
app = Agent(drain=0.1)


def remember(name: str, text: str) -> None:
    with (HOME / name).open("a") as file:
        file.write(f"{text}\n")


def remembered(name: str) -> list[str]:
    return (HOME / name).read_text().split() if (HOME / name).exists() else []


def spin(*_: object) -> None:
    while True:
        pass


def begin() -> None:
    """Note who of the last invocation is still there, and leave a process behind that has left this session."""
    for pid in remembered("children"):
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and command.read_bytes().startswith(b"sleep\0"):
            remember("outlived", pid)
    script = "setsid sleep 1000 > /dev/null 2>&1 & echo $!"
    remember("children", subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout.strip())
    remember("starts", os.environ["AGENTD_INVOCATION"])
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
    signal.signal(signal.SIGUSR2, spin)


@app.on_start
async def print_lines() -> None:
    if "--print" in sys.argv:
        app.printing = asyncio.create_task(_print())  # type: ignore[attr-defined]


async def _print() -> None:
    number = 0
    while True:
        os.write(1, f"{os.getpid()} line {number} {'x' * (number % 200)} end\n".encode())
        number += 1
        await asyncio.sleep(0.002)


@app.on("hold")
async def hold(ctx: Context, data: dict) -> str:
    """Hold the message until told to go on; with ``move`` showing progress on it; a successor does it at once."""
    remember("attempts", str(ctx.message.attempt))
    while ctx.message.attempt == 1 and not (HOME / "go").exists():
        if data.get("move"):
            await ctx.progress("moving")
        await asyncio.sleep(0.02)
    remember("done", "held")
    return "held"


@app.on("call")
async def call(ctx: Context, data: dict) -> str:
    """Ask a model, as a stream, and answer with all that it said."""
    remember("attempts", str(ctx.message.attempt))
    said = "by the successor" if ctx.message.attempt > 1 else await ask(data["model"])
    remember("done", said.replace(" ", "-"))
    return said


@app.on("send")
async def send(ctx: Context, data: dict) -> None:
    """Send to another unit again and again, each time waiting for the result, until told to stop."""
    number = 0
    while not (HOME / "go").exists():
        number += 1
        answer = await ctx.ask(data["to"], "echo", {"number": number})
        remember("answers", str(answer))
        await ctx.progress("moving")


@app.on("echo")
async def echo(ctx: Context, data: dict) -> int:
    remember("echoes", str(data["number"]))
    return int(data["number"])


async def ask(model: str) -> str:
    """One streamed chat completion, over a connection that ends with the answer."""
    base = urlsplit(os.environ["OPENAI_BASE_URL"])
    messages = [{"role": "user", "content": os.environ["AGENTD_UNIT"]}]
    body = json.dumps({"model": model, "messages": messages, "stream": True, "max_tokens": 50}).encode()
    reader, writer = await asyncio.open_connection(base.hostname, base.port)
    head = f"POST {base.path}/chat/completions HTTP/1.1\r\nHost: {base.netloc}\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {os.environ['OPENAI_API_KEY']}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    said, first = "", await reader.readline()
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:]).get("choices", []):
                said += choice["delta"].get("content") or ""
    writer.close()
    if b" 200 " not in first:  # refused, as when its budget is used up: that is no result
        raise ConnectionError(first.decode(errors="replace").strip() or "no answer")
    return said


begin()
app.run()
