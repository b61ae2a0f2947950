"""The router as a program: what it is handed, what it says to its supervisor, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.wire.facts import Client, Facts, Server
from tests.bus.servers import PASSWORD, NatsServer
from tests.waiting import until

_ROUTER = [sys.executable, "-m", "agentd.router.main", "--config"]
_LAUNCH = """
import fcntl, os, sys
facts, secret = int(sys.argv[1]), int(sys.argv[2])
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in (facts, secret)]
for target, fd in zip((3, 4), high):
    os.dup2(fd, target, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="facts:bus")
os.execv(sys.executable, [sys.executable, "-m", "agentd.router.main", "--config", sys.argv[3]])
"""


async def test_handed_over_listener_and_secret(short_dir: Path) -> None:
    """Facts listener and bus password come as descriptors; READY once facts are known, then beats; SIGTERM ends it
    with status 0 and the password stands in no environment or argument."""
    nats = NatsServer(short_dir)
    nats.start()
    (short_dir / "facts").mkdir()
    daemon = Facts("daemon")
    server = Server(daemon, {}, uids=frozenset({os.geteuid()}))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(short_dir / "facts" / "router.sock"))
    listener.listen()
    secret = os.memfd_create("bus")
    os.write(secret, PASSWORD.encode())
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(str(short_dir / "notify"))
    notices.setblocking(False)
    config = short_dir / "router.json"
    bus = {"url": nats.url, "user": "router", "secret": "bus"}
    settings = {"runtime": str(short_dir), "uids": [os.geteuid()], "nats": bus}
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-c", _LAUNCH, str(listener.fileno()), str(secret), str(config)]
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "NOTIFY_SOCKET": str(short_dir / "notify")},
        pass_fds=(listener.fileno(), secret),
    )
    client = Client(short_dir / "facts" / "router.sock", "daemon")
    reading = asyncio.create_task(client.run())
    try:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(15):
            assert await loop.sock_recv(notices, 100) == b"WATCHDOG=1", "it beats, but is not ready without facts"
            await server.start(path=short_dir / "facts" / "daemon.sock")
            while await loop.sock_recv(notices, 100) != b"READY=1":
                pass
        await until(lambda: (client.facts.get("bus") or {}).get("connected"), 10)
        shown = Path(f"/proc/{process.pid}/environ").read_bytes() + Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert PASSWORD.encode() not in shown
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await server.close()
        nats.close()
        listener.close()
        notices.close()
        os.close(secret)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "router.json"),
        ("{}", "runtime: is missing"),
        ('{"runtime": "DIR"}', "nats.url: is missing"),
        ('{"runtime": "DIR", "nats": {"url": "nats://x", "secret": "bus"}}', "nats.secret"),
    ],
)
def test_a_wrong_configuration(short_dir: Path, text: str, said: str) -> None:
    """One clear line and exit status 2; no traceback."""
    config = short_dir / "router.json"
    config.write_text(text.replace("DIR", str(short_dir)))
    done = subprocess.run([*_ROUTER, str(config)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
