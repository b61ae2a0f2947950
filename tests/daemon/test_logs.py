"""Reading logs: the last lines, and what comes, over rotation."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.daemon import inotify, logs
from agentd.errors import NotFound
from tests.waiting import until


def write(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def rotate(path: Path) -> None:
    """As the keeper does."""
    path.replace(f"{path}.1")
    path.touch()


async def last(path: Path, lines: int) -> str:
    return b"".join([chunk async for chunk in logs.read(path, lines, follow=False)]).decode()


class Follower:
    """Collects what a follower gets, and waits for text in it."""

    def __init__(self, path: Path, lines: int = 0) -> None:
        self.stream: AsyncIterator[bytes] = logs.read(path, lines, follow=True)
        self.got = b""

    async def until(self, text: str) -> str:
        async with asyncio.timeout(5):
            while text.encode() not in self.got:
                self.got += await anext(self.stream)
        return self.got.decode()

    async def close(self) -> None:
        await self.stream.aclose()  # type: ignore[attr-defined]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "writer.log"


@pytest.mark.parametrize(
    ("older", "present", "lines", "expected"),
    [
        ("", "a\nb\nc\n", 2, "b\nc\n"),
        ("", "a\nb\nc", 2, "b\nc"),
        ("", "a\n\n\n", 2, "\n\n"),
        ("", "a\nb\n", 9, "a\nb\n"),
        ("", "a\n", 0, ""),
        ("a\nb\n", "c\n", 2, "b\nc\n"),
        ("a\nb\n", "", 1, "b\n"),
        ("a\nb\nhal", "f\nc\n", 2, "half\nc\n"),
        ("a\nb\nhal", "f\nc\n", 3, "b\nhalf\nc\n"),
        ("a\nb\n", "\nc\n", 2, "\nc\n"),
    ],
)
async def test_the_last_lines(log: Path, older: str, present: str, lines: int, expected: str) -> None:
    """Lines are counted from the end over both files, as if they were one."""
    write(Path(f"{log}.1"), older)
    write(log, present)
    assert await last(log, lines) == expected


async def test_the_last_lines_of_much(log: Path) -> None:
    """Lines longer than a chunk and counts that cross chunks come out right."""
    text = [f"{number} " + "x" * (number % 7 * 10_000) for number in range(100)]
    write(log, "\n".join(text) + "\n")
    for lines in (1, 3, 50, 100):
        assert await last(log, lines) == "\n".join(text[-lines:]) + "\n"


async def test_a_log_that_is_not_there_is_empty(log: Path) -> None:
    """A unit that never wrote has an empty log."""
    assert await last(log, 10) == ""


async def test_following_begins_with_the_last_lines(log: Path) -> None:
    """First what was asked for, then each line as it is written, none twice."""
    write(log, "a\nb\n")
    follower = Follower(log, lines=1)
    assert await follower.until("b\n") == "b\n"
    write(log, "c\n")
    assert await follower.until("c\n") == "b\nc\n"
    await follower.close()


async def test_following_waits_for_the_first_line_ever(log: Path) -> None:
    """A follower that came before the log sees it from its first byte."""
    follower = Follower(log)
    waiting = asyncio.create_task(follower.until("first"))
    await until(inotify_count)
    write(log, "first\n")
    assert await waiting == "first\n"
    await follower.close()


async def test_following_continues_over_rotations(log: Path) -> None:
    """Over each rotation, also two at once and bytes just before one, the stream is whole and in order."""
    write(log, "a\n")
    follower = Follower(log, lines=1)
    await follower.until("a\n")
    follower.got = b""
    expected = ""
    for number in range(20):
        write(log, f"{number} before\n")
        if number % 3 == 0:
            rotate(log)
        write(log, f"{number} middle\n")
        rotate(log)
        write(log, f"{number} after\n")
        expected += f"{number} before\n{number} middle\n{number} after\n"
        assert await follower.until(f"{number} after\n") == expected
    assert len(open_logs(log)) <= 3
    await follower.close()


async def test_following_survives_removal_and_emptying(log: Path) -> None:
    """A log that is emptied or removed by hand is followed on."""
    write(log, "old\n")
    follower = Follower(log, lines=1)
    await follower.until("old\n")
    os.truncate(log, 0)
    write(log, "n\n")
    await follower.until("n\n")
    log.unlink()
    write(log, "newer\n")
    assert await follower.until("newer\n") == "old\nn\nnewer\n"
    await follower.close()


async def test_what_splice_writes_is_followed(log: Path) -> None:
    """The keeper writes by splice; the follower is told of that too."""
    write(log, "a\n")
    follower = Follower(log, lines=1)
    await follower.until("a\n")
    waiting = asyncio.create_task(follower.until("spliced"))
    end, begin = os.pipe()
    file = os.open(log, os.O_WRONLY)
    os.write(begin, b"spliced\n")
    os.splice(end, file, 8, offset_dst=2)
    for fd in (end, begin, file):
        os.close(fd)
    await waiting
    await follower.close()


async def test_following_is_right_where_the_kernel_does_not_tell(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an old kernel a look now and then finds what splice wrote."""
    monkeypatch.setattr(inotify, "tells_splice", lambda: False)
    monkeypatch.setattr(inotify, "UNTOLD", 0.01)
    monkeypatch.setattr(logs, "GROWN", inotify.DELETE)  # as deaf as such a kernel
    write(log, "a\n")
    follower = Follower(log, lines=1)
    await follower.until("a\n")
    waiting = asyncio.create_task(follower.until("b\n"))
    write(log, "b\n")
    await waiting
    await follower.close()


async def test_a_closed_follower_leaves_no_descriptor(log: Path) -> None:
    """Log files and inotify are closed when the iterator is."""
    write(log, "a\n")
    follower = Follower(log, lines=1)
    await follower.until("a\n")
    assert inotify_count() == 1
    await follower.close()
    assert inotify_count() == 0
    assert open_logs(log) == []


async def test_following_without_a_directory_is_an_error(tmp_path: Path) -> None:
    """It names the directory that is not there."""
    follower = Follower(tmp_path / "missing" / "writer.log")
    with pytest.raises(NotFound, match="missing: No such file"):
        await follower.until("x")


def descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return found


def inotify_count() -> int:
    return sum("inotify" in name for name in descriptors())


def open_logs(path: Path) -> list[str]:
    return [name for name in descriptors() if str(path.parent) in name]
