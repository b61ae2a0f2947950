"""``agentctl journal``: what happened, and who asked for it."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from agentd.ctl import figures, paint
from agentd.ctl.client import decoded
from agentd.ctl.columns import Cell, plain_table
from agentd.ctl.options import JsonFlag, OnlyUnit, client_of, print_json, show
from agentd.ctl.paint import line
from agentd.errors import BadInput

app = typer.Typer()
Ago = Annotated[str | None, typer.Option("--since", metavar="DURATION", help="Not older than this, such as 10m or 2h.")]


@app.command(rich_help_panel="Look")
def journal(
    ctx: typer.Context,
    unit: OnlyUnit = None,
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only this kind of record.")] = None,
    since: Ago = None,
    correlation: Annotated[
        str | None, typer.Option("--correlation", metavar="ID", help="Only what this request or event led to.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most this many.")] = 50,
    json: JsonFlag = False,
) -> None:
    """Show what happened, who asked for it, and why."""
    now = time.time()
    query = {"unit": unit, "kind": kind, "since": _moment(since, now), "limit": limit}
    query["correlation"] = correlation
    text = client_of(ctx).get("/v1/journal", query)
    if json:
        print_json(text)
        return
    records = decoded(text)["records"]
    if not records:
        print("No records.")
        return
    titles = ("WHEN", "UNIT", "WHAT", "BY", "WHY")
    show(plain_table(titles, [_row(record, now) for record in records], paint.width(), paint.coloured()))


def _row(record: dict[str, Any], now: float) -> list[Cell | str]:
    return [
        figures.clock(record["at"], now),
        line(record.get("unit") or "-"),
        line(record["kind"]),
        line(record.get("actor") or record.get("source") or "-"),
        line(record.get("reason") or _detail(record.get("detail") or {})),
    ]


def _detail(detail: dict[str, Any]) -> str:
    """What a record without a reason has to say: ``kind=draft, from=researcher``."""
    return ", ".join(f"{key}={value}" for key, value in detail.items() if isinstance(value, str | int | float))


def _moment(text: str | None, now: float) -> float | None:
    from agentd.model.quantity import duration

    try:
        return None if text is None else now - duration(text)
    except ValueError as error:
        raise BadInput(f"--since: {line(error)}.") from None
