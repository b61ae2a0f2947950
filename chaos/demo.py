"""``make demo``: a real fleet does real work on a real text, is broken five ways, and shows what held.

Everything lives in a temporary directory and on free ports. On a terminal the fleet stays up to play with until
Ctrl-C; otherwise it is stopped, and nothing is left. Exit 0 only if every promise held.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from chaos.fleet import CONFIG, DRY_RUN, HERE, Broken, Fleet, examples, wait_until
from chaos.run import SCENARIOS, place, say
from chaos.scenario import Row, load, play
from chaos.table import show

Json = dict[str, Any]

FAULTS = ("kill-writer", "hang", "runaway", "poison", "kill-daemon")
PIPELINE = ("researcher", "writer", "reviewer")
OLLAMA = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").removeprefix("http://").rstrip("/")


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--input", type=Path, default=HERE / "README.md", help="the text that the pipeline reads")
    path = parser.parse_args().input
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        say(f"demo: {path}: {error}. Give a text with make demo DEMO_INPUT=FILE.")
        return 2
    signal.signal(signal.SIGTERM, _interrupted)
    started = time.monotonic()
    with place() as base:
        local = _ollama()
        fleet = Fleet(base, _units(base), CONFIG + DRY_RUN + (_ollama_upstream(local) if local else ""))
        try:
            rows = _demonstrate(fleet, path.name, text, local)
            kept = sum(row.held for row in rows)
            say(f"\n{show(rows)}\n\n{kept} of {len(rows)} promises held, in {time.monotonic() - started:.0f} s.")
            if sys.stdout.isatty():
                _stay(fleet)
        except KeyboardInterrupt:
            say("\nStopping everything in order.")
            rows = [Row("demo", "not finished", "all of it", "interrupted", held=False)]
        finally:
            fleet.stop()
    return 0 if all(row.held for row in rows) else 1


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _units(base: Path) -> dict[str, str]:
    """All example units; the writer's model is slow, so that there is a middle of a message to be killed in."""
    units = examples(base, ["researcher", "reviewer", "hanger", "poisoned", "clock"])
    return units | examples(base, ["writer"], "dry-run-slow") | examples(base, ["runaway"], "dry-run-long")


def _demonstrate(fleet: Fleet, title: str, text: str, local: str | None) -> list[Row]:
    """The whole show; the rows of its table."""
    begun = time.monotonic()
    say("agentd demo. The model is `dry-run`, built in: no LLM is called and nothing is paid.\n")
    fleet.start()
    count = sum(not unit["system"] for unit in fleet.status()["units"])
    say(f"A fleet of {count} agents is up after {time.monotonic() - begun:.1f} s, in {fleet.base}:\n")
    say(screen(fleet))
    rows = [_pipeline(fleet, title, text, "dry-run")]
    for name in FAULTS:
        rows += play(load(SCENARIOS / f"{name}.toml"), fleet, say, text=text, title=title)
    if local:
        rows.append(_with_ollama(fleet, title, text, local))
    say("\n" + screen(fleet))
    return rows


def _pipeline(fleet: Fleet, title: str, text: str, model: str, patience: float = 60) -> Row:
    """researcher → writer → reviewer on the text."""
    conversation = f"pipeline-{model}".replace(":", "-").replace("/", "-")
    say(f"── {title} ({len(text)} characters) through researcher → writer → reviewer, model {model}")
    at = time.monotonic()
    message = {"to": "researcher", "kind": "text", "data": {"title": title, "text": text}, "conversation": conversation}
    fleet.post("/v1/send", message)
    kept = fleet.state / "home" / "reviewer" / "results"
    done = "the pipeline's result on a real text"
    try:
        wait_until(lambda: list(kept.glob(f"{conversation}.*json")), patience, f"a result of {conversation}")
    except Broken as error:
        say(f"   broken: {error}")
        return Row("pipeline", done, "1 result", "none", held=False)
    results = list(kept.glob(f"{conversation}.*json"))
    result = json.loads(results[0].read_text())
    took = time.monotonic() - at
    say(f"   reviewed after {took:.1f} s: {result['review'][:160]}")
    return Row("pipeline", done, "1 result", f"{len(results)} result in {took:.1f} s", held=len(results) == 1)


def screen(fleet: Fleet) -> str:
    """What ``agentctl status`` shows now."""
    agentctl = Path(sys.executable).parent / "agentctl"
    argv = [str(agentctl), "--socket", str(fleet.runtime / "control.sock"), "status"]
    answer = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, "COLUMNS": "100"})
    return answer.stdout


def _ollama() -> str | None:
    """A chat model that a local Ollama offers, if one answers."""
    try:
        models = httpx.get(f"http://{OLLAMA}/api/tags", timeout=1).json()["models"]
        return str(models[0]["name"]) if models else None
    except (httpx.HTTPError, ValueError, KeyError):
        return None


def _ollama_upstream(model: str) -> str:
    upstream = {"name": "ollama", "dialect": "ollama", "base_url": f"http://{OLLAMA}"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in upstream.items()]
    return "\n".join(["[[upstream]]", *lines, f"models = [{json.dumps(model)}]", ""])


def _with_ollama(fleet: Fleet, title: str, text: str, model: str) -> Row:
    """The same text once more, with a real model: the units are deployed anew with another setting."""
    texts = examples(fleet.base, list(PIPELINE), model)
    files = [{"path": str(fleet.units / f"{name}.toml"), "text": text} for name, text in texts.items()]
    fleet.post("/v1/deploy", {"files": files})
    fleet.settle()
    return _pipeline(fleet, title, text, model, patience=900)


def _stay(fleet: Fleet) -> None:
    """Leave it to the person at the terminal until Ctrl-C."""
    agentctl = f"{Path(sys.executable).parent / 'agentctl'} --socket {fleet.runtime / 'control.sock'}"
    say(f"""
The fleet is yours until Ctrl-C. In another terminal:

  alias ctl='{agentctl}'
  ctl status
  ctl send reviewer draft '{{"title": "Mine", "paragraphs": ["Your own text."]}}' --wait
  ctl kill reviewer
  ctl journal --unit reviewer
""")
    try:
        signal.pause()
    except KeyboardInterrupt:
        say("\nStopping everything in order.")


if __name__ == "__main__":
    sys.exit(main())
