"""The page that ``agentctl`` alone prints: every command with its one line, by what a person wants to do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import typer

from agentd.ctl.paint import paint

PANELS = ("Fleet", "Look", "Units", "Unit files", "Messages")
EXITS = "Exit codes: 0 done, 1 failed, 2 usage, 3 unit not active, 4 no such unit, 5 daemon not reachable."


def manual(app: typer.Typer, colour: bool) -> list[str]:
    """The lines of the page."""
    commands = list(_commands(app))
    room = max(len(name) for name, _, _ in commands) + 3
    lines = [f"{paint('agentctl', 'bold', colour)}  controls agentd, the supervisor for fleets of AI agents"]
    for panel in PANELS:
        lines += ["", paint(panel, "dim", colour)]
        lines += [f"  {name:<{room}}{text}" for name, text, where in commands if where == panel]
    return [
        *lines,
        "",
        "agentctl COMMAND --help tells more. Every command that prints knows --json.",
        "agentctl --socket PATH COMMAND (or $AGENTD_SOCKET) talks to another daemon.",
        paint(EXITS, "dim", colour),
    ]


def _commands(app: typer.Typer) -> Iterator[tuple[str, str, str]]:
    """Name, one line, panel."""
    for group in app.registered_groups:
        inner = group.typer_instance
        assert inner is not None
        if group.name:
            yield group.name, _first(inner.info.help), str(group.rich_help_panel)
            continue
        for command in inner.registered_commands:
            assert command.callback is not None
            name = command.name or command.callback.__name__
            yield name, _first(command.callback.__doc__), str(command.rich_help_panel)


def _first(text: object) -> str:
    """The first line, without its full stop."""
    return inspect.cleandoc(str(text)).splitlines()[0].rstrip(".")
