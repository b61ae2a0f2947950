"""The screens, compared with pages that a person has looked at. ``GOLDEN=write pytest tests/ctl`` writes them anew."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.ctl.detail import detail
from agentd.ctl.explained import explained
from agentd.ctl.main import _app
from agentd.ctl.manual import manual
from agentd.ctl.overview import overview
from agentd.ctl.paint import cells
from tests.ctl import fleet

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def same(name: str, lines: list[str]) -> None:
    page = GOLDEN / f"{name}.txt"
    text = "\n".join(lines) + "\n"
    if os.environ.get("GOLDEN") == "write":
        page.write_text(text)
    assert text == page.read_text()


@pytest.mark.parametrize("width", [140, 100, 80])
@pytest.mark.parametrize("weather", [fleet.calm, fleet.stormy])
def test_overview_is_the_page_we_looked_at(weather: Any, width: int) -> None:
    """The first screen at three widths; no line is longer than the terminal."""
    lines = overview(weather(), fleet.NOW, width, colour=False)
    assert all(cells(text) <= width for text in lines)
    same(f"overview-{weather.__name__}-{width}", lines)


def test_overview_of_an_empty_fleet_says_how_to_begin() -> None:
    """No agent yet: the page says where files go and what to type."""
    answer = {"agentd": fleet.agentd(gateway=None), "units": [fleet.system("bus", pid=401)]}
    same("overview-empty-100", overview(answer, fleet.NOW, 100, colour=False))


def test_a_warning_of_the_whole_fleet_is_told_once() -> None:
    """What all units have that run is said of all units, in one note; one that rests does not change that."""
    answer = fleet.calm()
    for unit in answer["units"]:
        unit["warnings"] = ["no limit holds here"]
    answer["units"].append(fleet.unit("nightly", state="inactive", pid=None))
    notes = [text for text in overview(answer, fleet.NOW, 100, colour=False) if text.startswith("! ")]
    assert notes == ["! all units: no limit holds here"]


def test_colour_says_only_what_the_words_say() -> None:
    """Without its colours the coloured page is the plain page, byte for byte."""
    import re

    coloured = "\n".join(overview(fleet.stormy(), fleet.NOW, 100, colour=True))
    plain = "\n".join(overview(fleet.stormy(), fleet.NOW, 100, colour=False))
    assert re.sub(r"\x1b\[\d+m", "", coloured).split() == plain.split()
    assert "\x1b[31mhung\x1b[0m" in coloured
    assert "\x1b[33mheld\x1b[0m" in coloured


def test_a_calm_fleet_has_no_alarming_colour() -> None:
    """Green is nothing: when all is well nothing is red or yellow."""
    coloured = "\n".join(overview(fleet.calm(), fleet.NOW, 100, colour=True))
    assert "\x1b[31m" not in coloured
    assert "\x1b[33m" not in coloured


@pytest.mark.parametrize("width", [120, 100, 80, 60, 44])
def test_overview_stays_aligned_with_wide_and_long_names(width: int) -> None:
    """Wide characters count as two columns, and a name of 63 characters does not break the page."""
    answer = fleet.calm()
    answer["units"][0]["name"] = "a" * 63
    answer["units"][1] |= {"activity": "執筆中", "reason": "x" * 300}
    table = [t for t in overview(answer, fleet.NOW, width, colour=False) if "running" in t or "UNIT" in t]
    assert all(cells(text) <= width for text in table[1:])


@pytest.mark.parametrize(("name", "width"), [("writer", 100), ("writer", 80), ("runaway", 100), ("importer", 80)])
def test_detail_is_the_page_we_looked_at(name: str, width: int) -> None:
    """Everything about one unit, with the end of its log."""
    unit = next(u for u in fleet.stormy()["units"] if u["name"] == name)
    tail = ["reading the notes", "writing section 2 of 5", "x" * 120]
    lines = detail(unit, tail, fleet.NOW, width, colour=False)
    assert all(cells(text) <= width for text in lines)
    same(f"detail-{name}-{width}", lines)


def test_foreign_text_cannot_reach_the_terminal() -> None:
    """An agent's status text, sender and log with escapes are shown, not obeyed."""
    evil = "\x1b]0;gone\x07\x1b[2J\u202etxt\nnext"
    unit = fleet.unit(
        "writer",
        status=evil,
        reason=evil,
        holding={"message": evil, "kind": evil, "from": evil, "since": 1.0},
        warnings=[evil],
        state="failed",
    )
    page = "\n".join(detail(unit, [evil], fleet.NOW, 100, colour=False))
    page += "\n".join(overview({"agentd": fleet.agentd(), "units": [unit]}, fleet.NOW, 100, colour=False))
    assert not set("\x1b\x07\u202e") & set(page)
    assert "\\x1b]0;gone\\x07" in page


def test_explain_reads_like_a_commented_unit_file() -> None:
    """Each setting: value, source, default where it differs, and what it means."""
    help_text = "Longest time between two WATCHDOG=1 beats. Longer is hung. Default: no heartbeat asked."
    answer = {
        "name": "writer",
        "file": "/etc/agentd/units/writer.toml",
        "argv": ["python", "-m", "agents.writer", "a b"],
        "level": "cgroup",
        "settings": [
            {
                "section": "agent",
                "key": "type",
                "value": "notify",
                "default": "simple",
                "source": "file",
                "help": "How it says that it is ready.",
            },
            {
                "section": "liveness",
                "key": "heartbeat",
                "value": None,
                "default": None,
                "source": "default",
                "help": help_text,
            },
        ],
    }
    same("explain-80", explained(answer, 80, colour=False))


def test_manual_names_every_command() -> None:
    """`agentctl` alone: all commands of this version, and no line wider than 80 columns but the exit codes."""
    lines = manual(_app(None), colour=False)
    wanted = "up down run deploy remove start stop restart kill status list logs send dlq budget check explain doctor"
    assert {*wanted.split()} <= {line.split()[0] for line in lines if line.startswith("  ")}
    same("manual", lines)
