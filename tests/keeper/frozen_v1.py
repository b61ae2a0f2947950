"""A keeper client of protocol version 1, frozen: written from PROTOCOL.md alone, it imports nothing of agentd.

It must go on working against every later keeper that still speaks version 1. Do not improve it.
"""

import array
import json
import os
import socket


class FrozenClient:
    """Blocking; one request at a time."""

    def __init__(self, path):
        self.events = []
        self._id = 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(10)
        self._sock.connect(path)
        self._send({"hello": 1, "client": "frozen 1"})
        self.welcome = self._receive()
        if self.welcome.get("welcome") != 1:
            raise RuntimeError(f"not version 1: {self.welcome}")

    def ask(self, do, fds=(), **fields):
        """Send a request and return its answer; events that come in between are kept."""
        self._id += 1
        self._send({"id": self._id, "do": do, **fields}, fds)
        while True:
            packet = self._receive()
            if packet.get("answer") == self._id:
                return packet
            self.events.append(packet)

    def event(self, kind):
        """Wait for an event of this kind."""
        while True:
            for event in self.events:
                if event["event"] == kind:
                    self.events.remove(event)
                    return event
            self.events.append(self._receive())

    def close(self):
        """Go away."""
        self._sock.close()

    def _send(self, packet, fds=()):
        text, fds = json.dumps(packet).encode(), list(fds)
        if len(text) > 60000:
            memfd = os.memfd_create("packet")
            with open(os.dup(memfd), "wb") as file:
                file.write(text)
            text, fds = b'{"memfd": true}', [memfd, *fds]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._sock.sendmsg([text], rights)
        if text == b'{"memfd": true}':
            os.close(fds[0])

    def _receive(self):
        text, fds, _, _ = socket.recv_fds(self._sock, 65536, 4)
        if not text:
            raise EOFError
        packet = json.loads(text)
        if packet.get("memfd"):
            with open(fds[0], "rb") as file:
                file.seek(0)
                packet = json.loads(file.read())
        return packet
