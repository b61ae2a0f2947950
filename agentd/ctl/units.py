"""Commands that act on units: start, stop, restart, kill, remove, run."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from agentd.ctl import figures
from agentd.ctl.client import SLOW, decoded, unit_route
from agentd.ctl.options import JsonFlag, Reason, UnitName, UnitNames, client_of, print_json
from agentd.ctl.paint import line
from agentd.errors import BadInput

app = typer.Typer()
Wait = Annotated[
    float | None, typer.Option("--wait", metavar="SECONDS", min=0, help="Longest time to wait until it is done.")
]
Signal = Annotated[str, typer.Option("--signal", "-s", metavar="NAME", help="The signal to send.")]


@app.command(rich_help_panel="Units")
def run(
    ctx: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="CMD", help="The program and its arguments.")],
    name: Annotated[str, typer.Option("--name", "-n", metavar="NAME", help="The name of the unit.")],
    budget: Annotated[str | None, typer.Option("--budget", metavar="TOKENS/WINDOW", help="Such as 50k/day.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Such as 512M.")] = None,
    cpu: Annotated[str | None, typer.Option("--cpu", metavar="CPUS", help="Such as 50% or 1.5.")] = None,
    type_: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="simple, notify or oneshot.")] = None,
    workdir: Annotated[
        str | None, typer.Option("--workdir", metavar="DIR", help="Directory to start in. Default: this one.")
    ] = None,
    restart: Annotated[
        str, typer.Option("--restart", metavar="POLICY", help="always, on-failure or never.")
    ] = "on-failure",
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="May be repeated.")] = None,
    reason: Reason = None,
    json: JsonFlag = False,
) -> None:
    """Run a command as a unit that has no file.

    It is supervised and metered like any other: restarted when it fails, left alone when it is done. It is gone with
    `agentctl remove`.
    """
    agent: dict[str, Any] = {"exec": [_program(command[0]), *command[1:]], "type": type_}
    agent["workdir"] = os.path.abspath(workdir or ".")
    agent["env"] = dict(_assignment(item) for item in env or ()) or None
    sections = {
        "agent": agent,
        "restart": {"policy": restart},
        "limits": {"memory": memory, "cpu": cpu},
        "budget": {"tokens": budget},
    }
    text = client_of(ctx).post("/v1/run", {"name": name, "unit": _given(sections)}, reason=reason, timeout=SLOW)
    _report(text, name, json)


@app.command(rich_help_panel="Units")
def start(
    ctx: typer.Context, units: UnitNames, wait: Wait = None, reason: Reason = None, json: JsonFlag = False
) -> None:
    """Start units and wait until they are ready.

    NAME@x of a template NAME@.toml is made by this, and comes back with the fleet until it is removed. NAME@ stands for
    all instances.
    """
    _each(ctx, units, "start", wait, reason, json)


@app.command(rich_help_panel="Units")
def stop(
    ctx: typer.Context, units: UnitNames, wait: Wait = None, reason: Reason = None, json: JsonFlag = False
) -> None:
    """Stop units and wait until their processes are gone."""
    _each(ctx, units, "stop", wait, reason, json)


@app.command(rich_help_panel="Units")
def restart(
    ctx: typer.Context, units: UnitNames, wait: Wait = None, reason: Reason = None, json: JsonFlag = False
) -> None:
    """Stop units, start them again and wait until they are ready."""
    _each(ctx, units, "restart", wait, reason, json)


@app.command(rich_help_panel="Units")
def kill(
    ctx: typer.Context, unit: UnitName, signal: Signal = "SIGKILL", reason: Reason = None, json: JsonFlag = False
) -> None:
    """Send a signal to a unit's main process.

    Its restart policy decides what follows; `agentctl stop` is the way to end it for good.
    """
    name = signal_name(signal)
    text = client_of(ctx).post(unit_route(unit, "kill"), {"signal": name}, reason=reason)
    print_json(text) if json else print(f"{line(unit)}: sent {name}")


@app.command(rich_help_panel="Units")
def remove(ctx: typer.Context, units: UnitNames, reason: Reason = None, json: JsonFlag = False) -> None:
    """Stop units, forget them and delete their unit files.

    Drop-ins go too. NAME@ removes the template with all of its instances.
    """
    for unit in units:
        text = client_of(ctx).delete(unit_route(unit), reason=reason)
        if json:
            print_json(text)
            continue
        answer = decoded(text)
        for name in (*(answer.get("units") or ()), unit):
            print(f"{line(name)}: removed")
        more = [file for file in answer.get("files") or () if not file.endswith(f"/{unit}.toml")]
        if more:
            print(f"  with {', '.join(map(line, more))}")


def signal_name(text: str) -> str:
    """``SIGTERM`` from ``TERM``, ``sigterm`` or ``15``."""
    from signal import Signals

    if text.isdigit() and int(text) in set(Signals):
        return Signals(int(text)).name
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if name not in Signals.__members__:
        raise BadInput(f"--signal: {line(text)!r} is no signal.", hint="Use a name or a number, such as SIGTERM or 15.")
    return name


def _each(ctx: typer.Context, units: list[str], verb: str, wait: float | None, reason: str | None, json: bool) -> None:
    results = []
    body = {} if wait is None else {"wait": wait}
    for unit in units:
        route = unit_route(unit, verb)
        text = client_of(ctx).post(route, body, reason=reason, timeout=SLOW + (wait or 0.0))
        results.append(_report(text, unit, json, wanted=verb != "stop"))
    if not all(results):
        raise typer.Exit(1)


def _report(text: bytes, name: str, json: bool, wanted: bool = True) -> bool:
    """Print what became of the unit, or of each instance of the template; false where one did not come up."""
    answer = decoded(text)
    if json:
        print_json(text)
    well = [_told(unit, name, json, wanted) for unit in answer.get("units", [answer])]
    return all(well)


def _told(unit: dict[str, Any], name: str, json: bool, wanted: bool) -> bool:
    well = not wanted or not figures.state_tone(unit)
    if json:
        return well
    pid = f" (pid {unit['pid']})" if unit.get("pid") is not None else ""
    doing = unit["state"] if well or not unit.get("reason") else f"{unit['state']}: {unit['reason']}"
    print(f"{line(unit.get('name', name))}: {line(doing)}{pid}")
    return well


def _program(text: str) -> str:
    """A path relative to where the person stands becomes absolute; a bare name is the daemon's to look up."""
    return os.path.abspath(text) if "/" in text else text


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BadInput(f"--env: {line(text)!r} is not KEY=VALUE.", hint="Write for example --env LANG=C.UTF-8.")
    return key, value


def _given(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Only what was said: the rest is the unit table's defaults."""
    kept = {name: {k: v for k, v in keys.items() if v is not None} for name, keys in sections.items()}
    return {name: keys for name, keys in kept.items() if keys}
