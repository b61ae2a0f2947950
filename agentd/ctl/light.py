"""Keeps start-up short. Recent versions of typer build a pydantic adapter for every option that is not a flag, which
costs a person some 100 ms per command; texts, paths and values that were not given need none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

_MANY: tuple[object, ...] = (list[str], list[Path])


def lighten(command: Any) -> None:
    """Give each parameter of a command, and of its subcommands, a conversion that is as plain as its type.

    Does nothing to versions of typer that know no such conversion.
    """
    for inner in getattr(command, "commands", {}).values():
        lighten(inner)
    usual = command.get_help_option(typer.Context(command))
    for param in (*command.params, usual):
        if getattr(param, "_runtime_param", False) is None and hasattr(param, "type_descriptor"):
            param._runtime_param = _Plain(param.type_descriptor.annotation)


class _Plain:
    """Converts what is plain; hands the rest to typer's own conversion."""

    def __init__(self, annotation: object) -> None:
        self._annotation = annotation

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        wanted = self._annotation
        if value is None:
            return () if wanted in _MANY else None
        if wanted in (str, Path) and isinstance(value, str | Path):
            return wanted(value)
        if wanted in _MANY and not isinstance(value, str):
            return [Path(item) if wanted == list[Path] else str(item) for item in value]
        if type(value) is wanted:
            return value
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)
