"""The log of the blobs: what a next keeper reads of it, whatever happened to the one that wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.keeper.blobs import COMPACT_AT, NAME, Blobs
from agentd.keeper.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that does not turn: writes are asked for by hand."""
    made = Loop()
    yield made
    made.close()


def reads(loop: Loop, directory: Path) -> dict[str, str]:
    """What the next keeper finds."""
    return Blobs(loop, str(directory)).all()


def test_the_last_text_of_each_unit_is_found_again(loop: Loop, tmp_path: Path) -> None:
    """Over several writes, with units that were dropped, and in texts of any kind."""
    blobs = Blobs(loop, str(tmp_path))
    blobs.put("a", "one")
    blobs.put("b", 'line\nbreak, "quotes" and \u00e9')
    blobs.write()
    blobs.put("a", "two")
    blobs.put("c", "gone")
    blobs.write()
    blobs.put("c", None)
    blobs.write()
    assert reads(loop, tmp_path) == {"a": "two", "b": 'line\nbreak, "quotes" and \u00e9'} == blobs.all()
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    blobs.close()
    assert not list(tmp_path.iterdir())


def test_a_line_that_is_cut_short_counts_for_nothing(loop: Loop, tmp_path: Path) -> None:
    """The keeper was killed, or the disk was full, in the middle of a write."""
    blobs = Blobs(loop, str(tmp_path))
    blobs.put("a", "one")
    blobs.write()
    whole = (tmp_path / NAME).read_bytes()
    blobs.put("a", "two")
    blobs.write()
    content = (tmp_path / NAME).read_bytes()
    for end in range(len(whole), len(content)):
        (tmp_path / NAME).write_bytes(content[:end])
        assert reads(loop, tmp_path) == {"a": "one"}
    blobs.close()


def test_texts_of_another_boot_are_none(loop: Loop, tmp_path: Path) -> None:
    """Nor are those of a file that is none of ours; the next write makes a good one of it."""
    for content in (json.dumps({"version": 1, "boot": "another"}), "{", "", "\n\n"):
        (tmp_path / NAME).write_text(content + '\n["a","x"]\n')
        blobs = Blobs(loop, str(tmp_path))
        assert blobs.all() == {}
        blobs.put("b", "y")
        blobs.write()
        assert reads(loop, tmp_path) == {"b": "y"}
        blobs.close()


def test_the_file_does_not_grow_for_ever(loop: Loop, tmp_path: Path) -> None:
    """Once most of it is of yesterday it is written anew."""
    blobs = Blobs(loop, str(tmp_path))
    for n in range(100):
        blobs.put("a", str(n) * 40_000)
        blobs.put("b", str(n))
        blobs.write()
    assert (tmp_path / NAME).stat().st_size < COMPACT_AT + 200_000
    assert reads(loop, tmp_path) == blobs.all() == {"a": "99" * 40_000, "b": "99"}
    blobs.close()


def test_a_write_that_fails_is_made_up_for(loop: Loop, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The texts stay with the keeper, and the next write brings all of them."""
    directory = tmp_path / "later"
    blobs = Blobs(loop, str(directory))
    blobs.put("a", "one")
    blobs.write()
    assert "cannot be written" in capfd.readouterr().err
    directory.mkdir()
    blobs.put("b", "two")
    blobs.write()
    assert reads(loop, directory) == {"a": "one", "b": "two"}
    blobs.close()
