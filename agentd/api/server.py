"""The control API's socket: who may ask, and what an error looks like. The rows themselves are in routes.py.

Something that was begun is finished also when the asker leaves; only the stream of a log ends with its reader.
"""

from __future__ import annotations

import asyncio
import errno
import os
import pwd
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from aiohttp import web

from agentd.api.routes import ACTOR, Routes
from agentd.daemon.ports import Actor, Control, Json, new_chain
from agentd.errors import AgentdError, BadInput, Conflict, Denied, HostCannot, NotFound
from agentd.wire import log, peer

BODY_MAX = 8 << 20
"""Bytes of one request's body."""
REASON_MAX = 500
CLOSE_WITHIN = 1.0
"""Seconds that requests in progress have when the server closes."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def serve(control: Control, path: Path) -> Server:
    """Listen on ``path`` with mode 0600, in place of a socket that a dead daemon left.

    Raises Conflict if a living process listens there or something else lies there, BadInput if the path is too long for
    a socket, HostCannot where it cannot be made.
    """
    server = Server(control, path)
    await server.start()
    return server


class Server:
    """The running control API."""

    def __init__(self, control: Control, path: Path) -> None:
        self.path = path
        self._control = control
        self._running: set[asyncio.Task[Json]] = set()
        app = web.Application(client_max_size=BODY_MAX, middlewares=[self._answer])
        self._routes = Routes(control, self._finish)
        app.add_routes(self._routes.table())
        # With handler_cancellation a follower that leaves is noticed though nothing is being written to it.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=CLOSE_WITHIN)
        self._inode = 0

    async def start(self) -> None:
        """Begin to listen; raises as ``serve`` does."""
        sock = _listen(self.path)
        self._inode = self.path.stat().st_ino
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def close(self) -> None:
        """Stop listening. Requests in progress have a second. Removes the socket unless it is another's by now."""
        self._routes.closing.set()
        await self._runner.cleanup()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._inode and _inode(self.path) == self._inode:
            self.path.unlink()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the peer, and turn every error into its JSON."""
        try:
            actor = self._actor(request)
            ACTOR.set(actor)
            response = await handler(request)
            if not response.prepared:
                response.headers["X-Agentd-Correlation"] = str(actor.correlation)
            return response
        except AgentdError as error:
            return _refusal(error.status, error.to_wire())
        except web.HTTPException as error:
            return _http_refusal(request, error)
        except Exception as error:  # noqa: BLE001 - the root of every request
            log.logger().exception("request failed", method=request.method, path=request.path)
            message = f"{request.method} {request.path}: {type(error).__name__}: {error}"
            hint = "This is a defect of agentd; its own log has the details."
            return _refusal(500, {"code": "internal", "message": message, "hint": hint})

    def _actor(self, request: web.Request) -> Actor:
        """Who asks. Raises Denied for other users and for whatever runs inside a unit."""
        sock = request.get_extra_info("socket")
        if sock is None:
            raise Denied("The connection is gone.")
        who = peer.credentials(sock)
        if who.uid not in (0, os.geteuid()):
            raise Denied(
                f"{self.path}: process {who.pid} of {_user(who.uid)} may not control this agentd.",
                hint=f"Ask as root or as {_user(os.geteuid())}.",
            )
        if self._control.is_unit_process(who.pid):
            raise Denied(
                f"{self.path}: process {who.pid} runs inside a unit, and units may not control agentd.",
                hint="Units reach each other over AGENTD_CHANNEL.",
            )
        return Actor(_user(who.uid), who.pid, _reason(request), new_chain())

    async def _finish(self, doing: Coroutine[Any, Any, Json]) -> Json:
        """Await this; it goes on when we are cancelled because the asker left."""
        task = asyncio.ensure_future(doing)
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Json]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen here also where nobody waits any more


# -- answers --------------------------------------------------------------------------------------------------


def _refusal(status: int, error: Json) -> web.Response:
    return web.json_response({"error": error}, status=status)


def _http_refusal(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals, in our words."""
    what = f"{request.method} {request.path}"
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = _refusal(405, BadInput(f"{what}: only {allowed} here.").to_wire())
        answer.headers["Allow"] = allowed
        return answer
    if isinstance(error, web.HTTPNotFound):
        return _refusal(404, NotFound(f"{what}: no such path.", hint="See agentd/api/API.md.").to_wire())
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return _refusal(413, BadInput(f"{what}: the body is over {BODY_MAX >> 20} MiB.").to_wire())
    return _refusal(error.status, BadInput(f"{what}: {error.reason}.").to_wire())


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _reason(request: web.Request) -> str:
    text = request.headers.get("X-Agentd-Reason", "")[:REASON_MAX]
    return "".join(c if c.isprintable() else "?" for c in text)


# -- the socket -----------------------------------------------------------------------------------------------


def _listen(path: Path) -> socket.socket:
    """A listening socket at ``path``: bound beside it and moved there, so that it is never there unready."""
    _refuse_if_taken(path)
    beside = Path(f"{path}.new")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        beside.unlink(missing_ok=True)
        umask = os.umask(0o177)
        try:
            sock.bind(str(beside))
        finally:
            os.umask(umask)
        sock.listen(128)
        beside.rename(path)
    except OSError as error:
        sock.close()
        raise _cannot_listen(path, error) from error
    return sock


def _refuse_if_taken(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # free; or binding will say what is wrong
    if not stat.S_ISSOCK(mode):
        raise Conflict(f"{path}: is not a socket. Refusing to replace it.", hint="Move it away.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as trial:
        if trial.connect_ex(str(path)) in (0, errno.EAGAIN):
            raise Conflict(f"{path}: another agentd listens there.", hint="Use that one, or give --runtime DIR.")


def _cannot_listen(path: Path, error: OSError) -> AgentdError:
    if error.errno is None:  # Python's own check of the length
        return BadInput(f"{path}: too long for a socket (107 bytes).", hint="Give a shorter --runtime DIR.")
    return HostCannot(f"{path}: cannot listen: {error.strerror}.", hint="Make the runtime directory writable.")


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
