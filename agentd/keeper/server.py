"""The keeper's side of the protocol: one client, its requests, the events it is told.

Knows packets, revisions and versions; what a request does is the fleet's business.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from agentd import __version__
from agentd.keeper import process, protocol
from agentd.keeper.fleet import Fleet, Refused
from agentd.keeper.loop import EPOLLIN, EPOLLOUT, Loop, say
from agentd.keeper.notify import bind_private, unlink_socket
from agentd.keeper.process import StepFailed

Json = dict[str, Any]
QUEUE = 1000
"""Messages that may wait for a client that does not read."""
GATHER = 100
"""Messages that may gather in one turn before they leave, for a client that understands batches."""
TURN = 0.01
"""Seconds of one turn that the client's requests may take: a fleet that starts must not keep heartbeats unread."""
HELLO_TIMEOUT = 5.0
NEWCOMERS = 8
"""Connections that may be without a hello; the oldest makes room."""


class Connection:
    """One accepted connection: a bounded queue out, packets in."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        received: Callable[[Connection, Json, list[int]], None],
        lost: Callable[[Connection], None],
    ) -> None:
        self.open = True
        self.batches = False
        """The client understands several messages in one packet."""
        self._loop, self._socket, self._received, self._lost = loop, sock, received, lost
        self._queue: deque[bytes] = deque()
        self._blocked = self._gathering = self._reading = False
        self._waiting: deque[Json] = deque()
        """Messages of a batch whose turn has not come."""
        loop.watch(sock.fileno(), self._ready)

    def send(self, message: Json) -> bool:
        """Send now or queue; a client that lets QUEUE packets wait is disconnected. False: it is gone."""
        if not self.open:
            return False
        self._queue.append(protocol.encode(message))
        if self._blocked:
            if len(self._queue) > QUEUE:
                say(f"the client lets {QUEUE} packets wait; disconnecting it")
                self.close()
        elif not self.batches or len(self._queue) >= GATHER:
            self._flush()
        elif not self._gathering:
            self._gathering = True
            self._loop.last(self._gathered)
        return self.open

    def flush(self) -> None:
        """Send what has gathered now, as far as the client takes it."""
        if self.open and self._queue and not self._blocked:
            self._flush()

    def close(self) -> None:
        """Close it, once."""
        self.flush()
        if self.open:
            self.open = False
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._lost(self)

    def _ready(self, events: int) -> None:
        if events & EPOLLOUT:
            self._flush()
        if events & ~EPOLLOUT:
            self._read()

    def _gathered(self) -> None:
        self._gathering = False
        self.flush()

    def _flush(self) -> None:
        try:
            while self._queue:
                text, count = protocol.gather(self._queue) if self.batches else (self._queue[0], 1)
                protocol.transmit(self._socket, text)
                for _ in range(count):
                    self._queue.popleft()
            self._block(False)
        except BlockingIOError:
            self._block(True)
        except ConnectionError:
            self._break()
        except (OSError, protocol.PacketError) as error:
            say(f"the client cannot be told: {error}; disconnecting it")
            self._break()

    def _break(self) -> None:
        """Close it; what still waits reaches nobody."""
        self._queue.clear()
        self.close()

    def _block(self, blocked: bool) -> None:
        if blocked != self._blocked:
            self._blocked = blocked
            self._loop.modify(self._socket.fileno(), EPOLLIN | EPOLLOUT if blocked else EPOLLIN)

    def _read(self) -> None:
        end = time.monotonic() + TURN
        while self.open and time.monotonic() < end:
            if self._waiting:
                self._received(self, self._waiting.popleft(), [])
            elif not self._receive():
                return
        if self._waiting and self.open and not self._reading:
            self._reading = True
            self._loop.last(self._read_on)  # the turn is over, and the socket need not be readable any more

    def _read_on(self) -> None:
        self._reading = False
        if self.open:
            self._read()

    def _receive(self) -> bool:
        """Take one packet, and have it executed unless it is a batch; False if there is none."""
        try:
            message, fds = protocol.receive(self._socket)
            found = protocol.messages(message, fds) if self.batches else [message]
        except BlockingIOError:
            return False
        except (EOFError, ConnectionError):
            self._break()
            return False
        except (protocol.PacketError, OSError) as error:
            say(f"bad packet from the client: {error}; disconnecting it")
            self.close()
            return False
        try:
            if len(found) == 1:
                self._received(self, found[0], fds)
            else:
                self._waiting.extend(found)
        finally:
            protocol.close(fds)
        return True


class Server:
    """Listens on the keeper's socket and serves one client at a time."""

    def __init__(
        self, loop: Loop, path: str, stop: Callable[[Callable[[], object]], None], resumed: Json | None = None
    ) -> None:
        self.fleet: Fleet
        self.upgrade: Callable[[Callable[[Json], object]], None]
        self.epoch = os.urandom(8).hex()
        self.stopping = False
        self.on_client: Callable[[], None] = lambda: None
        self.on_alive: Callable[[float], None] = lambda _: None
        self.on_hello: Callable[[float], None] = lambda _: None
        """The client says in how many seconds it will first say that it lives."""
        self._loop, self._path, self._stop = loop, path, stop
        self._rev = 0
        self._client: Connection | None = None
        self._newcomers: list[Connection] = []
        if resumed is not None:
            self._socket = socket.socket(fileno=resumed["socket"])
            self.epoch, self._rev = resumed["epoch"], resumed["rev"]
        else:
            kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)
            unlink_socket(path)
            bind_private(self._socket, path)
            self._socket.listen(16)
        process.own.append(self._socket.fileno())
        loop.watch(self._socket.fileno(), lambda _: self._accept())

    @property
    def connected(self) -> bool:
        """Whether a client has said hello and is there."""
        return self._client is not None

    def emit(self, event: Json) -> None:
        """Tell the client, if there is one, under the next revision."""
        self._rev += 1
        if self._client is not None:
            self._client.send({"rev": self._rev} | event)

    def flush(self) -> None:
        """Send now what has gathered for the client."""
        if self._client is not None:
            self._client.flush()

    def handover(self) -> tuple[Json, list[int]]:
        """What this same keeper needs to serve on after its exec."""
        return {"socket": self._socket.fileno(), "epoch": self.epoch, "rev": self._rev}, [self._socket.fileno()]

    def close(self) -> None:
        """Stop listening, drop everybody, remove the socket file."""
        for connection in [*self._newcomers, *([self._client] if self._client else [])]:
            connection.close()
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    # Connections

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # out of descriptors: not again at once
            say(f"a client cannot be accepted: {error}; trying again in a second")
            self._loop.modify(self._socket.fileno(), 0)
            self._loop.after(1.0, lambda: self._loop.modify(self._socket.fileno(), EPOLLIN))
            return
        sock.setblocking(False)
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        unit = self.fleet.owner(pid)
        if uid != os.geteuid() or unit is not None:
            whose = f"uid {uid}" if unit is None else f"unit {unit}"
            say(f"pid {pid} of {whose} may not talk to the keeper; refused")
            sock.close()
            return
        if len(self._newcomers) >= NEWCOMERS:
            self._newcomers[0].close()
        newcomer = Connection(self._loop, sock, self._packet, self._gone)
        self._newcomers.append(newcomer)
        self._loop.after(HELLO_TIMEOUT, lambda: newcomer.close() if newcomer in self._newcomers else None)

    def _gone(self, connection: Connection) -> None:
        if connection is self._client:
            self._client = None
            self.on_client()
        elif connection in self._newcomers:
            self._newcomers.remove(connection)

    def _packet(self, connection: Connection, message: Json, fds: list[int]) -> None:
        if connection is self._client:
            self._request(connection, message, fds)
        else:
            self._hello(connection, message)

    def _hello(self, connection: Connection, message: Json) -> None:
        spoken = message.get("hello")
        if not isinstance(spoken, int) or spoken < protocol.LOWEST:
            connection.send({"refused": "version", "speaks": list(range(protocol.LOWEST, protocol.VERSION + 1))})
            connection.close()
            return
        self._newcomers.remove(connection)
        before, self._client = self._client, connection
        if before is not None:
            before.close()
        connection.batches = message.get("batch") is True
        keeper = {"pid": os.getpid(), "version": __version__, "epoch": self.epoch, "now": time.monotonic()}
        connection.send(
            {
                "welcome": min(spoken, protocol.VERSION),
                "batch": True,
                "keeper": keeper,
                "rev": self._rev,
                "stopping": self.stopping,
                **self.fleet.snapshot(),
            }
        )
        self.on_client()
        if "alive" in message:
            with contextlib.suppress(Refused):
                self.on_hello(_seconds(message, "alive"))

    # Requests

    def _request(self, connection: Connection, message: Json, fds: list[int]) -> None:
        number = message.get("id")

        def answer(body: Json) -> bool:
            return connection.open if number is None else connection.send({"answer": number} | body)

        try:
            body = self._do(message, fds, answer)
        except (Refused, StepFailed) as refusal:
            body = {"error": refusal.to_wire()}
        except Exception as error:  # noqa: BLE001 - the root of one request: the client hears of it, the keeper goes on
            import traceback

            say(f"error in request {message.get('do')!r}:\n{traceback.format_exc()}")
            body = {"error": {"code": "internal", "message": f"{type(error).__name__}: {error}"}}
        if body is not None:
            answer(body)

    def _stamps(self, message: Json) -> Json:
        if message.get("unit") is not None:
            return self.fleet.stamps(_field(message, "unit", str))
        if message.get("units") is not None:
            return self.fleet.beats([str(name) for name in _field(message, "units", list)])
        return self.fleet.beats()

    def _do(self, message: Json, fds: list[int], answer: Callable[[Json], bool]) -> Json | None:
        """Execute; None if the answer comes later."""
        match message.get("do"):
            case "signal":
                whole = message.get("whole") is True
                self.fleet.signal(*_which(message), _field(message, "signal", int), whole)
            case "kill":
                self.fleet.kill(*_which(message))
            case "release":
                self.fleet.release(*_which(message))
            case "beats":
                return {"now": time.monotonic(), **self._stamps(message)}
            case "alive":
                self.on_alive(_seconds(message, "within"))
            case "blob":
                text = None if message.get("text") is None else _field(message, "text", str)
                self.fleet.set_blob(_field(message, "unit", str), text)
            case "drop":
                self.fleet.drop(_field(message, "unit", str))
            case "forget" if "units" in message:
                self.fleet.forget_all([str(name) for name in _field(message, "units", list)])
            case "forget":
                self.fleet.forget(_field(message, "unit", str))
            case _:
                self._begin(message, fds, answer)
                return None
        return {}

    def _begin(self, message: Json, fds: list[int], answer: Callable[[Json], bool]) -> None:
        """What is answered when it is over."""
        match message.get("do"):
            case "spawn":
                self.fleet.spawn(_field(message, "plan", dict), fds, answer)
            case "probe":
                within = _seconds(message, "within")
                self.fleet.probe(*_which(message), _field(message, "plan", dict), within, answer)
            case "upgrade":
                self.upgrade(lambda body: self._at_once(answer, body))
            case "end":
                self._stop(lambda: answer({}))
            case other:
                raise Refused("unknown", f"this keeper does not know the request {other!r}")

    def _at_once(self, answer: Callable[[Json], bool], body: Json) -> None:
        """Answer before an exec: nothing may gather any more."""
        answer(body)
        self.flush()


def _field(message: Json, name: str, kind: type) -> Any:
    value = message.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Refused("bad", f"{message.get('do')}: {name} must be {kind.__name__}, not {value!r}")
    return value


def _seconds(message: Json, name: str) -> float:
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise Refused(
            "bad", f"{message.get('do')}: {name} must be seconds, more than 0 and at most 3600, not {value!r}"
        )
    return float(value)


def _which(message: Json) -> tuple[str, str]:
    return _field(message, "unit", str), _field(message, "invocation", str)
