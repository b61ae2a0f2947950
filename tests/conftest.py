"""Fixtures that every room uses."""

from __future__ import annotations

import os
import shutil
import signal
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


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A directory of its own for this run's tmp_path, removed after it: pytest itself would keep three in /tmp."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's "&" leaves it ignored, and children inherit that
    if config.option.basetemp is None:
        config.option.basetemp = tempfile.mkdtemp(prefix="ad", dir="/tmp")
        config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root when we are not."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
