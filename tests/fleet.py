"""A real fleet for the length of a with block."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chaos.fleet import CONFIG, DRY_RUN, Fleet

__all__ = ["Fleet", "fleet", "share_stage", "shared_stage"]

_shared: list[Path] = []


@contextlib.contextmanager
def fleet(base: Path, units: dict[str, str] | None = None, config: str = CONFIG + DRY_RUN) -> Iterator[Fleet]:
    """A running fleet. Leaving the block stops it, and fails if it left anything behind."""
    running = Fleet(base, units, config)
    share_stage(running)
    try:
        yield running.start()
    finally:
        running.stop()


def share_stage(new: Fleet) -> None:
    """As root each fleet copies the Python environment to where its units' uids reach it: one copy serves them all."""
    stage = new.state / "stage"
    if _shared and not stage.exists():
        new.state.mkdir(mode=0o711, exist_ok=True)
        stage.symlink_to(_shared[-1])


@contextlib.contextmanager
def shared_stage() -> Iterator[None]:
    """The copy that fleets share meanwhile, made by the first that needs it."""
    if os.geteuid() != 0:
        yield
        return
    directory = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))
    directory.chmod(0o755)
    _shared.append(directory)
    try:
        yield
    finally:
        _shared.remove(directory)
        shutil.rmtree(directory)
