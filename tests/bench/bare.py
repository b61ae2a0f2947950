"""Running the references (reference*.py) beside agentd: started, read, and stopped also after Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


class Bare:
    """A running reference. It says ``ready SECONDS`` first and ``stopped SECONDS`` last."""

    def __init__(self, script: str, *words: str | int | Path) -> None:
        command = [sys.executable, "-S", str(HERE / script), *map(str, words)]
        # Its own session: Ctrl-C is for the bench, which stops it so that it can clean up.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self._stopped: float | None = None
        self.ready = 0.0

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def line(self) -> list[str]:
        """The words of its next line."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.process.args!r} ended early, with status {self.process.wait()}")
        return line.split()

    def stop(self) -> float:
        """Stop it; the seconds that this took it, by its own word."""
        if self._stopped is None:
            self.process.send_signal(signal.SIGTERM)
            while (words := self.line())[0] != "stopped":
                pass
            self._stopped = float(words[1])
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
        return self._stopped


@contextmanager
def bare(script: str, *words: str | int | Path) -> Iterator[Bare]:
    """Run a reference until the end of the block."""
    running = Bare(script, *words)
    try:
        running.ready = float(running.line()[1])
        yield running
    finally:
        running.stop()
