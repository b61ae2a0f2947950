"""An SDK agent in a process of its own, and a stand-in router and notify socket to talk to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.router.conftest import apart, world
from tests.sdk.stand_in import DEADLINE, Notifications, Router, spawn

__all__ = ["SUBJECT", "Start", "apart", "heard", "router", "start", "world"]

SUBJECT = Path(__file__).with_name("subject.py")

Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def router(short_dir: Path) -> AsyncIterator[Router]:
    router = Router(short_dir / "channel")
    await router.start()
    yield router
    await router.stop()


@pytest.fixture
async def heard(short_dir: Path) -> AsyncIterator[Notifications]:
    heard = Notifications(short_dir / "notify")
    yield heard
    heard.close()


@pytest.fixture
async def start(router: Router, heard: Notifications, short_dir: Path) -> AsyncIterator[Start]:
    """Start an agent; by default the subject, ready."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(script: Path = SUBJECT, *, ready: bool = True, **env: str) -> asyncio.subprocess.Process:
        given = {
            "AGENTD_CHANNEL": str(router.path),
            "AGENTD_INVOCATION": "00000000000000a1",
            "NOTIFY_SOCKET": str(heard.path),
            "RUNS": str(short_dir / "runs"),
            **env,
        }
        process = await spawn(script, given, short_dir)
        processes.append(process)
        if ready:
            await heard.word("READY=1")
            await router.hellos.get()
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await asyncio.wait_for(process.communicate(), DEADLINE)
