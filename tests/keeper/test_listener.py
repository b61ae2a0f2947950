"""Listeners: opened once, handed to each invocation, given back with the unit."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from tests.keeper.conftest import Json, Keeper

SERVE = """
import socket, sys
sock = socket.socket(fileno=3)
while True:
    connection, _ = sock.accept()
    connection.sendall(sys.argv[1].encode())
    connection.close()
"""


def ask(address: str) -> str:
    """What the one who accepts there says."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(address[5:])
    else:
        host, _, port = address[4:].rpartition(":")
        sock = socket.create_connection((host.strip("[]"), int(port)), 5)
    with sock:
        return sock.recv(100).decode()


def serve(keeper: Keeper, word: str, invocation: str, *listeners: Json) -> Json:
    """A plan that answers each connection with a word."""
    return keeper.python(SERVE, word, invocation=invocation, listeners=listeners)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_listener_is_kept_over_restarts(keeper: Keeper, kind: str) -> None:
    """The address stays, and who connects while nobody runs waits for the next invocation."""
    client = keeper.client()
    address = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{keeper.directory}/work/x.sock"
    listener = {"name": "http", "address": address}
    found = client.done("spawn", plan=serve(keeper, "one", "01", listener))["listeners"]["http"]
    assert ask(found) == "one"
    client.done("kill", unit="a", invocation="01")
    client.event("ended")
    if kind == "tcp":
        waiting = socket.create_connection(("127.0.0.1", int(found.rpartition(":")[2])), 5)
    else:
        waiting = socket.socket(socket.AF_UNIX)
        waiting.connect(found[5:])
    with waiting:
        again = client.done("spawn", plan=serve(keeper, "two", "02", listener))["listeners"]["http"]
        assert again == found
        assert waiting.recv(100) == b"two"
    assert keeper.client().welcome["listeners"] == {"a/http": found}  # type: ignore[attr-defined]


def test_taken_port_is_a_refusal(keeper: Keeper) -> None:
    """A port that another has: step listen, EADDRINUSE, the address as path."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        plan = keeper.shell("exit 0", listeners=[{"name": "x", "address": address}])
        error = keeper.client().refused("spawn", plan=plan)
    assert (error["step"], error["errno"], error["path"]) == ("listen", errno.EADDRINUSE, address)


def test_stale_socket_file_is_replaced_and_a_live_one_is_not(keeper: Keeper) -> None:
    """A socket file without a listener makes room; one with a listener, and any other file, does not."""
    path = keeper.directory / "work"
    path.mkdir()
    path /= "x.sock"
    client = keeper.client()
    plan = keeper.shell("exit 0", listeners=[{"name": "x", "address": f"unix:{path}"}])
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        assert client.refused("spawn", plan=plan)["errno"] == errno.EADDRINUSE
    client.done("spawn", plan=plan)
    client.event("ended")
    client.done("forget", unit="a")
    assert not path.exists()
    path.write_text("mine")
    assert client.refused("spawn", plan=plan)["errno"] == errno.EADDRINUSE
    assert path.read_text() == "mine"


def test_mode_of_a_unix_listener(keeper: Keeper) -> None:
    """Mode and owner of the socket file are the plan's."""
    path = keeper.directory / "work" / "x.sock"
    listener = {"name": "x", "address": f"unix:{path}", "mode": 0o660}
    keeper.client().done("spawn", plan=keeper.shell("exec sleep 60", listeners=[listener]))
    assert path.stat().st_mode & 0o777 == 0o660


def test_listener_that_left_the_plan_is_closed(keeper: Keeper) -> None:
    """The next plan's listeners are the unit's listeners."""
    client = keeper.client()
    path = Path(f"{keeper.directory}/work/x.sock")
    both = [{"name": "x", "address": f"unix:{path}"}, {"name": "y", "address": "tcp:127.0.0.1:0"}]
    client.done("spawn", plan=keeper.shell("exit 0", listeners=both))
    client.event("ended")
    assert set(client.done("spawn", plan=keeper.shell("exit 0", listeners=both[1:]))["listeners"]) == {"y"}
    assert not path.exists()
