"""The agent under test: one handler per behaviour. Run as a real process."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agentd.sdk import Agent, CallError, Context, Refuse, Retry, SyncContext

app = Agent(drain=float(os.environ.get("DRAIN", "5")))


class Order(BaseModel):
    item: str
    count: int = 1


@dataclass
class Point:
    x: int
    y: int = 0


def count_run(delivery: str) -> None:
    with Path(os.environ["RUNS"]).open("a") as runs:
        runs.write(delivery + "\n")


@app.on_start
async def prepare() -> None:
    if "BOOT" in os.environ:
        await app.send("registry", "hello", {"pid": os.getpid()})


@app.on_unit_changed
async def news(unit: str, state: str) -> None:
    if unit == "bad":
        raise ValueError(state)
    app.status(f"{unit} is {state}")


@app.on("echo")
async def echo(ctx: Context, data: Any) -> Any:
    return data


@app.on("about")
async def about(ctx: Context, data: None) -> Any:
    message = ctx.message
    return [message.id, message.kind, message.sender, message.attempt, message.conversation, ctx.idempotency_key]


@app.on("order")
async def order(ctx: Context, data: Order) -> Order:
    return Order(item=data.item, count=data.count + 1)


@app.on("point")
async def point(ctx: Context, data: Point) -> Point:
    return Point(data.y, data.x)


@app.on("refuse")
async def refuse(ctx: Context, data: dict[str, Any]) -> None:
    raise Refuse("not my job")


@app.on("later")
async def later(ctx: Context, data: dict[str, Any]) -> None:
    raise Retry("too early", delay=7)


@app.on("boom")
async def boom(ctx: Context, data: dict[str, Any]) -> None:
    raise ZeroDivisionError("boom")


@app.on("sends")
async def sends(ctx: Context, data: Any) -> list[str]:
    first = await ctx.send("writer", "draft", {"n": 1})
    second = await app.send("writer", "draft", {"n": 2})
    named = await ctx.send("writer", "draft", {"n": 3}, key="named")
    return [first.id, second.id, named.id]


@app.on("try_send")
async def try_send(ctx: Context, data: dict[str, str]) -> str:
    try:
        await ctx.send(data["to"], "x")
    except CallError as error:
        return error.code
    return "sent"


@app.on("gate")
async def gate(ctx: Context, data: Any) -> Any:
    """In hand until the test answers the ask."""
    count_run(ctx.message.delivery)
    return await ctx.ask("gate", "may_i", data)


@app.on("thread")
def thread(ctx: SyncContext, data: dict[str, Any]) -> list[Any]:
    ctx.progress("in a thread")
    answer = ctx.ask("gate", "may_i", data)
    return [ctx.send("writer", "draft").id, answer, threading.current_thread() is threading.main_thread()]


@app.on("block")
async def block(ctx: Context, data: str) -> None:
    """Block the loop until the FIFO's writer closes it."""
    Path(data).read_bytes()


@app.on("huge")
async def huge(ctx: Context, data: int) -> str:
    return "x" * data


@app.on("unserialisable")
async def unserialisable(ctx: Context, data: None) -> object:
    return {1, 2}


@app.on("shout")
async def shout(ctx: Context, data: int) -> None:
    raise ValueError("\udcff" * data)


late: list[Context] = []


@app.on("keep")
async def keep(ctx: Context, data: None) -> None:
    late.append(ctx)


@app.on("late_send")
async def late_send(ctx: Context, data: None) -> str:
    try:
        await late[0].send("writer", "draft")
    except RuntimeError as error:
        return str(error)
    return "sent"


@app.on("leave")
async def leave(ctx: Context, data: None) -> None:
    raise SystemExit(3)


if __name__ == "__main__":
    app.run()
