"""Logs by time: spans over rotations, boots and steps of the clock; lines as JSON; a follower in a flood."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentd.daemon import lines, logs
from agentd.daemon.times import Clock, Times
from agentd.keeper.output import OutputPipe
from agentd.keeper.plan import INDEX_HEADER, INDEX_MAGIC, INDEX_RECORD, Output

Json = dict[str, Any]
HERE = Clock.now()
NOW = time.time()
OTHER_BOOT = HERE.boot ^ 1


class Book:
    """Writes a log and its index as the keeper would, at moments of the test's choice."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.serial = 0
        self.begin()

    def begin(self) -> None:
        self.serial += 1
        self.log.touch()
        header = struct.pack(INDEX_HEADER, INDEX_MAGIC, self.log.stat().st_ino, self.serial)
        Path(f"{self.log}.idx").write_bytes(header)

    def rotate(self) -> None:
        for suffix in (".idx", ""):
            for number in range(self.serial - 1, 0, -1):
                Path(f"{self.log}.{number}{suffix}").replace(f"{self.log}.{number + 1}{suffix}")
            Path(f"{self.log}{suffix}").replace(f"{self.log}.1{suffix}")
        self.begin()

    def print(
        self,
        ago: float,
        text: str,
        *,
        step: float = 0.0,
        boot: int = HERE.boot,
        lost: int = 0,
        boottime: int | None = None,
    ) -> None:
        """Text printed so many seconds ago, when the wall clock was ``step`` seconds ahead of what it says now."""
        at = NOW - ago
        uptime = int((at - HERE.zero) * 1e9) if boottime is None else boottime
        stamp = (int((at + step) * 1e9), uptime, lost, boot)
        with open(f"{self.log}.idx", "ab") as index, self.log.open("ab") as log:
            index.write(struct.pack(INDEX_RECORD, log.tell(), *stamp))
            log.write(text.encode())

    def tear(self) -> None:
        """Half a record at the end."""
        with open(f"{self.log}.idx", "ab") as index:
            index.write(b"\0" * 20)


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "writer.log")


async def span(book: Book, since: float | None = None, until: float | None = None, count: int | None = None) -> str:
    """What was printed between so many seconds ago and so many seconds ago."""
    begin, end = (None if ago is None else NOW - ago for ago in (since, until))
    stream = logs.read(book.log, count, follow=False, since=begin, until=end)
    return b"".join([chunk async for chunk in stream]).decode()


async def told(stream: AsyncIterator[bytes]) -> list[Json]:
    return [json.loads(line) for line in b"".join([chunk async for chunk in stream]).splitlines()]


async def test_a_span_of_time_over_rotations(book: Book) -> None:
    """From the first line that began in it to the last one, whole lines, over three files that cut lines."""
    book.print(100, "a\nb\n")
    book.print(90, "c\n")
    book.rotate()
    book.print(80, "d\ne-beg")
    book.print(70, "in\nf\ng-beg")
    book.rotate()
    book.print(60, "in\nh\n")
    book.print(50, "i\n")
    everything = "a\nb\nc\nd\ne-begin\nf\ng-begin\nh\ni\n"
    assert await span(book) == everything
    assert await span(book, 95) == everything[4:]
    assert await span(book, 80) == everything[6:]
    assert await span(book, 75) == "f\ng-begin\nh\ni\n"
    assert await span(book, 65) == "h\ni\n"
    assert await span(book, 40) == ""
    assert await span(book, None, 95) == "a\nb\n"
    assert await span(book, None, 75) == "a\nb\nc\nd\ne-begin\n"
    assert await span(book, 85, 65) == "d\ne-begin\nf\ng-begin\n"
    assert await span(book, None, 110) == ""
    assert await span(book, 85, 65, count=2) == "f\ng-begin\n"
    assert await span(book, 60, 55) == "h\n"


async def test_steps_of_the_clock_are_seen_through(book: Book) -> None:
    """The clock was a day ahead, then set right: what was printed before is found where it belongs, and in order."""
    book.print(300, "before\n", step=86_400.0)
    book.print(200, "wrong\n", step=86_400.0)
    book.rotate()
    book.print(150, "behind\n", step=-3600.0)
    book.print(100, "right\n", step=0.3)
    assert await span(book, 250) == "wrong\nbehind\nright\n"
    assert await span(book, 250, 120) == "wrong\nbehind\n"
    found = await told(logs.read_lines(book.log, "writer", None, follow=False))
    assert [round(NOW - line["at"]) for line in found] == [300, 200, 150, 100]
    assert found[-1]["at"] == pytest.approx(NOW - 100 + 0.3, abs=1e-3)  # drift: shown as the clock said it


async def test_an_earlier_boot_is_told_by_its_wall_clock(book: Book) -> None:
    """CLOCK_BOOTTIME of another boot means nothing here."""
    book.print(5000, "earlier boot\n", boot=OTHER_BOOT, boottime=5)
    book.print(100, "this boot\n")
    assert await span(book, 200) == "this boot\n"
    assert await span(book, None, 1000) == "earlier boot\n"


async def test_logs_without_an_index_have_no_times(tmp_path: Path) -> None:
    """Of an earlier version: their lines have none, and a span takes them or leaves them as a whole, by last change."""
    log = tmp_path / "writer.log"
    Path(f"{log}.1").write_text("old\n")
    os.utime(f"{log}.1", (NOW - 1000, NOW - 1000))
    log.write_text("young\n")
    found = await told(logs.read_lines(log, "writer", None, follow=False))
    assert found == [{"at": None, "unit": "writer", "line": text} for text in ("old", "young")]
    stream = logs.read(log, None, follow=False, since=NOW - 500)
    assert b"".join([chunk async for chunk in stream]) == b"young\n"


async def test_an_index_is_found_by_its_log_not_by_its_name(book: Book) -> None:
    """Log and index are renamed one after the other: in between, none gets the times of another."""
    book.print(100, "a\n")
    book.rotate()
    book.print(50, "b\n")
    Path(f"{book.log}.1.idx").rename(f"{book.log}.2.idx")  # a rotation has begun
    found = await told(logs.read_lines(book.log, "writer", None, follow=False))
    assert [round(NOW - line["at"]) for line in found] == [100, 50]
    Path(f"{book.log}.2.idx").unlink()
    found = await told(logs.read_lines(book.log, "writer", None, follow=False))
    assert [line["at"] and round(NOW - line["at"]) for line in found] == [None, 50]


async def test_half_a_record_at_the_end_is_none(book: Book) -> None:
    """Where the keeper is writing, or was killed."""
    book.print(100, "a\n")
    book.tear()
    times = Times.find(book.log, book.log.stat().st_ino)
    assert times is not None
    try:
        at, lost = times.at(0)
    finally:
        times.close()
    assert (round(NOW - (at or 0)), lost) == (100, 0)


async def test_lines_as_json(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line once, with the time of its first byte; not UTF-8, long, and unfinished ones too."""
    monkeypatch.setattr(lines, "LONGEST", 8)
    book.print(100, "one\nbeg")
    book.print(90, "in\n\n12345678\n123456789ab\nlast")
    with book.log.open("r+b") as log:
        log.write(b"\xffn")
    found = await told(logs.read_lines(book.log, "writer", None, follow=False))
    shown = [(line["line"], line.get("cut", False), round(NOW - line["at"])) for line in found]
    assert shown == [
        ("\ufffdne", False, 100),
        ("begin", False, 100),
        ("", False, 90),
        ("12345678", False, 90),
        ("12345678", True, 90),
        ("9ab", False, 90),
        ("last", False, 90),
    ]


async def test_lines_cut_anywhere_are_the_same(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """Borders of chunks change nothing."""
    for number in range(30):
        book.print(100 - number, f"line {number} é\n" + "x" * (number % 5))
    whole = await told(logs.read_lines(book.log, "writer", None, follow=False))
    for chunk in (1, 2, 7, 64):
        monkeypatch.setattr(logs, "CHUNK", chunk)
        assert await told(logs.read_lines(book.log, "writer", None, follow=False)) == whole


async def test_what_is_missing_is_marked_in_its_place(book: Book) -> None:
    """The note in the log says it to people, ``dropped`` to programs."""
    book.print(100, "a\n\n")
    book.print(90, "[agentd: 70 bytes of output were dropped here]\nb\n", lost=70)
    found = await told(logs.read_lines(book.log, "writer", None, follow=False))
    assert [line.get("dropped") for line in found] == [None, None, 70, None]


@contextmanager
def printing(directory: Path, max_bytes: int, keep: int) -> Any:
    """Prints into a real output pipe that is pumped at once."""
    output = Output(str(directory / "fifo"), str(directory / "log" / "x.log"), max_bytes, keep)
    pipe = OutputPipe(output, None, None)
    writer = pipe.writer()

    def write(text: str) -> None:
        os.write(writer, text.encode())
        pipe.drain()

    yield Path(output.file), write
    os.close(writer)
    pipe.close()


async def follow_until(stream: AsyncIterator[bytes], last: str, work: Callable[[], None]) -> bytes:
    got = b""
    async with asyncio.timeout(10), aclosing(stream) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            got += chunk
            if last.encode() in got:
                return got
            work()
    raise AssertionError("the stream ended")


async def test_a_follower_in_a_flood_misses_nothing_unsaid(short_dir: Path) -> None:
    """Rotation under a follower: each line once, in order; where it was too slow, a note stands in place of lines."""
    with printing(short_dir, 2000, 3) as (log, write):
        count = 0

        def some(most: int) -> None:
            nonlocal count
            for _ in range(most):
                write(f"line {count:05}\n")
                count += 1
            if count > 4000:
                write("the end\n")

        some(10)
        got = await follow_until(logs.read(log, None, follow=True), "the end", lambda: some(100))
        seen = [int(x.split()[1]) for x in got.decode().partition("the end")[0].splitlines()]
        assert len(seen) > 4000
        assert seen == list(range(len(seen)))


async def test_a_follower_that_is_too_slow_is_told(short_dir: Path) -> None:
    """More files came and went than are kept: the gap is marked, and what is left follows whole."""
    with printing(short_dir, 1000, 2) as (log, write):
        write("first\n")
        stream = logs.read(log, 10, follow=True)
        got = await anext(stream)
        for number in range(1000):
            write(f"{number:09}\n")
        write("the end\n")
        got += await follow_until(stream, "the end", lambda: None)
    before, gap, after = got.partition(logs.MISSED)
    assert gap
    seen = [int(x) for x in before.split()[1:-1]]  # the last one may be half a line
    assert seen == list(range(99))
    rest = [int(x) for x in after.split()[1:-2]]  # and so may the first
    assert 200 < rest[0] < 900
    assert rest == list(range(rest[0], 1000))


async def test_a_follower_knows_the_times_of_new_lines(short_dir: Path) -> None:
    """Also of those that were printed into a file that did not exist when it began."""
    with printing(short_dir, 100, 2) as (log, write):
        write("first\n")
        stream = logs.read_lines(log, "x", 10, follow=True)
        got = [await anext(stream)]
        write("y" * 200 + "\n")
        write("last\n")
        while b"last" not in got[-1]:
            got.append(await anext(stream))
        await stream.aclose()  # type: ignore[attr-defined]
    found = [json.loads(line) for line in b"".join(got).splitlines()]
    assert [line["line"][:5] for line in found] == ["first", "yyyyy", "last"]
    assert all(abs(line["at"] - time.time()) < 5 for line in found)
