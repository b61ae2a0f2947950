"""A real nats-server for tests: on a free port, in a directory of its own, ended by its pid."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

from agentd.bus import server
from tests.waiting import wait_until

PASSWORD = "secret of the test"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class NatsServer:
    """One nats-server process that can be killed and started again on the same port and store."""

    def __init__(self, directory: Path, **settings: int) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._config = directory / "nats.conf"
        self._config.write_text(
            server.configuration(port=self.port, store=directory / "bus", password=PASSWORD, **settings)
        )
        self._log = (directory / "nats.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = subprocess.Popen(
            [str(server.find()), "-c", str(self._config)], stdout=self._log, stderr=self._log
        )
        try:
            wait_until(self._listens, 10, "nats-server listens")
        except BaseException:
            self._end(signal.SIGKILL)
            raise

    def kill(self) -> None:
        """SIGKILL, and reap it."""
        self._end(signal.SIGKILL)

    def pause(self, *, stopped: bool) -> None:
        """SIGSTOP or SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)
        if stopped:
            wait_until(self._stands_still, 5, "nats-server is stopped")

    def _stands_still(self) -> bool:
        assert self._process is not None
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads)

    def close(self) -> None:
        """End it for good."""
        if self._process is not None:
            self._end(signal.SIGKILL)
        self._log.close()

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(10)
        self._process = None

    def _listens(self) -> bool:
        with socket.socket() as sock:
            sock.settimeout(1)
            if sock.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
            return sock.recv(4) == b"INFO"
