"""Fixtures that every room uses."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import shared_stage


@pytest.fixture(scope="session", autouse=True)
def _stage() -> Iterator[None]:
    """One staged Python environment for the fleets of this run."""
    with shared_stage():
        yield


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A short directory under /tmp that other uids may pass through (socket paths hold 107 bytes)."""
    path = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root when we are not."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
