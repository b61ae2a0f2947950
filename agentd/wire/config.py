"""Reading a configuration file. What the keys mean is the reader's business."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from agentd.errors import ConfigError


def read(path: Path) -> dict[str, Any]:
    """The table in a .toml or .json file; ConfigError names the file, the line and what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.", hint=_NAME) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: this is not UTF-8 text.", hint="Save it as UTF-8.") from error
    try:
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except json.JSONDecodeError as error:
        message = f"{path}:{error.lineno}: this is not JSON: {error.msg} at column {error.colno}."
        raise ConfigError(message, hint="Mend it; nothing was changed.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_not_toml(path, text, str(error)), hint="A setting is written key = value.") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: expected a table of settings.", hint='Write {"key": value, ...}.')
    return table


_NAME = "Name a configuration file that there is, and that you may read."


def _not_toml(path: Path, text: str, said: str) -> str:
    match = re.search(r" *\(at line (\d+), column (\d+)\)$", said)
    line = int(match[1]) if match else text.count("\n") + 1
    at = f" at column {match[2]}" if match else " at the end of the file"
    what = re.sub(r" *\(at .*\)$", "", said)
    return f"{path}:{line}: this is not TOML: {what[:1].lower()}{what[1:]}{at}."
