"""The daemon's end of the keeper protocol (keeper/PROTOCOL.md).

Knows packets, request ids and deadlines; knows nothing of units' policy. One ``Keeper`` is one connection: when it is
lost every open request fails with ``Unavailable`` and ``on_lost`` is called once; whoever owns it connects again and
reads the truth from the new ``welcome``.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from agentd import __version__
from agentd.errors import AgentdError, Conflict, NotActive, ProtocolError, SpawnFailed, TooLate, Unavailable
from agentd.keeper import protocol
from agentd.keeper.plan import Process, SpawnPlan

ANSWER_WITHIN = 10.0
"""Seconds. The keeper never waits for anything before it answers, so a longer silence is a broken keeper."""
SPAWN_WITHIN = 30.0
"""Seconds. exec may read a cold disk."""
FIRST_ALIVE = 15.0
"""Seconds from the hello to the first ``alive``: adoption and the start of the control API lie between."""
BLOB_MOST = 1 << 20
"""Bytes of a blob that it takes."""
END_WITHIN = 30.0
"""Seconds. It kills what lives before it answers."""

Json = dict[str, Any]
OnEvent = Callable[[Json], None]


class Keeper:
    """A connection to the keeper. Build it with ``await Keeper.connect(path)``."""

    def __init__(
        self, sock: socket.socket, on_event: OnEvent | None = None, on_lost: Callable[[], None] | None = None
    ) -> None:
        self.welcome: Json = {}
        self.asked: Counter[str] = Counter()
        """How often it was asked for what: the cost of a change, for the metrics."""
        self.events: asyncio.Queue[Json] = asyncio.Queue()
        self.on_event = on_event
        self.on_lost = on_lost
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._serial = 0
        self._open: dict[int, asyncio.Future[Json]] = {}
        self._waiting: deque[tuple[Json, bytes, list[int]]] = deque()
        self._batches = False
        """It understands several requests in one packet: what is asked in one turn of the loop travels together."""
        self._gathering = False
        self._opening: asyncio.Future[Json] | None = self._loop.create_future()
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether it is there, as far as we know."""
        return not self._closed

    def give_up(self) -> None:
        """It does not answer: the connection is taken for lost, and ``on_lost`` is called."""
        self._drop(TimeoutError())

    @classmethod
    async def connect(
        cls,
        path: Path | str,
        *,
        on_event: OnEvent | None = None,
        on_lost: Callable[[], None] | None = None,
        timeout: float = ANSWER_WITHIN,
    ) -> Keeper:
        """Connect and read the snapshot into ``welcome``.

        ``welcome["processes"]`` is a list of ``Process``; ``blobs`` and ``listeners`` are as the protocol page says.
        Events (with ``event["process"]`` as ``Process``) go to ``on_event``, or into the queue ``events`` without one.
        Raises Unavailable when nobody answers there, ProtocolError when no version fits.
        """
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(timeout):
                await loop.sock_connect(sock, str(path))
                keeper = cls(sock, on_event, on_lost)
                await keeper._open_up()
        except (OSError, TimeoutError) as error:
            sock.close()
            raise Unavailable(
                f"the keeper does not answer at {path}: {error or 'no welcome in time'}",
                hint="Start it with: agentctl up",
            ) from error
        except BaseException:
            sock.close()
            raise
        return keeper

    async def spawn(self, plan: SpawnPlan, fds: Mapping[str, int] | None = None) -> tuple[Process, dict[str, str]]:
        """Execute the plan once; the process and its listeners' addresses by name.

        ``fds`` are the descriptors that ``plan.fds`` names; they stay the caller's. Raises SpawnFailed with ``step``,
        ``errno`` and ``path`` in ``detail``; Conflict while a process of this unit lives.
        """
        given = fds or {}
        answer = await self._ask("spawn", [given[n] for n in plan.fds], SPAWN_WITHIN, plan=plan.to_dict())
        return _process(answer["process"]), dict(answer.get("listeners", {}))

    async def probe(self, unit: str, invocation: str, plan: SpawnPlan, timeout: float) -> tuple[int, bool, str]:
        """Execute a command beside a living invocation: its exit status, whether it was killed for being late, and the
        last of what it printed. Raises SpawnFailed as ``spawn``; NotActive; Conflict while another one runs."""
        which = {"unit": unit, "invocation": invocation, "within": timeout}
        answer = await self._ask("probe", None, timeout + ANSWER_WITHIN, **which, plan=plan.to_dict())
        return int(answer["exit"]), bool(answer["late"]), str(answer["output"])

    async def signal(self, unit: str, invocation: str, signal: int, whole: bool = False) -> None:
        """Send a signal to the main process, or with ``whole`` to everything of the unit. NotActive if it is gone."""
        await self._ask("signal", unit=unit, invocation=invocation, signal=int(signal), whole=whole)

    async def kill(self, unit: str, invocation: str) -> None:
        """SIGKILL the whole tree; returns at once, the ``ended`` event follows. NotActive if it is gone."""
        await self._ask("kill", unit=unit, invocation=invocation)

    async def release(self, unit: str, invocation: str) -> None:
        """Let the keeper forget a dead process."""
        await self._ask("release", unit=unit, invocation=invocation)

    async def beats(self, units: Sequence[str] | None = None) -> dict[str, float]:
        """CLOCK_MONOTONIC seconds of the last WATCHDOG=1 of each living unit, or at least of these."""
        answer = await (self._ask("beats") if units is None else self._ask("beats", units=list(units)))
        return dict(answer["beats"])

    async def stamps(self, unit: str) -> tuple[float | None, float | None]:
        """CLOCK_MONOTONIC seconds of the last WATCHDOG=1 of one living unit, one that waits unread included, and of its
        last output."""
        answer = await self._ask("beats", unit=unit)
        return answer["beats"].get(unit), answer.get("output", {}).get(unit)

    async def blob(self, unit: str, text: str | None) -> None:
        """Leave up to 1 MiB with the keeper for the next daemon; None drops it."""
        await self._ask("blob", unit=unit, text=text)

    def post(self, do: str, **fields: Any) -> None:
        """Ask for something without waiting for an answer: none comes. Nothing happens while it is away."""
        if not self._closed:
            self.asked[do] += 1
            with suppress(Unavailable):  # _drop has told everybody
                self._send({"do": do, **fields}, [])

    async def forget(self, unit: str) -> None:
        """Drop everything that the keeper keeps for a removed unit: sockets, listeners, cgroups, blob."""
        await self._ask("forget", unit=unit)

    async def drop(self, unit: str) -> None:
        """Have the descriptors closed that a unit stored, now that it is stopped for good."""
        await self._ask("drop", unit=unit)

    async def end(self) -> None:
        """End the keeper and whatever still lives. The connection is lost soon after."""
        await self._ask("end", timeout=END_WITHIN)

    def close(self) -> None:
        """Close the connection. ``on_lost`` is not called. The keeper and all units go on."""
        if not self._closed:
            self._on_writable()
        self._drop(None)

    # ---- packets out

    async def _open_up(self) -> None:
        opening = self._opening
        assert opening is not None
        self._loop.add_reader(self._sock, self._on_readable)
        try:
            client = f"agentd {__version__}"
            self._send({"hello": protocol.VERSION, "client": client, "batch": True, "alive": FIRST_ALIVE}, [])
            welcome = await opening
        except BaseException:
            self._drop(None)
            raise
        if "welcome" not in welcome:
            self._drop(None)
            raise ProtocolError(
                f"the keeper speaks protocol {welcome.get('speaks')}, this daemon {protocol.VERSION}",
                hint="Restart the keeper with the version that is installed.",
            )
        self._batches = welcome.get("batch") is True
        self.welcome = welcome | {"processes": [_process(row) for row in welcome.get("processes", [])]}

    async def _ask(self, do: str, fds: list[int] | None = None, timeout: float = ANSWER_WITHIN, **fields: Any) -> Json:
        if self._closed:
            raise _away()
        self._serial += 1
        self.asked[do] += 1
        serial = self._serial
        future: asyncio.Future[Json] = self._loop.create_future()
        self._open[serial] = future
        try:
            async with asyncio.timeout(timeout):
                self._send({"id": serial, "do": do, **fields}, fds or [])
                answer = await future
        except TimeoutError as error:
            raise TooLate(f"the keeper did not answer {do} within {timeout:g} s") from error
        finally:
            self._open.pop(serial, None)
        if "error" in answer:
            raise _error(do, answer["error"])
        return answer

    def _send(self, message: Json, fds: list[int]) -> None:
        text = protocol.encode(message)
        if self._batches and not fds:
            self._waiting.append((message, text, []))
            if not self._gathering:
                self._gathering = True
                self._loop.call_soon(self._gathered)
        elif self._waiting or not self._try(text, fds):
            self._waiting.append((message, text, [os.dup(fd) for fd in fds]))
            self._loop.add_writer(self._sock, self._on_writable)

    def _gathered(self) -> None:
        self._gathering = False
        if not self._closed:
            self._on_writable()
            if self._waiting and not self._closed:
                self._loop.add_writer(self._sock, self._on_writable)

    def _try(self, text: bytes, fds: list[int]) -> bool:
        try:
            protocol.transmit(self._sock, text, fds)
        except BlockingIOError:
            return False
        except protocol.PacketError as error:
            raise ProtocolError(f"cannot ask the keeper: {error}") from error
        except OSError as error:
            self._drop(error)
            raise _away() from error
        return True

    def _on_writable(self) -> None:
        while self._waiting:
            message, _, fds = self._waiting[0]
            text, count = self._next()
            try:
                if not self._try(text, fds):
                    return
            except Unavailable:
                return  # _drop has told everybody
            except ProtocolError as error:
                self._fail(message, error)
            for _ in range(count):
                self._waiting.popleft()
            protocol.close(fds)
        self._loop.remove_writer(self._sock)

    def _next(self) -> tuple[bytes, int]:
        """The next packet, and how many of those that wait it holds. One with descriptors travels alone."""
        if not self._batches or self._waiting[0][2]:
            return self._waiting[0][1], 1
        return protocol.gather(text for _, text, _ in takewhile(lambda one: not one[2], self._waiting))

    def _fail(self, message: Json, error: ProtocolError) -> None:
        """A packet that cannot be sent fails its own request and holds up nobody."""
        future = self._open.get(message.get("id", 0))
        if future is not None and not future.done():
            future.set_exception(error)

    # ---- packets in

    def _on_readable(self) -> None:
        while not self._closed:
            try:
                message, fds = protocol.receive(self._sock)
            except BlockingIOError:
                return
            except (OSError, EOFError, protocol.PacketError) as error:
                self._drop(error)
                return
            protocol.close(fds)
            for one in message["batch"] if isinstance(message.get("batch"), list) else (message,):
                self._take(one)

    def _take(self, message: Json) -> None:
        if self._opening is not None:
            if not self._opening.done():
                self._opening.set_result(message)
            self._opening = None
        elif "answer" in message:
            future = self._open.get(message["answer"])
            if future is not None and not future.done():
                future.set_result(message)
        elif "event" in message:
            self._tell(message)

    def _tell(self, event: Json) -> None:
        if isinstance(event.get("process"), dict):
            event["process"] = _process(event["process"])
        if self.on_event is not None:
            self.on_event(event)
        else:
            self.events.put_nowait(event)

    def _drop(self, error: BaseException | None) -> None:
        """Close; with an error the connection was lost: fail what is open and tell the owner."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        with suppress(OSError):
            self._sock.close()
        for _, _, fds in self._waiting:
            protocol.close(fds)
        self._waiting.clear()
        for future in (*self._open.values(), *([self._opening] if self._opening else [])):
            if not future.done():
                future.set_exception(_away())
                future.exception()  # mark as seen: the asker may be gone by now
        if error is not None and self.welcome and self.on_lost is not None:
            self.on_lost()


def _process(row: Mapping[str, Any]) -> Process:
    known = Process.__dataclass_fields__
    return Process(**{key: value for key, value in row.items() if key in known})


def _away() -> Unavailable:
    return Unavailable("the keeper is away: its connection is closed")


_HINTS = {
    ("exec", errno.ENOEXEC): "It is neither a program nor a script whose first line says what runs it (#!/bin/sh).",
    ("listen", errno.EADDRINUSE): "Another program listens there: stop it, or set another address (port 0: any).",
    ("listen", errno.EADDRNOTAVAIL): "This host has no such address: set one that it has, such as 127.0.0.1.",
    ("listen", errno.EACCES): "A port below 1024 needs root: set a higher one.",
}
"""What to do about a step that failed, by step and errno."""


def _error(do: str, wire: Mapping[str, Any]) -> AgentdError:
    """The keeper's refusal as an error of ours; step, errno and path go to ``detail``."""
    detail = {key: wire[key] for key in ("step", "errno", "path") if wire.get(key) is not None}
    code, message = str(wire.get("code")), str(wire.get("message", ""))
    if code == "step":
        hint = _HINTS.get((str(wire.get("step")), int(wire.get("errno") or 0)))
        return SpawnFailed(message + ("." if hint else ""), hint=hint, **detail)
    kinds: dict[str, type[AgentdError]] = {"exists": Conflict, "gone": NotActive}
    kind = kinds.get(code)
    return kind(message, **detail) if kind else ProtocolError(f"the keeper refused {do} ({code}): {message}", **detail)
