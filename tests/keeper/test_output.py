"""Output: complete, rotated, bounded, and never in the way of anything else."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import time
from pathlib import Path

import pytest

from agentd.keeper.output import OutputPipe
from agentd.keeper.plan import Output
from tests.keeper.conftest import Keeper
from tests.waiting import wait_until

FLOOD = """
import hashlib, os, sys
block = os.urandom(1 << 20)
seen = hashlib.sha256()
for _ in range(50):
    seen.update(block)
    os.write(1, block) == len(block) or sys.exit(9)
open(sys.argv[1], 'w').write(seen.hexdigest())
"""


def output(directory: Path, max_bytes: int = 1 << 30) -> Output:
    """An output whose file is in the directory."""
    return Output(str(directory / "fifo"), str(directory / "log" / "x.log"), max_bytes)


def test_flood_is_intact_and_delays_no_exit(keeper: Keeper) -> None:
    """50 MB arrive byte for byte; meanwhile a neighbour's death is told at once."""
    (keeper.directory / "work").mkdir()
    digest = keeper.directory / "work" / "digest"
    client = keeper.client()
    row = client.done("spawn", plan=keeper.shell("exec sleep 60", unit="b"))["process"]
    target = {"fifo": f"{keeper.directory}/o/a", "file": f"{keeper.directory}/log/a.log", "max_bytes": 1 << 30}
    client.done("spawn", plan=keeper.python(FLOOD, str(digest), output=target))
    log = keeper.directory / "log" / "a.log"
    wait_until(lambda: log.stat().st_size > 1 << 20)
    before = time.monotonic()
    os.kill(row["pid"], signal.SIGKILL)
    ends = [client.event("ended")["process"]]
    assert time.monotonic() - before < 0.3 or ends[0]["unit"] == "a"
    ends.append(client.event("ended")["process"])
    assert {end["unit"]: end["exit"] for end in ends} == {"a": 0, "b": -9}
    content = log.read_bytes()
    assert len(content) == 50 << 20
    assert hashlib.sha256(content).hexdigest() == digest.read_text()


def test_last_words_are_in_the_file_when_the_end_is_told(keeper: Keeper) -> None:
    """What a process printed before it died stands in the file at ``ended``."""
    client = keeper.client()
    for number in range(20):
        client.done("spawn", plan=keeper.shell(f"echo last words {number}; kill -9 $$"))
        client.event("ended")
        assert keeper.log().endswith(f"last words {number}\n")
    assert keeper.log().count("\n") == 20


def test_file_rotates_at_its_size(short_dir: Path) -> None:
    """At max_bytes the file becomes .1 and a new one begins; nothing is lost between them."""
    pipe = OutputPipe(output(short_dir, 1000), None, None)
    writer = pipe.writer()
    log = short_dir / "log" / "x.log"
    for number in range(25):
        os.write(writer, b"%099d\n" % number)
        pipe.pump(1 << 20)
    first, second = Path(f"{log}.1").read_bytes(), log.read_bytes()
    assert (len(first), len(second)) == (1000, 500)
    assert [int(line) for line in (first + second).splitlines()] == list(range(10, 25))
    os.close(writer)
    pipe.close()
    assert not (short_dir / "fifo").exists()
    assert log.exists()


def test_one_turn_moves_no_more_than_its_quota(short_dir: Path) -> None:
    """A pump moves its quota at most, and says when nothing waits."""
    pipe = OutputPipe(output(short_dir), None, None)
    writer = pipe.writer()
    os.write(writer, b"x" * 50_000)
    assert pipe.pump(20_000) == 20_000
    assert pipe.pump(1 << 20) == 30_000
    assert pipe.pump(1 << 20) == 0
    os.close(writer)
    assert pipe.pump(1 << 20) == 0  # no end of file without a writer
    pipe.close()


def test_full_disk_drops_and_counts_and_goes_on(short_dir: Path) -> None:
    """A file that cannot be written never blocks the writer; what was lost is counted and noted in the file."""
    target = output(short_dir)
    pipe = OutputPipe(target, None, None)
    writer = pipe.writer()
    full = os.open("/dev/full", os.O_WRONLY)
    real, pipe._file = pipe._file, full
    os.write(writer, b"y" * 30_000)
    assert pipe.pump(1 << 20) == 30_000
    assert pipe.losses.dropped == 30_000
    pipe._file = real
    os.close(full)
    os.write(writer, b"again\n")
    pipe.drain()
    assert (
        Path(target.file)
        .read_text()
        .endswith("\n[agentd: 30000 bytes of output were dropped here: the file could not be written]\nagain\n")
    )
    os.close(writer)
    pipe.close()


def test_file_system_without_splice_is_copied_to(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EINVAL from splice: the bytes go through memory instead, and none is lost."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EINVAL, "no splice here")

    monkeypatch.setattr(os, "splice", refuse)
    pipe = OutputPipe(output(short_dir, 1000), None, None)
    writer = pipe.writer()
    os.write(writer, b"z" * 1500)
    pipe.drain()
    log = short_dir / "log" / "x.log"
    assert (Path(f"{log}.1").stat().st_size, log.stat().st_size, pipe.losses.dropped) == (1000, 500, 0)
    os.close(writer)
    pipe.close()


def test_existing_file_is_continued(short_dir: Path) -> None:
    """A new keeper writes behind what is there."""
    (short_dir / "log").mkdir()
    (short_dir / "log" / "x.log").write_text("before\n")
    pipe = OutputPipe(output(short_dir), None, None)
    writer = pipe.writer()
    os.write(writer, b"after\n")
    pipe.drain()
    assert (short_dir / "log" / "x.log").read_text() == "before\nafter\n"
    os.close(writer)
    pipe.close()


def test_file_in_the_way_of_the_fifo_is_refused(short_dir: Path) -> None:
    """Whatever is at the FIFO's path and is none stays untouched."""
    (short_dir / "fifo").write_text("mine")
    with pytest.raises(OSError, match="not a FIFO"):
        OutputPipe(output(short_dir), None, None)
    assert (short_dir / "fifo").read_text() == "mine"


def test_writer_survives_the_keeper(bare: Keeper) -> None:
    """kill -9 of the keeper: a process that prints goes on, without SIGPIPE."""
    bare.start()
    client = bare.client()
    (bare.directory / "work").mkdir()
    mark = bare.directory / "work" / "mark"
    script = f"trap 'echo after; echo after > {mark}' USR1; echo up; while :; do sleep 60 & wait; kill $!; done"
    pid = client.done("spawn", plan=bare.shell(script))["process"]["pid"]
    wait_until(lambda: "up" in bare.log())
    bare.process.kill()
    bare.process.wait()
    try:
        os.kill(pid, signal.SIGUSR1)
        wait_until(mark.exists)
        assert Path(f"/proc/{pid}").exists()
    finally:
        os.killpg(pid, signal.SIGKILL)
