"""The agent's end of the channel (router/CHANNEL.md): JSON-RPC lines on a unix socket, reconnecting for ever.

Knows lines, requests and connections. Does not know what a handler is: deliveries go to the desk, which also says
what is held when a new connection stands.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from typing import Any

from agentd.sdk.errors import CallError, LinkLost, Rejected
from agentd.sdk.link import Answer, Inbox, Params

PROTOCOL = 1
MAX_LINE = 1 << 20
FIRST_DELAY, LAST_DELAY = 0.02, 0.2
FATAL = frozenset({"denied", "bad_input", "protocol_error"})


class Channel:
    """Run ``run()`` as a task; it ends only by cancellation or, with Rejected, when the router does not want us."""

    def __init__(self, path: str, invocation: str, inbox: Inbox) -> None:
        self._path, self._invocation, self._inbox = path, invocation, inbox
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._max_line = MAX_LINE
        self.up = asyncio.Event()
        """Set while a connection stands whose hello was answered."""

    async def run(self) -> None:
        """Connect, say hello, read; when the connection goes, do it again, 20 ms doubling to 200 ms."""
        delay, loop = FIRST_DELAY, asyncio.get_running_loop()
        while True:
            begun = loop.time()
            if await self._connection() and loop.time() - begun > 1:  # else a router that dies of us gets no rest
                delay = FIRST_DELAY
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_DELAY)

    async def call(self, method: str, params: Params, timeout: float) -> Any:
        """Ask until it is answered, over as many connections as it takes, for at most ``timeout`` seconds.

        Each repeat is the same request with the same effect id, so that the router stores it once. A refusal that
        names ``retry_after`` is waited for as long as the time allows it.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while True:
            try:
                async with asyncio.timeout_at(end):
                    await self.up.wait()
                    return await self._request(method, params)
            except TimeoutError:
                raise CallError("too_late", f"{method}: no answer from the router within {timeout:g} s") from None
            except LinkLost:
                continue
            except CallError as error:
                if error.retry_after is None or loop.time() + error.retry_after >= end:
                    raise
                await asyncio.sleep(error.retry_after)

    def answer(self, delivery: str, answer: Answer) -> bool:
        """Write the outcome of a delivery; an outcome that no line can hold becomes a refusal that says so."""
        line = {"jsonrpc": "2.0", "id": delivery, **answer}
        try:
            return self.up.is_set() and self._write(line)
        except CallError as error:
            refusal = {"code": -32000, "message": str(error), "data": {"retry": False}}
            return self._write({"jsonrpc": "2.0", "id": delivery, "error": refusal})

    def tell(self, method: str, params: Params) -> bool:
        """Write a notification."""
        return self.up.is_set() and self._write({"jsonrpc": "2.0", "method": method, "params": params})

    async def flush(self) -> None:
        """Close after everything written has left this process, or after a second."""
        if self._writer is None:
            return
        self._writer.close()
        try:
            async with asyncio.timeout(1):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            return  # the router went first, or hangs; what it did not read is delivered again

    async def _connection(self) -> bool:
        """One connection from beginning to end. True if its hello was answered."""
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path, limit=2 * MAX_LINE)
        except OSError:
            return False
        reading = asyncio.create_task(self._read(reader))
        greeted = False
        try:
            greeted = await self._hello()
            await reading
        finally:
            self.up.clear()
            reading.cancel()
            self._writer.close()
            self._writer = None
        return greeted

    async def _hello(self) -> bool:
        held = self._inbox.holding()
        params = {"protocol": PROTOCOL, "invocation": self._invocation, "holding": held}
        try:
            result = await self._request("hello", params)
        except LinkLost:
            return False
        except CallError as error:
            if error.code in FATAL:
                raise Rejected(f"the router refused this process: {error}") from error
            if self._writer is not None:
                self._writer.close()
            await asyncio.sleep(error.retry_after or 0)
            return False
        self._max_line = int(result.get("max_line", MAX_LINE))
        self.up.set()
        self._inbox.linked(int(result.get("in_flight", 1)))
        return True

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Take lines until the connection ends; then every open request learns of it."""
        try:
            while line := await reader.readline():
                self._line(line)
        except (OSError, ValueError) as error:  # ValueError: a line longer than any that we agreed to
            _log(f"the connection to the router broke ({error}); connecting again")
        finally:
            self.up.clear()
            waiting, self._waiting = self._waiting, {}
            for future in waiting.values():
                if not future.done():
                    future.set_exception(LinkLost())

    def _line(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            _log(f"the router sent a line that is not a JSON object, ignoring: {line[:80]!r}")
        elif "method" not in said:
            self._answered(said)
        elif said["method"] == "deliver":
            self._deliver(said)
        elif said["method"] == "unit_changed":
            self._unit_changed(said.get("params"))
        elif "id" in said:
            self._object(said, -32601, f"an agent has no method {said['method']!r}")

    def _unit_changed(self, params: Any) -> None:
        unit, state = (params.get("unit"), params.get("state")) if isinstance(params, dict) else (None, None)
        if isinstance(unit, str) and isinstance(state, str):
            self._inbox.told(unit, state, params)

    def _deliver(self, said: Params) -> None:
        try:
            self._inbox.take(said["params"])
        except (KeyError, TypeError, ValueError) as error:
            self._object(said, -32602, f"not a delivery: {type(error).__name__}: {error}")

    def _object(self, said: Params, code: int, why: str) -> None:
        _log(f"the router said something that is not understood, refusing it: {why}")
        self._write({"jsonrpc": "2.0", "id": said.get("id"), "error": {"code": code, "message": why}})

    def _answered(self, said: Params) -> None:
        future = self._waiting.pop(said.get("id"), None)  # type: ignore[arg-type]
        if future is None or future.done():
            return
        if isinstance(said.get("error"), dict):
            future.set_exception(CallError.from_wire(said["error"]))
        else:
            future.set_result(said.get("result"))

    async def _request(self, method: str, params: Params) -> Any:
        number = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            if not self._write({"jsonrpc": "2.0", "id": number, "method": method, "params": params}):
                raise LinkLost
            return await future
        finally:
            self._waiting.pop(number, None)

    def _write(self, line: Params) -> bool:
        """Hand a line to the connection. False if there is none. Raises CallError if the line is too long."""
        data = _encode(line)
        if len(data) > self._max_line:
            raise CallError("bad_input", f"{len(data)} bytes do not fit a line of the channel ({self._max_line})")
        if self._writer is None or self._writer.is_closing():
            self.up.clear()  # at once, or a call that is repeated would spin until the reader sees the end
            return False
        self._writer.write(data)
        return True


def _encode(line: Params) -> bytes:
    """One line. Characters that UTF-8 cannot hold (file names have some) stay escaped."""
    try:
        data = json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        data = json.dumps(line, allow_nan=False, separators=(",", ":")).encode()
    return data + b"\n"


def _log(text: str) -> None:
    print(f"agentd.sdk: {text}", file=sys.stderr, flush=True)  # noqa: T201 - stderr is the unit's log
