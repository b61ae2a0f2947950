"""Fixtures of the router's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.router.world import World


@pytest.fixture
async def world(short_dir: Path) -> AsyncIterator[World]:
    """Bus, daemon facts and router, running; no unit yet. The router runs in this process."""
    async for world in _running(short_dir, process=False):
        yield world


@pytest.fixture
async def apart(short_dir: Path) -> AsyncIterator[World]:
    """The same with the router as a process of its own, which can be killed."""
    async for world in _running(short_dir, process=True):
        yield world


async def _running(directory: Path, *, process: bool) -> AsyncIterator[World]:
    world = World(directory, process=process)
    try:
        await world.open()
        yield world
    finally:
        await world.close()
