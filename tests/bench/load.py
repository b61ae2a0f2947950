"""A unit that saturates the gateway: N streaming calls at once, for ever. Reads bytes, understands none.

python -I -S load.py N      needs OPENAI_BASE_URL and OPENAI_API_KEY, as every unit has them
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys

BODY = {"model": "dry-run-long", "stream": True, "max_tokens": 2000, "messages": [{"role": "user", "content": "go"}]}


def call(selector: selectors.BaseSelector, address: tuple[str, int], request: bytes) -> None:
    """Open one call."""
    stream = socket.create_connection(address)
    stream.sendall(request)
    stream.setblocking(False)
    selector.register(stream, selectors.EVENT_READ)


def main() -> None:
    """The program."""
    host, _, rest = os.environ["OPENAI_BASE_URL"].removeprefix("http://").partition(":")
    port, _, path = rest.partition("/")
    body = json.dumps(BODY).encode()
    head = f"POST /{path}/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {os.environ['OPENAI_API_KEY']}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    selector = selectors.DefaultSelector()
    for _ in range(int(sys.argv[1])):
        call(selector, (host, int(port)), request)
    while True:
        for key, _ in selector.select():
            stream = key.fileobj
            assert isinstance(stream, socket.socket)
            try:
                data = stream.recv(1 << 18)
            except ConnectionError:
                data = b""
            if not data:
                selector.unregister(stream)
                stream.close()
                call(selector, (host, int(port)), request)


if __name__ == "__main__":
    main()
