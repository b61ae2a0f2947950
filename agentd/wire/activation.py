"""Descriptors that the keeper hands over at a spawn: listening sockets and secrets, by name (the LISTEN_FDS protocol).

A secret travels as a descriptor so that it never stands in argv or an environment.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from agentd.errors import ConfigError, Conflict

FIRST = 3


def inherited() -> dict[str, int]:
    """Name → descriptor of what was handed to this process; the announcement is removed from the environment."""
    pid = os.environ.pop("LISTEN_PID", "")
    count = int(os.environ.pop("LISTEN_FDS", "0") or 0)
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()):
        return {}
    fds = {names[i] if i < len(names) else f"fd{i}": FIRST + i for i in range(count)}
    for fd in fds.values():
        os.set_inheritable(fd, False)
    return fds


def listener(fds: Mapping[str, int], name: str, default: str) -> socket.socket:
    """The inherited listening socket ``name``, else one opened at ``default``: ``unix:/path`` or ``tcp:host:port``."""
    sock = socket.socket(fileno=fds[name]) if name in fds else _open(default)
    sock.setblocking(False)
    return sock


def _open(address: str) -> socket.socket:
    kind, _, rest = address.partition(":")
    if kind == "unix":
        path = Path(rest)
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bind_to: str | tuple[str, int] = str(path)
    elif kind == "tcp":
        host, _, port = rest.rpartition(":")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bind_to = (host.strip("[]"), int(port))
    else:
        raise ConfigError(f"{address!r} is not a listening address.", hint="Write unix:/path or tcp:host:port.")
    try:
        sock.bind(bind_to)
    except OSError as error:
        sock.close()
        raise Conflict(
            f"{address}: cannot listen: {error.strerror}.",
            hint="Stop what listens there, or choose another address; port 0 picks a free one.",
        ) from error
    sock.listen(1024)
    return sock


def read_secret(fds: Mapping[str, int], name: str) -> bytes | None:
    """The whole content behind the inherited descriptor ``name``, which is closed; None if it was not handed over."""
    if name not in fds:
        return None
    with os.fdopen(fds[name], "rb") as file:
        file.seek(0)
        return file.read()
