"""What each setting of a unit is, where its value comes from, and what it means: for people, from the one table.

The table is ``unit``: types, defaults and help texts stand there. Values are shown as a unit file would write them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from agentd.model import quantity
from agentd.model.probe import probe_table
from agentd.model.schedule import schedule_table
from agentd.model.section import Section
from agentd.model.unit import PLANNED, SECTIONS, Unit

Host = Mapping[tuple[str, str], Any]
"""(section, key) → what this host made of a setting that the file left open."""


@dataclass(frozen=True, slots=True)
class Row:
    """One setting of one unit."""

    section: str
    key: str
    value: Any
    default: Any
    source: Literal["file", "default", "host"]
    help: str
    file: str | None = None
    """The one that says it, where one does."""

    def to_json(self) -> dict[str, Any]:
        """As the control API tells it."""
        return asdict(self)


def rows(unit: Unit, host: Host | None = None) -> list[Row]:
    """All settings of a unit, in the order of the table. ``host`` fills in what only the host could decide."""
    decided = host or {}
    found = []
    for section, key, field in settings():
        table = getattr(unit, section)
        given = section in unit.model_fields_set and key in table.model_fields_set
        here = (section, key)
        source: Literal["file", "default", "host"] = "file" if given else "host" if here in decided else "default"
        value = decided[here] if source == "host" else getattr(table, key)
        shown = as_written(value, field)
        found.append(
            Row(
                section,
                key,
                shown,
                default_of(field),
                source,
                field.description or "",
                unit.origin(section, key) if given else None,
            )
        )
    return found


def settings() -> Iterator[tuple[str, str, FieldInfo]]:
    """(section, key, field) of every setting there is."""
    for section in SECTIONS:
        kind = Unit.model_fields[section].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        for key, field in kind.model_fields.items():
            yield section, key, field


def default_of(field: FieldInfo) -> Any:
    """The default as a unit file would write it; None where there is none."""
    return None if field.is_required() else as_written(field.get_default(call_default_factory=True), field)


def as_written(value: Any, field: FieldInfo) -> Any:
    """A value of the model as a unit file would write it: ``90.0`` → ``"1m30s"`` where it is a duration."""
    if value is None:
        return None
    if isinstance(value, tuple | list):
        return [as_written(item, field) for item in value]
    if isinstance(value, Section):
        fields = type(value).model_fields
        return {name: as_written(getattr(value, name), fields[name]) for name in sorted(value.model_fields_set)}
    kind = _amount(field)
    if kind is quantity.duration:
        return _duration(float(value))
    if kind is quantity.size:
        return quantity.show_size(value) if _is_even(value) else value
    if isinstance(value, quantity.Allowance):
        return f"{_count(value.amount)}/{value.window}"
    return dict(value) if isinstance(value, Mapping) else value


def reference() -> str:
    """All settings as plain text: the reference, and what ``agentctl explain`` prints without a unit."""
    parts = ["Unit files are TOML. A unit's name is the name of its file."]
    for section in SECTIONS:
        kind = Unit.model_fields[section].annotation
        parts.append(f"[{section}]  {(kind.__doc__ or '').strip()}")
        parts += [_entry(key, field) for home, key, field in settings() if home == section]
        if planned := PLANNED.get(section):
            parts.append(_wrap(f"Planned, refused in this version: {', '.join(planned)}."))
    sections = [f"[{section}] {', '.join(keys)}" for section, keys in PLANNED.items() if section not in SECTIONS]
    parts.append(f"Planned sections, refused in this version: {'; '.join(sections)}.")
    return "\n\n".join(parts) + "\n"


def _entry(key: str, field: FieldInfo) -> str:
    default = default_of(field)
    if field.is_required():
        shown = "required"
    elif default in (None, "", [], {}):
        shown = "default: none"
    else:
        shown = f"default: {_toml(default)}"
    choices = [c for c in get_args(field.annotation) if isinstance(c, str)]
    kind = " | ".join(choices) if choices else _kind(field)
    return f"  {key}  ({kind}; {shown})\n{_wrap(field.description or '')}"


def _kind(field: FieldInfo) -> str:
    """What a setting takes, in a word or two."""
    amounts = {
        quantity.duration: "duration",
        quantity.size: "size",
        quantity.cpu: "CPUs",
        quantity.token_allowance: "tokens per window",
        probe_table: "text, list or table",
        schedule_table: "text or table",
    }
    text = str(field.annotation)
    amount = _amount(field)
    word = amounts.get(amount, "") if amount is not None else ""
    if not word:
        words = {"bool": "true or false", "int": "number", "str": "text", "dict": "table"}
        word = next((w for name, w in words.items() if name in text), "text")
        word = "table of texts" if "dict" in text else word
    return f"list of {word}s" if "tuple" in text else word


def _amount(field: FieldInfo) -> Any:
    """The function of ``quantity`` that reads a setting, wherever the annotation hides it (``Seconds | None``)."""
    for item in field.metadata:
        if isinstance(item, BeforeValidator):
            return item.func
    for inner in get_args(field.annotation):
        for item in getattr(inner, "__metadata__", ()):
            if isinstance(item, BeforeValidator):
                return item.func
    return None


def _duration(seconds: float) -> str:
    """Exact, unlike ``show_duration``: what stands here must read back as the same time."""
    shown = quantity.show_duration(seconds)
    if seconds == 0:
        return "0s"
    return shown if quantity.duration(shown) == seconds else f"{seconds:g}s"


def _is_even(size: int) -> bool:
    return quantity.size(quantity.show_size(size)) == size


def _count(count: int) -> str:
    shown = quantity.show_count(count)
    return shown if quantity.tokens(shown) == count else str(count)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _wrap(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="      ", subsequent_indent="      ")
