"""Who is at the other end of a unix socket: the kernel's word."""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

_UCRED = struct.Struct("3i")


class Peer(NamedTuple):
    """Process id, user id and group id of a peer, as they were when it connected."""

    pid: int
    uid: int
    gid: int


def credentials(sock: Any) -> Peer:
    """The peer of a connected unix stream or seqpacket socket (SO_PEERCRED)."""
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))
