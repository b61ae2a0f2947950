"""The dry-run model beside others on one loop."""

from __future__ import annotations

import asyncio
import json

from agentd.gateway import dryrun
from agentd.gateway.body import parse


async def test_a_long_answer_leaves_the_loop_its_turns() -> None:
    """A reader that takes all at once does not keep the gateway from beating and from its other calls."""
    question = {"model": "dry-run-long", "stream": True, "messages": [{"role": "user", "content": "go"}]}
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    pieces = [piece async for piece in dryrun.body(parse(json.dumps(question).encode()), 500)]
    counting.cancel()
    assert len(pieces) > 500
    assert turns >= 500
