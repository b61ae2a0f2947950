"""Templates: how a name and a text that stand for many units become those of one.

``NAME@`` is a template, ``NAME@x`` its instance ``x``. In the template's texts ``%i`` is the instance and ``%%`` a
percent sign; any other ``%`` is refused, so that a later specifier changes no file's meaning. Knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from agentd.model.unit import NAME

SAMPLE = "1"
"""The instance that a template is checked as, when there is none yet."""

_SPECIFIER = re.compile(r"%(.?)", re.DOTALL)


def is_template(name: str) -> bool:
    """Whether this is the name of a template."""
    return name.endswith("@") and NAME.fullmatch(name + SAMPLE) is not None


def template_of(name: str) -> str | None:
    """``coder@`` for ``coder@2``; None where the name is no instance."""
    base, at, instance = name.partition("@")
    return f"{base}@" if at and instance else None


def instance_of(name: str) -> str:
    """``2`` for ``coder@2``; empty where the name is no instance."""
    return name.partition("@")[2]


def replica(name: str) -> int | None:
    """The number of an instance that ``replicas`` could have made: 2 for ``coder@2``, None for ``coder@02``."""
    instance = instance_of(name)
    return int(instance) if re.fullmatch(r"[1-9][0-9]{0,8}", instance) else None


def instances(name: str, names: Iterable[str]) -> list[str]:
    """The instances of a template among these names, in their order: by number, then by name."""
    found = [other for other in names if template_of(other) == name]
    return sorted(found, key=lambda other: (replica(other) is None, replica(other) or 0, other))


def expand(data: dict[str, Any], instance: str) -> tuple[dict[str, Any], list[tuple[tuple[str, ...], str]]]:
    """The same tables with every text expanded; and (path of keys, what stands there) of each unknown specifier."""
    unknown: list[tuple[tuple[str, ...], str]] = []
    return {key: _expanded(value, instance, (key,), unknown) for key, value in data.items()}, unknown


def _expanded(value: Any, instance: str, path: tuple[str, ...], unknown: list[tuple[tuple[str, ...], str]]) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(item, instance, (*path, key), unknown) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, instance, path, unknown) for item in value]
    if not isinstance(value, str) or "%" not in value:
        return value

    def meaning(match: re.Match[str]) -> str:
        if match[1] not in ("i", "%"):
            unknown.append((path, match[0]))
            return match[0]
        return instance if match[1] == "i" else "%"

    return _SPECIFIER.sub(meaning, value)
