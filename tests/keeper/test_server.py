"""The conversation: versions, snapshots after an absence, blobs, clients that misbehave."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time

import pytest

from agentd.keeper import protocol
from tests.keeper.conftest import Keeper, alive
from tests.waiting import wait_until


def test_welcome_is_the_whole_truth(keeper: Keeper) -> None:
    """Keeper, revision, processes, blobs and listeners; the highest common version."""
    client = keeper.connect()
    protocol.send(client.socket, {"hello": 7, "client": "from the future", "unknown": [1]})
    welcome = client.packet()
    assert welcome["welcome"] == 1
    assert welcome["keeper"]["pid"] == keeper.process.pid
    assert abs(welcome["keeper"]["now"] - time.monotonic()) < 5
    assert (welcome["processes"], welcome["blobs"], welcome["listeners"]) == ([], {}, {})
    assert (welcome["rev"], welcome["stopping"]) == (0, False)


def test_other_versions_are_refused(keeper: Keeper) -> None:
    """Who speaks none of ours is told which we speak."""
    for hello in (0, -1, "1", None, {}):
        client = keeper.connect()
        protocol.send(client.socket, {"hello": hello})
        assert client.packet() == {"refused": "version", "speaks": [1]}
        with pytest.raises(EOFError):
            client.packet()


def test_what_happened_meanwhile_is_in_the_snapshot(keeper: Keeper) -> None:
    """Deaths, exit codes and blobs of an absence; what lives goes on untouched; the revision has grown."""
    client = keeper.client()
    pids = {}
    for unit, script in (("a", "exit 5"), ("b", "exec sleep 60"), ("c", "exec sleep 60")):
        pids[unit] = client.done("spawn", plan=keeper.shell(script, unit=unit))["process"]["pid"]
    client.event("ended")
    rev = keeper.client().welcome["rev"]  # type: ignore[attr-defined]
    client = keeper.client()
    client.done("blob", unit="b", text="kept")
    client.close()
    os.kill(pids["c"], 15)
    wait_until(lambda: not alive(pids["c"]))

    def rows() -> dict[str, int | None]:
        welcome = keeper.client().welcome  # type: ignore[attr-defined]
        assert welcome["blobs"] == {"b": "kept"}
        return {row["unit"]: row["exit"] for row in welcome["processes"]}

    wait_until(lambda: rows() == {"a": 5, "b": None, "c": -15})
    welcome = keeper.client().welcome  # type: ignore[attr-defined]
    assert welcome["rev"] == rev + 1
    assert {row["unit"]: row["pid"] for row in welcome["processes"]} == pids


def test_newer_client_replaces_the_older(keeper: Keeper) -> None:
    """One client at a time; a connection without hello replaces nobody."""
    first = keeper.client()
    keeper.connect()
    assert first.done("beats")["beats"] == {}
    second = keeper.client()
    with pytest.raises((EOFError, ConnectionError)):
        first.packet()
    assert second.done("beats")["beats"] == {}


def test_blobs_are_kept_bounded_and_dropped(keeper: Keeper) -> None:
    """1 MiB at most; null drops; forget drops."""
    client = keeper.client()
    client.done("blob", unit="x", text="ä" * (512 << 10))
    assert client.refused("blob", unit="x", text="y" * ((1 << 20) + 1))["code"] == "too_long"
    client.done("blob", unit="y", text="other")
    client.done("forget", unit="y")
    assert keeper.client().welcome["blobs"] == {"x": "ä" * (512 << 10)}  # type: ignore[attr-defined]
    client = keeper.client()
    client.done("blob", unit="x", text=None)
    assert keeper.client().welcome["blobs"] == {}  # type: ignore[attr-defined]


def test_large_plan_and_large_welcome(keeper: Keeper) -> None:
    """A plan with 1 MB of environment goes through a memfd, and so does a snapshot with many blobs."""
    client = keeper.client()
    env = {f"V{n}": "x" * 100_000 for n in range(10)}
    client.done("spawn", plan=keeper.shell('printf "%s" "$V9" | wc -c', env=env))
    client.event("ended")
    assert keeper.log().strip() == "100000"
    for number in range(5):
        client.done("blob", unit=f"u{number}", text="x" * 60_000)
    assert len(keeper.client().welcome["blobs"]) == 5  # type: ignore[attr-defined]


WRONG: list[tuple[dict[str, object], str]] = [
    ({"do": "dance"}, "unknown"),
    ({}, "unknown"),
    ({"do": "spawn"}, "bad"),
    ({"do": "spawn", "plan": {}}, "step"),
    ({"do": "spawn", "plan": {"unit": 1, "argv": None}}, "step"),
    ({"do": "signal", "unit": "a", "invocation": "1"}, "bad"),
    ({"do": "signal", "unit": "a", "invocation": "1", "signal": 999}, "bad"),
    ({"do": "signal", "unit": "a", "invocation": "1", "signal": True}, "bad"),
    ({"do": "kill", "unit": ["a"], "invocation": "1"}, "bad"),
    ({"do": "blob", "unit": "a", "text": 1}, "bad"),
]


def test_wrong_request_gets_an_error_and_harms_nothing(keeper: Keeper) -> None:
    """Each is answered under its id, and the conversation goes on."""
    client = keeper.client()
    for number, (request, code) in enumerate(WRONG, 100):
        protocol.send(client.socket, {"id": number, **request})
        answer = client.packet()
        assert (answer["answer"], answer["error"]["code"]) == (number, code), answer
        assert client.done("beats")["beats"] == {}


def test_garbage_disconnects_and_the_next_client_is_served(keeper: Keeper) -> None:
    """A packet that is none ends this connection only."""
    client = keeper.client()
    client.socket.send(b"\xff garbage")
    with pytest.raises(EOFError):
        client.packet()
    assert keeper.client().done("beats")["beats"] == {}


def test_client_that_does_not_read_is_disconnected(keeper: Keeper) -> None:
    """A thousand packets wait at most; the keeper goes on meanwhile, and whoever comes back gets the snapshot."""
    deaf = keeper.client()
    sent = 0
    writable = select.poll()
    writable.register(deaf.socket, select.POLLOUT | select.POLLHUP)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            protocol.send(deaf.socket, {"id": sent, "do": "blob", "unit": ["x" * 2000]})
        except ConnectionError:
            break
        sent += 1
    else:
        pytest.fail("never disconnected")
    assert sent >= 1000
    assert keeper.client().done("beats")["beats"] == {}


@pytest.mark.root
def test_another_uid_is_refused(keeper: Keeper) -> None:
    """Even where the socket's mode would let it pass: the peer's uid must be the keeper's."""
    path = keeper.directory / "keeper.sock"
    path.chmod(0o666)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(5)
        os.seteuid(60001)
        try:
            sock.connect(str(path))
        finally:
            os.seteuid(0)
        with pytest.raises((EOFError, ConnectionError)):
            protocol.receive(sock)


def test_a_units_own_process_is_refused(keeper: Keeper) -> None:
    """An agent of the keeper's own uid may not give it orders."""
    client = keeper.client()
    script = "import socket, sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\ns.connect(sys.argv[1])\n"
    script += "try:\n    s.send(b'{\"hello\": 1}')\n    sys.exit(s.recv(9999) != b'')\nexcept OSError:\n    sys.exit(0)"
    client.done("spawn", plan=keeper.python(script, str(keeper.directory / "keeper.sock")))
    assert client.event("ended")["process"]["exit"] == 0
    assert client.done("beats")["beats"] == {}


@pytest.mark.parametrize("way_in", ["orphan", "passed on"])
def test_what_a_unit_left_behind_is_refused(keeper: Keeper, way_in: str) -> None:
    """Neither an orphan of a unit, whose parent is the keeper, nor a connection that a dead process made."""
    client = keeper.client()
    script = """
import os, signal, socket, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave no zombie
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if sys.argv[2] == "orphan":
    parent = os.getpid()
    child = os.fork()
    if child:
        time.sleep(1000)
    if os.fork():
        os._exit(0)
    while os.getppid() == child or os.getppid() == parent:
        time.sleep(0.01)
    s.connect(sys.argv[1])
else:
    keeper = int(sys.argv[3])
    os.kill(keeper, signal.SIGSTOP)  # as a busy keeper would be
    if (child := os.fork()) == 0:
        s.connect(sys.argv[1])
        os._exit(0)
    while os.path.exists(f"/proc/{child}"):
        time.sleep(0.01)
    os.kill(keeper, signal.SIGCONT)
try:
    s.send(b'{"hello": 1}')
    print("served" if s.recv(9999) else "refused", flush=True)
except OSError:
    print("refused", flush=True)
"""
    plan = keeper.python(script, str(keeper.directory / "keeper.sock"), way_in, str(keeper.process.pid))
    client.done("spawn", plan=plan)
    wait_until(lambda: keeper.log().endswith("\n"))
    assert keeper.log() == "refused\n"
    client = keeper.client()
    client.ask("kill", unit="a", invocation="0000000000000001")


def test_keeper_is_small() -> None:
    """The parent of everything imports no asyncio, no OpenSSL, no subprocess, nothing of agentd but itself."""
    script = "import sys, agentd.keeper.main; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert not loaded & {"asyncio", "ssl", "hashlib", "subprocess", "argparse", "logging", "threading", "pydantic"}
    ours = {name for name in loaded if name.startswith("agentd.")}
    assert all(name == "agentd.keeper" or name.startswith("agentd.keeper.") for name in ours)
