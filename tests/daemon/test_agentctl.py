"""agentctl as a person uses it, against the real daemon: from ``up`` to ``down``, plain and with ``--json``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.fleet import CONFIG, DRY_RUN, Fleet
from tests.fleet import share_stage
from tests.waiting import wait_until

AGENTCTL = str(Path(sys.executable).parent / "agentctl")
SLEEPER = '[agent]\nexec = ["sleep", "1000"]\n'
ECHO = """
import os

from agentd.sdk import Agent, Context, Refuse

app = Agent()


@app.on("echo")
async def echo(ctx: Context, data: dict) -> dict:
    print("echo", data, flush=True)
    return {"heard": data, "invocation": os.environ["AGENTD_INVOCATION"]}


@app.on("refuse")
async def refuse(ctx: Context, data: dict) -> None:
    if not os.path.exists(os.path.join(os.environ["AGENTD_STATE_DIR"], "mended")):
        raise Refuse("I will not have this")


app.run()
"""
Json = dict[str, Any]


class Ctl:
    """agentctl with the directories of one fleet; ``fleet`` looks at the same one over HTTP."""

    def __init__(self, base: Path) -> None:
        agents = base / "agents"
        agents.mkdir(mode=0o755)
        (agents / "echo.py").write_text(ECHO)
        (agents / "echo.py").chmod(0o644)
        echo = f'[agent]\nexec = ["python", "echo.py"]\nworkdir = "{agents}"\ntype = "notify"\n'
        echo += '[liveness]\nheartbeat = "2s"\n[restart]\ndelay = "50ms"\n'
        self.fleet = Fleet(base, {"echo": echo, "still": SLEEPER, "other": SLEEPER}, CONFIG + DRY_RUN)
        share_stage(self.fleet)
        self.paths = ["--units", str(self.fleet.units), "--state", str(self.fleet.state)]
        self.paths += ["--runtime", str(self.fleet.runtime), "--config", str(self.fleet.config)]

    def environment(self, **more: str) -> dict[str, str]:
        """The one of the person, who knows the socket by AGENTD_SOCKET."""
        return {**os.environ, "COLUMNS": "120", **more}

    def argv(self, *args: str) -> list[str]:
        """The command line; the socket is named as a person would."""
        first = () if args[0] == "up" else ("--socket", str(self.fleet.runtime / "control.sock"))
        return [AGENTCTL, *first, *args]

    def end(self, *args: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        done = subprocess.run(
            self.argv(*args), capture_output=True, text=True, env=self.environment(), timeout=90, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def __call__(self, *args: str, code: int = 0) -> str:
        """What it printed; it must end with this exit code."""
        ended, out, err = self.end(*args)
        assert ended == code, f"agentctl {args} ended with {ended}:\n{out}\n{err}\n{self.fleet.tail()}"
        return out

    def json(self, *args: str, code: int = 0) -> Json:
        """The same with --json: exactly one JSON object."""
        value = json.loads(self(*_with_json(args), code=code))
        assert isinstance(value, dict)
        return value

    def pid(self, unit: str) -> int:
        """The pid that status tells."""
        return int(self.fleet.wait(unit, state="running")["pid"])


def _with_json(args: tuple[str, ...]) -> list[str]:
    at = args.index("--") if "--" in args else len(args)
    return [*args[:at], "--json", *args[at:]]


@pytest.fixture(scope="module")
def ctl() -> Iterator[Ctl]:
    """A fleet that ``agentctl up`` started; ``agentctl down`` ends it, and nothing is left."""
    base = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))
    base.chmod(0o711)
    ctl = Ctl(base)
    try:
        assert "export AGENTD_SOCKET=" in ctl("up", *ctl.paths)
        yield ctl
        before = ctl.fleet.status()
        pids = [unit["pid"] for unit in before["units"] if unit["pid"]]
        pids += [before["agentd"]["pid"], before["agentd"]["keeper_pid"]]
    finally:
        ctl.fleet.stop()  # only its client: agentd is nobody's child
        down = ctl.end("down", "--json")
    assert (down[0], json.loads(down[1])) == (0, {"stopping": True}), down
    assert not ctl.fleet.left_over()
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}") and _state(pid) != "Z"]
    assert ctl.end("status")[0] == 5
    shutil.rmtree(base)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_up_again_is_harmless_and_says_so(ctl: Ctl) -> None:
    """A second ``up`` finds the running fleet and touches nothing."""
    daemon = ctl.fleet.status()["agentd"]["pid"]
    assert "agentd runs already" in ctl("up", *ctl.paths)
    assert ctl.json("up", *ctl.paths)["agentd"]["pid"] == daemon


def test_status_and_list_show_every_unit(ctl: Ctl) -> None:
    """Each unit with its state; one unit in full; the system's own are there too."""
    names = {"bus", "router", "gateway", "echo", "still", "other"}
    assert all(re.search(rf"\b{name}\b", ctl("status")) for name in names)
    assert names <= {row.split()[0] for row in ctl("list").splitlines()[1:]}
    assert names <= {unit["name"] for unit in ctl.json("status")["units"]}
    assert names <= {unit["name"] for unit in ctl.json("list")["units"]}
    assert str(ctl.pid("echo")) in ctl("status", "echo")
    assert [unit["name"] for unit in ctl.json("status", "echo")["units"]] == ["echo"]


def test_run_starts_a_metered_unit_with_no_file(ctl: Ctl) -> None:
    """``run --budget 50k/day`` gives a unit without a file its budget and its log; ``remove`` forgets it."""
    said = ctl("run", "--name", "job", "--budget", "50k/day", "--", "sh", "-c", "echo first; exec sleep 1000")
    assert "job: running" in said
    assert ctl.fleet.unit("job")["file"] is None
    scope = next(s for s in ctl.json("budget", "show", "job")["scopes"] if s["scope"] == "unit/job")
    assert (scope["limit"], scope["window"]) == (50_000, "day")
    wait_until(lambda: ctl("logs", "job") == "first\n", 15)
    assert ctl("remove", "job") == "job: removed\n"
    ctl("status", "job", code=4)
    made = ctl.json("run", "--name", "job", "--", "sleep", "1000")
    assert made["state"] == "running"
    assert ctl.json("run", "--name", "job", "--", "sleep", "1000", code=1)["error"]["code"] == "conflict"
    assert ctl.json("remove", "job") == {"removed": "job", "files": []}


def test_logs_follow_until_the_reader_leaves(ctl: Ctl) -> None:
    """``logs -f`` prints the last lines, then what comes, also in JSON; Ctrl-C ends it with 130."""
    program = "exec 3<>fifo; echo old; while read -r x <&3; do echo new $x; done"
    ctl("run", "--name", "talker", "--", "sh", "-c", f"cd; mkfifo fifo; {program}")
    fifo = ctl.fleet.state / "home" / "talker" / "fifo"
    wait_until(lambda: ctl("logs", "talker") == "old\n", 15)
    lines = ["old", *(f"new {number}" for number in (1, 2))]
    for flags, wanted in (((), lines[:2]), (("--json",), lines)):
        argv = ctl.argv("logs", "-f", *flags, "talker")
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=ctl.environment()) as follower:
            stop = threading.Timer(20, follower.kill)  # or a follower that does not follow would be waited for for ever
            stop.start()
            assert follower.stdout is not None
            seen = [follower.stdout.readline().rstrip("\n") for _ in wanted[:-1]]
            fifo.write_text(f"{len(wanted) - 1}\n")
            seen.append(follower.stdout.readline().rstrip("\n"))
            follower.send_signal(2)
            assert follower.wait(5) == 130
            stop.cancel()
        assert ([json.loads(text)["line"] for text in seen] if flags else seen) == wanted
    ctl("remove", "talker")


def test_send_and_wait_gives_the_units_answer(ctl: Ctl) -> None:
    """``send --wait`` prints what the handler returned; without it, that the message is stored."""
    assert json.loads(ctl("send", "echo", "echo", '{"n": 1}', "--wait"))["heard"] == {"n": 1}
    answer = ctl.json("send", "echo", "echo", '{"n": 2}', "--wait", "20", "--conversation", "mine")
    assert answer["stored"] is True
    assert answer["result"]["heard"] == {"n": 2}
    assert ctl("send", "echo", "echo", '{"n": 3}').startswith("stored for echo")
    twice = [ctl.json("send", "echo", "echo", "{}", "--id", "only-once")["id"] for _ in range(2)]
    assert twice[0] == twice[1]
    wait_until(lambda: "{'n': 3}" in ctl("logs", "echo"), 15)


def test_kill_restart_stop_start(ctl: Ctl) -> None:
    """Each does what its name says and says the new state; a stopped unit makes ``status`` and ``kill`` end with 3."""
    first = ctl.pid("echo")
    assert ctl("kill", "echo", "--signal", "KILL") == "echo: sent SIGKILL\n"
    killed = ctl.fleet.wait("echo", state="running", last={"text": "killed by SIGKILL"})
    assert killed["pid"] != first
    assert ctl.json("kill", "echo")["name"] == "echo"
    ctl.fleet.wait("echo", state="running", restarts=killed["restarts"] + 1)
    second = ctl.pid("echo")
    assert re.fullmatch(r"echo: running \(pid \d+\)\n", ctl("restart", "echo"))
    assert ctl.json("restart", "echo", "--reason", "because")["pid"] not in (first, second)
    assert ctl("stop", "echo") == "echo: inactive\n"
    assert ctl.json("stop", "echo")["pid"] is None
    assert "inactive" in ctl("status", "echo", code=3)
    assert ctl.json("status", "echo", code=3)["units"][0]["state"] == "inactive"
    assert ctl.json("kill", "echo", code=3)["error"]["code"] == "not_active"
    assert "echo: running" in ctl("start", "echo")
    assert ctl.json("start", "echo")["state"] == "running"
    assert json.loads(ctl("send", "echo", "echo", '{"n": 4}', "--wait"))["heard"] == {"n": 4}


def test_deploy_restarts_what_changed_and_nothing_else(ctl: Ctl, tmp_path: Path) -> None:
    """Only the unit with a changed file gets a new pid; a broken file changes nothing; a new one is started."""
    before = {name: ctl.pid(name) for name in ("echo", "still", "other")}
    still = ctl.fleet.units / "still.toml"
    still.write_text(SLEEPER.replace("1000", "1001"))
    answer = ctl.json("deploy", str(ctl.fleet.units))
    assert answer["restarted"] == ["still"]
    assert sorted(answer["unchanged"]) == ["echo", "other"]
    wait_until(lambda: ctl.fleet.unit("still")["pid"] not in (None, before["still"]), 10)
    assert {name: ctl.pid(name) for name in ("echo", "other")} == {name: before[name] for name in ("echo", "other")}
    assert Path(f"/proc/{ctl.pid('still')}/cmdline").read_bytes() == b"sleep\x001001\0"
    fresh = tmp_path / "fresh.toml"
    fresh.write_text(SLEEPER)
    assert "started" in ctl("deploy", str(fresh))
    ctl.fleet.wait("fresh", state="running")
    kept = ctl.pid("fresh")
    fresh.write_text(SLEEPER + "[limits]\nmemroy = '1G'\n")
    assert "did you mean" in ctl("deploy", str(fresh), code=2).lower()
    assert (ctl.fleet.units / "fresh.toml").read_text() == SLEEPER
    assert ctl.pid("fresh") == kept
    assert ctl("remove", "fresh") == "fresh: removed\n"
    assert not (ctl.fleet.units / "fresh.toml").exists()


def test_check_and_explain(ctl: Ctl, tmp_path: Path) -> None:
    """``check`` ends with 2 and names file, line and key; ``explain`` tells value, source and meaning."""
    said = ctl("check", str(ctl.fleet.units))
    found = ctl.json("check", str(ctl.fleet.units))["findings"]
    if ctl.fleet.unit("echo")["level"] == "cgroup":
        assert found == []
        assert "all well" in said
    else:  # this host's weakness, not the files': told once
        assert {finding["key"] for finding in found} == {"[isolation] level"}
        assert said.count("isolation level rlimit instead of cgroup") == 1
    bad = tmp_path / "bad.toml"
    bad.write_text(SLEEPER + "[budget]\ntokns = '1k/day'\n")
    assert "bad.toml:4" in ctl("check", str(bad), code=2)
    finding = ctl.json("check", str(bad), code=2)["findings"][0]
    assert (finding["line"], finding["severity"]) == (4, "error")
    assert "tokns" in finding["message"]
    told = ctl("explain", "echo")
    assert 'type = "notify"  (from the file; default "simple")' in told
    assert "[budget]" in told
    explained = ctl.json("explain", "echo")
    assert explained["argv"] == ["python", "echo.py"]
    assert explained["level"] in ("cgroup", "rlimit", "none")
    ctl("explain", "nobody", code=4)


def test_a_dead_letter_is_listed_shown_and_replayed(ctl: Ctl) -> None:
    """A refused message waits as a dead letter with its reason; replayed to the mended unit it is done."""
    assert "No dead letters." in ctl("dlq", "list")
    sent = ctl.json("send", "echo", "refuse", '{"why": "test"}')["id"]
    ctl.fleet.wait("echo", inbox={"dead": 1})
    assert "I will not have this" in ctl("dlq", "list")
    letters = ctl.json("dlq", "list", "--unit", "echo")["letters"]
    assert len(letters) == 1
    assert letters[0]["message"] == sent
    ident = letters[0]["id"]
    assert '"why": "test"' in ctl("dlq", "show", ident)
    assert ctl.json("dlq", "show", ident)["data"] == {"why": "test"}
    ctl("dlq", "replay", code=2)
    ctl("dlq", "show", "no-such-letter", code=1)
    home = ctl.fleet.state / "home" / "echo"
    (home / "mended").touch()
    assert ctl.json("dlq", "replay", ident)["replayed"] == [ident]
    ctl.fleet.wait("echo", inbox={"dead": 0, "pending": 0, "held": 0})
    (home / "mended").unlink()
    ctl("send", "echo", "refuse", "{}")
    ctl.fleet.wait("echo", inbox={"dead": 1})
    assert ctl("dlq", "purge", "--unit", "echo") == "purged 1 dead letter\n"
    assert ctl.json("dlq", "list")["letters"] == []


def test_budget_show_raise_reset(ctl: Ctl) -> None:
    """``raise`` adds to this window, ``reset`` begins it anew; both say so and stand in the journal with the actor."""
    assert "unit/still" in ctl("budget", "show")
    assert "tokens used in this day" in ctl("budget", "raise", "still", "50k", "--reason", "a good cause")
    assert ctl.json("budget", "raise", "still", "50k")["raised"] == 100_000
    assert ctl.json("budget", "show", "still")["scopes"][0]["raised"] == 100_000
    assert ctl.json("budget", "reset", "still")["used"] == 0
    ctl("budget", "raise", "still", "many", code=2)
    ctl("budget", "raise", "nobody", "1k", code=4)
    wait_until(lambda: "a good cause" in ctl("journal", "--kind", "budget", "--unit", "still"), 15)


def test_the_journal_tells_who_did_what_and_why(ctl: Ctl) -> None:
    """An operator's act has its actor and the reason that was given."""
    ctl("restart", "other", "--reason", "spring cleaning")
    assert "spring cleaning" in ctl("journal", "--unit", "other")
    records = ctl.json("journal", "--unit", "other", "--since", "1h", "-n", "100")["records"]
    stopped = next(r for r in records if "spring cleaning" in (r["reason"] or ""))
    assert stopped["unit"] == "other"
    assert stopped["actor"]
    ctl("journal", "--since", "sometime", code=2)


def test_doctor_looks_at_this_host(ctl: Ctl) -> None:
    """Every check has a name and a text, and those that fail say what to do."""
    checks = ctl.json("doctor")["checks"]
    assert len(checks) >= 5
    assert all(check["name"] and check["text"] for check in checks)
    assert all(check["hint"] for check in checks if check["ok"] is False)
    assert all(check["name"] in ctl("doctor") for check in checks)


def test_exit_codes_of_bad_requests(ctl: Ctl) -> None:
    """2 usage, 4 no such unit, 5 nobody there, each as a sentence on stderr or as JSON on stdout."""
    for verb in ("start", "stop", "restart", "kill", "remove", "logs"):
        code, out, err = ctl.end(verb, "nobody")
        assert (code, out) == (4, ""), (verb, err)
        assert "nobody" in err
        assert ctl.json(verb, "nobody", code=4)["error"]["code"] == "no_such_unit"
    assert ctl.json("send", "nobody", "x", "{}", code=4)["error"]["code"] == "no_such_unit"
    ctl("send", "echo", "x", "{not json", code=2)
    ctl("no-such-command", code=2)
    assert ctl.json("stop", "router", code=1)["error"]["code"] == "denied"
    away = [AGENTCTL, "--socket", str(ctl.fleet.base / "away.sock"), "status", "--json"]
    done = subprocess.run(away, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (5, "daemon_unreachable")
