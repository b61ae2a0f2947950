"""Verification: what parses but cannot be meant is refused with directive, condition and verdict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agentd.model.reading import from_dict
from agentd.model.unit import SYSTEM_UNITS, Unit
from agentd.model.verify import Finding, verify


def fleet(**units: dict[str, Any]) -> dict[str, Unit]:
    """Units by name, from their sections; each runs something."""
    return {
        name: from_dict(name, {**sections, "agent": {"exec": ["x"], **sections.get("agent", {})}})
        for name, sections in units.items()
    }


def after(*names: str) -> dict[str, Any]:
    return {"agent": {"after": list(names)}}


def told(findings: list[Finding]) -> list[str]:
    return [f"{f.severity}: {f.unit}: {f.key}: {f.message} {f.hint}" for f in findings]


def test_a_sound_fleet_has_no_findings() -> None:
    """Defaults and a plain pipeline are fine."""
    assert verify(fleet(a={}, b=after("a"), c=after("a", "b"))) == []


def test_a_cycle_is_told_as_its_path_to_each_of_its_units() -> None:
    """Those on the cycle are refused, those beside it are not."""
    findings = verify(fleet(a=after("b"), b=after("c"), c=after("a"), d=after("a"), e={}))
    assert [(f.unit, f.severity) for f in findings] == [("a", "error"), ("b", "error"), ("c", "error")]
    assert findings[0].message == "cycle a → b → c → a: none of them could ever start. Refusing."
    assert findings[1].message.startswith("cycle b → c → a → b")


def test_a_unit_after_itself() -> None:
    """The shortest cycle."""
    assert verify(fleet(a=after("a")))[0].message.startswith("cycle a → a:")


def test_after_an_unknown_unit() -> None:
    """An error that names the nearest."""
    assert told(verify(fleet(planner={}, b=after("plannr")))) == [
        "error: b: [agent] after: 'plannr' is no unit: it could never be ready. Refusing. Did you mean planner?"
    ]


def test_after_a_broken_unit_is_only_a_warning() -> None:
    """One broken file never stops the others."""
    (finding,) = verify(fleet(b=after("a")), broken={"a"})
    assert (finding.severity, finding.message) == (
        "warning",
        "a has errors of its own and is not waited for. Proceeding.",
    )


@pytest.mark.parametrize("name", SYSTEM_UNITS)
def test_system_units(name: str) -> None:
    """Their names are taken; waiting for them is superfluous."""
    unit = fleet(a=after(name))["a"]
    assert [f.severity for f in verify({"a": unit})] == ["warning"]
    own = unit.model_copy(update={"name": name, "agent": unit.agent.model_copy(update={"after": ()})})
    assert told(verify({name: own}))[0].endswith(
        "is the name of one of agentd's own units. Refusing. Name the unit otherwise."
    )


COMBINATIONS: tuple[dict[str, Any], ...] = (
    {"restart": {"delay": "5s", "max_delay": "1s"}},
    {"restart": {"window": 0}},
    {"restart": {"parked_delay": 0}},
    {"restart": {"parked_delay": "10s"}},
    {"restart": {"healthy_after": "2h"}},
    {"liveness": {"heartbeat": 0}},
    {"bus": {"deadline": 0}},
    {"llm": {"silence": 0}},
    {"agent": {"type": "notify", "start_timeout": 0}},
    {"bus": {"poison_after": 9}},
    {"bus": {"may_send": ["b"]}},
)
GOLDEN = Path(__file__).parent / "golden" / "findings.txt"


def test_combinations_word_for_word() -> None:
    """Each combination that cannot be meant is told in the words of the golden file (UPDATE_GOLDEN=1 writes it)."""
    lines = [line for sections in COMBINATIONS for line in told(verify(fleet(a=sections)))]
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        pytest.skip("golden file written")
    assert lines == GOLDEN.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(COMBINATIONS)


def test_never_needs_no_sound_back_off() -> None:
    """With policy never the other restart settings do not matter."""
    assert verify(fleet(a={"restart": {"policy": "never", "window": 0, "parked_delay": 0}})) == []


def test_place() -> None:
    """A finding knows where its setting stands in the file."""
    assert verify(fleet(a=after("b")))[0].place == ("agent", "after")
