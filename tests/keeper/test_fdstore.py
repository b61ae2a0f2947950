"""Descriptors that a unit leaves with the keeper: handed to its next invocation, bounded, dropped when they hang up."""

from __future__ import annotations

import array
import contextlib
import json
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.keeper.fdstore import MOST, valid
from tests.keeper.conftest import ROOT, Client, Json, Keeper
from tests.waiting import wait_until

SHOW = """
import json, os
count = int(os.environ.get("LISTEN_FDS", "0"))
names = os.environ.get("LISTEN_FDNAMES", "").split(":") if count else []
links = [os.readlink(f"/proc/self/fd/{3 + n}") for n in range(count)]
print(json.dumps({"names": names, "links": links, "mine": os.environ.get("LISTEN_PID") == str(os.getpid()),
    "data": [os.pread(3 + n, 64, 0).decode() for n in range(count) if "memfd" in links[n]]}), flush=True)
"""
"""Prints what it was handed."""


def push(path: Path, text: str, *fds: int) -> None:
    """One datagram with descriptors, as sd_pid_notify_with_fds sends it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([text.encode()], ancillary, 0, str(path))


def memfd(text: str) -> int:
    """A file that never hangs up."""
    fd = os.memfd_create("kept")
    os.write(fd, text.encode())
    return fd


def start(keeper: Keeper, client: Client, invocation: str = "0000000000000001", **fields: object) -> Path:
    """A living unit with a notify socket."""
    path = keeper.directory / "n" / "a"
    plan = keeper.shell("exec sleep 1000", invocation=invocation, notify=str(path), **fields)
    client.done("spawn", plan=plan)
    return path


def end(client: Client) -> None:
    """Its invocation crashes."""
    client.done("kill", unit="a", invocation="0000000000000001")
    client.event("ended")


def shown(keeper: Keeper, client: Client, **fields: object) -> Json:
    """What the next invocation is handed."""
    plan = keeper.python(SHOW, invocation="0000000000000002", notify=str(keeper.directory / "n" / "a"), **fields)
    client.done("spawn", plan=plan)
    client.event("ended")
    told: Json = json.loads(keeper.log().splitlines()[-1])
    return told


def stored(keeper: Keeper) -> Json:
    """What the snapshot says of the unit's store."""
    client = keeper.client()
    stores: Json = client.welcome["stores"]  # type: ignore[attr-defined]
    return stores.get("a", {"kept": 0, "refused": 0})


@pytest.fixture
def old(bare: Keeper) -> Iterator[Keeper]:
    """A keeper that may be killed and started again; its last one ends in order."""
    bare.start()
    yield bare
    bare.stop()


def crash(keeper: Keeper) -> None:
    """kill -9."""
    keeper.process.send_signal(signal.SIGKILL)
    keeper.process.wait()
    for client in keeper.clients:
        client.close()
    keeper.clients.clear()


def test_what_is_stored_comes_back_after_the_listeners(keeper: Keeper) -> None:
    """The next invocation gets them from 3 on, after the plan's own, under their names, and reads what was left."""
    client = keeper.client()
    path = start(keeper, client)
    one, other = memfd("checkpoint"), memfd("second")
    push(path, "FDSTORE=1\nFDNAME=state", one)
    push(path, "FDSTORE=1", other)
    os.close(one), os.close(other)
    assert client.event("store")["kept"] >= 1
    wait_until(lambda: stored(keeper)["kept"] == 2)
    client = keeper.client()
    end(client)
    listener = {"name": "web", "address": f"unix:{keeper.directory}/work/s"}
    reader, writer = os.pipe()
    plan = keeper.python(SHOW, invocation="0000000000000002", listeners=[listener], fds=["secret"], notify=str(path))
    client.done("spawn", (reader,), plan=plan)
    os.close(reader), os.close(writer)
    client.event("ended")
    told = json.loads(keeper.log().splitlines()[-1])
    assert told["names"] == ["web", "secret", "state", "stored"]
    assert (told["data"], told["mine"]) == (["checkpoint", "second"], True)


def test_the_store_stays_the_keepers(keeper: Keeper) -> None:
    """What was handed over is handed over again: only a word, a hang-up or an order takes it away."""
    client = keeper.client()
    path = start(keeper, client)
    push(path, "FDSTORE=1\nFDNAME=x", memfd("x"))
    wait_until(lambda: stored(keeper)["kept"] == 1)
    client = keeper.client()
    end(client)
    assert shown(keeper, client)["names"] == ["x"]
    assert shown(keeper, client)["names"] == ["x"]
    client.done("drop", unit="a")
    assert client.event("store") | {"rev": 0} == {"rev": 0, "event": "store", "unit": "a", "kept": 0, "refused": 0}
    assert shown(keeper, client)["names"] == []


def test_removed_by_name(keeper: Keeper) -> None:
    """FDSTOREREMOVE takes all of that name; without a name, nothing."""
    client = keeper.client()
    path = start(keeper, client)
    for name in ("a", "b", "a"):
        push(path, f"FDSTORE=1\nFDNAME={name}", memfd(name))
    push(path, "FDSTOREREMOVE=1")
    push(path, "FDSTOREREMOVE=1\nFDNAME=a")
    wait_until(lambda: stored(keeper)["kept"] == 1)
    client = keeper.client()
    end(client)
    assert shown(keeper, client)["names"] == ["b"]


def test_the_same_file_is_kept_once(keeper: Keeper) -> None:
    """As the service manager's protocol has it, duplicates are dropped; two files of the same kind are none."""
    client = keeper.client()
    path = start(keeper, client)
    one, other = socket.socketpair()
    push(path, "FDSTORE=1\nFDNAME=x", one.fileno(), one.fileno())
    push(path, "FDSTORE=1\nFDNAME=y", one.fileno(), other.fileno())
    wait_until(lambda: stored(keeper) == {"kept": 2, "refused": 0})
    client = keeper.client()
    end(client)
    assert shown(keeper, client)["names"] == ["x", "y"]
    one.close(), other.close()


def test_one_that_hangs_up_is_dropped(keeper: Keeper) -> None:
    """A connection whose peer is gone is of no use to anybody; with FDPOLL=0 it is kept."""
    client = keeper.client()
    path = start(keeper, client)
    one, peer = socket.socketpair()
    two, other = socket.socketpair()
    push(path, "FDSTORE=1\nFDNAME=polled", one.fileno())
    push(path, "FDSTORE=1\nFDNAME=unpolled\nFDPOLL=0", two.fileno())
    wait_until(lambda: stored(keeper)["kept"] == 2)
    for sock in (peer, other, one, two):
        sock.close()
    wait_until(lambda: stored(keeper)["kept"] == 1)
    client = keeper.client()
    end(client)
    assert shown(keeper, client)["names"] == ["unpolled"]


@pytest.mark.root
def test_a_flood_of_descriptors_is_bounded_and_counted(keeper: Keeper) -> None:
    """2,000 pipes in datagrams of 200: the keeper keeps 16, closes the others, and answers meanwhile."""
    client = keeper.client()
    path = start(keeper, client)
    before = len(os.listdir(f"/proc/{keeper.process.pid}/fd"))
    for _ in range(20):
        pipes = [fd for _ in range(100) for fd in os.pipe()]
        push(path, "FDSTORE=1\nFDNAME=flood", *pipes)
        for fd in pipes:
            os.close(fd)
        assert "beats" in client.done("beats")
    wait_until(lambda: stored(keeper)["refused"] > 0)
    kept = stored(keeper)["kept"]
    assert kept <= MOST
    keeper.clients.pop().close()
    wait_until(lambda: len(os.listdir(f"/proc/{keeper.process.pid}/fd")) <= before + MOST + 2)


def test_all_units_together_leave_room_for_spawns(bare: Keeper) -> None:
    """However much units leave, a quarter of the keeper's descriptors is the most; it spawns on."""
    bare.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120)))
    client = bare.client()
    for unit in "abc":
        path = bare.directory / "n" / unit
        client.done("spawn", plan=bare.shell("exec sleep 1000", unit=unit, notify=str(path)))
        push(path, "FDSTORE=1\nFDPOLL=0", *(fds := [memfd(str(n)) for n in range(MOST)]))
        for fd in fds:
            os.close(fd)

    def stores() -> Json:
        kept: Json = bare.client().welcome["stores"]  # type: ignore[attr-defined]
        return kept

    wait_until(lambda: sum(row["kept"] + row["refused"] for row in stores().values()) == 3 * MOST)
    assert sum(row["kept"] for row in stores().values()) == 30
    bare.client().done("spawn", plan=bare.shell("exec sleep 1000", unit="d"))
    assert bare.stop() == 0


def test_one_that_lingers_does_not_stop_the_keeper(keeper: Keeper) -> None:
    """A connection full of unsent bytes with SO_LINGER blocks whoever closes it last: not the keeper."""
    client = keeper.client()
    path = start(keeper, client)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while sock.send(b"x" * 65536):
                pass
        push(path, "FDSTORE=1", sock.fileno())
        wait_until(lambda: stored(keeper)["kept"] == 1)
        os.close(sock.detach())
    before = time.monotonic()
    keeper.client().done("drop", unit="a")
    keeper.client().done("beats")
    assert time.monotonic() - before < 2


@pytest.mark.parametrize("name", ["a:b", "a\x07", "ä", "x" * 256, ""])
def test_a_bad_name_is_none(name: str) -> None:
    """A name that could not stand in LISTEN_FDNAMES is not used."""
    assert not valid(name)


def test_descriptors_that_nobody_asked_to_keep_are_closed(keeper: Keeper) -> None:
    """Of a barrier, of garbage, or of a unit that is dead."""
    client = keeper.client()
    path = start(keeper, client)
    for text in ("BARRIER=1", "FDSTORE=yes", "\x00nonsense", "FDSTORE=1\nx" + "y" * 5000):
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        push(path, text, writer)
        os.close(writer)
        wait_until(lambda reader=reader: _ended(reader))
    end(client)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    push(path, "FDSTORE=1", writer)
    os.close(writer)
    wait_until(lambda: _ended(reader))
    assert stored(keeper) == {"kept": 0, "refused": 0}


def _ended(reader: int) -> bool:
    try:
        ended = os.read(reader, 1) == b""
    except BlockingIOError:
        return False
    os.close(reader)
    return ended


def test_kept_over_an_upgrade_in_place(old: Keeper) -> None:
    """The very same open files, and hang-ups are still seen."""
    client = old.client()
    path = start(old, client)
    one, peer = socket.socketpair()
    push(path, "FDSTORE=1\nFDNAME=conn", one.fileno())
    push(path, "FDSTORE=1\nFDNAME=state", memfd("checkpoint"))
    wait_until(lambda: stored(old)["kept"] == 2)
    old.client().done("upgrade")
    wait_until(lambda: stored(old)["kept"] == 2)
    client = old.client()
    end(client)
    told = shown(old, client)
    assert (told["names"], told["data"]) == (["conn", "state"], ["checkpoint"])
    one.close(), peer.close()
    wait_until(lambda: stored(old)["kept"] == 1)


@pytest.mark.skipif(not ROOT, reason="only root may look into another's descriptors")
def test_found_again_in_the_living_process_after_the_keepers_death(old: Keeper) -> None:
    """What the unit itself still holds is copied from it; what only the keeper had died with it, and is told."""
    client = old.client()
    path = old.directory / "n" / "a"
    script = f"""
import array, os, socket, time
memfd = os.memfd_create("state"); os.write(memfd, b"checkpoint")
only = os.memfd_create("only")
one, peer = socket.socketpair()
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for name, fd in (("state", memfd), ("conn", one.fileno()), ("only", only)):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    sock.sendmsg([b"FDSTORE=1\\nFDNAME=" + name.encode()], rights, 0, {str(path)!r})
os.close(only)
time.sleep(1000)
"""
    client.done("spawn", plan=old.python(script, notify=str(path)))
    wait_until(lambda: stored(old)["kept"] == 3)
    record = next((old.directory / "keeper").glob("*[0-9a-f].json"))
    wait_until(lambda: '"only"' in record.read_text())
    crash(old)
    old.start()
    assert stored(old)["kept"] == 2
    client = old.client()
    end(client)
    told = shown(old, client)
    assert (told["names"], told["data"]) == (["state"], ["checkpoint"])  # the connection's peer died with the unit
