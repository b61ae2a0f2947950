"""HTTP/1.1 over the control socket (``api/API.md``). Knows requests and errors, and no command or screen."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from agentd.errors import AgentdError, BadInput, DaemonUnreachable, Denied, from_wire

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

Json = dict[str, Any]
ANSWER = 15.0
"""Seconds to wait for an answer that the daemon gives at once."""
SLOW = 600.0
"""Seconds to wait where the daemon answers when it is done, such as a stop."""


class Client:
    """The daemon behind one control socket. Each request is a connection of its own.

    ``named``: a person named this socket; otherwise it is the default one.
    """

    def __init__(self, path: Path, *, named: bool = False) -> None:
        self.path = path
        self.named = named

    def get(self, route: str, query: Mapping[str, Any] | None = None, timeout: float = ANSWER) -> bytes:
        """The JSON text of a GET. Raises the daemon's error, or DaemonUnreachable."""
        return self._whole("GET", _with_query(route, query), None, None, timeout)

    def post(
        self, route: str, body: Json | None = None, *, reason: str | None = None, timeout: float = ANSWER
    ) -> bytes:
        """The JSON text of a POST; ``reason`` goes into the journal."""
        return self._whole("POST", route, body or {}, reason, timeout)

    def delete(self, route: str, *, reason: str | None = None, timeout: float = SLOW) -> bytes:
        """The JSON text of a DELETE."""
        return self._whole("DELETE", route, None, reason, timeout)

    def stream(self, route: str, query: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """The chunks of a GET as they come; without end where the daemon follows."""
        connection = self._connect(ANSWER)
        try:
            response = self._ask(connection, "GET", _with_query(route, query), None, None)
            if response.status >= 300:
                raise _error_of(response.status, response.read())
            if connection.sock is not None:
                connection.sock.settimeout(None)
            while chunk := response.read1(65536):
                yield chunk
        except (OSError, _http_errors()) as error:
            raise self._away(error) from error
        finally:
            connection.close()

    def reachable(self) -> bool:
        """Whether somebody listens on the control socket."""
        try:
            self._connect(1.0).close()
        except DaemonUnreachable:
            return False
        return True

    def _whole(self, method: str, route: str, body: Json | None, reason: str | None, timeout: float) -> bytes:
        connection = self._connect(timeout)
        try:
            response = self._ask(connection, method, route, body, reason)
            text = response.read()
        except (OSError, _http_errors()) as error:
            raise self._away(error) from error
        finally:
            connection.close()
        if response.status >= 300:
            raise _error_of(response.status, text)
        return text

    def _ask(
        self, connection: HTTPConnection, method: str, route: str, body: Json | None, reason: str | None
    ) -> HTTPResponse:
        headers: dict[str, Any] = {"Host": "agentd", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if reason:
            headers["X-Agentd-Reason"] = " ".join(reason.split()).encode()
        connection.request(method, route, body=None if body is None else json.dumps(body).encode(), headers=headers)
        return connection.getresponse()

    def _connect(self, timeout: float) -> HTTPConnection:
        from http.client import HTTPConnection

        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        link.settimeout(timeout)
        try:
            link.connect(str(self.path))
        except OSError as error:
            link.close()
            raise self._away(error) from error
        connection = HTTPConnection("agentd", timeout=timeout)
        connection.sock = link
        return connection

    def _away(self, error: Exception) -> AgentdError:
        """What a failed connection means to the person who asked."""
        if isinstance(error, PermissionError):
            return Denied(
                f"{self.path}: permission denied.",
                hint="Only root and the user that runs the daemon may control it. Become that user, or name another "
                "daemon with --socket.",
            )
        if isinstance(error, TimeoutError):
            return DaemonUnreachable(
                f"the daemon at {self.path} did not answer in time.",
                hint="It may be starting or busy: try again. `agentctl doctor` looks closer.",
            )
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            return DaemonUnreachable(
                f"no daemon answers at {self.path}.",
                hint="Start it with `agentctl up`, or name its control socket with --socket or $AGENTD_SOCKET.",
            )
        if isinstance(error, OSError) and "too long" in str(error):
            return BadInput(
                f"{self.path}: the path of a unix socket holds at most 107 bytes.", hint="Use a shorter --socket."
            )
        return DaemonUnreachable(
            f"the daemon at {self.path} broke the connection off ({type(error).__name__}).",
            hint="It may have been stopped or restarted: try again, or start it with `agentctl up`.",
        )


def unit_route(name: str, *rest: str) -> str:
    """The route of a unit; the name is a person's input and is quoted."""
    return "/".join(("/v1/units", quote(name, safe="@"), *rest))


def decoded(text: bytes) -> Json:
    """The answer as a value."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise AgentdError(
            "the daemon's answer is not a JSON object.", hint="Is --socket the control socket of an agentd?"
        )
    return value


def _with_query(route: str, query: Mapping[str, Any] | None) -> str:
    given = {key: value for key, value in (query or {}).items() if value is not None}
    return f"{route}?{urlencode(given)}" if given else route


def _error_of(status: int, text: bytes) -> AgentdError:
    try:
        return from_wire(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return AgentdError(
            f"the daemon answered HTTP {status} without a reason.",
            hint="agentctl and agentd may be of different versions: `agentctl --version` tells its own.",
        )


def _http_errors() -> type[Exception]:
    from http.client import HTTPException

    return HTTPException
