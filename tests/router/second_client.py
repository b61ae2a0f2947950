"""A second implementation of the channel, written from CHANNEL.md alone by someone who has not seen the first."""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

ENDS = {"invocation": os.environ["AGENTD_INVOCATION"], "unit": os.environ["AGENTD_UNIT"]}
TOLD = ("kind", "from", "attempt", "message", "conversation", "hop")


class Refused(Exception):
    """Why the delivery is refused, and the error's `data` if it is to come again."""


class Channel:
    def __init__(self) -> None:
        self.holding, self.answers, self.calls, self.in_flight, self.asked = [], [], [], 1, 0
        self.connect()

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        while self.sock.connect_ex(os.environ["AGENTD_CHANNEL"]):
            time.sleep(0.1)
        self.lines, self.waiting = self.sock.makefile("rb"), []  # what was neither held nor answered comes again
        hello = {"protocol": 1, "invocation": ENDS["invocation"], "holding": self.holding}
        self.write({"id": 0, "method": "hello", "params": hello}, *self.answers, *self.calls)

    def write(self, *messages: dict) -> None:
        lines = [json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False) + "\n" for message in messages]
        with contextlib.suppress(OSError):  # the next read notices, and connects again
            self.sock.sendall("".join(lines).encode())

    def read(self) -> dict:
        """The next line; a delivery is put aside. Empty when the connection broke and there is a new one."""
        line = b""
        with contextlib.suppress(OSError):
            line = self.lines.readline()
        if not line.endswith(b"\n"):
            time.sleep(0.1)
            self.connect()
            return {}
        message = json.loads(line)
        if message.get("method") == "deliver":
            self.waiting.append(message["params"])
        elif message.get("id") == 0:
            if "error" in message:
                sys.exit(f"hello was refused: {message['error']['message']}")
            self.in_flight = message["result"]["in_flight"]
        return message

    def call(self, method: str, **params: Any) -> dict:
        self.asked += 1
        self.calls = [{"id": self.asked, "method": method, "params": params}]  # a new connection repeats it
        self.write(*self.calls)
        while (answer := self.read()).get("id") != self.asked:
            pass
        self.calls = []
        if "error" in answer:
            raise Refused(answer["error"]["message"])
        return answer["result"]

    def serve(self) -> None:
        while True:
            while not self.waiting:
                self.read()
            delivery = self.waiting.pop(0)
            name = delivery["delivery"]
            answer = next((a for a in self.answers if a["id"] == name), None)  # there is one if it crossed the repeat
            if answer is None:
                self.holding, answer = [name], {"id": name}
                try:
                    answer["result"] = self.handle(delivery, delivery["kind"], delivery["data"], delivery["attempt"])
                except Refused as refused:
                    why, data = (*refused.args, {"retry": False})[:2]
                    answer["error"] = {"code": -32000, "message": why, "data": data}
                self.holding, self.answers = [], [*self.answers, answer][-self.in_flight :]
            self.write(answer)

    def handle(self, delivery: dict, kind: str, data: Any, attempt: int) -> Any:
        mine = {"delivery": delivery["delivery"]}
        match kind:
            case "echo":
                return data
            case "describe":
                return {name: delivery.get(name) for name in TOLD} | ENDS
            case "forward":
                return self.call("send", to=data["to"], kind="echoed", data=data, key=kind, **mine)
            case "question":
                answer = self.call("ask", to=data["to"], kind="echo", data=data["data"], key=kind, **mine)
                return {"answer": answer["result"]}
            case "fail":
                raise Refused(data["why"])
            case "again" if attempt == 1:
                raise Refused("not yet", {"retry": True, "delay": 0})
            case "again":
                return {"attempt": attempt}
            case "progress":
                self.write({"method": "progress", "params": {**mine, "note": "half"}})
                return data
            case "hold":
                return self.hold(data["started"], data["until"], attempt)
            case "crash":
                os._exit(7)
        raise Refused(f"unknown kind {kind}")

    def hold(self, started: str, until: str, attempt: int) -> dict:
        open(started, "w").close()
        while not os.path.exists(until):
            if select.select([self.sock], [], [], 0.05)[0]:
                self.read()
        return {"invocation": ENDS["invocation"], "attempt": attempt}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Channel().serve()
