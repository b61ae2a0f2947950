"""Reviews a draft and keeps the result: a file per conversation, and a message to whoever asked for one."""

from __future__ import annotations

from messages import Draft
from model import think
from results import keep

from agentd.sdk import Agent, Context

app = Agent()


@app.on("draft")
async def draft(ctx: Context, data: Draft) -> dict[str, str]:
    """Every step can be repeated: the file is created once, the message is stored once."""
    text = "\n\n".join(data.paragraphs)
    review = await think(f"Review this draft in one sentence.\n\n{data.title}\n\n{text}")
    result = {"title": data.title, "text": text, "review": review}
    print("kept", keep(ctx.message, result))
    if data.reply_to:
        await ctx.send(data.reply_to, "result", result)
    return result


if __name__ == "__main__":
    app.run()
