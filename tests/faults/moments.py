"""The five moments at which a fault strikes, on a real fleet with a real (and slow) model provider.

I: the unit is idle · M: it holds a message, no model call · S: its model call streams · H: the hold is written, the
provider has not answered yet · P: the unit is being spawned (``starting``) or stopped (``stopping``).

One fleet serves a file: ``house`` starts it with a unit for each test. Knows how to bring a unit into a moment, and how
to see that it came through one unharmed; the faults are the tests' own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from chaos.fleet import CONFIG, Fleet
from tests.faults.upstream import Upstream, upstream
from tests.fleet import share_stage
from tests.waiting import wait_until

Json = dict[str, Any]
HERE = Path(__file__).parent
BUSY = {"M": "hold", "S": "call", "H": "call"}
MODELS = {"S": "slow", "H": "late"}
UNTOUCHED = ("pid", "invocation", "restarts", "failures")


def each(moments: str, message: str = "", ledger: str = "") -> Callable[..., Any]:
    """Parametrize a test by moment: each is a unit cell of the matrix (the row is the file), and those named others."""

    def cells(moment: str) -> list[pytest.MarkDecorator]:
        columns = {"unit": moments, "message": message, "ledger": ledger}
        return [pytest.mark.cell(column, moment) for column, proven in columns.items() if moment in proven]

    return pytest.mark.parametrize("moment", [pytest.param(m, id=m, marks=cells(m)) for m in moments])


def agent(*args: str, more: str = "", agent: str = "") -> str:
    """A unit file of agent.py."""
    return _unit("agent.py", args, more, agent)


def slow(*args: str, more: str = "", agent: str = "") -> str:
    """A unit file of slow.py: it is starting until it is let through the gate."""
    return _unit("slow.py", args, more, agent)


def sleeper(more: str = "", agent: str = "") -> str:
    """A unit that speaks to nobody."""
    return f'[agent]\nexec = ["sleep", "1000"]\n{agent}\n{more}\n'


def shell(script: str, more: str = "", agent: str = "") -> str:
    """A unit that is a shell script."""
    return f"[agent]\nexec = ['sh', '-c', '''{script}''']\n{agent}\n{more}\n"


def _unit(program: str, args: tuple[str, ...], more: str, agent: str) -> str:
    argv = ", ".join(f'"{word}"' for word in ("python3", f"{{BASE}}/{program}", *args))
    return f'[agent]\ntype = "notify"\nexec = [{argv}]\n{agent}\n{more}\n'


class House:
    """A running fleet, its provider, and what its units remember."""

    def __init__(self, fleet: Fleet, provider: Upstream) -> None:
        self.fleet, self.provider = fleet, provider

    # --- into a moment ------------------------------------------------------------------------------------------------

    def bring(self, name: str, moment: str, **data: Any) -> Json:
        """Bring a unit into I, M, S or H; its status then."""
        fleet = self.fleet
        if moment == "I":
            return fleet.wait(name, state="running", ready=True, activity="idle", holding=None)
        calls, begun = len(self.provider.calls.get(name, ())), len(self.remembered(name, "attempts"))
        fleet.wait(name, state="running", ready=True)
        body = {"model": MODELS.get(moment), **data}
        fleet.post("/v1/send", {"to": name, "kind": BUSY[moment], "data": body})
        wait_until(lambda: len(self.remembered(name, "attempts")) > begun, 10, f"{name} has begun")
        if moment == "M":
            return fleet.wait(name, activity="working", holding={"kind": "hold"})
        call = self.provider.call(name, calls)
        if moment == "S":
            wait_until(lambda: len(call.said) >= 2, 5, "the model streams")
        return fleet.wait(name, activity="thinking", holding={"kind": "call"}, call={"model": MODELS[moment]})

    def starting(self, name: str) -> Json:
        """Moment P: a slow unit is starting; its status. Its process is there, and not ready."""
        if self.fleet.unit(name)["state"] not in ("starting", "running"):
            self.fleet.post(f"/v1/units/{name}/start", {"wait": 0})
        now = self.fleet.wait(name, state="starting")
        wait_until(lambda: now["invocation"] in self.remembered(name, "starts"), 10)
        return self.fleet.wait(name, state="starting", invocation=now["invocation"])

    def stopping(self, name: str) -> Json:
        """Moment P: a deaf unit was asked to stop and is still there."""
        self.let_in(name)
        asked = len(self.remembered(name, "asked"))
        self.fleet.post(f"/v1/units/{name}/stop", {"wait": 0})
        wait_until(lambda: len(self.remembered(name, "asked")) > asked, 5, "it was asked")
        return self.fleet.wait(name, state="stopping")

    def let_in(self, name: str) -> Json:
        """Let a slow unit through its gate: it runs."""
        self.write(name, "gate")
        return self.fleet.wait(name, state="running", ready=True)

    # --- out of it ----------------------------------------------------------------------------------------------------

    def finish(self, name: str, moment: str) -> None:
        """Let what the unit does come to its end: it was done once, in whole, by the one that began it."""
        if moment == "I":
            return
        done = len(self.remembered(name, "done"))
        if moment == "M":
            self.write(name, "go")
            said = "held"
        else:
            said = self.provider.finish(name)
        wait_until(lambda: len(self.remembered(name, "done")) > done, 10, f"{name} is done")
        assert self.remembered(name, "done")[done:] == [said]
        self.fleet.wait(name, holding=None, inbox={"pending": 0, "held": 0, "dead": 0})
        assert self.remembered(name, "attempts") == ["1"]

    def untouched(self, name: str, before: Json) -> Json:
        """The very same process of the same invocation, with nothing counted; its status."""
        now = self.fleet.unit(name)
        assert {key: now[key] for key in UNTOUCHED} == {key: before[key] for key in UNTOUCHED}
        return now

    # --- what units remember ------------------------------------------------------------------------------------------

    def home(self, name: str) -> Path:
        """The unit's home directory."""
        return self.fleet.state / "home" / name

    def remembered(self, name: str, what: str) -> list[str]:
        """The words in a file of the unit's home."""
        path = self.home(name) / what
        return path.read_text().split() if path.exists() else []

    def write(self, name: str, what: str, text: str = "") -> None:
        """Make a file in the unit's home, at once as a whole."""
        fresh = self.home(name) / f".{what}"
        fresh.write_text(text)
        fresh.chmod(0o644)
        fresh.rename(self.home(name) / what)

    def kinds(self, name: str, invocation: str | None = None) -> list[str]:
        """What the journal says of a unit, without ``unit.``; of one invocation where it is named."""
        found = self.fleet.records(unit=name, **({"invocation": invocation} if invocation else {}))
        return [record["kind"].removeprefix("unit.") for record in found]


class Apart(Fleet):
    """A fleet as under systemd: the keeper is a service of its own, without a slot, so it restarts no daemon."""

    def start(self, *, settle: bool = True) -> Fleet:
        self.runtime.mkdir(mode=0o711, exist_ok=True)
        self.state.mkdir(mode=0o711, exist_ok=True)
        argv = [sys.executable, "-m", "agentd.keeper.main", "--runtime", str(self.runtime)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=HERE.parents[1])
        wait_until((self.runtime / "keeper.sock").exists, 10)
        self.start_daemon()
        if settle:
            self.settle()
        return self

    def start_daemon(self) -> None:
        """What systemctl start agentd does."""
        argv = [sys.executable, "-m", "agentd.main", "--config", str(self.config)]
        argv += ["--units", str(self.units), "--state", str(self.state), "--runtime", str(self.runtime)]
        with open(self.log, "ab") as log:
            self.daemon = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=HERE.parents[1])
        wait_until(lambda: self.answers() or self.daemon.poll() is not None, 20)
        assert self.daemon.poll() is None, self.tail()

    def _pids(self) -> list[int]:
        return [pid for pid in super()._pids() if pid != self.daemon.pid]

    def left_over(self) -> list[str]:
        """The daemon is a child of ours: reaped first. It has stopped everything, and ends by itself."""
        self.daemon.wait(10)
        return super().left_over()


@contextmanager
def house(
    units: Mapping[str, str],
    kind: type[Fleet] = Fleet,
    ground: Callable[[Path], AbstractContextManager[object]] | None = None,
) -> Iterator[House]:
    """A running fleet with these units. Leaving the block stops it, and fails if it left anything behind.

    ``ground`` prepares its directory before the start, and clears it after the end.
    """
    base = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))
    base.chmod(0o711)
    try:
        for program in ("agent.py", "slow.py"):
            shutil.copy(HERE / program, base)
            (base / program).chmod(0o644)
        texts = {name: text.replace("{BASE}", str(base)) for name, text in units.items()}
        with upstream() as provider:
            models = (
                f'[[upstream]]\nname = "m"\ndialect = "openai"\nbase_url = "{provider.url}"\nmodels = ["slow", "late"]'
            )
            running = kind(base, texts, f"{CONFIG}{models}\n")
            share_stage(running)
            with ground(base) if ground is not None else nullcontext():
                try:
                    running.start(settle=False)
                    made = House(running, provider)
                    calm(made)
                    yield made
                finally:
                    provider.end()
                    running.stop()
    finally:
        shutil.rmtree(base)


def calm(made: House) -> None:
    """Wait until every unit has come to rest, apart from slow ones that are at their gate."""

    def rests(unit: Json) -> bool:
        at_gate = unit["state"] == "starting" and bool(made.remembered(unit["name"], "starts"))
        gone = unit["state"] in ("starting", "stopping") or unit["reason"] == "never started"
        return at_gate or not gone

    def all_rest() -> bool:
        status = made.fleet.status()
        return all(map(rests, status["units"])) and not status["agentd"]["starting"]

    wait_until(all_rest, 40, "every unit has come to rest")


def gone(pid: int) -> bool:
    """It is dead; a zombie whose new parent takes its time is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def stop_process(pid: int) -> None:
    """SIGSTOP it, and wait until it stands still."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: gone(pid) or _state(pid) == "T", 5, "it stands still")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def pids(fleet: Fleet) -> dict[str, int]:
    """The pid of each unit."""
    return {unit["name"]: unit["pid"] for unit in fleet.status()["units"]}
