"""Turns notes into paragraphs, and sends the reviewer the draft."""

from __future__ import annotations

from messages import Draft, Notes
from model import think

from agentd.sdk import Agent, Context, Refuse

app = Agent()


@app.on("notes")
async def notes(ctx: Context, data: Notes) -> None:
    """One paragraph per note. Killed half-way, its successor gets the same notes; the draft is sent once."""
    if not data.notes:
        raise Refuse("there are no notes to write from")
    paragraphs: list[str] = []
    for note in data.notes:
        await ctx.progress(f"writing: {note.heading}")
        paragraphs.append(await think(f"Write a short paragraph about {note.heading!r} from this note: {note.summary}"))
    await ctx.send("reviewer", "draft", Draft(data.title, paragraphs, data.reply_to))


if __name__ == "__main__":
    app.run()
