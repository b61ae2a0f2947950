"""``agentctl budget``: what units spent on models, and what they may."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from agentd.ctl import figures, paint
from agentd.ctl.client import decoded
from agentd.ctl.columns import Cell, plain_table
from agentd.ctl.options import JsonFlag, Reason, UnitName, client_of, print_json, show
from agentd.ctl.paint import line
from agentd.errors import BadInput
from agentd.model.quantity import show_count

app = typer.Typer(help="Token budgets: show, raise, reset.")


@app.command("show")
def show_budgets(
    ctx: typer.Context,
    unit: Annotated[str | None, typer.Argument(metavar="[UNIT]", help="Only this unit.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show tokens used, reserved and allowed in the present window."""
    text = client_of(ctx).get("/v1/budget", {"unit": unit})
    if json:
        print_json(text)
        return
    now = time.time()
    rows = [_row(scope, now) for scope in decoded(text)["scopes"]]
    titles = ("SCOPE", "USED", "RESERVED", "LIMIT", "RAISED BY", "LEFT", "WINDOW", "NEW WINDOW")
    right = frozenset(titles[1:6])
    show(plain_table(titles, rows, paint.width(), paint.coloured(), right))


@app.command("raise")
def raise_budget(
    ctx: typer.Context,
    unit: UnitName,
    tokens: Annotated[str, typer.Argument(metavar="TOKENS", help="How many more in this window, such as 50k.")],
    reason: Reason = None,
    json: JsonFlag = False,
) -> None:
    """Allow a unit more tokens in its present window; a held unit comes back at once."""
    text = client_of(ctx).post(_route(unit, "raise"), {"tokens": _tokens(tokens)}, reason=reason)
    print_json(text) if json else print(_said(unit, decoded(text)))


@app.command("reset")
def reset_budget(ctx: typer.Context, unit: UnitName, reason: Reason = None, json: JsonFlag = False) -> None:
    """Start a unit's window anew: nothing used."""
    text = client_of(ctx).post(_route(unit, "reset"), reason=reason)
    print_json(text) if json else print(_said(unit, decoded(text)))


def _route(unit: str, verb: str) -> str:
    return f"/v1/budget/{quote(unit, safe='@')}/{verb}"


def _tokens(text: str) -> int:
    from agentd.model.quantity import tokens

    try:
        return tokens(text)
    except ValueError as error:
        raise BadInput(f"budget raise: {line(error)}.") from None


def _row(scope: dict[str, Any], now: float) -> list[Cell | str]:
    used, held, allowed = scope["used"], scope.get("held") or 0, _allowed(scope)
    return [
        line(scope["scope"]),
        Cell(show_count(used), figures.tokens_tone({"used": used, "limit": allowed})),
        show_count(held),
        "-" if scope.get("limit") is None else show_count(scope["limit"]),
        show_count(scope["raised"]) if scope.get("raised") else "-",
        "-" if allowed is None else show_count(max(0, allowed - used - held)),
        line(scope.get("window") or "-"),
        figures.ahead(scope["resets_at"], now) if scope.get("resets_at") else "-",
    ]


def _allowed(scope: dict[str, Any]) -> int | None:
    """The limit with what it was raised by in this window."""
    limit = scope.get("limit")
    return None if limit is None else int(limit) + int(scope.get("raised") or 0)


def _said(unit: str, scope: dict[str, Any]) -> str:
    window = line(scope.get("window") or "window")
    return f"{line(unit)}: {figures.tokens(scope | {'limit': _allowed(scope)})} tokens used in this {window}"
