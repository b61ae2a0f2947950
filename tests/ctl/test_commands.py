"""agentctl as a person meets it: a process with arguments, output and an exit code."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ctl.conftest import Agentctl
from tests.ctl.stand_in import StandIn

ONE = {"name": "writer", "state": "running", "pid": 4711, "reason": "started by root"}


def test_status_shows_the_fleet(daemon: StandIn, agentctl: Agentctl) -> None:
    """The first screen, without colour into a pipe."""
    done = agentctl("status")
    assert done.returncode == 0
    assert done.stdout.startswith("agentd 0.1.0   2 of 7 units running   gateway 127.0.0.1:4180")
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_json_is_the_answer_untouched(daemon: StandIn, agentctl: Agentctl) -> None:
    """--json prints the bytes of the API."""
    assert agentctl("status", "--json").stdout == json.dumps(daemon.answers["GET /v1/status"][1]) + "\n"


@pytest.mark.parametrize(
    ("unit", "code"), [("writer", 0), ("nightly", 3), ("runaway", 3), ("reviewer", 3), ("nobody", 4)]
)
def test_status_of_one_unit_tells_by_its_exit_code(daemon: StandIn, agentctl: Agentctl, unit: str, code: int) -> None:
    """0 active, 3 not active, 4 no such unit: with and without --json."""
    daemon.answers[f"GET /v1/units/{unit}/logs?lines=5&follow=0"] = (200, [b"last words\n"])
    plain = agentctl("status", unit)
    assert plain.returncode == code
    assert agentctl("status", unit, "--json").returncode == code
    if code != 4:
        assert plain.stdout.startswith(unit)
        assert "last words" in plain.stdout


def test_status_does_not_need_the_log(daemon: StandIn, agentctl: Agentctl) -> None:
    """A log that cannot be read takes nothing else away."""
    done = agentctl("status", "writer")
    assert done.returncode == 0
    assert "pid 48812" in done.stdout
    assert "cannot be read" in done.stdout


def test_list_is_one_line_for_each_unit(daemon: StandIn, agentctl: Agentctl) -> None:
    """Into a pipe nothing is cut, whatever the width."""
    done = agentctl("list", COLUMNS="40")
    lines = done.stdout.splitlines()
    assert len(lines) == 11
    assert lines[5].split() == [
        "poisoned-reader",
        "parked",
        "notify",
        "cgroup",
        "/etc/agentd/units/poisoned-reader.toml",
    ]


@pytest.mark.parametrize(
    "command", ["status", "list", "down", "dlq list", "budget show", "journal", "logs x", "stop x"]
)
def test_no_daemon_is_exit_code_5_and_says_how_to_start(agentctl: Agentctl, command: str) -> None:
    """Without a daemon each command says so, and `agentctl up`."""
    done = agentctl(*command.split())
    assert done.returncode == 5
    assert done.stderr.startswith("agentctl: no daemon answers at ")
    assert "\n  Start it with `agentctl up`" in done.stderr


def test_errors_are_json_on_stdout_with_json(agentctl: Agentctl) -> None:
    """A program that reads --json never has to read prose; the exit code is the same."""
    done = agentctl("status", "--json")
    assert done.returncode == 5
    assert json.loads(done.stdout)["error"]["code"] == "daemon_unreachable"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["stat"], "Did you mean"),
        (["stop"], "missing argument"),
        (["status", "--jsn"], "no such option: --jsn"),
        (["send", "writer", "draft", "{topic:"], "is not JSON"),
        (["send", "writer", "draft", "hello"], "'\"hello\"'"),
        (["kill", "writer", "-s", "SIGNOPE"], "is no signal"),
        (["budget", "raise", "writer", "lots"], "is not a number of tokens"),
        (["dlq", "purge"], "which letters?"),
        (["journal", "--since", "yesterday"], "is not a duration"),
        (["run", "--name", "x", "--env", "FOO", "--", "true"], "is not KEY=VALUE"),
        (["run", "--name", "x"], "missing argument 'CMD'"),
        (["deploy", "/nowhere/x.toml"], "No such file"),
        (["status", "--socket", "x"], "agentctl --socket PATH status"),
        (["--socket", "/tmp/" + "x" * 120, "status"], "at most 107 bytes"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_helps(daemon: StandIn, agentctl: Agentctl, args: list[str], said: str) -> None:
    """What is wrong and what to do, on stderr; the daemon hears nothing."""
    done = agentctl(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.startswith("agentctl: ")
    assert daemon.requests == []


def test_help_is_not_a_mistake(agentctl: Agentctl) -> None:
    """`agentctl`, `agentctl --help`, a group alone and a command's --help print to stdout and exit 0."""
    for args in ([], ["--help"], ["dlq"], ["budget", "--help"], ["run", "--help"], ["--version"]):
        done = agentctl(*args)
        assert (done.returncode, done.stderr) == (0, ""), args
        assert "agentctl" in done.stdout


def test_start_stop_restart_kill_remove_ask_for_just_that(daemon: StandIn, agentctl: Agentctl) -> None:
    """Each is one request of the API, with the reason for the journal; several units are several requests."""
    for verb in ("start", "restart", "kill"):
        daemon.answers[f"POST /v1/units/writer/{verb}"] = (200, ONE)
    stopped = {"name": "writer", "state": "inactive", "pid": None, "reason": "stopped by root"}
    daemon.answers["POST /v1/units/writer/stop"] = (200, stopped)
    daemon.answers["POST /v1/units/coder@2/stop"] = (200, stopped | {"name": "coder@2"})
    daemon.answers["DELETE /v1/units/writer"] = (200, {})
    assert agentctl("start", "writer", "--wait", "2.5").stdout == "writer: running (pid 4711)\n"
    assert daemon.last.body == {"wait": 2.5}
    assert (
        agentctl("stop", "writer", "coder@2", "--reason", "night\nover ä").stdout.split("\n")[1] == "coder@2: inactive"
    )
    assert daemon.last.reason is not None
    assert daemon.last.reason.encode("latin-1").decode() == "night over ä"
    assert agentctl("kill", "writer", "-s", "15").stdout == "writer: sent SIGTERM\n"
    assert daemon.last.body == {"signal": "SIGTERM"}
    assert agentctl("restart", "writer", "--json").stdout == json.dumps(ONE) + "\n"
    assert agentctl("remove", "writer").stdout == "writer: removed\n"
    assert daemon.last.method == "DELETE"


def test_a_start_that_did_not_come_up_is_exit_code_1(daemon: StandIn, agentctl: Agentctl) -> None:
    """The answer came, but the unit rests: the reason is printed and the exit code says failed."""
    answer = {"name": "writer", "state": "backoff", "pid": None, "reason": "it exited with status 1"}
    daemon.answers["POST /v1/units/writer/start"] = (200, answer)
    done = agentctl("start", "writer")
    assert done.returncode == 1
    assert done.stdout == "writer: backoff: it exited with status 1\n"


def test_run_sends_what_was_said_and_nothing_else(daemon: StandIn, agentctl: Agentctl, tmp_path: Path) -> None:
    """Settings that were not named stay out, so that the unit table's defaults hold; options of CMD are CMD's."""
    daemon.answers["POST /v1/run"] = (200, ONE)
    agentctl("run", "--name", "x", "--", "sleep", "60", "--json", "--wait")
    assert daemon.last.body == {"name": "x", "unit": {"agent": {"exec": ["sleep", "60", "--json", "--wait"]}}}
    agentctl("run", "-n", "x", "--budget", "50k/day", "--memory", "1G", "-e", "A=b=c", "--", "./run.sh", "-n")
    unit = daemon.last.body["unit"]
    assert unit == {
        "agent": {"exec": [str(Path.cwd() / "run.sh"), "-n"], "env": {"A": "b=c"}},
        "limits": {"memory": "1G"},
        "budget": {"tokens": "50k/day"},
    }


def test_send_stores_or_waits(daemon: StandIn, agentctl: Agentctl) -> None:
    """Without --wait the id; with it, with or without a time, the result."""
    daemon.answers["POST /v1/send"] = (200, {"id": "01JD", "stored": True, "result": {"ok": "ä"}})
    assert agentctl("send", "writer", "draft", '{"a": 1}').stdout == "stored for writer (message 01JD)\n"
    assert daemon.last.body == {"to": "writer", "kind": "draft", "data": {"a": 1}}
    assert json.loads(agentctl("send", "writer", "draft", "null", "--wait").stdout) == {"ok": "ä"}
    assert daemon.last.body == {"to": "writer", "kind": "draft", "data": None, "wait": 60}
    agentctl("send", "writer", "--wait", "1.5", "draft", "-", "--conversation", "c1", "--id", "m1", stdin="[2]")
    assert daemon.last.body == {
        "to": "writer",
        "kind": "draft",
        "data": [2],
        "wait": 1.5,
        "conversation": "c1",
        "id": "m1",
    }


def test_errors_of_the_daemon_keep_their_code_and_hint(daemon: StandIn, agentctl: Agentctl) -> None:
    """An error crosses the socket with its exit code, message and hint."""
    error = {
        "code": "full",
        "message": "writer: its inbox holds 10000 messages.",
        "hint": "Wait, or raise bus.inbox_max.",
    }
    daemon.answers["POST /v1/send"] = (429, {"error": error})
    done = agentctl("send", "writer", "draft", "{}")
    assert done.returncode == 1
    assert done.stderr == f"agentctl: {error['message']}\n  {error['hint']}\n"
    assert json.loads(agentctl("send", "writer", "draft", "{}", "--json").stdout) == {"error": error}


LETTER = {
    "id": "D1",
    "unit": "writer",
    "message": "01JD",
    "kind": "draft",
    "from": "researcher",
    "reason": "crashed its reader 3 times",
    "attempts": 3,
    "at": 1_792_548_000.0,
    "exits": [],
}


def test_dead_letters_are_listed_shown_replayed_and_purged(daemon: StandIn, agentctl: Agentctl) -> None:
    """Each subcommand is its request; nothing named is never everything."""
    daemon.answers |= {
        "GET /v1/dlq": (200, {"letters": [LETTER]}),
        "GET /v1/dlq?unit=quiet": (200, {"letters": []}),
        "GET /v1/dlq/D1": (200, {**LETTER, "data": {"text": "boom \x1b[2J"}}),
        "POST /v1/dlq/replay": (200, {"replayed": ["D1"]}),
        "POST /v1/dlq/purge": (200, {"purged": 2}),
    }
    listed = agentctl("dlq", "list").stdout
    assert listed.splitlines()[1].split()[:5] == ["D1", "writer", "draft", "researcher", "3"]
    assert "crashed its reader 3 times" in listed
    assert agentctl("dlq", "list", "--unit", "quiet").stdout == "No dead letters.\n"
    assert '"text": "boom \\u001b[2J"' in agentctl("dlq", "show", "D1").stdout
    assert agentctl("dlq", "replay", "D1", "--to", "writer2").stdout == "replayed 1 dead letter\n"
    assert daemon.last.body == {"ids": ["D1"], "to": "writer2"}
    assert agentctl("dlq", "purge", "--unit", "writer").stdout == "purged 2 dead letters\n"
    assert daemon.last.body == {"unit": "writer"}
    assert agentctl("dlq", "replay", "--all").returncode == 0
    assert daemon.last.body == {}


def test_budgets_are_shown_raised_and_reset(daemon: StandIn, agentctl: Agentctl) -> None:
    """Amounts are read and written as people do: 50k."""
    scope = {"scope": "unit/runaway", "used": 50_000, "held": 0, "limit": 50_000, "raised": 50_000, "window": "day"}
    daemon.answers |= {
        "GET /v1/budget": (200, {"scopes": [scope]}),
        "POST /v1/budget/runaway/raise": (200, scope),
        "POST /v1/budget/runaway/reset": (200, scope | {"used": 0}),
    }
    row = agentctl("budget", "show").stdout.splitlines()[1].split()
    assert row == ["unit/runaway", "50k", "0", "50k", "50k", "50k", "day", "-"]
    raised = agentctl("budget", "raise", "runaway", "50k", "--reason", "a big day")
    assert raised.stdout == "runaway: 50k of 100k tokens used in this day\n"
    assert daemon.last.body == {"tokens": 50_000}
    assert daemon.last.reason == "a big day"
    assert agentctl("budget", "reset", "runaway").stdout.startswith("runaway: 0 of 100k")


def test_logs_into_a_pipe_are_the_bytes_as_they_are(daemon: StandIn, agentctl: Agentctl) -> None:
    """Bytes are for programs; only a terminal is protected. --json wraps each line."""
    daemon.answers["GET /v1/units/writer/logs?lines=2&follow=0"] = (200, [b"one \x1b[31mred\x1b[0m\nt", b"wo\n"])
    assert agentctl("logs", "writer", "-n", "2").stdout == "one \x1b[31mred\x1b[0m\ntwo\n"


def test_logs_as_json_keep_the_fields_of_json_lines(daemon: StandIn, agentctl: Agentctl) -> None:
    """--json prints one object a line: the API's, and the fields of a line that is itself a JSON object."""
    told = [
        {"at": 5.25, "unit": "writer", "line": '{"event": "ready", "n": 1, "odd": "\\ud800"}'},
        {"at": None, "unit": "writer", "line": "{not json}", "dropped": 7},
    ]
    text = "".join(json.dumps(line) + "\n" for line in told).encode()
    daemon.answers["GET /v1/units/writer/logs?lines=2&follow=0&json=1"] = (200, [text[:30], text[30:]])
    lines = [json.loads(x) for x in agentctl("logs", "writer", "-n", "2", "--json").stdout.splitlines()]
    assert lines == [{**told[0], "fields": {"event": "ready", "n": 1, "odd": "\ud800"}}, told[1]]


def test_logs_are_filtered_line_by_line(daemon: StandIn, agentctl: Agentctl) -> None:
    """--grep prints whole lines that match with all their bytes, over the borders of chunks; all of them by default."""
    answer = (200, [b"one\ntw", b"o \xff\nthree\nlast two"])
    daemon.answers["GET /v1/units/writer/logs?lines=10000000&follow=0"] = answer
    command = [sys.executable, "-m", "agentd.ctl.main", "--socket", str(daemon.path), "logs", "writer"]
    done = subprocess.run([*command, "--grep", "\ufffd|l.*two"], capture_output=True, timeout=30)
    assert done.stdout == b"two \xff\nlast two"
    assert "not a regular expression" in agentctl("logs", "writer", "--grep", "(").stderr


def test_logs_of_several_units_are_merged_by_time(daemon: StandIn, agentctl: Agentctl) -> None:
    """Each line carries its unit, and with -t its time; lines without one stay behind the line before."""
    for unit, ats in (("writer", (1.0, None, 4.0)), ("reviewer", (2.0, 3.0, None))):
        told = [json.dumps({"at": at, "unit": unit, "line": f"{unit[0]}{n}"}) + "\n" for n, at in enumerate(ats)]
        daemon.answers[f"GET /v1/units/{unit}/logs?lines=100&follow=0&json=1"] = (200, ["".join(told).encode()])
    shown = agentctl("logs", "writer", "reviewer").stdout.splitlines()
    assert [text.split()[1] for text in shown] == ["w0", "w1", "r0", "r1", "r2", "w2"]
    assert [text.split()[0] for text in shown[1:3]] == ["writer", "reviewer"]
    timed = agentctl("logs", "-t", "writer", "reviewer").stdout.splitlines()
    assert timed[0].split()[2:] == ["writer", "w0"]
    assert timed[0][19:23] == ".000"


def test_logs_of_a_span_of_time(daemon: StandIn, agentctl: Agentctl) -> None:
    """--since and --until reach the API as unix seconds; what is no moment, or runs backwards, is told."""
    query = "lines=10000000&follow=0&since=100.5&until=200.0"
    daemon.answers[f"GET /v1/units/writer/logs?{query}"] = (200, [b"in the span\n"])
    assert agentctl("logs", "writer", "--since", "@100.5", "--until", "@200").stdout == "in the span\n"
    assert "yesterday 03:14" in agentctl("logs", "writer", "--since", "soon").stderr
    assert "earlier" in agentctl("logs", "writer", "--since", "@9", "--until", "@8").stderr
    assert "--follow" in agentctl("logs", "writer", "-f", "--until", "@8").stderr


def test_journal_tells_when_what_who_and_why(daemon: StandIn, agentctl: Agentctl) -> None:
    """Records with their reasons; the options are the query."""
    record = {"id": 1, "at": 1.0, "kind": "unit.started", "unit": "writer", "actor": "root", "reason": "deploy"}
    daemon.answers["GET /v1/journal?unit=writer&kind=unit.started&limit=5"] = (200, {"records": [record]})
    done = agentctl("journal", "--unit", "writer", "--kind", "unit.started", "-n", "5")
    assert done.stdout.splitlines()[1].split()[2:] == ["writer", "unit.started", "root", "deploy"]


def test_a_weakness_of_the_host_is_told_once_for_all_files(daemon: StandIn, agentctl: Agentctl, tmp_path: Path) -> None:
    """The same warning of two files is one line; a warning that has a line, and every error, stands for itself."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text("")
    files = [str(tmp_path / f"{name}.toml") for name in ("a", "b")]
    common = {"unit": "a", "line": None, "key": "isolation", "hint": None, "severity": "warning"}
    weak = [{**common, "file": file, "message": f"{file}: isolation: no cgroup"} for file in files]
    wrong = [{**common, "file": file, "message": f"{file}: exec: no", "severity": "error"} for file in files]
    daemon.answers["POST /v1/check"] = (200, {"findings": [*weak, *wrong]})
    done = agentctl("check", *files)
    lines = done.stdout.splitlines()
    assert done.returncode == 2
    assert lines[2:] == ["warning  2 files: isolation: no cgroup", "2 files, 2 errors, 1 warning"]
    assert [text.split(":")[0].split("/")[-1] for text in lines[:2]] == ["a.toml", "b.toml"]


def test_doctor_says_what_to_mend(daemon: StandIn, agentctl: Agentctl) -> None:
    """Missing is exit code 1 with the mend beneath; all well is 0."""
    well = {"name": "bus", "ok": True, "text": "nats-server 2.15.1", "hint": "unused"}
    bad = {"name": "cgroup", "ok": False, "text": "not writable", "hint": "Run as root."}
    daemon.answers["GET /v1/doctor"] = (200, {"checks": [well, bad]})
    done = agentctl("doctor")
    assert done.returncode == 1
    assert [text.split() for text in done.stdout.splitlines()[1:]] == [
        ["bus", "ok", "nats-server", "2.15.1"],
        ["cgroup", "missing", "not", "writable"],
        ["Run", "as", "root."],
    ]
    daemon.answers["GET /v1/doctor"] = (200, {"checks": [well]})
    assert agentctl("doctor").returncode == 0


def test_doctor_without_daemon_looks_itself(agentctl: Agentctl) -> None:
    """When nothing runs, doctor is wanted most: it checks what it can and exits 5."""
    done = agentctl("doctor", "--json")
    assert done.returncode == 5
    names = [check["name"] for check in json.loads(done.stdout)["checks"]]
    assert names[0] == "daemon"
    assert {"python", "nats-server", "cgroups"} <= set(names)


def test_head_does_not_hurt(daemon: StandIn, short_dir: Path) -> None:
    """A reader that has seen enough ends agentctl quietly."""
    daemon.answers["GET /v1/units/writer/logs?lines=100&follow=0"] = (200, [b"x" * 70_000 + b"\n"] * 20)
    command = [sys.executable, "-m", "agentd.ctl.main", "--socket", str(daemon.path), "logs", "writer"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(10) == 141
        assert process.stderr.read() == b""


def _accept_and_close(listener: socket.socket) -> None:
    listener.accept()[0].close()


def test_a_socket_that_is_no_agentd_is_said_so(agentctl: Agentctl, short_dir: Path) -> None:
    """Something else listens there, or a daemon that dies at once: no traceback, exit code 5."""
    import threading

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "control.sock"))
        listener.listen()
        thread = threading.Thread(target=_accept_and_close, args=(listener,))
        thread.start()
        done = agentctl("status")
        thread.join()
    assert done.returncode == 5
    assert "broke the connection off" in done.stderr
