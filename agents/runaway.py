"""Calls the model for ever: what a budget is for."""

from __future__ import annotations

from dataclasses import dataclass

from model import think

from agentd.sdk import Agent, Context

app = Agent()


@dataclass
class Go:
    """``calls`` ends the loop after so many; without it, only the budget does."""

    calls: int | None = None


@app.on("go")
async def go(ctx: Context, data: Go) -> int:
    """Out of budget, ``think`` raises: agentd holds this unit, takes the message back and delivers it afterwards."""
    calls = 0
    while data.calls is None or calls < data.calls:
        await think("Go on.", max_tokens=500)
        calls += 1
        await ctx.progress(f"{calls} calls")
    return calls


if __name__ == "__main__":
    app.run()
