"""The facts protocol (FACTS.md beside this file): who owns a truth tells it by level.

Knows keys, values, revisions, records and calls; knows nothing of what they mean. An owner has one ``Facts`` table and
a ``Server``; whoever wants to know has a ``Client``. All of it lives in one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from agentd.errors import AgentdError, Denied, NotFound, ProtocolError, TooLate, Unavailable, from_wire
from agentd.wire.lines import LINE_MAX, Lines
from agentd.wire.peer import credentials

VERSION = 1
_HISTORY = 4096
_RECORDS_A_LINE = 200
_BATCHES_MOST = 100
"""Batches of records that a client keeps while they cannot be stored; then it begins anew from what is stored."""
_RETRY_FIRST, _RETRY_MOST = 0.02, 0.5

Method = Callable[[dict[str, Any]], Awaitable[Any]]


class Facts:
    """An owner's table of facts, with a spool of records for the journal."""

    def __init__(self, owner: str, *, spool: int = 10_000) -> None:
        self.owner = owner
        self.epoch = secrets.token_hex(8)
        self.rev = 0
        self._values: dict[str, Any] = {}
        self._changes: deque[tuple[int, str]] = deque(maxlen=_HISTORY)
        self._records: deque[dict[str, Any]] = deque()
        self._spool = spool
        self._seq = 0
        self._dropped = 0
        self._wakers: set[asyncio.Event] = set()

    def set(self, key: str, value: Any) -> None:
        """State a fact. Nothing happens if it is so already. The value must not be changed afterwards."""
        if key in self._values and self._values[key] == value:
            return
        self._values[key] = value
        self._changed(key)

    def drop(self, key: str) -> None:
        """The fact is no more."""
        if key in self._values:
            del self._values[key]
            self._changed(key)

    def get(self, key: str) -> Any | None:
        """The present value, or None."""
        return self._values.get(key)

    def keys(self, prefix: str = "") -> list[str]:
        """The present keys."""
        return [key for key in self._values if key.startswith(prefix)]

    def record(self, kind: str, unit: str | None = None, **fields: Any) -> None:
        """Spool one record of history. ``at`` is the wall clock unless it is given."""
        self._seq += 1
        record = {"seq": self._seq, "at": time.time(), "kind": kind, "unit": unit, **fields}
        self._records.append(record)
        if len(self._records) > self._spool:
            self._records.popleft()
            self._dropped += 1
            self.set("spool", {"dropped": self._dropped})
        self._wake()

    def records_after(self, seq: int) -> list[dict[str, Any]]:
        """Spooled records with a higher number, a bounded batch of them, oldest first."""
        batch = []
        for record in self._records:
            if record["seq"] > seq:
                batch.append(record)
                if len(batch) == _RECORDS_A_LINE:
                    break
        return batch

    def stored(self, seq: int) -> None:
        """The journal has all records up to this number: forget them."""
        while self._records and self._records[0]["seq"] <= seq:
            self._records.popleft()

    def since(self, have: tuple[str, int] | None) -> dict[str, Any]:
        """The line that brings a client up to date: what changed, or everything."""
        head = {"epoch": self.epoch, "rev": self.rev}
        if have and have[0] == self.epoch and have[1] <= self.rev and self._remembers(have[1]):
            recent = takewhile(lambda change: change[0] > have[1], reversed(self._changes))
            changed = {key for _, key in recent}
            return {**head, **self._delta(changed)}
        return {**head, "full": dict(self._values)}

    def watch(self) -> asyncio.Event:
        """An event that is set at each change or record, until ``unwatch``."""
        event = asyncio.Event()
        self._wakers.add(event)
        return event

    def unwatch(self, event: asyncio.Event) -> None:
        """Stop setting it."""
        self._wakers.discard(event)

    def _remembers(self, rev: int) -> bool:
        return rev == self.rev or bool(self._changes and self._changes[0][0] <= rev + 1)

    def _delta(self, keys: AbstractSet[str]) -> dict[str, Any]:
        return {
            "set": {key: self._values[key] for key in sorted(keys) if key in self._values},
            "gone": sorted(key for key in keys if key not in self._values),
        }

    def _changed(self, key: str) -> None:
        self.rev += 1
        self._changes.append((self.rev, key))
        self._wake()

    def _wake(self) -> None:
        for event in self._wakers:
            event.set()


class Server:
    """Serves one Facts table, and calls, to peers with a permitted uid; calls only to the pids for which ``callers``
    is true, where it is given: units may share our uid."""

    def __init__(
        self,
        facts: Facts,
        methods: Mapping[str, Method],
        *,
        uids: frozenset[int],
        callers: Callable[[int], bool] | None = None,
    ) -> None:
        self._facts = facts
        self._callers = callers
        self._methods = methods
        self._uids = uids | {0}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._path: Path | None = None

    async def start(self, *, path: Path | None = None, sock: socket.socket | None = None) -> None:
        """Listen at ``path``, or on a socket that was handed over."""
        if sock is None:
            assert path is not None, "a path or a socket"
            path.unlink(missing_ok=True)
            self._path = path
        self._server = await asyncio.start_unix_server(
            self._accept, path=None if sock else path, sock=sock, limit=LINE_MAX
        )
        if self._path is not None:
            self._path.chmod(0o600)

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = credentials(writer.get_extra_info("socket"))
        if peer.uid not in self._uids:
            writer.transport.abort()
            return
        task = asyncio.ensure_future(self._serve(Lines(reader, writer), peer.pid))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, lines: Lines, pid: int) -> None:
        """One client, until it leaves."""
        speaker: asyncio.Task[None] | None = None
        calls: set[asyncio.Task[None]] = set()
        try:
            first = await lines.read()
            if first is None or first.get("facts") != VERSION:
                return
            speaker = asyncio.create_task(self._speak(lines, first))
            while (line := await lines.read()) is not None:
                if "stored" in line:
                    self._facts.stored(int(line["stored"]))
                elif "call" in line:
                    call = asyncio.create_task(self._answer(lines, line, pid))
                    calls.add(call)
                    call.add_done_callback(calls.discard)
        except ProtocolError:
            pass  # the connection ends; a sane client comes back and resyncs
        finally:
            for task in [*calls, *([speaker] if speaker else [])]:
                task.cancel()
            await lines.close()

    async def _speak(self, lines: Lines, first: dict[str, Any]) -> None:
        """Send what is so, then what changes, then records, for as long as the connection lives."""
        have = first.get("have")
        wake = self._facts.watch()
        told = int(first["records"] or 0) if "records" in first else None
        if told is not None and (not have or have[0] != self._facts.epoch):
            told = 0
        try:
            lines.write(self._facts.since((have[0], have[1]) if have else None))
            rev = self._facts.rev
            while True:
                if told is not None:
                    while batch := self._facts.records_after(told):
                        told = batch[-1]["seq"]
                        if not lines.write({"records": batch}):
                            return
                await wake.wait()
                wake.clear()
                if self._facts.rev != rev:
                    delta = self._facts.since((self._facts.epoch, rev))
                    rev = self._facts.rev
                    if not lines.write(delta):
                        return
        finally:
            self._facts.unwatch(wake)

    async def _answer(self, lines: Lines, line: dict[str, Any], pid: int) -> None:
        method = self._methods.get(str(line.get("method")))
        try:
            if self._callers is not None and not self._callers(pid):
                raise Denied(f"{self._facts.owner} takes no calls from process {pid}.")
            if method is None:
                raise NotFound(f"{self._facts.owner} has no method {line.get('method')!r}.")
            answer = {"result": await method(line.get("params") or {})}
        except AgentdError as error:
            answer = {"error": error.to_wire()}
        except Exception as error:  # noqa: BLE001 - the root of a call: the caller must not wait for nothing
            message = f"{line.get('method')}: {type(error).__name__}: {error}"
            answer = {"error": {"code": "agentd_error", "message": message, "hint": "This is a defect of agentd."}}
        lines.write({"answer": line["call"], **answer})


@dataclass(frozen=True)
class Change:
    """What a client learnt at once. When ``full``, ``gone`` names what vanished since before."""

    set: dict[str, Any]
    gone: tuple[str, ...]
    full: bool


class Client:
    """Knows an owner's facts: present ones while it is linked, the last known ones while the owner is away."""

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        on_change: Callable[[Change], None] | None = None,
        on_records: Callable[[list[dict[str, Any]]], Awaitable[int]] | None = None,
        on_link: Callable[[bool], None] | None = None,
    ) -> None:
        self.facts: dict[str, Any] = {}
        self.connected = False
        self.epoch = ""
        self._path = path
        self._name = name
        self._on_change = on_change
        self._on_records = on_records
        self._on_link = on_link
        self._rev = -1
        self._stored = 0
        self._lines: Lines | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._number = 0

    async def run(self) -> None:
        """Link, and link again whenever the link is lost, until cancelled."""
        pause = _RETRY_FIRST
        while True:
            with contextlib.suppress(OSError, ProtocolError):
                if await self._link():
                    pause = _RETRY_FIRST
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RETRY_MOST)

    async def call(self, method: str, params: dict[str, Any], timeout: float = 5.0) -> Any:
        """Ask the owner to do something. Raises what the owner raised; Unavailable or TooLate without an answer."""
        if not self.connected or self._lines is None:
            raise Unavailable(f"the owner of {self._path.stem} facts is away.", hint="Try again in a moment.")
        self._number += 1
        number = self._number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            self._lines.write({"call": number, "method": method, "params": params})
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise TooLate(f"{self._path.stem} did not answer {method} within {timeout:g} s.") from None
        finally:
            self._calls.pop(number, None)

    async def _link(self) -> bool:
        """One connection, from hello to its end; whether it ever worked."""
        reader, writer = await asyncio.open_unix_connection(self._path, limit=LINE_MAX * 64)
        lines = Lines(reader, writer)
        batches: asyncio.Queue[list[dict[str, Any]]] = asyncio.Queue(_BATCHES_MOST)
        keeping = asyncio.create_task(self._keep(lines, batches))
        keeping.add_done_callback(lambda _: writer.transport.abort())
        hello: dict[str, Any] = {"facts": VERSION, "client": self._name, "have": None}
        if self._rev >= 0:
            hello["have"] = [self.epoch, self._rev]
        if self._on_records is not None:
            hello["records"] = self._stored
        try:
            lines.write(hello)
            first = await lines.read()
            if first is None:
                return False
            self._lines = lines
            self._take(first)
            self._linked(True)
            while (line := await lines.read()) is not None:
                self._hear(batches, line)
            if keeping.done():
                keeping.result()
            return True
        finally:
            self._lines = None
            if self.connected:
                self._linked(False)
            keeping.cancel()
            await lines.close()

    def _hear(self, batches: asyncio.Queue[list[dict[str, Any]]], line: dict[str, Any]) -> None:
        if "answer" in line:
            self._settle(line)
        elif "records" not in line:
            self._take(line)
        elif batches.full():
            raise ProtocolError("records come faster than they are stored")
        else:
            batches.put_nowait(line["records"])

    async def _keep(self, lines: Lines, batches: asyncio.Queue[list[dict[str, Any]]]) -> None:
        """Have records stored beside the link: a journal that is paused holds up neither facts nor answers."""
        while True:
            batch = await batches.get()
            if self._on_records is not None:
                self._stored = await self._on_records(batch)
                lines.write({"stored": self._stored})

    def _take(self, line: dict[str, Any]) -> None:
        """Apply facts: everything, or what changed."""
        if line.get("epoch", self.epoch) != self.epoch:
            self.epoch = line["epoch"]
            self._stored = 0
        self._rev = int(line["rev"])
        if "full" in line:
            gone = tuple(key for key in self.facts if key not in line["full"])
            self.facts = dict(line["full"])
            change = Change(dict(line["full"]), gone, full=True)
        else:
            change = Change(line.get("set", {}), tuple(line.get("gone", ())), full=False)
            self.facts.update(change.set)
            for key in change.gone:
                self.facts.pop(key, None)
        if self._on_change is not None:
            self._on_change(change)

    def _settle(self, line: dict[str, Any]) -> None:
        future = self._calls.pop(int(line["answer"]), None)
        if future is None or future.done():
            return
        if "error" in line:
            future.set_exception(from_wire(line["error"]))
        else:
            future.set_result(line.get("result"))

    def _linked(self, up: bool) -> None:
        self.connected = up
        if not up:
            for future in self._calls.values():
                if not future.done():
                    future.set_exception(Unavailable(f"the owner of {self._path.stem} facts went away."))
            self._calls.clear()
        if self._on_link is not None:
            self._on_link(up)
