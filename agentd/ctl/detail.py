"""The screen of one unit: all that is known of it. A pure function of the API's answer, the time and the width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agentd.ctl import figures
from agentd.ctl.paint import clip, harmless, line, paint, wrapped
from agentd.model.quantity import show_count

Json = dict[str, Any]
LABEL = 12


def detail(unit: Json, tail: Sequence[str], now: float, width: int, colour: bool) -> list[str]:
    """The lines of the screen; ``tail`` is the end of its log."""
    lines = [_title(unit, now, colour)]
    if unit.get("description"):
        lines.append(line(unit["description"]))
    lines.append("")
    for label, text in _facts(unit, now):
        first, *more = wrapped(text, width - LABEL, "")
        lines.append(paint(f"{label:<{LABEL}}", "dim", colour) + first)
        lines += [" " * LABEL + rest for rest in more]
    for item in unit.get("warnings") or ():
        first, *more = wrapped(figures.warning(item), width - 2, "")
        lines += [f"{paint('!', 'yellow', colour)} {first}", *(f"  {rest}" for rest in more)]
    if tail:
        lines += ["", paint("last lines of its log", "dim", colour)]
        lines += [f"  {clip(harmless(text).expandtabs(4), width - 2)}" for text in tail]
    return lines


def _title(unit: Json, now: float, colour: bool) -> str:
    state = paint(line(unit["state"]), figures.state_tone(unit), colour)
    if unit.get("activity"):
        state += ", " + paint(line(unit["activity"]), figures.activity_tone(unit), colour)
    since = figures.age(unit.get("since"), now)
    return f"{paint(unit['name'], 'bold', colour)}  {state}" + (f" for {since}" if since else "")


def _facts(unit: Json, now: float) -> Iterator[tuple[str, str]]:
    for label, text in (
        ("why", line(unit.get("reason") or "")),
        ("next", figures.next_step(unit, now)),
        ("schedule", _schedule(unit.get("schedule"))),
        ("try", figures.advice(unit)),
        ("says", line(unit.get("status") or "")),
        ("holding", _holding(unit.get("holding"), now)),
        ("model call", _call(unit.get("call"), now)),
        ("inbox", _inbox(unit.get("inbox"))),
        ("tokens", _tokens(unit.get("tokens"), now)),
        ("process", _process(unit)),
        ("usage", _usage(unit)),
        ("restarts", _restarts(unit)),
        ("last end", _last(unit.get("last"), unit.get("reason"), now)),
        ("dump", line(unit.get("dump") or "")),
        ("started", _started(unit, now)),
        ("parent", line(unit.get("parent") or "")),
        ("children", _children(unit)),
        ("type", line(unit.get("type") or "")),
        ("file", line(unit.get("file") or "")),
        ("drop-ins", ", ".join(map(line, unit.get("dropins") or ()))),
    ):
        if text:
            yield label, text


def _schedule(schedule: Json | None) -> str:
    if not schedule:
        return ""
    counts = [("runs", "run"), ("missed", "missed"), ("skipped", "skipped")]
    told = [f"{schedule[key]} {word}" for key, word in counts if schedule.get(key)]
    stopped = "" if schedule["armed"] else "; stopped: agentctl start runs the unit now and takes it up again"
    return line(schedule["text"]) + (f" ({', '.join(told)})" if told else "") + stopped


def _holding(holding: Json | None, now: float) -> str:
    if not holding:
        return ""
    sender = f" from {line(holding['from'])}" if holding.get("from") else ""
    return (
        f"{line(holding['kind'])}{sender} for {figures.age(holding['since'], now)} (message {line(holding['message'])})"
    )


def _call(call: Json | None, now: float) -> str:
    return f"{line(call['model'])} for {figures.age(call['since'], now)}" if call else ""


def _inbox(inbox: Json | None) -> str:
    if not inbox:
        return ""
    dead = f", {inbox['dead']} dead (agentctl dlq list)" if inbox.get("dead") else ""
    return f"{inbox['pending']} waiting, {inbox.get('held', 0)} held{dead}"


def _tokens(budget: Json | None, now: float) -> str:
    if not budget:
        return ""
    text = figures.tokens(budget)
    if budget.get("limit") is not None:
        text += {"lifetime": " in its lifetime"}.get(budget["window"], f" per {line(budget['window'])}")
    if budget.get("held"):
        text += f", {show_count(budget['held'])} reserved by open calls"
    if budget.get("resets_at"):
        text += f"; a new window {figures.ahead(budget['resets_at'], now)}"
    return text


def _process(unit: Json) -> str:
    if unit.get("pid") is None:
        return ""
    count = unit.get("processes") or 1
    more = f", {count} processes" if count > 1 else ""
    return f"pid {unit['pid']}{more}, isolation {line(unit.get('level') or 'none')}"


def _usage(unit: Json) -> str:
    parts = [f"{figures.size(unit['memory'])} of memory" if unit.get("memory") is not None else ""]
    if unit.get("cpu_seconds") is not None:
        parts.append(f"{figures.span(unit['cpu_seconds'])} of CPU time")
    return ", ".join(part for part in parts if part)


def _restarts(unit: Json) -> str:
    restarts, failures = unit.get("restarts") or 0, unit.get("failures") or 0
    if not restarts and not failures:
        return ""
    noun = "failure" if failures == 1 else "failures"
    return f"{restarts} since it was last started by hand, {failures} {noun} in the window"


def _last(last: Json | None, reason: str | None, now: float) -> str:
    if not last:
        return ""
    if last.get("cause") == "unstarted" and last.get("text") == reason:
        return f"was not started, {figures.age(last['at'], now)} ago at {figures.clock(last['at'], now)}"
    ran = f" after {figures.span(last['ran'])}" if last.get("ran") is not None else ""
    text = line(last.get("text") or figures.ending(last))
    cause = line(last.get("cause") or "")
    because = f" ({cause})" if cause not in ("crashed", "failed", "") and cause not in text else ""
    return f"{text}{because}{ran}, {figures.age(last['at'], now)} ago at {figures.clock(last['at'], now)}"


def _children(unit: Json) -> str:
    """How many it spawned, with theirs, of how many that it may."""
    return f"{unit.get('children', 0)} of {unit['children_max']}" if unit.get("children_max") else ""


def _started(unit: Json, now: float) -> str:
    if unit.get("started") is None:
        return ""
    invocation = f", invocation {line(unit['invocation'])}" if unit.get("invocation") else ""
    return f"{figures.clock(unit['started'], now)}{invocation}"
