"""Log files: how many there are, how old and how large, and that the index of times goes with each."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentd.keeper import timeindex
from agentd.keeper.output import OutputPipe
from agentd.keeper.plan import INDEX_HEADER, INDEX_MAGIC, INDEX_RECORD, Output
from tests.keeper.conftest import Keeper
from tests.waiting import wait_until

Record = tuple[int, int, int, int, int]
LINE = 100


class Printer:
    """An output pipe without a keeper, and its writer."""

    def __init__(self, directory: Path, **limits: float) -> None:
        self.log = directory / "log" / "x.log"
        self.pipe = OutputPipe(Output(str(directory / "fifo"), str(self.log), **limits), None, None)  # type: ignore[arg-type]
        self._writer = self.pipe.writer()

    def line(self, number: int) -> None:
        os.write(self._writer, b"%099d\n" % number)
        self.pipe.pump(1 << 20)

    def numbers(self) -> list[int]:
        """All that is kept, oldest first."""
        rotated = sorted(
            (p for p in self.log.parent.iterdir() if p.suffix[1:].isdigit()), key=lambda p: -int(p.suffix[1:])
        )
        paths = [*rotated, self.log]
        return [int(text) for path in paths for text in path.read_text().split()]

    def close(self) -> None:
        os.close(self._writer)
        self.pipe.close()


@contextmanager
def printer(directory: Path, **limits: float) -> Iterator[Printer]:
    """A printer that is closed at the end."""
    made = Printer(directory, **limits)
    try:
        yield made
    finally:
        made.close()


def index(log: Path) -> tuple[int, int, list[Record]]:
    """Inode, number and records of a log's index, read by nothing of ours but the format."""
    raw = Path(f"{log}.idx").read_bytes()
    begin, step = struct.calcsize(INDEX_HEADER), struct.calcsize(INDEX_RECORD)
    magic, inode, serial = struct.unpack(INDEX_HEADER, raw[:begin])
    assert magic == INDEX_MAGIC
    body = raw[begin:]
    return inode, serial, list(struct.iter_unpack(INDEX_RECORD, body[: len(body) // step * step]))


def names(log: Path) -> set[str]:
    return {path.name for path in log.parent.iterdir()}


def test_as_many_files_are_kept_as_asked(short_dir: Path) -> None:
    """keep = 3: the youngest three rotated files, each with its index, whose numbers count all files ever."""
    with printer(short_dir, max_bytes=2 * LINE, keep=3) as made:
        for number in range(13):
            made.line(number)
        logs = {"x.log", "x.log.1", "x.log.2", "x.log.3"}
        assert names(made.log) == logs | {f"{name}.idx" for name in logs}
        assert made.numbers() == list(range(6, 13))
        for at, serial in (("", 7), (".1", 6), (".3", 4)):
            path = Path(f"{made.log}{at}")
            assert index(path)[:2] == (path.stat().st_ino, serial)
            assert index(path)[2][0][0] == 0


def test_a_smaller_limit_removes_what_is_too_many(short_dir: Path) -> None:
    """After keep was lowered, the next rotation removes all beyond it; what was lost before stays counted."""
    with printer(short_dir, max_bytes=LINE, keep=5) as made:
        for number in range(7):
            made.line(number)
        made.pipe.losses.dropped = 9
        lower = Output(made.pipe.output.fifo, str(made.log), LINE, 2)
        assert made.pipe.follows(lower)
        made.pipe.output = lower
        made.line(7)
        assert made.numbers() == [6, 7]  # the present file is empty: 7 filled one
        assert made.pipe.losses.dropped == 9


def test_a_file_is_rotated_and_removed_by_its_age(short_dir: Path) -> None:
    """max_age: a file whose beginning is older is rotated, a rotated one whose end is older goes; others stay."""
    with printer(short_dir, keep=9, max_age=3600.0) as made:
        for number in range(5):
            made.line(number)
        assert names(made.log) == {"x.log", "x.log.idx"}
        made.pipe.output = Output(made.pipe.output.fifo, str(made.log), 1 << 20, 9, 1e-6)
        for number in range(5, 9):
            made.line(number)
        assert made.numbers() == [8]
        assert names(made.log) == {"x.log", "x.log.idx", "x.log.1", "x.log.1.idx"}


def test_the_index_is_bounded(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trickle whose index grows faster than its log rotates both; no line and no time is lost."""
    monkeypatch.setattr(timeindex, "GAP", 0.0)
    monkeypatch.setattr(timeindex, "SMALLEST", struct.calcsize(INDEX_HEADER) + 10 * struct.calcsize(INDEX_RECORD))
    with printer(short_dir, max_bytes=7 * LINE, keep=99) as made:
        for number in range(40):
            made.line(number)
        assert made.numbers() == list(range(40))
        assert all(path.stat().st_size <= timeindex.SMALLEST for path in made.log.parent.glob("*.idx"))


def test_a_new_writer_continues_file_and_index(short_dir: Path) -> None:
    """Also behind half a record, as a crash or a full disk may leave it."""
    for number in range(3):
        with printer(short_dir) as made:
            made.line(number)
        with open(f"{made.log}.idx", "ab") as file:
            file.write(b"half a rec")
    assert made.numbers() == [0, 1, 2]
    inode, serial, records = index(made.log)
    assert (inode, serial) == (made.log.stat().st_ino, 1)
    offsets = [record[0] for record in records]
    assert offsets == sorted(offsets)
    assert {0, LINE, 2 * LINE} <= set(offsets)


def test_an_index_of_another_file_begins_anew(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that was replaced or emptied by hand while no keeper lived gets an index of its own."""
    monkeypatch.setattr(timeindex, "GAP", 0.0)
    with printer(short_dir) as made:
        for number in range(3):
            made.line(number)
    os.truncate(made.log, 0)
    with printer(short_dir) as made:
        made.line(7)
    assert index(made.log)[2][0][0] == 0
    assert index(made.log)[2][-1][0] <= LINE
    made.log.rename(made.log.with_name("aside"))
    with printer(short_dir) as made:
        made.line(8)
    assert index(made.log)[0] == made.log.stat().st_ino
    assert index(made.log)[2][0][0] == 0


def test_the_time_of_each_line_is_known(keeper: Keeper) -> None:
    """The index says when a line was printed, to 50 ms, though nobody parsed one; with both clocks."""
    client = keeper.client()
    script = "import time\nfor n in range(150): print(time.time_ns(), flush=True); time.sleep(n % 7 / 500)"
    client.done("spawn", plan=keeper.python(script))
    client.event("ended")
    log = keeper.directory / "log" / "a.log"
    _, _, records = index(log)
    assert len(records) < 150
    offset, at, errors = 0, 0, []
    for line in log.read_bytes().splitlines(keepends=True):
        while at + 1 < len(records) and records[at + 1][0] <= offset:
            at += 1
        errors.append(abs(int(line) - records[at][1]) / 1e9)
        offset += len(line)
    assert sorted(errors)[int(0.9 * len(errors))] <= 0.05, max(errors)
    skew = [record[1] - record[2] for record in records]
    assert max(skew) - min(skew) < 1e8


def test_kill_of_the_keeper_harms_neither_log_nor_index(bare: Keeper) -> None:
    """kill -9 in the middle of a flood with rotations: the next keeper goes on, and every index fits its log."""
    output = {
        "fifo": f"{bare.directory}/o/a",
        "file": f"{bare.directory}/log/a.log",
        "max_bytes": 1 << 20,
        "keep": 3,
    }
    log = bare.directory / "log" / "a.log"
    for round_number in range(3):
        bare.start()
        client = bare.client()
        flood = bare.python("while True: print('x' * 99)", unit="a", output=output)
        pid = client.done("spawn", plan=flood)["process"]["pid"]
        first = log.stat().st_ino
        wait_until(lambda first=first: log.exists() and log.stat().st_ino != first, 10)
        bare.process.kill()
        bare.process.wait()
        os.killpg(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists() or _zombie(pid), 5)
        young = Path(f"{log}.idx")  # it may have been killed before it wrote the header of this one
        begun = young.exists() and young.stat().st_size >= struct.calcsize(INDEX_HEADER)
        for path in (log, Path(f"{log}.1")) if begun else (Path(f"{log}.1"),):
            inode, serial, records = index(path)
            assert inode == path.stat().st_ino
            assert serial >= 1 + round_number
            offsets = [record[0] for record in records]
            assert offsets == sorted(offsets)
            assert max(offsets, default=0) <= path.stat().st_size


def _zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def test_age_of_a_log_without_an_index_is_that_of_its_last_change(tmp_path: Path) -> None:
    """Logs of an earlier version are removed by age too."""
    log = tmp_path / "old.log"
    log.touch()
    os.utime(log, (time.time() - 100, time.time() - 100))
    assert 99 < timeindex.age(str(log)) < 200


FLOOD = """
import hashlib, os, sys
block, seen = os.urandom(1 << 20), hashlib.sha256()
for _ in range(50):
    seen.update(block)
    assert os.write(1, block) == len(block)
open(sys.argv[1], 'w').write(seen.hexdigest())
"""


def test_a_flood_over_rotations_is_whole_and_delays_no_restart(keeper: Keeper) -> None:
    """50 MB into files of 8 MB: not a byte is lost between them; a neighbour dies and is replaced meanwhile."""
    (keeper.directory / "work").mkdir()
    digest = keeper.directory / "work" / "digest"
    client = keeper.client()
    log = keeper.directory / "log" / "a.log"
    output = {"fifo": f"{keeper.directory}/o/a", "file": str(log), "max_bytes": 8 << 20, "keep": 9}
    neighbour = keeper.shell("exec sleep 60", unit="b")
    row = client.done("spawn", plan=neighbour)["process"]
    client.done("spawn", plan=keeper.python(FLOOD, str(digest), output=output))
    wait_until(lambda: log.stat().st_size > 1 << 20)
    before = time.monotonic()
    os.kill(row["pid"], signal.SIGKILL)
    while client.event("ended")["process"]["unit"] != "b":
        pass
    client.done("spawn", plan=neighbour | {"invocation": "0000000000000002"})
    assert time.monotonic() - before < 0.5
    wait_until(digest.exists, 10)
    wait_until(lambda: sum(p.stat().st_size for p in _files(log)) == 50 << 20, 10)
    seen = hashlib.sha256()
    for path in reversed(_files(log)):
        seen.update(path.read_bytes())
    assert seen.hexdigest() == digest.read_text()
    assert len(_files(log)) == 7
    assert all(index(path)[2] for path in _files(log))


def _files(log: Path) -> list[Path]:
    """Youngest first."""
    return [log, *(path for n in range(1, 20) if (path := Path(f"{log}.{n}")).exists())]
