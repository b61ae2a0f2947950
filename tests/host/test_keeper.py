"""The keeper client, against a real keeper and against peers that misbehave."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.errors import Conflict, NotActive, ProtocolError, SpawnFailed, TooLate, Unavailable
from agentd.host.keeper import Keeper
from agentd.keeper import protocol
from agentd.keeper.plan import Listener, Process, SpawnPlan

INVOCATION = "00000000000000a1"


def plan(*argv: str, unit: str = "u", invocation: str = INVOCATION, **more: object) -> SpawnPlan:
    return SpawnPlan(unit, invocation, argv, argv[0], {"PATH": "/usr/bin:/bin"}, "/", **more)  # type: ignore[arg-type]


async def next_event(keeper: Keeper, kind: str) -> dict[str, object]:
    async with asyncio.timeout(5):
        while (event := await keeper.events.get())["event"] != kind:
            pass
    return event


async def test_spawn_reports_the_process_and_its_end(keeper: Keeper) -> None:
    """A plan becomes a process; its end arrives as an event with the exit status."""
    process, listeners = await keeper.spawn(plan("/bin/sh", "-c", "exit 3"))
    assert (process.unit, process.invocation, listeners) == ("u", INVOCATION, {})
    event = await next_event(keeper, "ended")
    ended = event["process"]
    assert isinstance(ended, Process)
    assert (ended.pid, ended.exit) == (process.pid, 3)
    await keeper.release("u", INVOCATION)


async def test_signal_and_kill_reach_the_process(keeper: Keeper) -> None:
    """signal() ends a sleeper with that signal, kill() with SIGKILL; a gone invocation is NotActive."""
    await keeper.spawn(plan("/bin/sleep", "60"))
    await keeper.signal("u", INVOCATION, signal.SIGTERM)
    first = (await next_event(keeper, "ended"))["process"]
    await keeper.spawn(plan("/bin/sleep", "60", invocation="00000000000000a2"))
    await keeper.kill("u", "00000000000000a2")
    second = (await next_event(keeper, "ended"))["process"]
    assert isinstance(first, Process)
    assert isinstance(second, Process)
    assert (first.exit, second.exit) == (-signal.SIGTERM, -signal.SIGKILL)
    with pytest.raises(NotActive):
        await keeper.signal("u", INVOCATION, signal.SIGTERM)


async def test_refused_spawn_names_step_errno_and_path(keeper: Keeper) -> None:
    """A plan that cannot be executed says where it stopped; a second process of a unit is a conflict."""
    with pytest.raises(SpawnFailed) as caught:
        await keeper.spawn(plan("/no/such/program"))
    assert caught.value.detail["step"] == "exec"
    assert caught.value.detail["errno"] == 2
    assert caught.value.detail["path"] == "/no/such/program"
    await keeper.spawn(plan("/bin/sleep", "60", unit="v"))
    with pytest.raises(Conflict):
        await keeper.spawn(plan("/bin/sleep", "60", unit="v", invocation="00000000000000a2"))
    await keeper.kill("v", INVOCATION)
    await next_event(keeper, "ended")


async def test_descriptors_and_listeners_arrive_by_name(keeper: Keeper, short_dir: Path) -> None:
    """Descriptors of a plan follow its listeners in the child; the port that was chosen is reported."""
    read, write = os.pipe()
    listener = Listener("http", "tcp:127.0.0.1:0")
    script = 'echo "$LISTEN_FDNAMES" >&4; exec sleep 60'
    try:
        _, listeners = await keeper.spawn(
            plan("/bin/sh", "-c", script, listeners=(listener,), fds=("out",)), {"out": write}
        )
    finally:
        os.close(write)
    loop = asyncio.get_running_loop()
    line = await asyncio.wait_for(loop.run_in_executor(None, os.read, read, 100), 5)
    os.close(read)
    assert line == b"http:out\n"
    host, port = listeners["http"].removeprefix("tcp:").rsplit(":", 1)
    socket.create_connection((host, int(port)), 2).close()
    await keeper.kill("u", INVOCATION)
    await next_event(keeper, "ended")
    await keeper.forget("u")


async def test_successor_finds_processes_blobs_and_beats(keeper: Keeper, place: object, short_dir: Path) -> None:
    """A second connection replaces the first, which is told, and gets the whole truth."""
    lost = asyncio.Event()
    keeper.on_lost = lost.set
    process, _ = await keeper.spawn(plan("/bin/sleep", "60"))
    await keeper.blob("u", "remember" * 8000)
    assert await keeper.beats() == {}
    successor = await Keeper.connect(short_dir / "run/keeper.sock")
    try:
        await asyncio.wait_for(lost.wait(), 5)
        with pytest.raises(Unavailable):
            await keeper.beats()
        assert [p.pid for p in successor.welcome["processes"]] == [process.pid]
        assert successor.welcome["blobs"] == {"u": "remember" * 8000}
        await successor.kill("u", INVOCATION)
        await next_event(successor, "ended")
    finally:
        successor.close()


async def test_nobody_there_is_unavailable(short_dir: Path) -> None:
    """Without a keeper the error says where it was looked for and what to do."""
    with pytest.raises(Unavailable, match=r"keeper\.sock.*agentctl up"):
        await Keeper.connect(short_dir / "keeper.sock")


class Peer:
    """The other end, played by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.server.bind(str(path))
        self.server.listen()

    async def accept(self, opening: dict[str, object]) -> socket.socket:
        loop = asyncio.get_running_loop()
        sock, _ = await loop.sock_accept(self.server)
        await self.receive(sock)
        protocol.send(sock, opening)
        return sock

    async def receive(self, sock: socket.socket) -> dict[str, object]:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(sock, lambda: ready.done() or ready.set_result(None))
        try:
            await asyncio.wait_for(ready, 5)
        finally:
            loop.remove_reader(sock)
        return protocol.receive(sock)[0]


@pytest.fixture
def peer(short_dir: Path) -> Peer:
    made = Peer(short_dir / "k")
    yield made  # type: ignore[misc]
    made.server.close()


WELCOME = {"welcome": 1, "keeper": {"pid": 1}, "rev": 0, "processes": [], "blobs": {}, "listeners": {}, "new": 1}


async def connected(peer: Peer, on_lost: Callable[[], None] | None = None) -> tuple[Keeper, socket.socket]:
    keeper, sock = await asyncio.gather(Keeper.connect(peer.path, on_lost=on_lost), peer.accept(WELCOME))
    return keeper, sock


@pytest.mark.bad_input("keeper of another version")
async def test_other_versions_are_refused_in_words(peer: Peer) -> None:
    """A keeper that does not speak our version is a ProtocolError that names both."""
    accepted = asyncio.create_task(peer.accept({"refused": "version", "speaks": [7]}))
    with pytest.raises(ProtocolError, match=r"\[7\].*1"):
        await Keeper.connect(peer.path)
    (await accepted).close()


async def test_a_keeper_that_dies_fails_what_is_open_once(peer: Peer) -> None:
    """Open requests fail with Unavailable and the owner is told exactly once."""
    told: list[int] = []
    keeper, sock = await connected(peer, lambda: told.append(1))
    asked = asyncio.create_task(keeper.beats())
    await peer.receive(sock)
    sock.close()
    with pytest.raises(Unavailable):
        await asked
    keeper.close()
    assert told == [1]


async def test_a_packet_that_is_none_loses_the_connection(peer: Peer) -> None:
    """What is not a packet of the protocol ends the connection instead of the daemon."""
    lost = asyncio.Event()
    keeper, sock = await connected(peer, lost.set)
    sock.send(b"\xff not json")
    await asyncio.wait_for(lost.wait(), 5)
    sock.close()
    keeper.close()


async def test_requests_to_a_busy_keeper_wait_in_order(peer: Peer) -> None:
    """When the socket is full requests queue, nothing is lost and the order stays."""
    keeper, sock = await connected(peer)
    asked = [asyncio.create_task(keeper.blob(f"u{n}", "x" * 20_000)) for n in range(200)]
    await asyncio.sleep(0)
    assert keeper._waiting  # the socket is full
    seen = [protocol.receive(sock)[0]["unit"]]
    asked.append(asyncio.create_task(keeper.blob("overtaker", "")))
    keeper._send({"id": -1, "do": "blob", "unit": "u200"}, [])  # room for one, but others wait for it
    for _ in asked:
        message = await peer.receive(sock)
        seen.append(message["unit"])
        protocol.send(sock, {"answer": message["id"]})
    assert seen == [*(f"u{n}" for n in range(201)), "overtaker"]
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    sock.close()
    keeper.close()


async def test_a_packet_over_the_limits_fails_alone(peer: Peer) -> None:
    """A request that is no packet fails by itself, sent at once or after waiting; the others go on."""
    keeper, sock = await connected(peer)
    many = plan("/bin/true", fds=tuple(f"n{n}" for n in range(200)))
    with pytest.raises(ProtocolError, match="200 descriptors"):
        await keeper.spawn(many, dict.fromkeys(many.fds, 0))
    asked = [asyncio.create_task(keeper.blob(f"u{n}", "x" * 20_000)) for n in range(100)]
    await asyncio.sleep(0)
    assert keeper._waiting  # the socket is full
    wrong = asyncio.create_task(keeper.spawn(many, dict.fromkeys(many.fds, 0)))
    asked.append(asyncio.create_task(keeper.blob("last", None)))
    for _ in asked:
        protocol.send(sock, {"answer": (await peer.receive(sock))["id"]})
    await asyncio.wait_for(asyncio.gather(*asked), 5)
    with pytest.raises(ProtocolError, match="200 descriptors"):
        await wrong
    sock.close()
    keeper.close()


async def test_a_keeper_that_is_given_up_is_lost(peer: Peer) -> None:
    """One that does not answer counts as gone: open requests fail at once, and the owner is told to connect again."""
    lost = asyncio.Event()
    keeper, sock = await connected(peer, lost.set)
    asked = asyncio.create_task(keeper.beats())
    await peer.receive(sock)
    assert keeper.connected
    keeper.give_up()
    assert lost.is_set()
    assert not keeper.connected
    with pytest.raises(Unavailable):
        await asked
    sock.close()


async def test_a_silent_keeper_is_too_late(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request has a deadline, and a late answer does no harm."""
    keeper, sock = await connected(peer)
    with pytest.raises(TooLate, match="beats"):
        await keeper._ask("beats", timeout=0.02)
    late = await peer.receive(sock)
    protocol.send(sock, {"answer": late["id"], "beats": {}})
    asked = asyncio.create_task(keeper.beats())
    second = await peer.receive(sock)
    protocol.send(sock, {"answer": second["id"], "beats": {"u": 1.5}})
    assert await asked == {"u": 1.5}
    sock.close()
    keeper.close()


async def test_what_is_asked_at_once_travels_together(peer: Peer) -> None:
    """A keeper that understands batches gets one packet for the requests of a turn, in order; each gets its answer."""
    keeper, sock = await asyncio.gather(Keeper.connect(peer.path), peer.accept({**WELCOME, "batch": True}))
    asked = [asyncio.create_task(keeper.kill(f"u{n}", INVOCATION)) for n in range(3)]
    await asyncio.sleep(0)
    keeper.post("release", unit="u9", invocation=INVOCATION)
    batch = (await peer.receive(sock))["batch"]
    assert isinstance(batch, list)
    assert [(one["do"], one["unit"]) for one in batch] == [*(("kill", f"u{n}") for n in range(3)), ("release", "u9")]
    assert "id" not in batch[3]
    gone = {"code": "gone", "message": "u1 does not live"}
    answers = [{"answer": one["id"]} | ({"error": gone} if one["unit"] == "u1" else {}) for one in batch[:3]]
    protocol.send(sock, {"batch": [*answers, {"rev": 1, "event": "status", "unit": "u0"}]})
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(result) for result in found] == [type(None), NotActive, type(None)]
    assert keeper.events.get_nowait()["unit"] == "u0"
    keeper.post("blob", unit="u0", text="last words")
    keeper.close()  # what was posted before leaves before
    assert (await peer.receive(sock))["text"] == "last words"
    sock.close()
