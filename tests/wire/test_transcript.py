"""The recorded conversation of the facts protocol, replayed line by line: every version must still hold it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from agentd.wire.facts import Facts, Server

TRANSCRIPT = Path(__file__).parent / "transcripts" / "facts-v1.jsonl"


async def _double(params: dict[str, Any]) -> int:
    return int(params["n"]) * 2


async def test_the_recorded_conversation_still_holds(short_dir: Path) -> None:
    """What the owner says is word for word what was recorded; only the epoch's name differs."""
    facts = Facts("router")
    server = Server(facts, {"double": _double}, uids=frozenset({os.geteuid()}))
    await server.start(path=short_dir / "s")
    reader, writer = await asyncio.open_unix_connection(short_dir / "s")

    def own(value: Any) -> Any:
        return json.loads(json.dumps(value).replace('"E"', json.dumps(facts.epoch)))

    try:
        for line in TRANSCRIPT.read_text().splitlines():
            entry = json.loads(line)
            match entry:
                case {"reconnect": True}:
                    writer.close()
                    await writer.wait_closed()
                    reader, writer = await asyncio.open_unix_connection(short_dir / "s")
                case {"client": said}:
                    writer.write(json.dumps(own(said)).encode() + b"\n")
                case {"owner": expected}:
                    answer = await asyncio.wait_for(reader.readline(), 5)
                    assert (json.loads(answer) if answer else None) == own(expected)
                case {"do": "set", "key": key, "value": value}:
                    facts.set(key, value)
                case {"do": "drop", "key": key}:
                    facts.drop(key)
                case {"do": "record", "kind": kind, "unit": unit, "at": at}:
                    facts.record(kind, unit, at=at)
    finally:
        writer.close()
        await server.close()
    assert facts.records_after(0) == []
