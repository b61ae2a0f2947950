"""Blocks its own loop when told to: the process lives, the heartbeat stops, and agentd finds out."""

from __future__ import annotations

import time
from typing import Any

from agentd.sdk import Agent, Context

app = Agent()


@app.on("freeze")
async def freeze(ctx: Context, data: dict[str, Any]) -> str:
    """Hang at the first attempt; the successor that gets the message again handles it."""
    if ctx.message.attempt == 1:
        print("freezing", flush=True)
        time.sleep(86_400)  # noqa: ASYNC251 - blocking the loop is this agent's only talent
    return "awake"


if __name__ == "__main__":
    app.run()
