"""A hang that a probe finds, and what a unit asks for over notify; others are rows of the fault matrix (MATRIX.md)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fleet import fleet, shared_stage
from tests.waiting import wait_until


@pytest.fixture(autouse=True, scope="module")
def _one_stage() -> Iterator[None]:
    with shared_stage():
        yield


def test_a_probe_that_fails_is_a_hang(short_dir: Path) -> None:
    """The unit's own port stops answering: it is replaced, and the probe is named as the reason."""
    (short_dir / "web.py").write_text(
        "import http.server, os, threading\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "  bad = False\n"
        "  def do_GET(self):\n"
        "    if self.path == '/break': H.bad = True\n"
        "    self.send_response(500 if H.bad else 200); self.end_headers()\n"
        "s = http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H)\n"
        "s.serve_forever()\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    probe = f'probe = {{ http = "http://127.0.0.1:{port}/", interval = "100ms", failures = 2 }}'
    program = f'[agent]\nexec = ["python3", "{short_dir}/web.py"]\nstart_timeout = "1s"\n'
    unit = f'{program}env = {{ PORT = "{port}" }}\n[liveness]\n{probe}\n'
    with fleet(short_dir, {"a": unit}) as f:

        def up() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(up, 10)
        first = f.unit("a")["pid"]
        httpx.get(f"http://127.0.0.1:{port}/break", trust_env=False)
        after = f.wait("a", state="running", restarts=1)
        assert after["pid"] != first
        assert after["last"]["text"].startswith("its probe failed 2 times: it answered 500")


ASKER = """
import os, socket, sys, time
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(text, os.environ["NOTIFY_SOCKET"])
tell(b"EXTEND_TIMEOUT_USEC=10000000")
time.sleep(1.5)
tell(b"READY=1")
if os.path.exists("again"):
    time.sleep(1000)
open("again", "w").close()
tell(b"WATCHDOG=1\\nWATCHDOG_USEC=300000")
if len(sys.argv) > 1:
    tell(b"WATCHDOG=trigger")
time.sleep(1000)
"""


@pytest.mark.parametrize("more", ["", ', "trigger"'])
def test_what_a_unit_asks_for_over_notify_is_done(short_dir: Path, more: str) -> None:
    """EXTEND_TIMEOUT_USEC outlives start_timeout, WATCHDOG_USEC shortens the heartbeat, WATCHDOG=trigger is a hang."""
    (short_dir / "asker.py").write_text(ASKER)
    unit = f'[agent]\ntype = "notify"\nstart_timeout = "1s"\nexec = ["python3", "{short_dir}/asker.py"{more}]\n'
    with fleet(short_dir, {"a": f'{unit}[liveness]\nheartbeat = "1h"\n'}) as f:
        last = f.wait("a", state="running", restarts=1)["last"]
        assert last["cause"] == "hung"
        wanted = "it called for help" if more else "no heartbeat for 0.3s"
        assert last["text"].startswith(wanted)
        assert any("more to start" in record["reason"] for record in f.records(unit="a", kind="unit.extended"))
