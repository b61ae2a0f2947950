"""A part of supervision that breaks is never silent."""

from __future__ import annotations

import asyncio

from agentd.daemon.supervisor import Supervisor


async def test_a_failed_task_is_a_defect_and_a_cancelled_one_is_not() -> None:
    """The daemon hears of it and ends; a supervisor without one of its parts would be worse."""
    supervisor = Supervisor.__new__(Supervisor)
    heard: list[BaseException] = []
    supervisor.on_defect = heard.append

    async def breaks() -> None:
        raise ZeroDivisionError

    broken = asyncio.create_task(breaks())
    cancelled = asyncio.create_task(asyncio.Event().wait())
    supervisor.guard(broken)
    supervisor.guard(cancelled)  # type: ignore[arg-type]
    cancelled.cancel()
    await asyncio.gather(broken, cancelled, return_exceptions=True)
    await asyncio.sleep(0)
    assert [type(error) for error in heard] == [ZeroDivisionError]
