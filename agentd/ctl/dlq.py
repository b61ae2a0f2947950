"""``agentctl dlq``: dead letters, messages that no attempt could finish."""

from __future__ import annotations

import json as jsonlib
import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from agentd.ctl import figures, paint
from agentd.ctl.client import decoded
from agentd.ctl.options import JsonFlag, OnlyUnit, Reason, client_of, print_json, show
from agentd.ctl.paint import line
from agentd.errors import BadInput

app = typer.Typer(help="Dead letters: list, show, replay, purge.")
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of dead letters.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


@app.command("list")
def list_letters(ctx: typer.Context, unit: OnlyUnit = None, json: JsonFlag = False) -> None:
    """List dead letters, with the reason why each was given up."""
    text = client_of(ctx).get("/v1/dlq", {"unit": unit})
    if json:
        print_json(text)
        return
    letters = decoded(text)["letters"]
    if not letters:
        print("No dead letters.")
        return
    now = time.time()
    rows = [
        [
            line(x["id"]),
            line(x["unit"]),
            line(x["kind"]),
            line(x.get("from") or "-"),
            str(x.get("attempts", "-")),
            figures.age(x.get("at"), now) or "-",
            line(": ".join(part for part in (x.get("reason"), x.get("text")) if part) or "-"),
        ]
        for x in letters
    ]
    titles = ("ID", "UNIT", "KIND", "FROM", "ATTEMPTS", "AGE", "REASON")
    show(plain_rows(titles, rows))
    print(paint.paint("\nagentctl dlq show ID | replay ID | purge ID", "dim", paint.coloured()))


@app.command("show")
def show_letter(
    ctx: typer.Context,
    letter: Annotated[str, typer.Argument(metavar="ID", help="The id of a dead letter.")],
    json: JsonFlag = False,
) -> None:
    """Show one dead letter with its data and how each attempt ended."""
    text = client_of(ctx).get(f"/v1/dlq/{quote(letter, safe='')}")
    if json:
        print_json(text)
        return
    answer = decoded(text)
    data = answer.pop("data", None)
    now = time.time()
    for key, value in answer.items():
        if value in (None, [], ""):
            continue
        shown = f"{figures.clock(value, now)} ({figures.age(value, now)} ago)" if key == "at" else _value(value)
        print(f"{paint.paint(f'{line(key):<14}', 'dim', paint.coloured())}{shown}")
    print(f"\n{paint.harmless(jsonlib.dumps(data, indent=2, ensure_ascii=False))}")


@app.command()
def replay(
    ctx: typer.Context,
    ids: Ids = None,
    unit: OnlyUnit = None,
    to: Annotated[str | None, typer.Option("--to", metavar="UNIT", help="Send them to this unit instead.")] = None,
    every: All = False,
    reason: Reason = None,
    json: JsonFlag = False,
) -> None:
    """Put dead letters back into their inbox, with their attempts forgotten."""
    body = _chosen("replay", ids, unit, every) | ({"to": to} if to else {})
    text = client_of(ctx).post("/v1/dlq/replay", body, reason=reason)
    print_json(text) if json else print(f"replayed {_count(decoded(text)['replayed'])}")


@app.command()
def purge(
    ctx: typer.Context,
    ids: Ids = None,
    unit: OnlyUnit = None,
    every: All = False,
    reason: Reason = None,
    json: JsonFlag = False,
) -> None:
    """Delete dead letters for good."""
    text = client_of(ctx).post("/v1/dlq/purge", _chosen("purge", ids, unit, every), reason=reason)
    print_json(text) if json else print(f"purged {_count(decoded(text)['purged'])}")


def plain_rows(titles: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """A table as wide as the terminal."""
    from agentd.ctl.columns import plain_table

    return plain_table(titles, rows, paint.width(), paint.coloured(), frozenset({"ATTEMPTS", "AGE"}))


def _chosen(verb: str, ids: list[str] | None, unit: str | None, every: bool) -> dict[str, Any]:
    """What to act on. Nothing named is never everything."""
    if not (ids or unit or every):
        raise BadInput(
            f"dlq {verb}: which letters?", hint="Name ids, --unit UNIT or --all; `agentctl dlq list` shows them."
        )
    return {key: value for key, value in {"ids": ids, "unit": unit}.items() if value}


def _count(answer: object) -> str:
    count = len(answer) if isinstance(answer, list) else int(str(answer))
    return f"{count} dead {'letter' if count == 1 else 'letters'}"


def _value(value: object) -> str:
    return line(value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False))
