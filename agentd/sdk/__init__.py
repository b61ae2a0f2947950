"""What an agent author imports. Standard library only; pydantic models are understood where the author uses them.

    from agentd.sdk import Agent, Context

    app = Agent()

    @app.on("draft")
    async def draft(ctx: Context, data: dict) -> None:
        await ctx.send("reviewer", "review", {"text": data["text"].upper()})

    app.run()

Uses nothing else of agentd, so that an agent's own environment needs none of its dependencies.
"""

from agentd.sdk.agent import Agent
from agentd.sdk.context import Context, SyncContext
from agentd.sdk.errors import AgentError, CallError, Refuse, Retry
from agentd.sdk.offspring import Child, Ended
from agentd.sdk.work import Message, Sent

__all__ = [
    "Agent", "AgentError", "CallError", "Child", "Context", "Ended", "Message", "Refuse", "Retry", "Sent",
    "SyncContext",
]  # fmt: skip
