"""The example agents as real processes: the SDK tests' router and notify socket, and a model that answers by script."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.router.conftest import apart
from tests.sdk.conftest import heard, router, start

__all__ = ["Model", "apart", "heard", "model", "router", "start"]


class Model:
    """What a gateway with one model would answer. ``failures`` come first: (status, headers)."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.keys: set[str] = set()
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.calls = 10_000
        self.slow = ""
        """Prompts with this word wait for ``go``."""
        self.go = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = False
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    @property
    def env(self) -> dict[str, str]:
        port = self.server.server_address[1]
        return {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "agentd.v1.x"}

    def close(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, prompt: str) -> tuple[int, dict[str, str], Any]:
        self.prompts.append(prompt)
        if self.slow and self.slow in prompt:
            self.go.wait(10)
        if self.failures:
            status, headers = self.failures.pop(0)
            return status, headers, {"error": {"message": "no more", "code": "x"}}
        if len(self.prompts) > self.calls:
            return 402, {}, {"error": {"message": "20000 of 20000 tokens", "code": "budget_exceeded"}}
        return 200, {}, {"choices": [{"message": {"content": f"answer {len(self.prompts)}"}}]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(200, {}, {"data": [{"id": "first"}, {"id": "second"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model.keys.add(self.headers["Authorization"])
                assert (self.path, body["model"]) == ("/v1/chat/completions", "first")
                self._say(*model.answer(body["messages"][0]["content"]))

            def _say(self, status: int, headers: dict[str, str], body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the agent was killed meanwhile
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        return Handler


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.close()
