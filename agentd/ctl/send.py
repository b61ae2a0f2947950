"""``agentctl send``: a message into a unit's inbox."""

from __future__ import annotations

import json as jsonlib
import sys
from typing import Annotated, Any

import typer

from agentd.ctl.client import decoded
from agentd.ctl.options import JsonFlag, UnitName, client_of, print_json
from agentd.ctl.paint import harmless, line
from agentd.errors import BadInput

app = typer.Typer()
WAIT = 60
GRACE = 10.0
"""Seconds beyond --wait that the daemon has for its answer."""


@app.command(rich_help_panel="Messages")
def send(
    ctx: typer.Context,
    unit: UnitName,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What kind of message it is.")],
    data: Annotated[str, typer.Argument(metavar="[JSON]", help="Its data; - reads it from stdin.")] = "{}",
    wait: Annotated[
        float | None,
        typer.Option("--wait", metavar="[SECONDS]", min=0, help=f"Wait for the result ({WAIT} s if no time is given)."),
    ] = None,
    conversation: Annotated[str | None, typer.Option("--conversation", metavar="ID", help="Part of this one.")] = None,
    id_: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="An id of yours: a repeat is stored once.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Send a message to a unit.

    Returns once it is stored, or with --wait once the unit has answered.
    """
    message = {"to": unit, "kind": kind, "data": parsed(data), "conversation": conversation, "id": id_, "wait": wait}
    body = {key: value for key, value in message.items() if value is not None or key == "data"}
    text = client_of(ctx).post("/v1/send", body, timeout=(wait or 0.0) + GRACE)
    if json:
        print_json(text)
        return
    answer = decoded(text)
    if wait is None:
        print(f"stored for {line(unit)} (message {line(answer['id'])})")
    else:
        print(harmless(jsonlib.dumps(answer.get("result"), indent=2, ensure_ascii=False)))


def with_wait(args: list[str]) -> list[str]:
    """The arguments with a time after each bare ``--wait``, which may stand without one."""
    out: list[str] = []
    for index, arg in enumerate(args):
        if arg == "--":
            return out + args[index:]
        out.append(arg)
        if arg == "--wait" and not _is_number(args[index + 1] if index + 1 < len(args) else ""):
            out.append(str(WAIT))
    return out


def parsed(text: str) -> Any:
    """The value of a JSON argument; ``-`` is stdin."""
    if text == "-":
        text = sys.stdin.read()
    try:
        return jsonlib.loads(text)
    except ValueError as error:
        raise BadInput(f"the message's data is not JSON: {line(error)}.", hint=_mend(text)) from None


def _mend(text: str) -> str:
    word = text.strip()
    example = """'{"topic": "bees"}'"""
    if word and word[0] not in "{[\"'":
        quoted = jsonlib.dumps(word[:40], ensure_ascii=False)
        return f"Text needs quotes of its own: '{quoted}'. An object looks like {example}."
    return f"Put the whole of it into single quotes, such as {example}, or pipe it and write - ."


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
