"""A whole client of the channel in plain Python, for channel_conformance.py: one thread, standard library."""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path


class Channel:
    """A connection that comes back. `holding` is what we work on; `last` the last result that we wrote."""

    def __init__(self):
        self.holding, self.last, self.calls = [], None, 0
        self.sock, self.buffer, self.queue = None, b"", []
        self.connect()

    def connect(self):
        end = time.monotonic() + 20
        while True:
            self.sock, self.buffer, self.queue = socket.socket(socket.AF_UNIX), b"", []
            try:
                self.sock.connect(os.environ["AGENTD_CHANNEL"])
                break
            except OSError:
                self.sock.close()
                if time.monotonic() > end:
                    sys.exit("the channel is away")
                time.sleep(0.05)
        hello = {"protocol": 1, "invocation": os.environ["AGENTD_INVOCATION"], "holding": self.holding}
        self.write({"id": 0, "method": "hello", "params": hello})
        if self.last is not None and not self.holding:
            self.write(self.last)

    def write(self, value):
        with contextlib.suppress(OSError):  # the next read notices
            self.sock.sendall(json.dumps({"jsonrpc": "2.0", **value}).encode() + b"\n")

    def read(self):
        """The next line, or None if the connection broke: it is a new one then."""
        while b"\n" not in self.buffer:
            try:
                data = self.sock.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                self.sock.close()
                self.connect()
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def call(self, method, params):
        """Repeat a call until it is answered."""
        while True:
            self.calls += 1
            number = self.calls
            self.write({"id": number, "method": method, "params": params})
            while (value := self.read()) is not None:
                if value.get("id") == number and "method" not in value:
                    return value
                if value.get("method") == "deliver":
                    self.queue.append(value)

    def next(self):
        while True:
            if self.queue:
                return self.queue.pop(0)
            value = self.read()
            if value is not None and value.get("method") == "deliver":
                return value

    def idle(self):
        """Notice a broken connection while waiting."""
        if select.select([self.sock], [], [], 0.02)[0] and b"\n" not in self.buffer:
            value = self.read()
            if value is not None and value.get("method") == "deliver":
                self.queue.append(value)


class Refuse(Exception):
    """An answer that is an error."""


def handle(channel, d):  # noqa: C901  one branch per row of the contract
    kind, data, delivery = d["kind"], d["data"], d["delivery"]
    if kind == "echo":
        return data
    if kind == "describe":
        names = ("kind", "from", "attempt", "message", "conversation", "hop")
        return {n: d[n] for n in names} | {
            "invocation": os.environ["AGENTD_INVOCATION"],
            "unit": os.environ["AGENTD_UNIT"],
        }
    if kind == "forward":
        params = {"to": data["to"], "kind": "echoed", "data": data, "delivery": delivery, "key": "forward"}
        answer = channel.call("send", params)
        if "error" in answer:
            raise Refuse(answer["error"]["message"], {"retry": False})
        return answer["result"]
    if kind == "question":
        params = {"to": data["to"], "kind": "echo", "data": data["data"], "delivery": delivery, "key": "question"}
        answer = channel.call("ask", params)
        if "error" in answer:
            raise Refuse(answer["error"]["message"], {"retry": False})
        return {"answer": answer["result"]["result"]}
    if kind == "fail":
        raise Refuse(data["why"], {"retry": False})
    if kind == "again":
        if d["attempt"] == 1:
            raise Refuse("again", {"retry": True, "delay": 0})
        return {"attempt": d["attempt"]}
    if kind == "progress":
        channel.write({"method": "progress", "params": {"delivery": delivery, "note": "half"}})
        return data
    if kind == "hold":
        Path(data["started"]).touch()
        while not Path(data["until"]).exists():
            channel.idle()
        return {"invocation": os.environ["AGENTD_INVOCATION"], "attempt": d["attempt"]}
    if kind == "crash":
        os._exit(7)
    raise Refuse(f"no handler for {kind}", {"retry": False})


def main():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    channel = Channel()
    while True:
        d = channel.next()["params"]
        channel.holding = [d["delivery"]]
        try:
            answer = {"id": d["delivery"], "result": handle(channel, d)}
        except Refuse as e:
            answer = {"id": d["delivery"], "error": {"code": -32000, "message": e.args[0], "data": e.args[1]}}
        channel.last, channel.holding = answer, []
        channel.write(answer)


main()
