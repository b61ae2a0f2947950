"""``agentctl status`` and ``agentctl list``."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from agentd.ctl import paint
from agentd.ctl.client import Client, decoded, unit_route
from agentd.ctl.options import JsonFlag, client_of, print_json, show
from agentd.errors import AgentdError, NoSuchUnit

app = typer.Typer()
TAIL = 5
NOT_ACTIVE = 3


@app.command(rich_help_panel="Look")
def status(
    ctx: typer.Context,
    unit: Annotated[str | None, typer.Argument(metavar="[UNIT]", help="One unit in full.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show the fleet, or one unit in full.

    NAME@ stands for all instances of that template.

    Exit code 3 when one that was named is not active: it neither runs nor starts nor stops.
    """
    client = client_of(ctx)
    text = client.get("/v1/status", {"unit": unit})
    answer = decoded(text)
    many = unit is not None and unit.endswith("@")
    found = _named(answer, unit) if unit and not many else None
    if json:
        print_json(text)
    elif found:
        from agentd.ctl.detail import detail

        show(detail(found, _tail(client, found["name"]), time.time(), paint.width(), paint.coloured()))
    else:
        print_overview(answer)
    if not all(map(_active, answer["units"] if many else [found] if found else ())):
        raise typer.Exit(NOT_ACTIVE)


@app.command("list", rich_help_panel="Look")
def list_units(ctx: typer.Context, json: JsonFlag = False) -> None:
    """List units, one on each line, for scripts."""
    text = client_of(ctx).get("/v1/status")
    if json:
        print_json(text)
        return
    from agentd.ctl.columns import Cell, plain_table
    from agentd.ctl.figures import state_tone

    rows: list[list[Cell | str]] = [
        [
            Cell(paint.line(u["name"])),
            Cell(paint.line(u["state"]), state_tone(u)),
            paint.line("system" if u.get("system") else u.get("type") or "-"),
            paint.line(u.get("level") or "-"),
            paint.line(u.get("file") or "-"),
        ]
        for u in decoded(text)["units"]
    ]
    show(plain_table(("UNIT", "STATE", "TYPE", "ISOLATION", "FILE"), rows, _listing_width(), paint.coloured()))


def print_overview(answer: dict[str, Any]) -> None:
    """The first screen."""
    from agentd.ctl.overview import overview

    show(overview(answer, time.time(), paint.width(), paint.coloured()))


def _named(answer: dict[str, Any], unit: str) -> dict[str, Any]:
    for each in answer["units"]:
        if each["name"] == unit:
            return dict(each)
    raise NoSuchUnit(f"there is no unit {paint.line(unit)!r}.", hint="`agentctl list` names them all.")


def _active(unit: dict[str, Any]) -> bool:
    from agentd.ctl.figures import ACTIVE

    return unit["state"] in ACTIVE


def _tail(client: Client, unit: str) -> list[str]:
    """The end of its log, or what is in the way: the rest of the screen does not depend on it."""
    try:
        text = b"".join(client.stream(unit_route(unit, "logs"), {"lines": TAIL, "follow": 0}))
    except AgentdError as error:
        return [f"(the log cannot be read: {error.message})"]
    return text.decode("utf-8", "replace").splitlines()[-TAIL:]


def _listing_width() -> int:
    """A listing that goes into a file or a pipe is never cut."""
    import sys

    return paint.width() if sys.stdout.isatty() else 10_000
