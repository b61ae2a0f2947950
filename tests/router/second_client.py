"""A second implementation of the channel, written from CHANNEL.md alone by someone who has not seen the first."""

import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

RUN = {"invocation": os.environ["AGENTD_INVOCATION"], "unit": os.environ["AGENTD_UNIT"]}


class Refused(Exception):
    def __init__(self, why: str, **data: Any) -> None:
        self.error = {"code": -32000, "message": why, "data": {"retry": False, **data}}


class Channel:
    def __init__(self) -> None:
        self.holding, self.answers, self.calls, self.in_flight, self.asked = [], [], [], 1, 0
        self.connect()

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + 15
        while self.sock.connect_ex(os.environ["AGENTD_CHANNEL"]):
            if time.monotonic() > end:
                sys.exit("the router does not come back")
            time.sleep(0.1)
        self.lines, self.waiting = self.sock.makefile("rb"), []  # what was neither held nor answered comes again
        hello = {"protocol": 1, "invocation": RUN["invocation"], "holding": self.holding}
        self.write({"id": 0, "method": "hello", "params": hello}, *self.answers, *self.calls)

    def write(self, *messages: dict) -> None:
        lines = [json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False) + "\n" for message in messages]
        with suppress(OSError):  # the next read notices; connect() repeats what counts
            self.sock.sendall("".join(lines).encode())

    def read(self) -> dict:
        """The next line; a delivery is put aside. Empty when the connection broke and there is a new one."""
        line = b""
        with suppress(OSError):
            line = self.lines.readline()
        if not line.endswith(b"\n"):
            time.sleep(0.1)
            self.connect()
            return {}
        message = json.loads(line)
        if message.get("method") == "deliver":
            self.waiting.append(message["params"])
        elif message.get("id") == 0:
            self.in_flight = message["result"]["in_flight"] if "result" in message else sys.exit(str(message["error"]))
        return message

    def watch(self, seconds: float) -> None:
        if select.select([self.sock], [], [], seconds)[0]:
            self.read()

    def call(self, method: str, **params: Any) -> dict:
        self.asked += 1
        self.calls = [{"id": self.asked, "method": method, "params": params}]
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
            self.holding = [delivery["delivery"]]
            answers = [a for a in self.answers if a["id"] in self.holding]
            if not answers:  # else the delivery crossed the repeated answer
                try:
                    answers = [{"id": delivery["delivery"], "result": handle(self, delivery, delivery["data"])}]
                except Refused as refused:
                    answers = [{"id": delivery["delivery"], "error": refused.error}]
                self.answers = (self.answers + answers)[-self.in_flight :]
            self.holding = []
            self.write(*answers)


def handle(channel: Channel, delivery: dict, data: Any) -> Any:
    kind, attempt, mine = delivery["kind"], delivery["attempt"], delivery["delivery"]
    match kind:
        case "echo":
            return data
        case "describe":
            told = ("kind", "from", "attempt", "message", "conversation", "hop")
            return {name: delivery.get(name) for name in told} | RUN
        case "forward":
            return channel.call("send", to=data["to"], kind="echoed", data=data, delivery=mine, key=kind)
        case "question":
            asked = {"to": data["to"], "kind": "echo", "data": data["data"], "delivery": mine, "key": kind}
            return {"answer": channel.call("ask", **asked)["result"]}
        case "fail":
            raise Refused(data["why"])
        case "again" if attempt == 1:
            raise Refused("not yet", retry=True, delay=0)
        case "again":
            return {"attempt": attempt}
        case "progress":
            channel.write({"method": "progress", "params": {"delivery": mine, "note": "half"}})
            return data
        case "hold":
            open(data["started"], "w").close()
            while not os.path.exists(data["until"]):
                channel.watch(0.05)
            return {"invocation": RUN["invocation"], "attempt": attempt}
        case "crash":
            os._exit(7)
    raise Refused(f"unknown kind {kind}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Channel().serve()
