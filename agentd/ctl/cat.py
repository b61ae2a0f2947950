"""``agentctl cat``: the files of a unit as they are on the disk, each under a line that names it."""

from __future__ import annotations

import typer

from agentd.ctl import paint
from agentd.ctl.client import decoded, unit_route
from agentd.ctl.options import JsonFlag, UnitName, client_of, print_json
from agentd.ctl.paint import harmless, line

app = typer.Typer()


@app.command(rich_help_panel="Unit files")
def cat(ctx: typer.Context, unit: UnitName, json: JsonFlag = False) -> None:
    """Print the files that make a unit, the last of which has the word.

    Its own or its template's first, then the drop-ins, each as it is on the disk now.
    """
    text = client_of(ctx).get(unit_route(unit, "files"))
    if json:
        print_json(text)
        return
    answer = decoded(text)
    colour = paint.coloured()
    parts = [
        paint.paint(f"# {line(file['path'])}", "bold", colour) + "\n" + harmless(file["text"]).rstrip("\n")
        for file in answer["files"]
    ]
    print("\n\n".join(parts) if parts else f"# {line(answer.get('file') or 'transient')}: no file")
