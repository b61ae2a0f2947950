"""Reads a text section by section, and sends the writer a note on each."""

from __future__ import annotations

import re

from messages import Note, Notes, Text
from model import think

from agentd.sdk import Agent, Context

app = Agent()

MOST_SECTIONS = 6
MOST_CHARACTERS = 2000


@app.on("text")
async def text(ctx: Context, data: Text) -> None:
    """One note per section. Killed half-way, it simply reads again: nothing was sent yet."""
    notes = []
    for heading, body in sections(data.text, data.title)[:MOST_SECTIONS]:
        await ctx.progress(f"reading: {heading}")
        summary = await think(f"In two sentences, what does this say?\n\n{heading}\n\n{body[:MOST_CHARACTERS]}")
        notes.append(Note(heading, summary))
    await ctx.send("writer", "notes", Notes(data.title, notes, data.reply_to))


def sections(text: str, title: str) -> list[tuple[str, str]]:
    """(heading, body) of each Markdown section that says something; a text without headings is one section."""
    parts = re.split(r"^#{1,6} +(.+)$", text, flags=re.MULTILINE)
    pairs = [(title, parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]
    return [(heading.strip(), body.strip()) for heading, body in pairs if body.strip()]


if __name__ == "__main__":
    app.run()
