"""``agentctl logs``: what a unit printed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from agentd.ctl.client import unit_route
from agentd.ctl.options import JsonFlag, UnitName, client_of
from agentd.ctl.paint import Cleaner

app = typer.Typer()


@app.command(rich_help_panel="Look")
def logs(
    ctx: typer.Context,
    unit: UnitName,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", min=0, help="How many of the last lines.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    json: JsonFlag = False,
) -> None:
    """Print the last lines of what a unit printed.

    On a terminal its escape sequences are made harmless; into a pipe or a file the bytes go as they are.
    """
    chunks = client_of(ctx).stream(unit_route(unit, "logs"), {"lines": lines, "follow": int(follow)})
    if json:
        _as_json(chunks)
    elif sys.stdout.isatty():
        _to_terminal(chunks)
    else:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


def _to_terminal(chunks: Iterator[bytes]) -> None:
    cleaner = Cleaner()
    for chunk in chunks:
        print(cleaner.feed(chunk), end="", flush=True)
    print(cleaner.feed(b"", final=True), end="", flush=True)


def _as_json(chunks: Iterator[bytes]) -> None:
    """One JSON object for each line: the API's answer is plain text here."""
    import json

    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for text in whole:
            print(json.dumps({"line": text.decode("utf-8", "replace")}), flush=True)
    if rest:
        print(json.dumps({"line": rest.decode("utf-8", "replace")}), flush=True)
