"""What the daemon holds for the time when no keeper lives."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.host.witness import Witness
from agentd.keeper.plan import Process


@pytest.fixture
def witness() -> Iterator[Witness]:
    """One that must have let go of everything at the end."""
    before = len(os.listdir("/proc/self/fd"))
    made = Witness()
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


def begun(script: str, invocation: str = "01") -> tuple[subprocess.Popen[bytes], Process]:
    """A process that waits for its stdin to be closed, and what a keeper would say of it."""
    process = subprocess.Popen(["/bin/sh", "-c", f"read x; {script}"], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return process, Process("a", invocation, process.pid, int(stat[19]), 0.0)


def test_it_knows_how_a_process_ended_that_another_reaped(witness: Witness, tmp_path: Path) -> None:
    """Exit code or signal of that very invocation; None for any other, and where the kernel cannot tell."""
    told = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)
    for script, code in (("exit 7", 7), ("kill -KILL $$", -signal.SIGKILL)):
        process, row = begun(script, invocation=script)
        witness.see(row, tmp_path / "none")
        assert witness.exit(row) is None
        process.communicate()
        assert witness.exit(row) == (code if told else None)
        assert witness.exit(Process("a", "another", row.pid, row.start_time, 0.0)) is None
    assert witness.exit(Process("unknown", "01", 1, 1, 0.0)) is None


def test_a_recycled_pid_is_not_taken(witness: Witness, tmp_path: Path) -> None:
    """The number lives, but as another process."""
    process, row = begun("exit 3")
    witness.see(Process("a", "01", row.pid, row.start_time - 1, 0.0), tmp_path / "none")
    process.communicate()
    assert witness.exit(row) is None


def test_what_was_written_stays_although_nobody_reads(witness: Witness, tmp_path: Path) -> None:
    """The writer is dead and no keeper lives: the next one still finds it, also when the FIFO was made anew."""
    process, row = begun("exit 0")
    for word in (b"first", b"second"):
        fifo = tmp_path / "fifo"
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo)
        writer = os.open(fifo, os.O_RDWR)
        witness.see(row, fifo)
        os.write(writer, word)
        os.close(writer)
        reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        assert os.read(reader, 100) == word
        os.close(reader)
    process.communicate()
    witness.forget("a")
