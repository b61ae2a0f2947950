"""The agent that tests/router/channel_conformance.py asks for, on the SDK."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from agentd.sdk import Agent, CallError, Context, Refuse, Retry

app = Agent()


@app.on("echo")
async def echo(ctx: Context, data: Any) -> Any:
    return data


@app.on("describe")
async def describe(ctx: Context, data: Any) -> dict[str, Any]:
    message = ctx.message
    return {
        "kind": message.kind,
        "from": message.sender,
        "attempt": message.attempt,
        "message": message.id,
        "conversation": message.conversation,
        "hop": message.hop,
        "invocation": os.environ["AGENTD_INVOCATION"],
        "unit": os.environ["AGENTD_UNIT"],
    }


@app.on("forward")
async def forward(ctx: Context, data: dict[str, Any]) -> dict[str, Any]:
    sent = await ctx.send(data["to"], "echoed", data, key="forward")
    return {"id": sent.id, "stored": True, "duplicate": sent.duplicate}


@app.on("question")
async def question(ctx: Context, data: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"answer": await ctx.ask(data["to"], "echo", data["data"])}
    except CallError as error:
        raise Refuse(error.message) from error


@app.on("fail")
async def fail(ctx: Context, data: dict[str, Any]) -> None:
    raise Refuse(data["why"])


@app.on("again")
async def again(ctx: Context, data: Any) -> dict[str, int]:
    if ctx.message.attempt == 1:
        raise Retry(delay=0)
    return {"attempt": ctx.message.attempt}


@app.on("progress")
async def progress(ctx: Context, data: Any) -> Any:
    await ctx.progress("half")
    return data


@app.on("hold")
async def hold(ctx: Context, data: dict[str, str]) -> dict[str, Any]:
    Path(data["started"]).touch()
    while not Path(data["until"]).exists():  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # the contract of the suite: it answers by a file
    return {"invocation": os.environ["AGENTD_INVOCATION"], "attempt": ctx.message.attempt}


@app.on("crash")
async def crash(ctx: Context, data: Any) -> None:
    os._exit(7)


if __name__ == "__main__":
    app.run()
