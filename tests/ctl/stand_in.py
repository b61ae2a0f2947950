"""A stand-in for the daemon: a real HTTP server on a real unix socket with canned answers.

Also a program, for ``agentctl up``: it serves a calm fleet whose units settle after a few looks, and ends at /v1/down.
"""

from __future__ import annotations

import argparse
import json
import os
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

Answer = tuple[int, Any] | Callable[[Any], tuple[int, Any]]


@dataclass
class Request:
    """One request as it arrived."""

    method: str
    route: str
    body: Any
    reason: str | None


@dataclass
class StandIn:
    """Answers by ``"GET /v1/status"``; the query is part of the route. Bytes and lists of bytes are sent chunked."""

    path: Path
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def answer(self, request: Request) -> tuple[int, Any]:
        self.requests.append(request)
        found = self.answers.get(f"{request.method} {request.route}")
        if found is None:
            return 404, {"error": {"code": "no_such_unit", "message": f"no answer to {request.route}", "hint": "mend"}}
        return found(request.body) if callable(found) else found

    @property
    def last(self) -> Request:
        return self.requests[-1]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    stand_in: StandIn

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Agentctl may leave in the middle of an answer; anything else is a fault of the test."""
        if not isinstance(sys.exception(), BrokenPipeError | ConnectionResetError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        reason = self.headers.get("X-Agentd-Reason")
        status, answer = self.server.stand_in.answer(Request(self.command, self.path, body, reason))
        self.send_response(status)
        if isinstance(answer, dict):
            self._whole(json.dumps(answer).encode())
        else:
            self._chunked(answer)

    do_POST = do_DELETE = do_GET  # noqa: N815

    def _whole(self, text: bytes) -> None:
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _chunked(self, chunks: Any) -> None:
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def address_string(self) -> str:
        return "agentctl"

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(path: Path, answers: dict[str, Answer]) -> Iterator[StandIn]:
    """A stand-in on this socket, until the block ends."""
    stand_in = StandIn(path, answers)
    server = _Server(str(path), _Handler)
    server.stand_in = stand_in
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        path.unlink()


def main() -> None:
    from tests.ctl import fleet

    parser = argparse.ArgumentParser()
    for name in ("--runtime", "--units", "--state", "--config"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    if options.config:
        raise SystemExit(f"agentd: {options.config}: gateway.lisen: unknown key.")
    stop, looks = threading.Event(), iter(range(1_000_000))

    def status(_: Any) -> tuple[int, Any]:
        answer = fleet.calm()
        answer["agentd"] |= {"keeper_pid": os.getpid(), "units_dir": str(options.units)}
        if next(looks) < 3:
            answer["units"][1]["state"] = "starting"
        return 200, answer

    def down(_: Any) -> tuple[int, Any]:
        stop.set()
        return 200, {"stopping": True}

    options.runtime.mkdir(exist_ok=True)
    sys.stdout.write("agentd is here\n")
    sys.stdout.flush()
    with serving(options.runtime / "control.sock", {"GET /v1/status": status, "POST /v1/down": down}):
        stop.wait()


if __name__ == "__main__":
    main()
