"""A real keeper in a short directory, and a blocking client that is as plain as the protocol page."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agentd
from agentd.keeper import protocol
from tests.waiting import wait_until

Json = dict[str, Any]
TIMEOUT = 10.0
SOURCE = Path(agentd.__file__).parents[1]
ROOT = os.geteuid() == 0
UNIFIED = next(
    (Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"),
    None,
)


class Client:
    """One connection to a keeper, blocking with a deadline. Events that come in between are kept."""

    def __init__(self, path: Path) -> None:
        self.events: list[Json] = []
        self._number = 0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(TIMEOUT)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise

    def hello(self) -> Json:
        protocol.send(self.socket, {"hello": 1, "client": "test"})
        return self.packet()

    def packet(self) -> Json:
        message, fds = protocol.receive(self.socket)
        assert not fds
        return message

    def start(self, do: str, fds: tuple[int, ...] = (), **fields: Any) -> int:
        """Send a request without waiting."""
        self._number += 1
        protocol.send(self.socket, {"id": self._number, "do": do, **fields}, fds)
        return self._number

    def answer(self, number: int) -> Json:
        while "answer" not in (message := self.packet()):
            self.events.append(message)
        assert message.pop("answer") == number
        return message

    def ask(self, do: str, fds: tuple[int, ...] = (), **fields: Any) -> Json:
        return self.answer(self.start(do, fds, **fields))

    def done(self, do: str, fds: tuple[int, ...] = (), **fields: Any) -> Json:
        """Ask, and it must succeed."""
        answer = self.ask(do, fds, **fields)
        assert "error" not in answer, answer
        return answer

    def refused(self, do: str, fds: tuple[int, ...] = (), **fields: Any) -> Json:
        """Ask, and it must be refused; the error."""
        error: Json = self.ask(do, fds, **fields)["error"]
        return error

    def event(self, kind: str) -> Json:
        """The next event of this kind; others stay."""
        while True:
            for at, event in enumerate(self.events):
                if event.get("event") == kind:  # answers to what was asked may come between
                    return self.events.pop(at)
            self.events.append(self.packet())

    def close(self) -> None:
        self.socket.close()


class Keeper:
    """A keeper process and its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cgroup = UNIFIED / f"agentd-test-{directory.name}" if UNIFIED and ROOT else None
        self.clients: list[Client] = []
        self.process: subprocess.Popen[bytes]

    def start(self, *daemon: str, **options: Any) -> Keeper:
        # -S: the tests start a hundred keepers, and none needs site-packages.
        argv = [sys.executable, "-S", "-m", "agentd.keeper.main", "--runtime", str(self.directory)]
        self.process = subprocess.Popen(argv + (["--", *daemon] if daemon else []), cwd=SOURCE, **options)
        wait_until(lambda: self.process.poll() is not None or self._serves(), TIMEOUT)
        return self

    def _serves(self) -> bool:
        """Whether this very process accepts; the socket may be an earlier keeper's, held by a child before its exec."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            if sock.connect_ex(str(self.directory / "keeper.sock")):
                return False
            return (
                struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0] == self.process.pid
            )

    def client(self) -> Client:
        """A new connection that has said hello."""
        client = self.connect()
        client.welcome = client.hello()  # type: ignore[attr-defined]
        return client

    def connect(self) -> Client:
        self.clients.append(Client(self.directory / "keeper.sock"))
        return self.clients[-1]

    def plan(self, *argv: str, unit: str = "a", invocation: str = "0000000000000001", **fields: Any) -> Json:
        """A plan without a cgroup whose output goes to a file."""
        output = {"fifo": f"{self.directory}/o/{unit}", "file": f"{self.directory}/log/{unit}.log"}
        plan: Json = {
            "unit": unit,
            "invocation": invocation,
            "argv": argv,
            "executable": argv[0],
            "env": {"PATH": os.environ["PATH"]},
            "cwd": "/",
            "output": output,
        }
        return plan | fields

    def shell(self, script: str, **fields: Any) -> Json:
        return self.plan("/bin/sh", "-c", script, **fields)

    def python(self, script: str, *arguments: str, **fields: Any) -> Json:
        executable = os.path.realpath(sys.executable)
        return self.plan(executable, "-ISc", script, *arguments, **fields)

    def log(self, unit: str = "a") -> str:
        return (self.directory / "log" / f"{unit}.log").read_text()

    def stop(self) -> int:
        """End it in order; its exit status."""
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            client = self.client()
            client.done("end")
            client.close()
        return self.process.wait(TIMEOUT)


@pytest.fixture
def keeper(short_dir: Path) -> Iterator[Keeper]:
    """A running keeper without a daemon; everything it made must be gone afterwards."""
    made = Keeper(short_dir).start()
    yield made
    assert made.stop() == 0
    assert {p.name for p in short_dir.iterdir()} <= {"log", "work"}
    assert made.cgroup is None or not made.cgroup.exists()


@pytest.fixture
def bare(short_dir: Path) -> Iterator[Keeper]:
    """A keeper that the test starts itself, with its own arguments."""
    made = Keeper(short_dir)
    yield made
    for client in made.clients:
        client.close()
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.fixture(params=["walk", "cgroup"])
def way(request: pytest.FixtureRequest) -> Callable[[Keeper, Json], Json]:
    """Adds a kill-cgroup to a plan, or leaves it to the walk of /proc."""

    def add(keeper: Keeper, plan: Json) -> Json:
        if request.param == "walk":
            return plan
        if keeper.cgroup is None:
            pytest.skip("no writable cgroup2 mount")
        return plan | {"cgroups": [{"path": f"{keeper.cgroup}/{plan['unit']}", "kill": True}]}

    return add


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
