"""Options and arguments that several commands share, and how a command prints JSON."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from agentd.ctl.client import Client

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the API's answer as JSON, untouched.")]
UnitName = Annotated[str, typer.Argument(metavar="UNIT", help="The name of a unit.", show_default=False)]
UnitNames = Annotated[list[str], typer.Argument(metavar="UNIT", help="Names of units.", show_default=False)]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the journal.")]
OnlyUnit = Annotated[str | None, typer.Option("--unit", metavar="UNIT", help="Only of this unit.")]


def client_of(ctx: typer.Context) -> Client:
    """The daemon that this command line is about."""
    client = ctx.find_root().obj
    assert isinstance(client, Client)
    return client


def print_json(text: bytes) -> None:
    """The API's bytes as they came, and one newline."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.rstrip(b"\n") + b"\n")


def show(lines: list[str]) -> None:
    """Lines of a screen."""
    print("\n".join(lines))
