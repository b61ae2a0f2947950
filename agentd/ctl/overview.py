"""The first screen: the whole fleet at a glance. A pure function of the API's answer, the time and the width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentd.ctl import figures
from agentd.ctl.columns import ABSENT, Cell, Column, Row, Table, fit
from agentd.ctl.paint import Tone, cells, line, paint, wrapped

Json = dict[str, Any]

COLUMNS = {
    "unit": Column("UNIT"),
    "state": Column("STATE"),
    "doing": Column("STATE"),
    "for": Column("FOR", right=True),
    "activity": Column("ACTIVITY"),
    "pid": Column("PID", right=True),
    "restarts": Column("RESTARTS", right=True),
    "memory": Column("MEMORY", right=True),
    "tokens": Column("TOKENS", right=True),
    "spent": Column("TOKENS", right=True),
    "share": Column("TOKENS", right=True),
    "inbox": Column("INBOX", right=True),
    "dead": Column("DEAD", right=True),
    "last": Column("LAST END"),
    "ended": Column("LAST END"),
    "fell": Column("LAST END"),
}
LAYOUTS = (
    "unit state for activity pid restarts memory tokens inbox dead last",
    "unit state for activity pid restarts memory tokens inbox dead ended",
    "unit state for activity pid restarts memory spent inbox dead ended",
    "unit state for activity pid memory spent inbox dead fell",
    "unit doing for pid restarts memory spent inbox dead ended",
    "unit doing for pid memory spent inbox dead fell",
    "unit doing for pid memory share inbox dead fell",
    "unit doing for memory share inbox dead fell",
    "unit doing for share inbox dead fell",
    "unit doing for share inbox dead",
    "unit doing for",
)
"""``doing`` stands for state and activity in one; ``fell`` for restarts and the last ending in one."""


_AGENTS_ONLY = ("activity", "tokens", "spent", "share", "inbox", "dead")


def overview(answer: Json, now: float, width: int, colour: bool) -> list[str]:
    """The lines of the screen."""
    agents = sorted((u for u in answer["units"] if not u.get("system")), key=_family(answer["units"]))
    system = [u for u in answer["units"] if u.get("system")]
    rows = {u["name"]: _row(u, now) for u in answer["units"]}
    table = fit(COLUMNS, LAYOUTS, list(rows.values()), width, colour)
    lines = [*_headline(answer["agentd"], agents, now, width, colour), ""]
    if agents:
        lines.append(table.head())
        lines += _group(agents, rows, table, now, width, "")
    else:
        lines += _empty(answer["agentd"])
    if system:
        lines += ["", *_group(system, rows, table, now, width, "dim")]
    notes = _notes(answer, width, colour)
    return lines + (["", *notes] if notes else [])


def _family(units: list[Json]) -> Callable[[Json], tuple[int, str]]:
    """The order of units as the daemon has it, and the children of one beneath it."""
    place = {unit["name"]: number for number, unit in enumerate(units)}

    def key(unit: Json) -> tuple[int, str]:
        root = unit["name"].partition("~")[0]
        return place.get(root, place[unit["name"]]), unit["name"]

    return key


def _headline(agentd: Json, agents: list[Json], now: float, width: int, colour: bool) -> list[str]:
    running = sum(u["state"] == "running" for u in agents)
    noun = "unit" if len(agents) == 1 else "units"
    parts: list[tuple[str, Tone]] = [
        (f"agentd {agentd['version']}", "bold"),
        (f"{running} of {len(agents)} {noun} running", ""),
        (f"gateway {line(agentd['gateway'])}", "") if agentd.get("gateway") else ("no gateway", "yellow"),
    ]
    if agentd.get("started"):
        parts.append((f"up {figures.age(agentd['started'], now)}", ""))
    if agentd.get("stopping"):
        parts.insert(1, ("stopping", "yellow"))
    gap = "   " if sum(cells(p) + 3 for p, _ in parts) <= width else "  "
    return [gap.join(paint(text, tone, colour) for text, tone in parts)]


def _empty(agentd: Json) -> list[str]:
    return [
        f"No units yet: {line(agentd.get('units_dir') or 'the units directory')} has no unit file.",
        "Install some with `agentctl deploy PATH`, or try one at once:",
        "",
        "    agentctl run --name hello -- sleep 60",
    ]


def _group(units: list[Json], rows: dict[str, Row], table: Table, now: float, width: int, tone: Tone) -> list[str]:
    lines = []
    for unit in units:
        quiet: Tone = "dim" if unit["state"] == "inactive" else tone
        lines.append(table.line(rows[unit["name"]], quiet))
        if figures.troubled(unit):
            lines += _trouble(unit, now, width, table.colour)
        elif unit.get("schedule") and unit["state"] == "inactive":
            lines += _between_runs(unit, now, width, table.colour)
    return lines


def _trouble(unit: Json, now: float, width: int, colour: bool) -> list[str]:
    """Beneath a unit that needs a look: why, what happens next by itself, and what a person can do."""
    said = [line(unit.get("reason") or ""), figures.next_step(unit, now)]
    text = "; ".join(part.rstrip(".") for part in said if part)
    advice = figures.advice(unit)
    lines = [f"  {part}" for part in wrapped(text, width - 2, "")] if text else []
    if not advice:
        return lines
    hint = paint(f"try: {advice}", "dim", colour)
    if lines and cells(lines[-1]) + 3 + len(f"try: {advice}") <= width:
        return [*lines[:-1], f"{lines[-1]}   {hint}"]
    return [*lines, f"  {hint}"]


def _between_runs(unit: Json, now: float, width: int, colour: bool) -> list[str]:
    """Beneath a unit with a schedule: when it runs next, or how it goes on."""
    text = figures.next_step(unit, now)
    if not text:
        text = f"its schedule is stopped; try: {figures.advice(unit)}" if figures.stood_down(unit) else "no next run"
    return [f"  {paint(part, 'dim', colour)}" for part in wrapped(text, width - 2, "")]


def _row(unit: Json, now: float) -> Row:
    """Every cell of a unit, for whatever layout; a system unit has no inbox, budget or activity to be without."""
    cells_of = _cells(unit, now)
    if not unit.get("system"):
        return cells_of
    return {key: cell for key, cell in cells_of.items() if key not in _AGENTS_ONLY}


def _cells(unit: Json, now: float) -> dict[str, Cell]:
    inbox, last, budget = unit.get("inbox"), unit.get("last"), unit.get("tokens")
    activity = line(unit.get("activity") or "")
    short, restarts = figures.ending(last), unit.get("restarts") or 0
    since = figures.age(last["at"], now) if last else ""
    state = line(unit["state"])
    both = activity if unit["state"] == "running" and activity else state
    return {
        "unit": Cell(line(unit["name"])),
        "state": Cell(state, figures.state_tone(unit)),
        "doing": Cell(both, figures.activity_tone(unit) or figures.state_tone(unit)),
        "for": _cell(figures.age(unit.get("since"), now)),
        "activity": _cell(activity, figures.activity_tone(unit)),
        "pid": _cell(unit.get("pid")),
        "restarts": Cell(str(restarts)),
        "memory": _cell(figures.size(unit.get("memory"))),
        "tokens": _cell(figures.tokens(budget), figures.tokens_tone(budget)),
        "spent": _cell(figures.tokens(budget, "/"), figures.tokens_tone(budget)),
        "share": _cell(figures.share(budget), figures.tokens_tone(budget)),
        "inbox": _cell(str(inbox["pending"]) if inbox else ""),
        "dead": Cell(str(inbox["dead"]), "red") if inbox and inbox.get("dead") else Cell(""),
        "last": Cell(f"{line(last.get('text') or short)}, {since} ago" if last else ""),
        "ended": Cell(f"{short}, {since} ago" if last else ""),
        "fell": Cell(
            (f"{restarts}x " if restarts else "") + f"{short}, {figures.coarse(last['at'], now)}" if last else ""
        ),
    }


def _cell(value: object, tone: Tone = "") -> Cell:
    return Cell(str(value), tone) if value not in (None, "") else ABSENT


def _notes(answer: Json, width: int, colour: bool) -> list[str]:
    """Warnings and broken files, each once, whoever has it."""
    agentd = answer["agentd"]
    notes: list[tuple[str, Tone]] = [
        (figures.warning(item) if isinstance(item, str) else _broken(item), "red")
        for item in agentd.get("broken") or ()
    ]
    notes += [(figures.warning(item), "yellow") for item in agentd.get("warnings") or ()]
    shared: dict[str, list[str]] = {}
    for unit in answer["units"]:
        for item in unit.get("warnings") or ():
            shared.setdefault(figures.warning(item), []).append(unit["name"])
    active = {unit["name"] for unit in answer["units"] if unit.get("pid") is not None}
    notes += [(f"{_whose(names, active)}: {text}", "yellow") for text, names in shared.items()]
    lines = []
    for text, tone in notes:
        first, *more = wrapped(text, width - 2, "")
        lines += [f"{paint('!', tone, colour)} {first}", *(f"  {rest}" for rest in more)]
    return lines


def _broken(item: Json) -> str:
    file, message = line(item.get("file") or ""), figures.warning(item)
    return message if not file or message.startswith(file) else f"{file}: {message}"


def _whose(names: list[str], active: set[str]) -> str:
    """Who has a warning: what all have that run is said of the fleet."""
    if len(names) > 3 and active <= set(names):
        return "all units"
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
