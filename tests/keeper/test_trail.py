"""A file told in lines: what a keeper that is killed at any moment leaves is what was so before or after."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agentd.keeper.trail import LONG, Trail, read


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(str(tmp_path / "a.json"), {"boot": "b"})


def say(trail: Trail, **change: object) -> None:
    trail.write(dict(change), lambda: {"plan": "p"})


def test_each_line_sets_what_it_names(trail: Trail) -> None:
    """What was written last holds, and what was not named again holds as before."""
    say(trail, state="spawning", process=None)
    say(trail, state="running", process=7)
    assert read(trail.path) == {"boot": "b", "plan": "p", "state": "running", "process": 7}


def test_a_line_cut_off_anywhere_is_no_line(trail: Trail) -> None:
    """Killed in the middle of a write: all that was said before it holds."""
    say(trail, state="spawning")
    before = Path(trail.path).read_bytes()
    say(trail, state="running")
    after = Path(trail.path).read_bytes()
    for end in range(len(before), len(after)):
        Path(trail.path).write_bytes(after[:end])
        assert read(trail.path)["state"] == "spawning", end
    Path(trail.path).write_bytes(after)
    assert read(trail.path)["state"] == "running"


def test_what_somebody_else_left_is_never_appended_to(trail: Trail) -> None:
    """A torn line of an earlier keeper would swallow ours: its file is replaced."""
    Path(trail.path).write_text('{"state": "runn')
    say(trail, state="ended")
    assert read(trail.path) == {"boot": "b", "plan": "p", "state": "ended"}
    assert not os.path.exists(trail.path + ".new")


def test_an_object_without_an_end_of_line_is_understood(trail: Trail) -> None:
    """So earlier versions wrote it."""
    Path(trail.path).write_text(json.dumps({"state": "idle"}))
    assert read(trail.path) == {"state": "idle"}


def test_a_file_that_was_removed_is_begun_anew_whole(trail: Trail) -> None:
    """By us or by others: the next line does not stand alone."""
    for remove in (trail.remove, lambda: os.unlink(trail.path)):
        say(trail, state="running")
        remove()
        say(trail, state="ended")
        assert read(trail.path) == {"boot": "b", "plan": "p", "state": "ended"}


def test_it_does_not_grow_without_end(trail: Trail) -> None:
    """A unit that restarts for ever has a file of bounded size."""
    sizes = []
    for number in range(2000):
        say(trail, state="running", process=number)
        sizes.append(os.path.getsize(trail.path))
    assert max(sizes) <= LONG
    assert read(trail.path)["process"] == 1999


def test_after_a_write_that_failed_the_file_is_whole_again(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk takes half a line: it is told, and the next line does not follow the half one."""
    say(trail, state="running")
    with monkeypatch.context() as patch:
        whole = os.write
        patch.setattr(os, "write", lambda fd, line: whole(fd, line[:5]))
        with pytest.raises(OSError, match="No space left"):
            say(trail, state="ended")
    say(trail, state="ended")
    assert read(trail.path)["state"] == "ended"
