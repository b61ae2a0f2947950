"""Packets: what is written is what is read, over the limits nothing passes, and no descriptor is lost."""

from __future__ import annotations

import array
import itertools
import os
import socket
from collections.abc import Iterator

import pytest

from agentd.keeper import protocol

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected SEQPACKET sockets; no descriptor is left over."""
    before = len(os.listdir("/proc/self/fd"))
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield left, right
    left.close()
    right.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_message_and_descriptors_arrive(pair: Pair) -> None:
    """A packet carries its object and its descriptors, close-on-exec."""
    reader, writer = os.pipe()
    protocol.send(pair[0], {"ä": [1, None, "x"]}, [reader])
    os.close(reader)
    message, fds = protocol.receive(pair[1])
    assert message == {"ä": [1, None, "x"]}
    assert not os.get_inheritable(fds[0])
    os.write(writer, b"same pipe")
    os.close(writer)
    assert os.read(fds[0], 100) == b"same pipe"
    protocol.close(fds)


@pytest.mark.parametrize("length", [protocol.MAX_TEXT - 8, protocol.MAX_TEXT - 7, 5_000_000])
def test_long_text_travels_in_a_memfd(pair: Pair, length: int) -> None:
    """At and beyond the limit of a packet nothing changes for the reader."""
    reader, writer = os.pipe()
    protocol.send(pair[0], {"t": "x" * length}, [reader, writer])
    message, fds = protocol.receive(pair[1])
    assert message == {"t": "x" * length}
    assert len(fds) == 2
    protocol.close([*fds, reader, writer])


def test_nothing_to_read_and_closed_are_told_apart(pair: Pair) -> None:
    """A non-blocking socket without a packet blocks; one whose peer closed ends."""
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        protocol.receive(pair[1])
    pair[0].close()
    with pytest.raises(EOFError):
        protocol.receive(pair[1])


def test_full_socket_raises_and_sends_nothing(pair: Pair) -> None:
    """Each packet is sent whole or not at all."""
    pair[0].setblocking(False)
    sent = 0

    def fill() -> None:
        nonlocal sent
        for sent in itertools.count():
            protocol.send(pair[0], {"n": sent, "pad": "x" * 50_000})

    with pytest.raises(BlockingIOError):
        fill()
    pair[1].setblocking(False)
    assert [protocol.receive(pair[1])[0]["n"] for _ in range(sent)] == list(range(sent))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "not a JSON object but list"),
        (b'{"memfd": true}', "brings no descriptor"),
        (b"[" * 50_000, "not JSON"),
        (b" " * (protocol.MAX_TEXT + 1) + b"{}", "over 60000 bytes"),
    ],
)
def test_garbage_is_refused(pair: Pair, text: bytes, words: str) -> None:
    """What is not a packet is an error that says so; the descriptors that it brought are closed."""
    fds = [] if b"memfd" in text else [pair[0].fileno()]
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    pair[0].sendmsg([text], ancillary)
    with pytest.raises(protocol.PacketError, match=words):
        protocol.receive(pair[1])


def test_memfd_over_the_limit_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides know the limit: the writer refuses to send it, the reader to read it."""
    protocol.send(pair[0], {"t": "x" * 100_000})
    monkeypatch.setattr(protocol, "MAX_MEMFD", 90_000)
    with pytest.raises(protocol.PacketError, match="at most 90000"):
        protocol.receive(pair[1])
    with pytest.raises(protocol.PacketError, match="at most 90000"):
        protocol.send(pair[0], {"t": "x" * 100_000})


def test_too_many_descriptors_are_refused(pair: Pair) -> None:
    """More than the limit neither leave nor arrive."""
    many = [pair[0].fileno()] * (protocol.MAX_FDS + 1)
    with pytest.raises(protocol.PacketError, match="at most 128"):
        protocol.send(pair[0], {}, many)
    pair[0].sendmsg([b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [*many, many[0]]))])
    with pytest.raises(protocol.PacketError, match="over 128 descriptors"):
        protocol.receive(pair[1])
