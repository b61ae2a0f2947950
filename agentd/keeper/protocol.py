"""Packets of the keeper protocol: one JSON object each, with descriptors, over a SOCK_SEQPACKET socket.

Knows how a packet is written and read (PROTOCOL.md), and nothing of what the packets mean. Works on blocking and
on non-blocking sockets; used by both sides.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

VERSION = 1
LOWEST = 1
MAX_TEXT = 60_000
"""Bytes of JSON that travel in the packet itself; a longer text goes into a memfd."""
MAX_MEMFD = 64 << 20
"""Bytes of JSON that a memfd may hold."""
MAX_BATCH = 256
"""Messages of one packet."""
MAX_FDS = 128
"""Descriptors of one packet, the memfd included."""

Message = dict[str, Any]
_INT = array.array("i").itemsize


class PacketError(Exception):
    """The peer sent, or we were asked to send, what is not a packet of this protocol."""


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one packet; the caller keeps its descriptors.

    Raises BlockingIOError when a non-blocking socket is full (nothing was sent), ConnectionError when the peer is
    gone, PacketError when the message is over a limit.
    """
    transmit(sock, encode(message), fds)


def encode(message: Message) -> bytes:
    """The text of a packet, for ``transmit``."""
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def gather(texts: Iterable[bytes]) -> tuple[bytes, int]:
    """As many of the first texts as fit into one packet, at least one: the text of the packet, and how many it holds.

    For a peer that has said that it understands ``batch``.
    """
    taken: list[bytes] = []
    room = MAX_TEXT - len(b'{"batch":[]}')
    for text in texts:
        room -= len(text) + 1
        if taken and (room < 0 or len(taken) == MAX_BATCH):
            break
        taken.append(text)
    return (taken[0] if len(taken) == 1 else b'{"batch":[' + b",".join(taken) + b"]}"), len(taken)


def messages(message: Message, fds: Sequence[int] = ()) -> list[Message]:
    """What a packet holds: itself, or the messages of its batch. Raises PacketError."""
    batch = message.get("batch")
    if not isinstance(batch, list):
        return [message]
    if fds or not all(isinstance(one, dict) for one in batch):
        close(fds)
        raise PacketError("a batch holds something that is not a JSON object, or brings descriptors")
    return batch


def transmit(sock: socket.socket, text: bytes, fds: Sequence[int] = ()) -> None:
    """``send`` of a text that is encoded already."""
    if len(text) <= MAX_TEXT:
        _transmit(sock, text, fds)
        return
    memfd = _into_memfd(text)
    try:
        _transmit(sock, b'{"memfd":true}', (memfd, *fds))
    finally:
        os.close(memfd)


def receive(sock: socket.socket) -> tuple[Message, list[int]]:
    """Receive one packet and its descriptors, which are close-on-exec and belong to the caller.

    Raises EOFError when the peer closed, BlockingIOError when a non-blocking socket has nothing, ConnectionError
    when the connection broke, PacketError for what is not a packet (its descriptors are closed).
    """
    text, ancillary, flags, _ = sock.recvmsg(
        MAX_TEXT + 1, socket.CMSG_SPACE((MAX_FDS + 1) * _INT), socket.MSG_CMSG_CLOEXEC
    )
    fds = _descriptors(ancillary)
    try:
        if not text and not fds:
            raise EOFError("the peer closed the connection")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > MAX_FDS:
            raise PacketError(f"packet over {MAX_TEXT} bytes or with over {MAX_FDS} descriptors")
        message = _parse(text)
        if message.get("memfd") is True:
            message = _parse(_from_memfd(fds))
            os.close(fds.pop(0))
    except (EOFError, PacketError):
        close(fds)
        raise
    return message, fds


def close(fds: Sequence[int]) -> None:
    """Close descriptors that came with a packet."""
    for fd in fds:
        os.close(fd)


def _transmit(sock: socket.socket, text: bytes, fds: Sequence[int]) -> None:
    if len(fds) > MAX_FDS:
        raise PacketError(f"{len(fds)} descriptors in one packet; at most {MAX_FDS}")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([text], ancillary, socket.MSG_NOSIGNAL)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _INT])
    return list(found)


def _parse(text: bytes) -> Message:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PacketError(f"packet is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise PacketError(f"packet is not a JSON object but {type(message).__name__}")
    return message


def _into_memfd(text: bytes) -> int:
    if len(text) > MAX_MEMFD:
        raise PacketError(f"message of {len(text)} bytes; at most {MAX_MEMFD}")
    memfd = os.memfd_create("agentd-packet", os.MFD_CLOEXEC)
    view = memoryview(text)
    try:
        while view:
            view = view[os.write(memfd, view) :]
    except OSError:
        os.close(memfd)
        raise
    return memfd


def _from_memfd(fds: list[int]) -> bytes:
    if not fds:
        raise PacketError("packet announces a memfd but brings no descriptor")
    try:
        size = os.fstat(fds[0]).st_size
        if size > MAX_MEMFD:
            raise PacketError(f"memfd of {size} bytes; at most {MAX_MEMFD}")
        chunks, at = [], 0
        while at < size and (chunk := os.pread(fds[0], min(size - at, 1 << 20), at)):
            chunks.append(chunk)
            at += len(chunk)
    except OSError as error:
        raise PacketError(f"memfd cannot be read: {error}") from None
    return b"".join(chunks)
