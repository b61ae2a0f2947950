"""A model provider that takes its time: a real HTTP server whose answers begin, and end, when a test says so.

The model ``slow`` streams a chunk every STEP seconds, ``late`` says nothing before its end. Calls are told apart by
their prompt, which is the unit's name.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.waiting import wait_until

STEP = 0.05


@dataclass
class Call:
    """One call as the provider sees it."""

    finish: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    """Who asked has hung up, as far as writing to it tells."""
    said: list[str] = field(default_factory=list)


class Upstream:
    """The calls of each unit, in order; ``pace`` is the time between two chunks."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {}
        self.url = ""
        self.pace = STEP
        self.costs: dict[str, int] = {}
        """What an answer to this unit costs, in tokens; else as much as was said."""

    def call(self, unit: str, number: int = 0, timeout: float = 10) -> Call:
        """A call of this unit, once it is there."""
        wait_until(lambda: len(self.calls.get(unit, ())) > number, timeout, f"{unit} asks its model")
        return self.calls[unit][number]

    def finish(self, unit: str) -> str:
        """Let its last call end; all that was said on it."""
        call = self.calls[unit][-1]
        call.finish.set()
        wait_until(lambda: "end" in call.said or call.gone.is_set(), 5)
        return "".join(call.said)

    def end(self) -> None:
        for call in (call for calls in self.calls.values() for call in calls):
            call.finish.set()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        size = int(handler.headers["Content-Length"])
        asked = json.loads(handler.rfile.read(size))
        call = Call()
        unit = asked["messages"][-1]["content"]
        self.calls.setdefault(unit, []).append(call)
        slow = asked["model"] == "slow"
        if not slow:
            call.finish.wait(60)
        try:
            handler.send_response(200)
            handler.send_header("Content-Type", "text/event-stream")
            handler.end_headers()
            while slow and not call.finish.wait(self.pace):
                self._say(handler, call, f"{len(call.said)},")
            self._say(
                handler, call, "end", {"prompt_tokens": 5, "completion_tokens": self.costs.get(unit, len(call.said))}
            )
            handler.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            call.gone.set()

    def _say(self, handler: BaseHTTPRequestHandler, call: Call, text: str, usage: object = None) -> None:
        chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}}], "usage": usage}
        handler.wfile.write(b"data: %b\n\n" % json.dumps(chunk).encode())
        call.said.append(text)


@contextmanager
def upstream() -> Iterator[Upstream]:
    """A provider at a port of its own."""
    provider = Upstream()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            provider.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    provider.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    try:
        yield provider
    finally:
        provider.end()
        server.shutdown()
        serving.join()
        server.server_close()
