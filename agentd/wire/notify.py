"""The sender's side of sd_notify, for agentd's own processes."""

from __future__ import annotations

import os
import socket


def notify(text: str) -> bool:
    """Send one datagram, such as ``READY=1``, to NOTIFY_SOCKET; False where there is none or it is gone."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError:
            return False  # the supervisor is away or its queue is full: the next beat tells it the same
    return True
