"""Listening sockets that outlive the invocations of their unit.

Knows addresses and socket files. Opened once, handed to each invocation, closed when the unit is forgotten.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from agentd.keeper.notify import bind_private, unlink_socket
from agentd.keeper.plan import Listener

BACKLOG = 1024


class ListenerSocket:
    """One open listener and the address that it really has.

    ``at``: the address that it had before, where the listener leaves the port to chance. ``inherited``: the open
    socket itself, from an earlier keeper.
    """

    def __init__(self, listener: Listener, at: str | None = None, inherited: socket.socket | None = None) -> None:
        self.listener = listener
        if inherited is not None and at is not None:
            self._socket, self.address = inherited, at
            return
        family, _, rest = (at or listener.address).partition(":")
        try:
            if family == "unix":
                self._socket, self.address = _unix(rest, listener), listener.address
            elif family == "tcp":
                self._socket = _tcp(rest)
                self.address = _tcp_address(self._socket)
            else:
                raise OSError(errno.EINVAL, "is neither unix:/path nor tcp:host:port")
        except OSError as error:
            raise OSError(error.errno or errno.EINVAL, error.strerror or str(error), listener.address) from None

    def fileno(self) -> int:
        """The descriptor that the child inherits."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it and remove its socket file."""
        self._socket.close()
        if self.address.startswith("unix:"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.address[5:])


def _unix(path: str, listener: Listener) -> socket.socket:
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        if sock.connect_ex(path) in (0, errno.EAGAIN):
            raise OSError(errno.EADDRINUSE, "another process listens on it")
        unlink_socket(path)
        sock.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        bind_private(sock, path)
        if listener.uid >= 0 or listener.gid >= 0:
            os.chown(path, listener.uid, listener.gid)
        os.chmod(path, listener.mode)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _tcp(rest: str) -> socket.socket:
    host, _, port = rest.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise OSError(errno.EINVAL, "has no port number")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host.strip("[]"), int(port)))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _tcp_address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
