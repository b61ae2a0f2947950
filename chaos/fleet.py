"""A real fleet in a directory of its own: started, asked, stopped, and checked to have left nothing behind.

The demo, the chaos scenarios and the tests stand on this. It speaks the control API and signals, as a person would.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

Json = dict[str, Any]
HERE = Path(__file__).resolve().parent.parent

DRY_RUN = '[[upstream]]\nname = "dry-run"\ndialect = "dry-run"\n'
CONFIG = '[gateway]\nlisten = "127.0.0.1:0"\n\n[metrics]\nlisten = "127.0.0.1:0"\n\n'


class Broken(Exception):
    """A promise that did not hold, or a fleet that does not answer."""


def wait_until(predicate: Callable[[], Any], timeout: float, what: str) -> Any:
    """What predicate() returns as soon as it is true. Raises Broken after timeout seconds."""
    end = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > end:
            raise Broken(f"not within {timeout:g} s: {what}")
        time.sleep(0.005)
    return value


def matches(value: Any, wanted: Any) -> bool:
    """Whether a JSON value has what is wanted; tables are compared by the wanted keys only."""
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(matches(value.get(key), part) for key, part in wanted.items())
    return bool(value == wanted)


class Fleet:
    """One agentd. ``base`` must be short (socket paths hold 107 bytes) and passable for other uids."""

    def __init__(self, base: Path, units: dict[str, str] | None = None, config: str = CONFIG + DRY_RUN) -> None:
        self.base = base
        self.units, self.state, self.runtime = base / "u", base / "s", base / "r"
        self.units.mkdir(exist_ok=True)
        self.units.chmod(0o755)
        for name, text in (units or {}).items():
            (self.units / f"{name}.toml").write_text(text)
        self.config = base / "agentd.toml"
        self.config.write_text(config)
        self.log = base / "agentd.log"
        self.process: subprocess.Popen[bytes] | None = None
        transport = httpx.HTTPTransport(uds=str(self.runtime / "control.sock"))
        self._http = httpx.Client(transport=transport, base_url="http://agentd", timeout=90)

    # --- its life -----------------------------------------------------------------------------------------------------

    def start(self, *, settle: bool = True) -> Fleet:
        """Start it and wait until it answers, and by default until every unit has come to rest."""
        argv = [sys.executable, "-m", "agentd", "--config", str(self.config)]
        argv += ["--units", str(self.units), "--state", str(self.state), "--runtime", str(self.runtime)]
        env = {**os.environ, "PYTHONPATH": ""}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.base, env=env, start_new_session=True
            )
        wait_until(lambda: self.answers() or self._died(), 30, "agentd answers")
        if settle:
            self.settle()
        return self

    def settle(self, timeout: float = 40) -> None:
        """Wait until every unit has been started and none is on its way."""
        try:
            wait_until(self._settled, timeout, "every unit has come to rest")
        except Broken as error:
            raise Broken(f"{error}\n{self.tail()}") from None

    def _settled(self) -> bool:
        status = self.status()
        return not status["agentd"]["starting"] and all(map(_at_rest, status["units"]))

    def _died(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise Broken(f"agentd ended with status {self.process.returncode}: {self.tail()}")
        return False

    def answers(self) -> bool:
        """Whether the control API answers."""
        with socket.socket(socket.AF_UNIX) as trial:  # httpx leaves a socket open where it cannot connect
            trial.settimeout(90)
            try:
                trial.connect(str(self.runtime / "control.sock"))
                trial.sendall(b"GET /v1/status HTTP/1.1\r\nHost: agentd\r\nConnection: close\r\n\r\n")
                return trial.recv(4096).startswith(b"HTTP/1.1 200")
            except OSError:
                return False

    def stop(self) -> None:
        """Ctrl-C, then a check that nothing is left. Raises Broken if something is."""
        process, self.process = self.process, None
        if process is not None:
            pids = self._pids() if process.poll() is None and self.answers() else []
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise Broken(f"agentd did not stop within 40 s:\n{self.tail()}") from None
            finally:
                self._http.close()
            if process.returncode != 0:
                raise Broken(f"agentd ended with status {process.returncode}:\n{self.tail()}")
            if left := [pid for pid in pids if _lives(pid)] or self.left_over():
                raise Broken(f"left behind: {left}")
        self._http.close()

    def left_over(self) -> list[str]:
        """Cgroups of this fleet, and its processes: agents by their sockets, its own by their command lines."""
        name = "agentd-" + hashlib.sha256(os.fsencode(self.runtime.absolute())).hexdigest()[:10]
        found = [f"{path}/{name}" for path, names, _ in os.walk("/sys/fs/cgroup") if name in names]
        runtime = os.fsencode(self.runtime)
        ours = (b"NOTIFY_SOCKET=" + runtime, b"AGENTD_KEEPER=" + runtime, b"AGENTD_CHANNEL=" + runtime)
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and (environ := (entry / "environ").read_bytes()):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    if any(mark in environ for mark in ours) or (b"-m agentd." in command and runtime in command):
                        found.append(f"process {entry.name}: {command.decode(errors='replace')}")
        return found

    def tail(self) -> str:
        """The end of agentd's own log."""
        return self.log.read_text()[-4000:] if self.log.exists() else ""

    def _pids(self) -> list[int]:
        status = self.status()
        return [u["pid"] for u in status["units"] if u["pid"]] + [status["agentd"]["pid"]]

    # --- asking it ----------------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, Json]:
        """One request; status and JSON."""
        answer = self._http.request(method, path, json=body)
        return answer.status_code, answer.json()

    def get(self, path: str) -> Json:
        """A question that must be answered."""
        return self._must("GET", path)

    def post(self, path: str, body: Json | None = None) -> Json:
        """A request that must succeed."""
        return self._must("POST", path, body or {})

    def _must(self, method: str, path: str, body: Json | None = None) -> Json:
        status, answer = self.ask(method, path, body)
        if status != 200:
            raise Broken(f"{method} {path}: {answer}")
        return answer

    def status(self) -> Json:
        """The whole status."""
        return self.get("/v1/status")

    def unit(self, name: str) -> Json:
        """UnitStatus of one unit."""
        found: Json = self.get(f"/v1/status?unit={name}")["units"][0]
        return found

    def wait(self, name: str, timeout: float = 15, **wanted: Any) -> Json:
        """Wait until the unit's status has what is wanted, and return it."""
        last: Json = {}

        def there() -> bool:
            last.update(self.unit(name))
            return matches(last, wanted)

        try:
            wait_until(there, timeout, f"{name} is {wanted}")
        except Broken as error:
            raise Broken(f"{error}; it is {last}\n{self.tail()}") from None
        return last

    def log_of(self, name: str) -> str:
        """What the unit wrote."""
        path = self.state / "log" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def records(self, **wanted: Any) -> list[Json]:
        """Journal records, oldest first, that have what is wanted (``kind`` and ``unit`` narrow the search)."""
        query = "&".join(f"{key}={wanted[key]}" for key in ("unit", "kind") if key in wanted)
        found = self.get(f"/v1/journal?limit=5000&{query}")["records"]
        return [record for record in found if matches({**record.get("detail", {}), **record}, wanted)]

    def kill(self, pid: int, sig: int = signal.SIGKILL) -> float:
        """A signal to a process of this fleet; the moment, in unix seconds."""
        at = time.time()
        os.kill(pid, sig)
        return at

    def kill_daemon(self) -> tuple[int, float]:
        """SIGKILL the daemon and wait until another one answers: its pid, and the moment of the kill."""
        old = self.status()["agentd"]["pid"]
        at = self.kill(old)
        wait_until(lambda: self.answers() and self.status()["agentd"]["pid"] != old, 20, "the daemon is back")
        return int(self.status()["agentd"]["pid"]), at


def examples(base: Path, names: list[str], model: str = "dry-run") -> dict[str, str]:
    """The example units of this repository, with their programs copied to where every uid can read them."""
    agents = base / "agents"
    shutil.copytree(HERE / "agents", agents, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (agents, *agents.rglob("*")):
        path.chmod(0o755)
    texts = {name: (HERE / "units" / f"{name}.toml").read_text() for name in names}
    return {name: _with_model(text, model) for name, text in texts.items()}


def _with_model(text: str, model: str) -> str:
    """A unit file whose program asks this model."""
    setting = f'AGENTD_MODEL = "{model}"'
    if "[agent.env]\n" in text:
        return text.replace("[agent.env]\n", f"[agent.env]\n{setting}\n", 1)
    return text.replace("[agent]\n", f"[agent]\nenv = {{ {setting} }}\n", 1)


def _at_rest(unit: Json) -> bool:
    if unit["system"]:
        return bool(unit["state"] == "running")
    return unit["state"] not in ("starting", "stopping") and unit["reason"] != "never started"


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
