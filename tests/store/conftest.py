"""A disk of one mebibyte, which a test may fill and write-protect."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    """A mounted tmpfs of its own."""

    path: Path

    def fill(self) -> None:
        """Until not one more page fits."""
        with (self.path / "filling").open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * 4096)

    def free(self) -> None:
        (self.path / "filling").unlink()

    def remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], check=True)


@pytest.fixture
def disk(short_dir: Path) -> Iterator[Disk]:
    """A disk of 1 MiB (needs root)."""
    mount = short_dir / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "agentd-test", str(mount)], check=True)
    try:
        yield Disk(mount)
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)
