"""Explanations come from the table and read back as what they explain."""

from __future__ import annotations

import tomllib
from typing import Any

from agentd.model.explanation import Row, default_of, reference, rows, settings
from agentd.model.reading import from_dict, parse
from agentd.model.unit import PLANNED, SECTIONS

TEXT = """
[agent]
exec = ["x", "y"]
stop_timeout = 90
[restart]
delay = "1500ms"
[limits]
memory = "1536M"
[budget]
tokens = "250k/hour"
"""


def row(found: list[Row], section: str, key: str) -> tuple[Any, Any, str]:
    (one,) = [r for r in found if (r.section, r.key) == (section, key)]
    return one.value, one.default, one.source


def test_values_defaults_and_sources() -> None:
    """Each row says what holds, what would hold without the file, and who said so."""
    found = rows(parse(TEXT, "a"), {("isolation", "level"): "cgroup", ("limits", "memory"): 5})
    assert row(found, "agent", "exec") == (["x", "y"], None, "file")
    assert row(found, "agent", "stop_timeout") == ("1m30s", "10s", "file")
    assert row(found, "restart", "delay") == ("1.5s", "500ms", "file")
    assert row(found, "limits", "memory") == ("1.5G", None, "file")
    assert row(found, "budget", "tokens") == ("250k/hour", "2M/day", "file")
    assert row(found, "bus", "backoff") == (["1s", "5s", "30s"], ["1s", "5s", "30s"], "default")
    assert row(found, "isolation", "level") == ("cgroup", None, "host")
    assert row(found, "liveness", "heartbeat") == (None, None, "default")


def test_every_setting_has_one_row_with_help() -> None:
    """Nothing is left unexplained."""
    found = rows(parse(TEXT, "a"))
    assert [(r.section, r.key) for r in found] == [(s, k) for s, k, _ in settings()]
    assert all(r.help for r in found)
    assert set(found[0].to_json()) == {"section", "key", "value", "default", "source", "help", "file"}


def test_what_is_shown_reads_back() -> None:
    """A unit rebuilt from its own explanation is the same unit."""
    for text in (
        TEXT,
        '[agent]\nexec = ["x"]\n[liveness]\nheartbeat = 61.25\n[limits]\nmemory = 1234567\n[bus]\nbackoff = [0]\n',
    ):
        unit = parse(text, "a")
        data: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for r in rows(unit):
            if r.value is not None:
                data[r.section][r.key] = r.value
        assert from_dict("a", data) == unit


def test_the_reference_names_every_setting() -> None:
    """Each key with its kind and default; and what is planned, as planned."""
    text = reference()
    for section, key, field in settings():
        assert f"[{section}]" in text
        assert f"\n  {key}  (" in text
        assert (field.description or "?").split()[0] in text
    for keys in PLANNED.values():
        assert all(key in text for key in keys)
    assert '  stop_timeout  (duration; default: "10s")' in text
    assert '  policy  (always | on-failure | never; default: "always")' in text
    assert '  backoff  (list of durations; default: ["1s", "5s", "30s"])' in text
    assert "  memory  (size; default: none)" in text
    assert "  exec  (list of texts; required)" in text


def test_defaults_are_valid_toml() -> None:
    """What the reference calls a default can be pasted into a file."""
    for section, key, field in settings():
        value = default_of(field)
        if value not in (None, {}):
            shown = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
            tomllib.loads(f"[{section}]\n{key} = {shown}\n")
