"""Results as files: whole or not at all, and once, however often a handler runs."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agentd.sdk import Message


def state_dir() -> Path:
    """The directory that agentd gives each unit for keeps."""
    return Path(os.environ.get("AGENTD_STATE_DIR", "."))


def keep(message: Message, outcome: dict[str, Any]) -> Path:
    """Write ``results/<conversation>.json``, once per message: a second attempt finds it written and leaves it.

    Another message of the same conversation gets a file of its own, so that nothing is ever replaced.
    """
    folder = state_dir() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    conversation = quote(message.conversation or message.id, safe="")
    first = folder / f"{conversation}.json"
    if _create(first, message, outcome) or json.loads(first.read_text())["message"] == message.id:
        return first
    own = folder / f"{conversation}.{quote(message.id, safe='')}.json"
    _create(own, message, outcome)
    return own


def _create(path: Path, message: Message, outcome: dict[str, Any]) -> bool:
    """Create the file in one step; False if there is one."""
    record = {"message": message.id, "conversation": message.conversation, "attempt": message.attempt, **outcome}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".new") as new:
        json.dump(record, new, indent=2, ensure_ascii=False)
        new.flush()
        os.fsync(new.fileno())
        try:
            os.link(new.name, path)
        except FileExistsError:
            return False
    return True
