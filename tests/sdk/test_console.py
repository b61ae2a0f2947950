"""An agent without agentd: JSON lines in, JSON lines out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.sdk.conftest import SUBJECT
from tests.sdk.stand_in import DEADLINE, spawn


async def converse(directory: Path, *lines: Any) -> tuple[list[Any], str, int | None]:
    """What the subject prints, complains about and exits with when it is given these lines."""
    process = await spawn(SUBJECT, {"RUNS": str(directory / "runs")}, directory)
    given = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    stdout, stderr = await asyncio.wait_for(process.communicate(given.encode()), DEADLINE)
    return [json.loads(line) for line in stdout.decode().splitlines()], stderr.decode(), process.returncode


async def test_messages_and_results_are_lines(short_dir: Path) -> None:
    """Each message gets its result in order; at the end of the input the agent exits 0."""
    said, _, code = await converse(
        short_dir, {"kind": "echo", "data": [1]}, "", {"kind": "about", "id": "x", "from": "me"}
    )
    assert said == [
        {"message": "m1", "result": [1]},
        {"message": "x", "result": ["x", "about", "me", 1, None, "x"]},
    ]
    assert code == 0


async def test_sends_are_printed(short_dir: Path) -> None:
    """What would go to other units is shown, with the ids that the router would give."""
    said, _, code = await converse(short_dir, {"kind": "sends"})
    assert said[0] == {"send": {"to": "writer", "kind": "draft", "data": {"n": 1}, "id": "m1/#1"}}
    assert said[-1] == {"message": "m1", "result": ["m1/#1", "m1/#2", "m1/named"]}
    assert code == 0


async def test_refusals_make_the_exit_status_1(short_dir: Path) -> None:
    """A refused message and a line that is no message are told apart and seen in the exit status."""
    said, complaints, code = await converse(short_dir, {"kind": "point", "data": {}}, "nonsense", {"x": 1})
    assert said[0]["error"]["message"] == "point: data: missing x"
    assert "not JSON" in complaints
    assert "neither a message" in complaints
    assert code == 1


async def test_an_ask_is_answered_by_a_line(short_dir: Path) -> None:
    """The author plays the other unit: an ask waits for its reply on stdin."""
    process = await spawn(SUBJECT, {"RUNS": str(short_dir / "runs")}, short_dir)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"kind": "gate", "data": 5}\n')
    asked = json.loads(await asyncio.wait_for(process.stdout.readline(), DEADLINE))["ask"]
    assert (asked["to"], asked["kind"], asked["data"]) == ("gate", "may_i", 5)
    reply = json.dumps({"reply": asked["id"], "result": "yes"}).encode() + b"\n"
    stdout, _ = await asyncio.wait_for(process.communicate(reply), DEADLINE)
    assert json.loads(stdout) == {"message": "m1", "result": "yes"}


async def test_an_ask_at_the_end_of_the_input_fails(short_dir: Path) -> None:
    """Nobody can answer any more: the handler learns it at once instead of waiting for its timeout."""
    said, _, code = await converse(short_dir, {"kind": "gate", "data": 5})
    assert "input" in said[-1]["error"]["message"]
    assert code == 1
