"""Runs one scenario: a TOML file with what is injected, what is expected, and what is measured against which threshold.

The steps of ``inject`` and ``expect`` are carried out in the order of the file. Each is one verb of VERBS; each
``[[measure]]`` is one function of MEASURES. A scenario knows the fleet only from outside.
"""

from __future__ import annotations

import json
import os
import signal
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.fleet import Broken, Fleet, matches, wait_until

Json = dict[str, Any]
Tell = Callable[[str], None]
WITHIN = 10.0


@dataclass(frozen=True)
class Row:
    """One line of the final table: what was done, promised and measured."""

    scenario: str
    done: str
    promised: str
    measured: str
    held: bool


@dataclass
class Run:
    """One scenario in progress."""

    name: str
    fleet: Fleet
    tell: Tell
    text: str
    title: str
    started: float = field(default_factory=time.time)
    marks: dict[str, float] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    seen: list[Json] = field(default_factory=list)

    def conversation(self, step: Json) -> str:
        """The conversation of a step: the scenario's own, unless the step has one apart."""
        return f"{self.name}-{step['conversation']}" if "conversation" in step else self.name

    def results(self, unit: str, conversation: str) -> list[Path]:
        """The files that the unit kept for a conversation."""
        return sorted((self.fleet.state / "home" / unit / "results").glob(f"{conversation}.*json"))


def load(path: Path) -> Json:
    """The scenario in a file."""
    return {"name": path.stem, **tomllib.loads(path.read_text(encoding="utf-8"))}


def play(scenario: Json, fleet: Fleet, tell: Tell, *, text: str, title: str) -> list[Row]:
    """Carry out a scenario on a running fleet; its rows of the table."""
    run = Run(str(scenario["name"]), fleet, tell, text, title)
    run.pids = {unit["name"]: unit["pid"] for unit in fleet.status()["units"]}
    tell(f"── {scenario['title']}")
    try:
        for step in _in_order(scenario):
            _carry_out(run, step)
    except Broken as error:
        reason = str(error).splitlines()[0]
        tell(f"   broken: {error}")
        return [Row(run.name, str(scenario["title"]), "as the scenario says", reason, held=False)]
    return [_row(run, measure) for measure in scenario["measure"]]


def _in_order(scenario: Json) -> Iterator[Json]:
    """inject and expect in the order of the file: a scenario with ``order`` says how they interleave."""
    steps = {"inject": iter(scenario.get("inject", ())), "expect": iter(scenario.get("expect", ()))}
    order = scenario.get("order") or ["inject"] * len(scenario["inject"]) + ["expect"] * len(scenario["expect"])
    for kind in order:
        yield next(steps[kind])


def _carry_out(run: Run, step: Json) -> None:
    verb = next(name for name in step if name in VERBS)
    VERBS[verb](run, step[verb], step)
    if "mark" in step:
        run.marks[step["mark"]] = time.time()


# --- verbs ------------------------------------------------------------------------------------------------------------


def _send(run: Run, what: Json, step: Json) -> None:
    data = {"title": run.title, "text": run.text} if what.get("input") else what["data"]
    message = {"to": what["to"], "kind": what["kind"], "data": data, "conversation": run.conversation(step)}
    answer = run.fleet.post("/v1/send", message)
    run.tell(f"   {what['kind']} → {what['to']} (message {answer['id']})")


def _wait(run: Run, what: Json, step: Json) -> None:
    wanted = {key: value for key, value in what.items() if key != "unit"}
    status = run.fleet.wait(what["unit"], step.get("within", WITHIN), **wanted)
    run.seen.append(status)
    run.tell(f"   {what['unit']} is {status['state']}{_doing(status)}")


def _status(run: Run, what: Json, step: Json) -> None:
    wanted = {key: None if value == "none" else value for key, value in what.items() if key != "unit"}
    status = run.fleet.wait(what["unit"], step.get("within", WITHIN), **wanted)
    run.seen.append(status)
    last = f"; the last one: {status['last']['text']}" if status["last"] and "last" in what else ""
    run.tell(f"   {what['unit']} is {status['state']}, pid {status['pid']}{last}")


def _signal(run: Run, what: Json, step: Json) -> None:
    pid = run.fleet.unit(what["unit"])["pid"]
    run.marks["signal"] = run.fleet.kill(pid, signal.Signals[what["signal"]])
    run.tell(f"   {what['signal']} to pid {pid} ({what['unit']})")


def _kill_daemon(run: Run, what: Json, step: Json) -> None:
    pid, at = run.fleet.kill_daemon()
    run.marks["signal"], run.marks["back"] = at, time.time()
    run.tell(f"   the daemon was killed and is back as pid {pid}")


def _raise(run: Run, what: Json, step: Json) -> None:
    run.marks["raise"] = time.time()
    run.fleet.post(f"/v1/budget/{what['unit']}/raise", {"tokens": what["tokens"]})
    run.tell(f"   budget of {what['unit']} raised by {what['tokens']} tokens")


def _touch(run: Run, what: Json, step: Json) -> None:
    home = run.fleet.state / "home" / what["unit"]
    (home / what["file"]).touch()
    owner = home.stat()
    os.chown(home / what["file"], owner.st_uid, owner.st_gid)
    run.tell(f"   {what['unit']} is repaired")


def _replay(run: Run, what: Json, step: Json) -> None:
    letters = run.fleet.get(f"/v1/dlq?unit={what['unit']}")["letters"]
    answer = run.fleet.post("/v1/dlq/replay", {"ids": [letter["id"] for letter in letters]})
    run.tell(f"   replayed {len(answer['replayed'])} dead letter(s) to {what['unit']}")


def _results(run: Run, what: Json, step: Json) -> None:
    conversation = run.conversation(step)
    count = what["count"]
    wait_until(
        lambda: len(run.results(what["unit"], conversation)) >= count,
        step.get("within", WITHIN),
        f"{what['unit']} keeps {count} result(s) of {conversation}; it is {run.fleet.unit(what['unit'])}",
    )
    kept = json.loads(run.results(what["unit"], conversation)[0].read_text())
    run.tell(f"   {what['unit']} finished message {kept['message']} at attempt {kept['attempt']}")


def _letters(run: Run, what: Json, step: Json) -> None:
    def there() -> Any:
        found = run.fleet.get(f"/v1/dlq?unit={what['unit']}")["letters"]
        return found if len(found) == what["count"] else None

    letters = wait_until(there, step.get("within", WITHIN), f"{what['count']} dead letter(s) of {what['unit']}")
    for letter in letters:
        if not str(letter["reason"]).startswith(what["reason"]):
            raise Broken(f"the dead letter's reason is {letter['reason']!r}, not {what['reason']!r}")
        run.seen.append({"letter": letter})
        run.tell(f"   dead letter {letter['id']}: {letter['reason']}, {letter['attempts']} attempts")


VERBS: dict[str, Callable[[Run, Json, Json], None]] = {
    "send": _send,
    "wait": _wait,
    "status": _status,
    "signal": _signal,
    "kill_daemon": _kill_daemon,
    "raise": _raise,
    "touch": _touch,
    "replay": _replay,
    "results": _results,
    "letters": _letters,
}


def _doing(status: Json) -> str:
    if status["holding"]:
        return f", {status['activity']}, holds {status['holding']['kind']}"
    return f" ({status['reason']})" if status["state"] == "held" else ""


# --- measures ---------------------------------------------------------------------------------------------------------


def _first(run: Run, kind: str, unit: str, after: float) -> Json:
    """The first journal record of its kind after a moment. The journal is written beside the loop: it may be due."""

    def there() -> Any:
        return next((r for r in run.fleet.records(kind=kind, unit=unit) if r["at"] > after), None)

    record: Json = wait_until(there, 5, f"{kind} of {unit} is in the journal")
    return record


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1000, 1)


def _restart(run: Run, unit: str) -> float:
    killed = run.marks["signal"]
    return _ms(killed, _first(run, "unit.running", unit, killed)["at"])


def _restart_after_end(run: Run, unit: str) -> float:
    ended = _first(run, "unit.ended", unit, run.started)["at"]
    return _ms(ended, _first(run, "unit.running", unit, ended)["at"])


def _redelivery(run: Run, unit: str) -> float:
    ready = _first(run, "unit.running", unit, run.marks["signal"])["at"]
    delivered = _first(run, "message.delivered", unit, run.marks["signal"])["at"]
    return max(0.0, _ms(ready, delivered))


def _hang(run: Run, unit: str) -> float:
    """From the moment in which its loop stood still to the moment in which it was judged hung."""
    frozen = _first(run, "message.delivered", unit, run.started)["at"]
    return _ms(frozen, _first(run, "unit.stopping", unit, frozen)["at"])


def _over_limit(run: Run, unit: str) -> float:
    spent = [s["tokens"] for s in [*run.seen, run.fleet.unit(unit)] if matches(s, {"name": unit}) and s.get("tokens")]
    return float(max(max(0, t["used"] + t["held"] - t["limit"]) for t in spent))


def _left_when_refused(run: Run, unit: str) -> float:
    tokens = run.fleet.unit(unit)["tokens"]
    return float(tokens["limit"] - tokens["used"])


def _back_after_raise(run: Run, unit: str) -> float:
    return _ms(run.marks["raise"], _first(run, "unit.running", unit, run.marks["raise"])["at"])


def _failures(run: Run, unit: str) -> float:
    return float(run.fleet.unit(unit)["failures"])


def _attempts(run: Run, unit: str) -> float:
    return float(next(s["letter"]["attempts"] for s in run.seen if "letter" in s))


def _count_results(run: Run, unit: str) -> float:
    return float(len(run.results(unit, run.name)))


def _count_letters(run: Run, unit: str) -> float:
    return float(len(run.fleet.get(f"/v1/dlq?unit={unit}")["letters"]))


def _daemon_back(run: Run, unit: str) -> float:
    return _ms(run.marks["signal"], run.marks["back"])


def _pids_changed(run: Run, unit: str) -> float:
    now = {u["name"]: u["pid"] for u in run.fleet.status()["units"]}
    return float(sum(1 for name, pid in run.pids.items() if now.get(name) != pid))


MEASURES: dict[str, Callable[[Run, str], float]] = {
    "restart": _restart,
    "restart_after_end": _restart_after_end,
    "redelivery": _redelivery,
    "hang": _hang,
    "over_limit": _over_limit,
    "left_when_refused": _left_when_refused,
    "back_after_raise": _back_after_raise,
    "failures": _failures,
    "attempts": _attempts,
    "results": _count_results,
    "letters": _count_letters,
    "daemon_back": _daemon_back,
    "pids_changed": _pids_changed,
}


def _row(run: Run, measure: Json) -> Row:
    try:
        value = MEASURES[measure["what"]](run, measure.get("unit", ""))
    except Broken as error:
        return Row(run.name, measure["done"], _promise(measure), str(error).splitlines()[0], held=False)
    held = value == measure["exactly"] if "exactly" in measure else value <= measure["at_most"]
    return Row(run.name, measure["done"], _promise(measure), f"{value:g} {measure['in']}", held)


def _promise(measure: Json) -> str:
    if "exactly" in measure:
        return f"{measure['exactly']} {measure['in']}"
    return f"≤ {measure['at_most']} {measure['in']}"
