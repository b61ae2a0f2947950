"""A reader that one message kills, as a parser with a bug would; agentd puts that message aside with the reason.

Repair it (a file ``repaired`` in its state directory, or REPAIRED=1 in its unit) and replay the dead letter.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from results import keep, state_dir

from agentd.sdk import Agent, Context

app = Agent()


@dataclass
class Page:
    """Something to read."""

    text: str = ""
    poison: bool = False


@app.on("read")
async def read(ctx: Context, data: Page) -> int:
    """The number of words read."""
    if data.poison and not repaired():
        print(f"reading {ctx.message.id} kills me", flush=True)
        os._exit(13)
    words = len(data.text.split())
    keep(ctx.message, {"words": words})
    return words


def repaired() -> bool:
    """Whether the bug is mended."""
    return os.environ.get("REPAIRED") == "1" or (state_dir() / "repaired").exists()


if __name__ == "__main__":
    app.run()
