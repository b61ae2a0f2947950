"""What a unit, and another user, cannot do: control agentd, read its secrets, or hold a real API key.

``spy`` is an ordinary unit whose handlers do what an attacker would; ``root`` is the same program run as root, so that
no file permission stands in its way.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from chaos.fleet import CONFIG, Fleet
from tests.fleet import fleet, share_stage
from tests.waiting import wait_until

NOBODY = 65534
FILE_KEY = "sk-real-key-from-a-file-4711"
ENV_KEY = "sk-real-key-from-the-environment-4712"
ENV_NAME = "AGENTD_TEST_REAL_KEY"
SPY = """
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request

from agentd.sdk import Agent, Context

app = Agent()
ASK = b"POST /v1/down HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}"


def status(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
            sock.sendall(ASK)
            return sock.recv(4096).split(b" ")[1].decode()
        except OSError as error:
            return type(error).__name__


def leave_cgroups() -> None:
    for folder, _, files in os.walk("/sys/fs/cgroup"):
        if folder.count("/") < 5 and "cgroup.procs" in files:
            try:
                with open(folder + "/cgroup.procs", "w") as procs:
                    procs.write(str(os.getpid()))
            except OSError:
                pass


@app.on("knock")
def knock(ctx, data: dict) -> str:
    return status(data["path"])


@app.on("knock-as-orphan")
def knock_as_orphan(ctx, data: dict) -> None:
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    while os.getppid() == data["parent"]:
        pass
    if data["leave"]:
        leave_cgroups()
    with open(data["answer"] + ".new", "w") as file:
        file.write(status(data["path"]))
    os.rename(data["answer"] + ".new", data["answer"])
    os._exit(0)


@app.on("read")
def read(ctx, data: dict) -> dict:
    outcome = {}
    for path in data["paths"]:
        try:
            outcome[path] = "open" if os.listdir(path) is not None else ""
        except NotADirectoryError:
            try:
                open(path, "rb").close()
                outcome[path] = "open"
            except OSError as error:
                outcome[path] = type(error).__name__
        except OSError as error:
            outcome[path] = type(error).__name__
    return outcome


@app.on("run")
def run(ctx, data: dict) -> dict:
    done = subprocess.run(data["argv"], capture_output=True, text=True)
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


@app.on("tell")
def tell(ctx, data: dict) -> dict:
    with open("/proc/self/cmdline") as file:
        return {"env": dict(os.environ), "argv": file.read(), "uid": os.getuid(), "pid": os.getpid()}


@app.on("chat")
def chat(ctx, data: dict) -> dict:
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        data=json.dumps({"model": data["model"], "messages": [{"role": "user", "content": "hi"}]}).encode(),
        headers={"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


app.run()
"""
DEAF = """
import ctypes, os, sys
for right in (19, 21, 38):  # CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON
    assert ctypes.CDLL(None).prctl(24, right, 0, 0, 0) == 0  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a program that has all of root's rights but those of looking into any process."""
LOOK = """
import sys
for pid in sys.argv[1:]:
    try:
        print(len(open(f"/proc/{pid}/environ", "rb").read()) > 0)
    except OSError as error:
        print(type(error).__name__)
"""
Json = dict[str, Any]


@dataclass
class Provider:
    """A model provider that remembers which key each model was asked with."""

    url: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    def answer(self, headers: dict[str, str], request: Json) -> Json:
        """A chat.completion."""
        self.keys[request["model"]] = headers.get("authorization", "")
        self.seen.append(json.dumps([headers, request]))
        message = {"role": "assistant", "content": "hello"}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return {"id": "x", "object": "chat.completion", "choices": choices, "usage": usage}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A fake OpenAI on a free port."""
    found = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(found.answer({k.lower(): v for k, v in self.headers.items()}, request)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A short directory that other uids may pass."""
    with tempfile.TemporaryDirectory(prefix="ad", dir="/tmp") as name:
        os.chmod(name, 0o711)
        yield Path(name)


@pytest.fixture(scope="module")
def house(base: Path, provider: Provider) -> Iterator[Fleet]:
    """A fleet with spies, whose upstreams have real keys: one in a file, one in agentd's environment."""
    agents = base / "agents"
    agents.mkdir(mode=0o755)
    (agents / "spy.py").write_text(SPY)
    (agents / "spy.py").chmod(0o644)
    (base / "key").write_text(FILE_KEY + "\n")
    (base / "key").chmod(0o600)
    spy = f'[agent]\nexec = ["python", "spy.py"]\nworkdir = "{agents}"\ntype = "notify"\n'
    units = {"spy": spy, "victim": spy}
    if os.geteuid() == 0:
        units["root"] = spy + 'user = "root"\nallow_root = true\n'
    upstream = f'[[upstream]]\ndialect = "openai"\nbase_url = "{provider.url}"\n'
    config = CONFIG + upstream + f'name = "by-file"\nmodels = ["m-file"]\nkey_file = "{base / "key"}"\n'
    config += upstream + f'name = "by-env"\nmodels = ["m-env"]\nkey_env = "{ENV_NAME}"\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_NAME, ENV_KEY)
        with fleet(base, units, config) as running:
            yield running


def ask(house: Fleet, unit: str, kind: str, **data: Any) -> Any:
    """What the unit's handler returns."""
    return house.post("/v1/send", {"to": unit, "kind": kind, "data": data, "wait": 30})["result"]


def control(house: Fleet) -> str:
    """The path of the control socket."""
    return str(house.runtime / "control.sock")


def spies() -> list[str]:
    """The units that can reach the control socket's file."""
    return ["root"] if os.geteuid() == 0 else ["spy"]


# --- the control socket -----------------------------------------------------------------------------------------------


def test_the_control_socket_is_its_owners_alone(house: Fleet) -> None:
    """Mode 0600, the daemon's uid; so are the secrets."""
    for name in ("control.sock", "secret", "etc/bus.password", "etc/nats.conf"):
        found = (house.runtime / name).stat()
        assert stat.S_IMODE(found.st_mode) == 0o600, name
        assert found.st_uid == os.geteuid() or name == "etc/nats.conf", name


def test_a_unit_may_not_control_agentd(house: Fleet) -> None:
    """A unit that reaches the socket is refused with 403, and so is agentctl that it runs; nothing happens."""
    agentctl = [str(Path(sys.executable).parent / "agentctl"), "--socket", control(house), "down", "--json"]
    for unit in spies():
        assert ask(house, unit, "knock", path=control(house)) == "403"
        ran = ask(house, unit, "run", argv=agentctl)
        assert ran["code"] == 1, ran
        assert json.loads(ran["out"])["error"]["code"] == "denied"
    assert house.status()["agentd"]["stopping"] is False


@pytest.mark.parametrize("leave", [False, True])
def test_an_orphan_of_a_unit_may_not_either(house: Fleet, leave: bool) -> None:
    """Double-forked, in a session of its own, its parent dead, as root even out of its cgroup: 403 all the same."""
    for unit in spies():
        pid = house.unit(unit)["pid"]
        answer = house.state / "home" / unit / f"answer-{leave}"
        ask(house, unit, "knock-as-orphan", path=control(house), answer=str(answer), parent=pid, leave=leave)
        wait_until(answer.exists, 10)
        assert answer.read_text() == "403"
    assert house.status()["agentd"]["stopping"] is False


@pytest.mark.root
def test_another_user_may_not_connect(house: Fleet) -> None:
    """The file's mode keeps others out, and if it did not, the peer's uid would."""
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.setgroups([]);"
        f"os.setgid({NOBODY}); os.setuid({NOBODY}); s.connect(sys.argv[1]);"
        "s.sendall(b'GET /v1/status HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n'); print(s.recv(99).split()[1].decode())"
    )

    def try_it() -> tuple[int, str]:
        argv = [sys.executable, "-c", script, control(house)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    code, said = try_it()
    assert code == 1
    assert "PermissionError" in said
    os.chmod(control(house), 0o666)
    try:
        assert try_it() == (0, "403")
    finally:
        os.chmod(control(house), 0o600)
    assert ask(house, "spy", "knock", path=control(house)) == "PermissionError"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_unit_reads_nothing_that_is_not_its_own(house: Fleet) -> None:
    """Neither secrets nor others' homes, messages, logs, ledger, journal, nor another unit's channel."""
    private = ["secret", "etc/bus.password", "etc/nats.conf", "keeper.lock", "keeper"]
    paths = [house.runtime / name for name in private]
    kept = ["home/victim", "log", "log/spy.log", "gateway", "gateway/ledger", "bus", "journal.db", "units.log"]
    paths += [house.state / name for name in (*kept, "units.json")]
    paths += [house.base / "key"]
    assert not [path for path in paths if not path.exists()]
    outcome = ask(house, "spy", "read", paths=[str(path) for path in paths])
    assert outcome == {str(path): "PermissionError" for path in paths}
    own = str(house.state / "home" / "spy")
    assert ask(house, "spy", "read", paths=[own]) == {own: "open"}


@pytest.mark.root
def test_a_unit_reaches_no_other_socket_of_the_house(house: Fleet) -> None:
    """Facts answer only to agentd's own uids, the keeper only to root, a channel only to its unit."""
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, int(sys.argv[2]))\n"
        "s.settimeout(10)\n"
        "try:\n"
        "    s.connect(sys.argv[1])\n"
        "    s.sendall(sys.argv[3].encode() + b'\\n')\n"
        "    print(s.recv(4096).decode() or 'closed')\n"
        "except OSError as error:\n"
        "    print(type(error).__name__)\n"
    )
    hello = {"jsonrpc": "2.0", "id": 1, "method": "hello", "params": {"protocol": 1, "invocation": "0", "holding": []}}
    channel = ask(house, "victim", "tell")["env"]["AGENTD_CHANNEL"]
    tries = [(str(house.runtime / "keeper.sock"), socket.SOCK_SEQPACKET, "{}"), (channel, 1, json.dumps(hello))]
    tries += [(str(house.runtime / "facts" / f"{owner}.sock"), 1, "{}") for owner in ("daemon", "router", "gateway")]
    for path, kind, text in tries:
        ran = ask(house, "spy", "run", argv=["python", "-c", script, path, str(int(kind)), text])
        answer = ran["out"].strip()
        refused = answer in ("closed", "PermissionError", "ConnectionResetError", "BrokenPipeError") or (
            '"error"' in answer and "result" not in answer
        )
        assert ran["code"] == 0, (path, ran)
        assert refused, (path, ran)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_the_upstream_gets_the_real_key_and_the_unit_never_does(house: Fleet, provider: Provider) -> None:
    """The unit calls with its virtual key; upstream the real one stands in its place, and neither meets the other."""
    for model, real in (("m-file", FILE_KEY), ("m-env", ENV_KEY)):
        assert ask(house, "spy", "chat", model=model)["choices"][0]["message"]["content"] == "hello"
        assert provider.keys[model] == f"Bearer {real}"
    told = ask(house, "spy", "tell")
    assert told["env"]["OPENAI_API_KEY"].startswith("agentd.v1.spy.")
    assert told["env"]["OPENAI_API_KEY"] not in "".join(provider.seen)
    everything = json.dumps(told)
    assert FILE_KEY not in everything
    assert ENV_KEY not in everything
    assert ENV_NAME not in everything


def test_no_process_of_the_house_shows_a_real_key(house: Fleet) -> None:
    """No argv has one, no environment but that of agentd itself; nor does any file that it wrote."""
    status = house.status()
    pids = {unit["name"]: unit["pid"] for unit in status["units"]}
    for name, pid in {**pids, "daemon": status["agentd"]["pid"], "keeper": status["agentd"]["keeper_pid"]}.items():
        assert b"sk-real-key" not in Path(f"/proc/{pid}/cmdline").read_bytes(), name
    for name, pid in pids.items() if os.geteuid() == 0 else ():
        assert b"sk-real-key" not in Path(f"/proc/{pid}/environ").read_bytes(), name
    for top in (house.runtime, house.state):
        for path in top.rglob("*"):
            if path.is_file() and "stage" not in path.parts:
                assert b"sk-real-key" not in path.read_bytes(), path
    assert "sk-real-key" not in house.tail()


def test_a_key_is_dead_with_its_invocation_and_cannot_be_made(house: Fleet) -> None:
    """401 for the key of a killed invocation, of a stopped unit, for another unit's name on it, and for a guess."""
    gateway = house.status()["agentd"]["gateway"]

    def call(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.get(f"http://{gateway}/v1/models", headers=headers).status_code

    old = ask(house, "victim", "tell")
    first = old["env"]["OPENAI_API_KEY"]
    assert call(first) == 200
    house.kill(old["pid"])
    house.wait("victim", state="running", restarts=1)
    second = ask(house, "victim", "tell")["env"]["OPENAI_API_KEY"]
    wait_until(lambda: call(first) == 401, 15, "the old key is refused")
    assert call(second) == 200
    assert call(second.replace(".victim.", ".spy.")) == 401
    assert call(second[:-1] + ("0" if second[-1] != "0" else "1")) == 401
    assert [call(""), call("guess")] == [401, 401]
    house.post("/v1/units/victim/stop")
    wait_until(lambda: call(second) == 401, 15, "a stopped unit's key is refused")
    house.post("/v1/units/victim/start")


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_the_gateway_shows_its_memory_to_nobody(house: Fleet) -> None:
    """It has a uid of its own but its /proc files are root's: it is not dumpable."""
    gateway = house.unit("gateway")["pid"]
    uid = int(Path(f"/proc/{gateway}/status").read_text().split("Uid:")[1].split()[0])
    assert uid != 0
    assert os.stat(f"/proc/{gateway}/environ").st_uid == 0
    assert os.stat(f"/proc/{house.unit('spy')['pid']}/environ").st_uid != 0, "an ordinary process is its uid's"


def test_daemon_and_keeper_show_their_memory_to_nobody(short_dir: Path) -> None:
    """Not even to a process of their own uid and rights: it takes a capability that they have not."""
    quiet = Fleet(short_dir, {"a": '[agent]\nexec = ["sleep", "1000"]\n'})
    share_stage(quiet)
    deaf = [sys.executable, "-c", DEAF] if os.geteuid() == 0 else ["/usr/bin/env"]
    argv = [sys.executable, "-m", "agentd", "--config", str(quiet.config), "--units", str(quiet.units)]
    argv += ["--state", str(quiet.state), "--runtime", str(quiet.runtime)]
    with open(quiet.log, "wb") as log, subprocess.Popen([*deaf, "/bin/sleep", "1000"]) as plain:
        quiet.process = subprocess.Popen([*deaf, *argv], stdout=log, stderr=log, cwd=short_dir)
        try:
            wait_until(quiet.answers, 30)
            quiet.settle()
            agentd = quiet.status()["agentd"]
            pids = [plain.pid, agentd["pid"], agentd["keeper_pid"]]
            pids += [quiet.unit("gateway")["pid"]]
            look = subprocess.run(
                [*deaf, sys.executable, "-c", LOOK, *map(str, pids)], stdout=subprocess.PIPE, text=True, check=True
            )
            assert look.stdout.split() == ["True", *["PermissionError"] * 3]
        finally:
            plain.kill()
            quiet.stop()


@pytest.mark.root
def test_a_removed_units_files_are_not_its_successors(short_dir: Path) -> None:
    """A uid whose files are still there is given to nobody else; the same name gets it, and them, again."""
    secret = short_dir / "s" / "home" / "a" / "secret"
    thief = f'[agent]\nexec = ["sh", "-c", "cat {secret}; sleep 1000"]\n'
    owner = f'[agent]\nexec = ["sh", "-c", "test -f secret || echo mine > secret; cat {secret}; sleep 1000"]\n'
    with fleet(short_dir, {"a": owner}) as f:
        wait_until(lambda: "mine" in f.log_of("a"))
        assert f.ask("DELETE", "/v1/units/a")[0] == 200
        f.post("/v1/deploy", {"files": [{"path": str(short_dir / "b.toml"), "text": thief}]})
        wait_until(lambda: "ermission denied" in f.log_of("b"))
        f.post("/v1/deploy", {"files": [{"path": str(short_dir / "a.toml"), "text": owner}]})
        wait_until(lambda: f.log_of("a").count("mine") == 2)
