"""The notify socket: stamped by the keeper, bounded, deaf to garbage."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from agentd.keeper.notify import Stamps
from tests.keeper.conftest import Client, Keeper
from tests.waiting import wait_until

WHICH = {"unit": "a", "invocation": "0000000000000001"}


def tell(path: Path, *datagrams: bytes) -> None:
    """Send datagrams to the unit's socket, as the unit would."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        for datagram in datagrams:
            sock.sendto(datagram, str(path))


def start(keeper: Keeper, invocation: str = "0000000000000001") -> tuple[Client, Path]:
    """A living unit with a notify socket."""
    client = keeper.client()
    path = keeper.directory / "n" / "a"
    client.done("spawn", plan=keeper.shell("exec sleep 60", invocation=invocation, notify=str(path)))
    return client, path


def beat(client: Client) -> float | None:
    """The unit's last stamp."""
    beats: dict[str, float] = client.done("beats")["beats"]
    return beats.get("a")


def test_ready_is_told_once(keeper: Keeper) -> None:
    """READY=1 is an event with the time at which it arrived; a second one is none."""
    client, path = start(keeper)
    before = time.monotonic()
    tell(path, b"READY=1\nSTATUS=up", b"READY=1", b"STATUS=second")
    ready = client.event("ready")
    assert before <= ready["at"] <= time.monotonic()
    assert (ready["unit"], ready["invocation"]) == ("a", "0000000000000001")
    assert client.event("status")["status"] in ("up", "second")
    assert [event["event"] for event in client.events] == []


def test_status_is_throttled_and_the_last_one_wins(keeper: Keeper) -> None:
    """200 changes at once are two events: the first and the last."""
    client, path = start(keeper)
    tell(path, b"STATUS=first")
    assert client.event("status")["status"] == "first"
    before = time.monotonic()
    tell(path, *(b"STATUS=%d" % n for n in range(200)), b"STOPPING=1")
    last = client.event("status")
    assert (last["status"], last["stopping"]) == ("199", True)
    assert time.monotonic() - before < 1
    (row,) = keeper.client().welcome["processes"]  # type: ignore[attr-defined]
    assert row["status"] == "199"


def test_status_is_short_and_printable(keeper: Keeper) -> None:
    """A status cannot hold terminal codes nor grow."""
    client, path = start(keeper)
    tell(path, b"STATUS=" + b"\x1b[31m" + b"x" * 1000)
    status = client.event("status")["status"]
    assert status == "\ufffd[31m" + "x" * 251


def test_beats_are_stamped_and_no_events(keeper: Keeper) -> None:
    """WATCHDOG=1 changes the stamp, never makes an event; before the first there is none."""
    client, path = start(keeper)
    assert beat(client) is None
    before = time.monotonic()
    tell(path, b"WATCHDOG=1")
    wait_until(lambda: beat(client))
    first = beat(client)
    assert first is not None
    assert before <= first <= time.monotonic()
    tell(path, b"WATCHDOG=1")
    wait_until(lambda: (beat(client) or 0) > first)
    assert client.events == []


def test_beats_are_stamped_while_nobody_listens(keeper: Keeper) -> None:
    """Without a client the stamps go on; the next client finds them."""
    client, path = start(keeper)
    client.close()
    before = time.monotonic()
    tell(path, b"READY=1\nWATCHDOG=1\nSTATUS=alone")

    def row() -> dict[str, object]:
        found: dict[str, object] = keeper.client().welcome["processes"][0]  # type: ignore[attr-defined]
        return found

    wait_until(lambda: row()["beat"])
    assert before <= float(str(row()["beat"])) <= time.monotonic()
    assert row()["ready"] is not None
    assert row()["status"] == "alone"


@pytest.mark.bad_input("garbage")
def test_garbage_is_dropped_and_counted(keeper: Keeper) -> None:
    """Not UTF-8, too long, without meaning: counted, and the next beat is stamped."""
    client, path = start(keeper)
    tell(path, b"\xff\xfe", b"WATCHDOG=1\n" + b"x" * 5000, b"", b"nonsense", b"READY=2", b"x" * 100_000)
    with pytest.raises(OSError, match="too long"):
        tell(path, b"x" * (1 << 20))
    assert beat(client) is None
    tell(path, b"WATCHDOG=1")
    wait_until(lambda: beat(client))
    (row,) = keeper.client().welcome["processes"]  # type: ignore[attr-defined]
    assert row["extra"]["notify_dropped"] == 5
    assert row["ready"] is None


@pytest.mark.bad_input("notify flood")
def test_flood_does_not_delay_a_neighbours_end(keeper: Keeper) -> None:
    """While one unit floods its socket, the death of another is told in a moment."""
    client = keeper.client()
    flood = "import os, socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    flood += "s.connect(os.environ['NOTIFY_SOCKET'])\nprint('up', flush=True)\nwhile True: s.send(b'WATCHDOG=1')\n"
    client.done("spawn", plan=keeper.python(flood, notify=str(keeper.directory / "n" / "a")))
    row = client.done("spawn", plan=keeper.shell("exec sleep 60", unit="b"))["process"]
    wait_until(lambda: beat(client))
    before = time.monotonic()
    os.kill(row["pid"], 9)
    assert client.event("ended")["process"]["unit"] == "b"
    assert time.monotonic() - before < 0.5


def test_socket_stays_and_old_words_are_not_of_the_new_one(keeper: Keeper) -> None:
    """Over a restart the socket is the same; what came between two invocations is dropped."""
    client, path = start(keeper)
    inode = path.stat().st_ino
    client.done("kill", **WHICH)
    client.event("ended")
    tell(path, b"READY=1\nWATCHDOG=1")
    again, _ = start(keeper, "0000000000000002")
    assert path.stat().st_ino == inode
    assert beat(again) is None
    tell(path, b"STATUS=new")
    assert again.event("status")["invocation"] == "0000000000000002"
    assert again.events == []


def test_last_words_come_before_the_end(keeper: Keeper) -> None:
    """READY=1 just before the exit is told, and before the end."""
    client = keeper.client()
    script = "import os, socket\nsocket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1\\nSTATUS=bye', "
    script += "os.environ['NOTIFY_SOCKET'])\nos._exit(0)"
    client.done("spawn", plan=keeper.python(script, notify=str(keeper.directory / "n" / "a")))
    ended = client.event("ended")
    assert [event["event"] for event in client.events] == ["ready", "status"]
    assert ended["process"]["status"] == "bye"
    assert ended["process"]["ready"] is not None


@pytest.mark.root
def test_only_the_units_uid_may_write(keeper: Keeper) -> None:
    """The socket is 0600 and the unit's own: another uid's beat is refused by the kernel."""
    client = keeper.client()
    path = keeper.directory / "n" / "a"
    plan = keeper.shell("exec sleep 60", notify=str(path), uid=60001, gid=60001)
    client.done("spawn", plan=plan)
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (60001, 0o600)
    os.seteuid(60002)
    try:
        with pytest.raises(PermissionError):
            tell(path, b"WATCHDOG=1")
    finally:
        os.seteuid(0)
    assert beat(client) is None


def test_stamps_take_known_words_only() -> None:
    """The text form: one assignment a line; unknown lines are ignored, and alone they are garbage."""
    stamps = Stamps()
    assert stamps.take(b"X=1\nWATCHDOG=1\n", 5.0)
    assert stamps.beat == 5.0
    assert not stamps.take(b"X=1", 6.0)
    assert stamps.take(b"STATUS=", 7.0)
    assert (stamps.ready, stamps.status, stamps.said) == (None, "", 7.0)


def test_what_it_asks_for_is_told(keeper: Keeper) -> None:
    """EXTEND_TIMEOUT_USEC, WATCHDOG_USEC and WATCHDOG=trigger are events, once for each change, and in the snapshot."""
    client, path = start(keeper)
    before = time.monotonic()
    tell(path, b"EXTEND_TIMEOUT_USEC=5000000\nWATCHDOG_USEC=250000\nWATCHDOG=trigger", b"WATCHDOG_USEC=250000")
    extended = client.event("extend")
    assert before + 5 <= extended["until"] <= time.monotonic() + 5
    assert client.event("interval")["seconds"] == 0.25
    assert before <= client.event("trigger")["at"] <= time.monotonic()
    (row,) = keeper.client().welcome["processes"]  # type: ignore[attr-defined]
    assert (row["extra"]["interval"], row["extra"]["extended"]) == (0.25, extended["until"])


@pytest.mark.parametrize("value", [b"", b"-1", b"1e9", b"9" * 19, "٣".encode()])
def test_times_that_are_none_are_dropped(value: bytes) -> None:
    """A number of microseconds or nothing; and nobody asks for more than an hour at a time."""
    stamps = Stamps()
    assert not stamps.take(b"EXTEND_TIMEOUT_USEC=" + value, 10.0)
    assert not stamps.take(b"WATCHDOG_USEC=" + value, 10.0)
    assert (stamps.extended, stamps.interval) == (None, None)
    assert stamps.take(b"EXTEND_TIMEOUT_USEC=" + b"9" * 18, 10.0)
    assert stamps.extended == 10.0 + 3600.0


def test_reloading_lasts_until_ready(keeper: Keeper) -> None:
    """RELOADING=1 is shown until the next READY=1, which is no second ready event."""
    client, path = start(keeper)
    tell(path, b"READY=1")
    client.event("ready")
    tell(path, b"RELOADING=1\nSTATUS=reading")
    status = client.event("status")
    assert (status["reloading"], status["status"]) == (True, "reading")
    tell(path, b"READY=1")
    assert client.event("status")["reloading"] is False
    assert [event["event"] for event in client.events] == []


def test_barrier_is_answered_after_what_was_said_before(keeper: Keeper) -> None:
    """BARRIER=1: the descriptor that comes with it is closed once all earlier datagrams were taken."""
    client, path = start(keeper)
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"STATUS=before", str(path))
        sock.connect(str(path))
        socket.send_fds(sock, [b"BARRIER=1"], [writer])
    os.close(writer)
    with open(reader, "rb") as barrier:
        assert barrier.read() == b""  # end of file: nobody holds the other end any more
    (row,) = keeper.client().welcome["processes"]  # type: ignore[attr-defined]
    assert row["status"] == "before"
    client.close()


def test_output_is_stamped_and_one_unit_can_be_asked_for(keeper: Keeper) -> None:
    """``beats`` says when a unit last printed; with ``unit`` it names that one only."""
    client = keeper.client()
    for unit in ("a", "b"):
        files = {"fifo": str(keeper.directory / "o" / unit), "file": str(keeper.directory / "log" / unit)}
        client.done("spawn", plan=keeper.shell("echo words; exec sleep 60", unit=unit, output=files))
    wait_until(lambda: set(client.done("beats")["output"]) == {"a", "b"}, 5)
    answer = client.done("beats", unit="b")
    assert set(answer["output"]) == {"b"}
    assert answer["output"]["b"] <= answer["now"]


def test_a_beat_that_the_keeper_was_too_late_to_read_counts(keeper: Keeper) -> None:
    """It stood still: asked about one unit, it answers with what that unit said meanwhile, not with what it knew."""
    client, path = start(keeper)
    keeper.process.send_signal(signal.SIGSTOP)
    client.start("beats", unit="a")
    tell(path, b"WATCHDOG=1")
    keeper.process.send_signal(signal.SIGCONT)
    assert "a" in client.packet()["beats"]


def test_several_units_can_be_asked_for(keeper: Keeper) -> None:
    """``units`` names them; one that nobody knows is no error."""
    client = keeper.client()
    for unit in ("a", "b", "c"):
        path = keeper.directory / "n" / unit
        client.done("spawn", plan=keeper.shell("exec sleep 60", unit=unit, notify=str(path)))
        tell(path, b"WATCHDOG=1")
    wait_until(lambda: set(client.done("beats")["beats"]) == {"a", "b", "c"}, 5)
    assert set(client.done("beats", units=["a", "c", "x"])["beats"]) == {"a", "c"}


def test_a_call_for_help_just_before_the_keepers_death_is_known_to_the_next(bare: Keeper) -> None:
    """WATCHDOG=trigger waits for no gap, neither to be told nor to be written: it may be the last word."""
    client, path = start(bare.start())
    tell(path, b"STATUS=working")
    client.event("status")
    tell(path, b"WATCHDOG=trigger")
    at = client.event("trigger")["at"]
    bare.process.kill()
    bare.process.wait()
    client.close()
    bare.clients.clear()
    (row,) = bare.start().client().welcome["processes"]  # type: ignore[attr-defined]
    assert (row["extra"]["trigger"], row["ended"]) == (at, None)
    bare.stop()
