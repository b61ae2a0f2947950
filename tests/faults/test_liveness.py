"""The fault matrix, supervision: what stops moving without dying is found, dumped, replaced, or told."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fleet import CONFIG, Fleet, fleet, shared_stage
from tests.waiting import wait_until

SLEEPER = '[agent]\nexec = ["sleep", "1000"]\n'
SDK = """
[agent]
type = "notify"
exec = ["python3", "{base}/agent.py"]
[liveness]
heartbeat = "{heartbeat}"
{more}
[bus]
deadline = "{deadline}"
"""
AGENT = """
import asyncio, time
from agentd.sdk import Agent, Context
app = Agent()

@app.on("*")
async def any(ctx: Context, data: dict) -> str:
    if ctx.message.attempt > 1:
        return "done by the successor"
    if data.get("how") == "block":
        time.sleep(1000)
    if data.get("how") == "wait":
        await asyncio.sleep(1000)
    if data.get("how") == "move":
        for _ in range(12):
            await asyncio.sleep(0.1)
            await ctx.progress("moving")
    return "done"

app.run()
"""


@pytest.fixture(autouse=True, scope="module")
def _one_stage() -> Iterator[None]:
    with shared_stage():
        yield


def _agent(base: Path, heartbeat: str = "1h", deadline: str = "1h", more: str = "") -> str:
    (base / "agent.py").write_text(AGENT)
    (base / "agent.py").chmod(0o644)
    return SDK.format(base=base, heartbeat=heartbeat, deadline=deadline, more=more)


def _shell(script: str, more: str = "") -> str:
    return f"[agent]\nexec = ['sh', '-c', '''{script}''']\n{more}"


def _send(f: Fleet, to: str, data: dict[str, str]) -> dict[str, object]:
    return f.post("/v1/send", {"to": to, "kind": "go", "data": data, "wait": 20})


def _back(f: Fleet, name: str, old: int, at: float) -> float:
    """Seconds from ``at`` until a system unit runs under another pid."""
    wait_until(lambda: (u := f.unit(name))["pid"] not in (None, old) and u["state"] == "running", 10)
    return time.monotonic() - at


@pytest.mark.parametrize("how", ["stop", "block"])
def test_an_agent_that_does_not_beat_is_replaced_and_its_message_goes_on(short_dir: Path, how: str) -> None:
    """SIGSTOP or a blocked loop: hung within the limit, cause hung, and the successor handles its message."""
    with fleet(short_dir, {"a": _agent(short_dir, heartbeat="1s")}) as f:
        before = f.unit("a")
        if how == "stop":
            at = time.monotonic()
            os.kill(before["pid"], signal.SIGSTOP)
        else:
            f.post("/v1/send", {"to": "a", "kind": "go", "data": {"how": "block"}})
            at = time.monotonic()
        after = f.wait("a", state="running", restarts=1)
        assert time.monotonic() - at < 3.5
        assert after["last"]["cause"] == "hung"
        assert "no heartbeat" in after["last"]["text"]
        if how == "block":
            wait_until(lambda: f.unit("a")["inbox"] == {"pending": 0, "held": 0, "dead": 0}, 10)


@pytest.mark.parametrize("by", ["deadline", "progress"])
def test_an_agent_that_beats_and_does_not_move_timed_out(short_dir: Path, by: str) -> None:
    """Beats alone are no progress: the message's deadline or liveness.progress finds it, the attempt counts as timed
    out, and the successor finishes it."""
    unit = _agent(short_dir, deadline="1s") if by == "deadline" else _agent(short_dir, more='progress = "1s"')
    with fleet(short_dir, {"a": unit}) as f:
        assert _send(f, "a", {"how": "move"})["result"] == "done"
        assert _send(f, "a", {"how": "wait"})["result"] == "done by the successor"
        last = f.wait("a", state="running", restarts=1)["last"]
        assert last["cause"] == "timed_out"
        assert ("without result or progress" if by == "deadline" else "no progress on its message") in last["text"]


def test_a_unit_without_a_channel_owes_output(short_dir: Path) -> None:
    """liveness.progress without a channel: as long as it prints it goes on, then it is replaced in time."""
    script = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done; exec sleep 1000"
    with fleet(short_dir, {"a": _shell(script, '[liveness]\nprogress = "1s"\n')}) as f:
        after = f.wait("a", state="running", restarts=1)
        assert "no output for 1" in after["last"]["text"]
        assert 2.3 < after["last"]["ran"] < 4.0


def test_abort_keeps_a_dump_with_the_stacks_and_the_last_words(short_dir: Path) -> None:
    """on_hang = abort: the kernel's view and the program's own traceback stay on disk, and status says where."""
    (short_dir / "stuck.py").write_text(
        "import faulthandler, time\nfaulthandler.enable()\ndef stuck():\n time.sleep(1e4)\nstuck()\n"
    )
    unit = f'[agent]\nexec = ["python3", "{short_dir}/stuck.py"]\n[liveness]\nheartbeat = "1s"\non_hang = "abort"\n'
    with fleet(short_dir, {"a": unit}) as f:
        after = f.wait("a", state="running", restarts=1)
        assert after["last"]["signal"] == "SIGABRT"
        dump = Path(after["dump"])
        assert dump.parent == f.state / "dumps"
        wait_until(lambda: "in stuck" in dump.read_text(), 5)
        text = dump.read_text()
        assert "no heartbeat" in text
        assert "wchan:" in text
        assert dump.stat().st_mode & 0o777 == 0o600


def test_abort_of_what_does_not_answer_ends_in_the_kill(short_dir: Path) -> None:
    """A stopped process does not die of SIGABRT: it is killed three seconds later."""
    unit = _agent(short_dir, heartbeat="500ms", more='on_hang = "abort"')
    with fleet(short_dir, {"a": unit}) as f:
        os.kill(f.unit("a")["pid"], signal.SIGSTOP)
        assert f.wait("a", state="running", restarts=1)["last"]["signal"] == "SIGKILL"
        assert f.records(unit="a", kind="unit.dumped")
        (killed,) = f.records(unit="a", kind="unit.killed")
        assert killed["reason"].startswith("still there 3")


def test_alarm_tells_once_and_touches_nothing(short_dir: Path) -> None:
    """on_hang = alarm: status and one journal record; the process stays, and recovers when it moves again."""
    unit = _agent(short_dir, heartbeat="500ms", more='on_hang = "alarm"')
    with fleet(short_dir, {"a": unit}) as f:
        before = f.unit("a")
        os.kill(before["pid"], signal.SIGSTOP)
        wait_until(lambda: f.unit("a")["alarm"], 5)
        assert f.unit("a")["activity"] == "hung"
        f.kill_daemon()
        wait_until(lambda: f.unit("a")["alarm"], 5)
        os.kill(before["pid"], signal.SIGCONT)
        wait_until(lambda: f.unit("a")["alarm"] is None, 5)
        after = f.unit("a")
        assert (after["pid"], after["restarts"]) == (before["pid"], 0)
        assert len(f.records(unit="a", kind="unit.hung")) == 1
        assert len(f.records(unit="a", kind="unit.recovered")) == 1


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


def test_a_stopped_system_unit_is_found_and_nobody_waits_for_it(short_dir: Path) -> None:
    """SIGSTOP of router, gateway and bus in turn: replaced within 3 s; meanwhile the control API answers."""
    with fleet(short_dir, {"a": SLEEPER, "b": _agent(short_dir)}) as f:
        agents = {name: f.unit(name)["pid"] for name in ("a", "b")}
        for name in ("router", "gateway", "bus"):
            old = f.unit(name)["pid"]
            at = time.monotonic()
            os.kill(old, signal.SIGSTOP)
            slowest = 0.0
            while f.unit(name)["pid"] == old:
                asked = time.monotonic()
                f.status()
                slowest = max(slowest, time.monotonic() - asked)
                assert time.monotonic() - at < 4.0, name
            assert slowest < 0.5, name
            found = f.records(unit=name, kind="unit.stopping")[-1]["at"] - (time.time() - (time.monotonic() - at))
            assert found < 3.2, name
            _back(f, name, old, at)
            assert f.unit(name)["last"]["cause"] == "hung"
        assert {name: f.unit(name)["pid"] for name in agents} == agents
        assert _send(f, "b", {"how": "now"})["result"] == "done"


def test_a_stopped_daemon_is_replaced_and_touches_nobody(short_dir: Path) -> None:
    """SIGSTOP of the daemon: the keeper kills it within 3 s, and the next one adopts all, nobody stale."""
    with fleet(short_dir, {"a": SLEEPER, "b": _agent(short_dir, heartbeat="4s", more='progress = "1s"')}) as f:
        before = {u["name"]: u["pid"] for u in f.status()["units"]}
        daemon = f.status()["agentd"]["pid"]
        at = time.monotonic()
        os.kill(daemon, signal.SIGSTOP)
        wait_until(lambda: not Path(f"/proc/{daemon}").exists(), 5)
        assert time.monotonic() - at < 3.3
        wait_until(lambda: f.answers() and f.status()["agentd"]["pid"] != daemon, 15)
        f.settle()
        assert {u["name"]: u["pid"] for u in f.status()["units"]} == before
        assert "has not been heard for 3 s" in f.tail() or "has not been heard" in f.log.read_text()


CALLER = """
import json, os, socket, urllib.request
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(text, os.environ["NOTIFY_SOCKET"])
tell(b"READY=1")
body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
head = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
urllib.request.urlopen(urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, head))
"""


def test_a_silent_model_call_is_acted_on_and_a_slow_one_is_not(short_dir: Path) -> None:
    """A call silent beyond llm.silence is a hang though nothing new is heard; within it a unit may even miss beats."""
    (short_dir / "caller.py").write_text(CALLER)
    with socket.socket() as model:
        model.bind(("127.0.0.1", 0))
        model.listen(16)
        where = f"http://127.0.0.1:{model.getsockname()[1]}/v1"
        upstream = f'[[upstream]]\nname = "mute"\ndialect = "openai"\nbase_url = "{where}"\nmodels = ["m"]\n'
        unit = f'[agent]\ntype = "notify"\nexec = ["python3", "{short_dir}/caller.py"]\n'
        stuck = f'{unit}[llm]\nsilence = "1s"\n'
        patient = f'{unit}[llm]\nsilence = "1h"\n[liveness]\nheartbeat = "1s"\nprogress = "1s"\n'
        with fleet(short_dir, {"stuck": stuck, "patient": patient}, CONFIG + upstream) as f:
            before = f.wait("patient", activity="thinking")
            last = f.wait("stuck", state="running", restarts=2)["last"]
            assert last["cause"] == "hung"
            assert last["text"].startswith("model call silent for 1")
            assert 1.0 < last["ran"] < 4.0
            assert f.unit("patient")["activity"] == "thinking"
            assert (f.unit("patient")["pid"], f.unit("patient")["restarts"]) == (before["pid"], 0)


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
