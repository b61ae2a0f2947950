"""``make chaos``: every scenario of this directory on one real fleet, then one table. Exit 0 only if all held."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chaos.fleet import CONFIG, DRY_RUN, HERE, Broken, Fleet, examples
from chaos.scenario import Row, load, play
from chaos.table import show

Json = dict[str, Any]
SCENARIOS = HERE / "chaos"


@contextmanager
def place() -> Iterator[Path]:
    """A short temporary directory that other uids may pass, removed afterwards."""
    base = Path(tempfile.mkdtemp(prefix="agentd-"))
    try:
        base.chmod(0o711)
        yield base
    finally:
        shutil.rmtree(base)


def units_for(scenario: Json, base: Path) -> dict[str, str]:
    """The texts of the units that a scenario wants, each with its model."""
    return {name: examples(base, [name], model)[name] for name, model in scenario["units"].items()}


def stage(fleet: Fleet, scenario: Json) -> None:
    """Bring the units of a scenario into the fleet, fresh."""
    texts = units_for(scenario, fleet.base)
    for name in texts:
        if any(unit["name"] == name for unit in fleet.status()["units"]):
            fleet.ask("DELETE", f"/v1/units/{name}")
            fleet.post("/v1/dlq/purge", {"unit": name})
            shutil.rmtree(fleet.state / "home" / name, ignore_errors=True)
    files = [{"path": str(fleet.units / f"{name}.toml"), "text": text} for name, text in texts.items()]
    answer = fleet.post("/v1/deploy", {"files": files})
    if errors := [finding["message"] for finding in answer["findings"] if finding["severity"] == "error"]:
        raise Broken("; ".join(errors))
    fleet.settle()


def say(text: str) -> None:
    """Tell it as it happens."""
    print(text, flush=True)


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("scenario", nargs="*", help="names, such as kill-writer; default: all")
    names = parser.parse_args().scenario or sorted(path.stem for path in SCENARIOS.glob("*.toml"))
    text = (HERE / "README.md").read_text(encoding="utf-8")
    rows: list[Row] = []
    with place() as base:
        fleet = Fleet(base, {}, CONFIG + DRY_RUN)
        try:
            fleet.start()
            for name in names:
                scenario = load(SCENARIOS / f"{name}.toml")
                stage(fleet, scenario)
                rows += play(scenario, fleet, say, text=text, title="README.md")
        finally:
            fleet.stop()
    say("\n" + show(rows))
    return 0 if all(row.held for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
