"""A place for units, a real keeper, and the eyes of another uid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentd.host import capability
from agentd.host.identity import Identities
from agentd.host.keeper import Keeper
from agentd.host.place import Place
from agentd.host.stage import Stage
from agentd.model.unit import Unit
from tests.waiting import until

INVOCATION = "00000000000000a1"
STRANGER = 69_999


@contextlib.contextmanager
def as_uid(uid: int) -> Iterator[None]:
    """Look at files with the effective ids of a stranger (root only)."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def stranger() -> Callable[[], contextlib.AbstractContextManager[None]]:
    return lambda: as_uid(STRANGER)


@pytest.fixture(scope="session")
def stage_directory() -> Iterator[Path]:
    """One directory of stages for all tests that do not change an environment."""
    directory = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))
    directory.chmod(0o711)
    yield directory / "stage"
    shutil.rmtree(directory)


@pytest.fixture
def place(short_dir: Path, stage_directory: Path) -> Iterator[Place]:
    """A fleet of its own; its cgroups are gone afterwards."""
    capabilities = capability.probe(short_dir / "run")
    identities = Identities(short_dir / "state/units.json")
    made = Place(
        short_dir / "run",
        short_dir / "state",
        b"s" * 32,
        capabilities,
        identities,
        Stage(stage_directory),
        "127.0.0.1:4180",
    )
    made.prepare()
    yield made
    capability.sweep(capabilities)
    assert [p for p in capabilities.parents.values() if p.exists()] == []


@pytest.fixture
def write_unit(short_dir: Path) -> Callable[..., Unit]:
    """Build a unit as if read from units/<name>.toml."""
    directory = short_dir / "units"
    directory.mkdir()
    directory.chmod(0o755)

    def build(name: str, *argv: str, **sections: dict[str, Any]) -> Unit:
        agent = {"exec": list(argv), **sections.pop("agent", {})}
        return Unit.model_validate({"name": name, "file": str(directory / f"{name}.toml"), "agent": agent, **sections})

    return build


@dataclass
class RunningKeeper:
    """A keeper process over ``runtime``."""

    runtime: Path
    process: subprocess.Popen[bytes]

    @property
    def path(self) -> Path:
        return self.runtime / "keeper.sock"


def listening(path: Path) -> bool:
    """Somebody accepts connections there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True


@pytest.fixture
async def keeper_process(place: Place) -> AsyncIterator[RunningKeeper]:
    """A real keeper without a daemon, ended in order afterwards."""
    argv = [sys.executable, "-m", "agentd.keeper.main", "--runtime", str(place.runtime)]
    process = await asyncio.to_thread(subprocess.Popen, argv, stderr=subprocess.DEVNULL)
    with process:
        running = RunningKeeper(place.runtime, process)
        await until(lambda: listening(running.path) or process.poll() is not None, 10, "keeper.sock")
        try:
            yield running
        finally:
            if process.poll() is None:
                with contextlib.suppress(Exception):
                    last = await Keeper.connect(running.path)
                    await last.end()
                    last.close()
            try:
                process.wait(5)
            finally:
                process.kill()


@pytest.fixture
async def keeper(keeper_process: RunningKeeper) -> AsyncIterator[Keeper]:
    """A client of a real keeper; events in ``keeper.events``."""
    client = await Keeper.connect(keeper_process.path)
    yield client
    client.close()
