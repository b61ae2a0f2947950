"""Unit files: what is wrong with one is told with file, line, key, what and what to do, word for word."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agentd.errors import UnitFileError
from agentd.model.reading import from_dict, locate, parse, problems
from agentd.model.unit import PLANNED, SECTIONS, Unit

GOLDEN = Path(__file__).parent / "golden" / "unit_errors.txt"
"""Cases as ``=== title: unit name``, the file's text, ``---``, what is said. UPDATE_GOLDEN=1 writes it anew."""


def cases() -> list[tuple[str, str, str, str]]:
    """(title, unit name, text, what is said)"""
    found = []
    for block in re.split(r"^=== ", GOLDEN.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, _, body = block.partition("\n")
        title, _, name = head.rpartition(": ")
        text, _, said = f"\n{body}".partition("\n---\n")
        found.append((title, name, text[1:], said))
    return found


def said(name: str, text: str) -> str:
    """All problems as a person reads them."""
    return "".join(f"{problem}\n" for problem in problems(text, name, f"units/{name}.toml"))


@pytest.mark.parametrize(("title", "name", "text", "expected"), cases(), ids=lambda value: str(value)[:40])
def test_errors_word_for_word(title: str, name: str, text: str, expected: str) -> None:
    """Each kind of mistake is told in the words of the golden file."""
    if os.environ.get("UPDATE_GOLDEN"):
        written = "".join(f"=== {t}: {n}\n{x}\n---\n{said(n, x)}" for t, n, x, _ in cases())
        GOLDEN.write_text(written, encoding="utf-8")
        pytest.skip("golden file written")
    assert said(name, text) == expected


@pytest.mark.parametrize(("title", "name", "text", "expected"), cases(), ids=lambda value: str(value)[:40])
def test_parse_raises_the_first_problem(title: str, name: str, text: str, expected: str) -> None:
    """parse gives a unit exactly when there is no problem, else the first one."""
    found = problems(text, name)
    if not found:
        assert parse(text, name).name == name
        return
    with pytest.raises(UnitFileError) as raised:
        parse(text, name)
    assert str(raised.value) == str(found[0])


def test_a_unit_file_is_read() -> None:
    """Amounts arrive in seconds, bytes and tokens; the rest has its defaults."""
    unit = parse('[agent]\nexec = ["x"]\nstop_timeout = "1m30s"\n[limits]\nmemory = "512M"\n', "a", "/u/a.toml")
    assert (unit.name, unit.file, unit.agent.stop_timeout, unit.limits.memory) == ("a", "/u/a.toml", 90.0, 512 << 20)
    assert unit.restart.burst == 10
    assert unit.agent.model_fields_set == {"exec", "stop_timeout"}


def test_a_transient_unit() -> None:
    """A dict from the control API goes the same way, without file and line."""
    assert from_dict("a", {"agent": {"exec": ["x"]}}) == Unit.model_validate({"name": "a", "agent": {"exec": ["x"]}})
    with pytest.raises(UnitFileError, match=r"^\[agent\] exek: no such setting\. Did you mean exec\?"):
        from_dict("a", {"agent": {"exek": ["x"]}})


def test_every_planned_key_is_refused_as_planned() -> None:
    """No setting that is reserved is accepted and ignored, and no setting that works is called planned."""
    for section, keys in PLANNED.items():
        for key in keys:
            header = "" if section == "agent" else f"[{section}]\n"
            found = problems(f'[agent]\nexec = ["x"]\n{header}{key} = 1\n', "a")
            assert [p.message.rpartition(": ")[2] for p in found] == ["planned, not in this version."], (section, key)
    unit = from_dict("a", {"agent": {"exec": ["x"]}})
    for section in SECTIONS:
        assert not set(PLANNED.get(section, ())) & set(type(getattr(unit, section)).model_fields)


def test_locate() -> None:
    """A setting's line, else nothing."""
    text = '# exec = 1\n[agent]\n"exec" = ["x"]\n\n[restart]  # why\nburst=3\n'
    assert [locate(text, *p) for p in (("agent", "exec"), ("restart", "burst"), ("restart",), ("bus",))] == [
        3,
        6,
        5,
        None,
    ]
    assert locate(text, "agent", "type") == 2
