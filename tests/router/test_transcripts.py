"""Recorded conversations on the channel, version 1: every later router must still hold them, line by line.

In a transcript `$name` stands for a value that the router chose: the same wherever the name stands; `$_` is anything.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.router.world import World

_TRANSCRIPTS = sorted(Path(__file__).with_name("transcripts").glob("*.jsonl"))


@pytest.mark.parametrize("path", _TRANSCRIPTS, ids=lambda path: path.stem)
async def test_replay(world: World, path: Path) -> None:
    """The router answers today as it did when the transcript was recorded."""
    for unit in ("writer", "other"):
        await world.unit(unit)
    world.started("writer", f"{1:016x}")
    reader, writer = await asyncio.open_unix_connection(world.directory / "c" / "writer", limit=1 << 21)
    names: dict[str, Any] = {}
    for number, text in enumerate(path.read_text().splitlines(), 1):
        step = json.loads(text)
        if "operator" in step:
            await world.router.call("send", step["operator"])
        elif "agent" in step:
            writer.write(json.dumps(_filled(step["agent"], names)).encode() + b"\n")
        else:
            async with asyncio.timeout(5):
                said = json.loads(await reader.readline())
            _match(step["router"], said, names, f"{path.name}:{number}")
    writer.close()
    await writer.wait_closed()


def test_there_are_transcripts() -> None:
    """The replay has something to replay, with both sides in it."""
    assert {path.stem for path in _TRANSCRIPTS} >= {"deliver", "send"}


def _filled(value: Any, names: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, names) for key, each in value.items()}
    return names[value] if isinstance(value, str) and value.startswith("$") else value


def _match(wanted: Any, said: Any, names: dict[str, Any], where: str) -> None:
    if wanted == "$_":
        return
    if isinstance(wanted, str) and wanted.startswith("$"):
        assert names.setdefault(wanted, said) == said, where
    elif isinstance(wanted, dict):
        assert wanted.keys() == said.keys(), (where, said)
        for key, each in wanted.items():
            _match(each, said[key], names, f"{where} {key}")
    else:
        assert wanted == said, where
