"""A second implementation of the channel, written from CHANNEL.md alone by someone who has not seen the first."""

import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]
INVOCATION, UNIT = os.environ["AGENTD_INVOCATION"], os.environ["AGENTD_UNIT"]


class Refused(Exception):
    """The second argument, if any, is the `data` of the error."""


class Channel:
    def __init__(self) -> None:
        self.waiting: deque[Message] = deque()  # deliveries that came while another was handled
        self.holding: list[str] = []
        self.last: Message = {}  # the answer that was written last
        self.asked = 0

    def connect(self) -> None:
        end = time.monotonic() + 15
        while True:
            try:
                self.buffer, self.sock = b"", socket.socket(socket.AF_UNIX)
                self.sock.connect(os.environ["AGENTD_CHANNEL"])
                self.waiting.clear()  # neither held nor answered: they come again
                hello = self.ask("hello", {"protocol": 1, "invocation": INVOCATION, "holding": self.holding})
                if "error" in hello:
                    sys.exit(f"hello was refused: {hello['error']['message']}")
                return self.write(self.last) if self.last else None
            except OSError:
                self.sock.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def steadily(self, action: Callable[..., Any], *args: Any) -> Any:
        """Repeat the action on a new connection whenever the old one breaks."""
        while True:
            try:
                return action(*args)
            except OSError:
                self.connect()

    def write(self, message: Message) -> None:
        self.sock.sendall(json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False).encode() + b"\n")

    def read(self, timeout: float | None = None) -> Message:
        """The next line if it is an answer; a delivery is put aside. Empty if it is neither, or after the timeout."""
        while b"\n" not in self.buffer:
            if not select.select([self.sock], [], [], timeout)[0]:
                return {}
            if not (chunk := self.sock.recv(65536)):
                raise ConnectionError("the router closed the connection")
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        message = json.loads(line)
        if message.get("method") == "deliver":
            self.waiting.append(message["params"])
        return {} if "method" in message else message

    def ask(self, method: str, params: Message) -> Message:
        self.asked = mine = self.asked + 1
        self.write({"id": mine, "method": method, "params": params})
        while (answer := self.read()).get("id") != mine:
            pass
        return answer

    def call(self, method: str, **params: Any) -> Message:
        answer = self.steadily(self.ask, method, params)
        if "error" in answer:
            raise Refused(answer["error"]["message"])
        return answer["result"]

    def serve(self) -> None:
        while True:
            while not self.waiting:
                self.steadily(self.read)
            delivery = self.waiting.popleft()
            if delivery["delivery"] != self.last.get("id"):  # else it crossed the repeated answer
                self.holding = [delivery["delivery"]]
                try:
                    outcome = {"result": handle(self, delivery)}
                except Refused as refused:
                    why, more = (*refused.args, {"retry": False})[:2]
                    outcome = {"error": {"code": -32000, "message": why, "data": more}}
                self.last, self.holding = {"id": delivery["delivery"], **outcome}, []
            self.steadily(self.write, self.last)


def handle(channel: Channel, delivery: Message) -> Any:
    data, attempt, mine = delivery["data"], delivery["attempt"], delivery["delivery"]
    match delivery["kind"]:
        case "echo":
            return data
        case "describe":
            told = ("kind", "from", "attempt", "message", "conversation", "hop")
            return {name: delivery.get(name) for name in told} | {"invocation": INVOCATION, "unit": UNIT}
        case "forward":
            return channel.call("send", to=data["to"], kind="echoed", data=data, delivery=mine, key="forward")
        case "question":
            asked = {"to": data["to"], "kind": "echo", "data": data["data"], "delivery": mine, "key": "question"}
            return {"answer": channel.call("ask", **asked)["result"]}
        case "fail":
            raise Refused(data["why"])
        case "again" if attempt == 1:
            raise Refused("not yet", {"retry": True, "delay": 0})
        case "again":
            return {"attempt": attempt}
        case "progress":
            note = {"method": "progress", "params": {"delivery": mine, "note": "half"}}
            channel.steadily(channel.write, note)
            return data
        case "hold":
            open(data["started"], "w").close()
            while not os.path.exists(data["until"]):
                channel.steadily(channel.read, 0.05)
            return {"invocation": INVOCATION, "attempt": attempt}
        case "crash":
            os._exit(7)
    raise Refused(f"unknown kind {delivery['kind']}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    channel = Channel()
    channel.connect()
    channel.serve()
