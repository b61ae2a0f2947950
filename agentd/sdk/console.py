"""Without agentd: messages as JSON lines from stdin, what the agent says as JSON lines to stdout.

    in    {"kind": "draft", "data": {…}}              optional: "id", "from", "conversation"
          {"reply": "<id of an ask>", "result": …}    or "error": "why"
    out   {"message": "<id>", "result": …}            or "error": {…}
          {"send": {"to", "kind", "data", "id"}}   {"ask": {…, "id"}}   {"progress": {…}}

Messages are handled one after the other. At the end of the input the agent finishes what it has, then exits: 0 if
every message succeeded, else 1.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any

from agentd.sdk.errors import CallError
from agentd.sdk.link import Answer, Inbox, Params

HINT = 'no AGENTD_CHANNEL, so messages are read from stdin: one {"kind": …, "data": …} per line, Ctrl-D ends'


class Console:
    """A link to a person or a pipe."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._messages: asyncio.Queue[Params | None] = asyncio.Queue()
        self._asked: dict[str, asyncio.Future[Any]] = {}
        self._answered = asyncio.Event()
        self._count = 0
        self._ended = False
        self._failed = False

    async def run(self) -> int:
        """Read until the input ends; returns the exit code."""
        if sys.stdin.isatty():
            _complain(HINT)
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), name="stdin", daemon=True).start()
        while (params := await self._messages.get()) is not None:
            self._answered.clear()
            self._inbox.take(params)
            await self._answered.wait()
        return 1 if self._failed else 0

    async def call(self, method: str, params: Params, timeout: float) -> Any:
        """Print a send, and take it as stored; print an ask, and wait for its reply on stdin."""
        if method not in ("send", "ask"):
            raise CallError("unavailable", f"{method}: there is no agentd here")
        shown = {name: value for name, value in params.items() if name not in ("delivery", "key")}
        identity = params.get("id") or f"{params['delivery'].rpartition('.')[0]}/{params['key']}"
        _say({method: {**shown, "id": identity}})
        if method == "send":
            return {"id": identity, "stored": True, "duplicate": False}
        return {"id": identity, "result": await self._reply(identity, timeout)}

    def answer(self, delivery: str, answer: Answer) -> bool:
        """Print the outcome of a message."""
        self._failed = self._failed or "error" in answer
        _say({"message": delivery.rpartition(".")[0], **answer})
        self._answered.set()
        return True

    def tell(self, method: str, params: Params) -> bool:
        """Print a notification."""
        _say({method: params})
        return True

    async def _reply(self, identity: str, timeout: float) -> Any:
        if self._ended:
            raise CallError("too_late", "the input has ended, so nobody can answer an ask")
        self._asked[identity] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                return await self._asked[identity]
        except TimeoutError:
            raise CallError("too_late", f"no reply to {identity} on stdin within {timeout:g} s") from None
        finally:
            del self._asked[identity]

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """A thread of its own: stdin may be a file, a pipe or a terminal, and no loop can wait for all of them."""
        for line in sys.stdin:
            loop.call_soon_threadsafe(self._line, line)
        loop.call_soon_threadsafe(self._end)

    def _line(self, line: str) -> None:
        if not line.strip():
            return
        try:
            said = json.loads(line)
        except ValueError as error:
            self._wrong(f"not JSON ({error}): {line.strip()[:80]}")
            return
        if isinstance(said, dict) and "reply" in said:
            self._replied(said)
        elif isinstance(said, dict) and isinstance(said.get("kind"), str):
            self._count += 1
            identity = str(said.get("id") or f"m{self._count}")
            self._messages.put_nowait({**said, "message": identity, "delivery": f"{identity}.1"})
        else:
            self._wrong(f'neither a message {{"kind": …}} nor a reply {{"reply": …}}: {line.strip()[:80]}')

    def _replied(self, said: Params) -> None:
        future = self._asked.get(str(said["reply"]))
        if future is None or future.done():
            self._wrong(f"no ask waits for a reply to {said['reply']!r}")
        elif "error" in said:
            future.set_exception(CallError("failed", str(said["error"])))
        else:
            future.set_result(said.get("result"))

    def _wrong(self, why: str) -> None:
        self._failed = True
        _complain(why)

    def _end(self) -> None:
        self._ended = True
        self._messages.put_nowait(None)
        for future in self._asked.values():
            if not future.done():
                future.set_exception(CallError("too_late", "the input ended before the reply came"))


def _say(line: Params) -> None:
    print(json.dumps(line, ensure_ascii=False), flush=True)  # noqa: T201 - stdout is this link


def _complain(text: str) -> None:
    print(f"agentd.sdk: {text}", file=sys.stderr, flush=True)  # noqa: T201 - for the person at the terminal
