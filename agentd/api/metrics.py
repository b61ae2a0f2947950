"""The metrics listener: ``GET /metrics`` on a TCP address, answered by a function. Knows nothing of what it serves."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from aiohttp import web

from agentd.daemon.metrics import CONTENT_TYPE
from agentd.errors import ConfigError, Conflict, HostCannot

Render = Callable[[], bytes]


async def listen(address: str, render: Render) -> Listener:
    """Serve ``render()`` at ``address``, such as ``127.0.0.1:9464``; port 0 is any free one.

    Raises ConfigError for what is not an address, Conflict where the port is taken, HostCannot for the rest.
    """
    listener = Listener(render)
    await listener.start(address)
    return listener


class Listener:
    """The running listener; ``address`` is the one that was got."""

    def __init__(self, render: Render) -> None:
        self.address = ""
        self._render = render
        app = web.Application()
        app.add_routes([web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self, address: str) -> None:
        """Begin to listen; raises as ``listen`` does."""
        sock = _bind(address)
        host, port = sock.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._render(), headers={"Content-Type": CONTENT_TYPE})


def _bind(address: str) -> socket.socket:
    host, port = _parse(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(16)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            hint = "Set another address, or port 0 for any free one, or stop the program that listens there."
            raise Conflict(f"metrics: {address} is taken by another program.", hint=hint) from error
        raise HostCannot(f"metrics: cannot listen on {address}: {error.strerror}.") from error
    return sock


def _parse(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"metrics: {address!r} is not an address.", hint='Write it as "127.0.0.1:9464".')
    return ("127.0.0.1" if host == "localhost" else host.strip("[]")), int(port)
