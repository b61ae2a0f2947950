"""Recorded conversations with a keeper: replay and record.

A transcript is a file of JSON lines: ``send`` and ``receive`` are packets, ``connect`` opens a new connection,
``notify`` is a datagram to unit a, ``signal`` goes to the keeper. ``$DIR`` is the runtime directory; what differs
from run to run stands as ``<name>``. ``python -m tests.keeper.transcript FILE`` plays a file's left-hand side again and
writes down what is received now: only for new transcripts, since a recorded one is a promise.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from agentd.keeper import protocol
from tests.keeper.conftest import Client, Keeper

DIRECTORY = Path(__file__).parent / "transcripts"
VOLATILE = {
    "pid",
    "start_time",
    "started",
    "ended",
    "at",
    "now",
    "beat",
    "ready",
    "epoch",
    "version",
    "message",
    "speaks",
}


def play(path: Path, keeper: Keeper) -> list[dict[str, Any]]:
    """Do what the transcript says; the same lines with what was received in truth."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    client: Client | None = None
    for line in lines:
        ((kind, value),) = line.items()
        if kind == "connect":
            client = keeper.connect()
        elif kind == "signal":
            keeper.process.send_signal(value)
        elif kind == "notify":
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(value.encode(), f"{keeper.directory}/n/a")
        elif kind == "send":
            assert client is not None
            protocol.send(client.socket, json.loads(json.dumps(value).replace("$DIR", str(keeper.directory))))
        elif kind == "receive":
            assert client is not None
            line["receive"] = normal(client.packet(), str(keeper.directory))
    return lines


def normal(packet: Any, directory: str) -> Any:
    """A packet without what differs from run to run."""
    if isinstance(packet, dict):
        return {
            name: f"<{name}>" if name in VOLATILE and value is not None else normal(value, directory)
            for name, value in packet.items()
        }
    if isinstance(packet, list):
        return [normal(value, directory) for value in packet]
    if isinstance(packet, str):
        return re.sub(r"(tcp:127\.0\.0\.1):[0-9]+", r"\1:<port>", packet.replace(directory, "$DIR"))
    return packet


def missing(recorded: Any, actual: Any, where: str = "") -> str | None:
    """The first place at which actual does not hold what was recorded; further keys are welcome."""
    if isinstance(recorded, dict) and isinstance(actual, dict):
        for name, value in recorded.items():
            if name not in actual:
                return f"{where}.{name} is missing"
            if found := missing(value, actual[name], f"{where}.{name}"):
                return found
        return None
    if isinstance(recorded, list) and isinstance(actual, list) and len(recorded) == len(actual):
        found = (missing(r, a, f"{where}[{n}]") for n, (r, a) in enumerate(zip(recorded, actual, strict=True)))
        return next(filter(None, found), None)
    return None if recorded == actual else f"{where}: {actual!r} instead of {recorded!r}"


def record(path: Path) -> None:
    """Play and write down."""
    with tempfile.TemporaryDirectory(prefix="ad", dir="/tmp") as directory:
        keeper = Keeper(Path(directory)).start()
        lines = play(path, keeper)
        for client in keeper.clients:
            client.close()
        keeper.process.terminate()
        keeper.process.wait()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        record(Path(name))
