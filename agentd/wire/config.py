"""Reading a configuration file. What the keys mean is the reader's business."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from agentd.errors import ConfigError


def read(path: Path) -> dict[str, Any]:
    """The table in a .toml or .json file; ConfigError names the file, the line and what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}).") from error
    try:
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}.", hint="Nothing was changed.") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: expected a table of settings.")
    return table
