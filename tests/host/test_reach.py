"""Which component closes a way."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from agentd.host.reach import EXECUTE, READ, closed_component

UID = 69_999


def make(root: Path, *modes: int) -> Path:
    """root/d0/d1/…/file with these modes, the last one the file's."""
    path = root
    for number, _ in enumerate(modes[:-1]):
        path = path / f"d{number}"
        path.mkdir()
    (path / "file").write_text("")
    for number, mode in enumerate(modes[:-1]):
        (root / "/".join(f"d{n}" for n in range(number + 1))).chmod(mode)
    (path / "file").chmod(modes[-1])
    return path / "file"


@pytest.mark.root
def test_the_first_closed_component_is_named(short_dir: Path) -> None:
    """Of several closed directories the outermost is named; an open way is None."""
    closed = make(short_dir, 0o755, 0o700, 0o700, 0o755)
    assert closed_component(closed, UID, UID) == short_dir / "d0/d1"
    (short_dir / "d0/d1").chmod(0o711)
    assert closed_component(closed, UID, UID) == short_dir / "d0/d1/d2"
    (short_dir / "d0/d1/d2").chmod(0o711)
    assert closed_component(closed, UID, UID) is None


@pytest.mark.root
def test_links_are_followed_as_the_kernel_does(short_dir: Path) -> None:
    """A link in an open directory into a closed one is closed by the target's directory, relative or not."""
    target = make(short_dir, 0o700, 0o755)
    absolute, relative, chain = short_dir / "absolute", short_dir / "relative", short_dir / "chain"
    absolute.symlink_to(target)
    relative.symlink_to("d0/../d0/file")
    chain.symlink_to("absolute")
    for link in (absolute, relative, chain):
        assert closed_component(link, UID, UID) == short_dir / "d0"


def test_what_does_not_exist_and_loops_are_errors(short_dir: Path) -> None:
    """A missing component and a loop of links are told apart from a closed one."""
    with pytest.raises(FileNotFoundError):
        closed_component(short_dir / "no/such", UID, UID)
    (short_dir / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        closed_component(short_dir / "loop", UID, UID)


@pytest.mark.root
def test_the_verdict_is_the_kernels(short_dir: Path, stranger: Callable[[], AbstractContextManager[None]]) -> None:
    """For every combination of directory and file modes and owners our answer is access(2)'s."""
    modes = (0o000, 0o001, 0o005, 0o010, 0o050, 0o100, 0o500, 0o700, 0o755)
    owners = ((0, 0), (UID, 0), (0, UID))
    for number, (mode, owner) in enumerate(itertools.product(modes, owners)):
        root = short_dir / str(number)
        root.mkdir()
        root.chmod(0o755)
        path = make(root, mode, mode)
        for part in (path, path.parent):
            os.chown(part, *owner)
            part.chmod(mode)
        with stranger():
            kernel = os.access(path, os.R_OK | os.X_OK, effective_ids=True)
        assert (closed_component(path, UID, UID, (), READ | EXECUTE) is None) == kernel, (oct(mode), owner)
