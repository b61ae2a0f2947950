"""Commands that ask a unit how it is: beside it, bounded, and gone with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.keeper.conftest import ROOT, Client, Json, Keeper, alive
from tests.waiting import wait_until

WHICH = {"unit": "a", "invocation": "0000000000000001"}
Way = Callable[[Keeper, Json], Json]
ESCAPES = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").write(f"{os.getpid()}\\n")
        time.sleep(1000)
    os._exit(0)
while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read():
    pass
"""


@pytest.fixture
def client(keeper: Keeper, way: Way) -> Client:
    """A keeper with one living unit."""
    client = keeper.client()
    plan = keeper.shell("exec sleep 1000", notify=f"{keeper.directory}/n/a", env={"PATH": os.environ["PATH"]})
    client.done("spawn", plan=way(keeper, plan))
    (keeper.directory / "work").mkdir(exist_ok=True)
    return client


def ask(keeper: Keeper, client: Client, script: str, within: float = 5.0) -> Json:
    """Put the question, and wait for its answer."""
    return client.done("probe", **WHICH, plan=keeper.shell(script), within=within)


def written(path: Path) -> int:
    """The pid in a file, once it is there."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def test_its_exit_and_its_words_are_the_answer(keeper: Keeper, client: Client) -> None:
    """Exit status and the last of both outputs; the unit is not touched by it."""
    assert ask(keeper, client, "true") == {"exit": 0, "late": False, "output": ""}
    assert ask(keeper, client, "echo one; echo two >&2; exit 7") == {"exit": 7, "late": False, "output": "one\ntwo\n"}
    assert ask(keeper, client, "kill -9 $$")["exit"] == -9
    assert not client.events
    assert alive(keeper.client().welcome["processes"][0]["pid"])  # type: ignore[attr-defined]


def test_it_runs_as_its_unit_and_cannot_speak_for_it(keeper: Keeper, client: Client) -> None:
    """The unit's name, invocation and cgroup; no notify socket, whatever the plan says; stdin is empty."""
    plan = keeper.shell("env; cat; sed -n 's/^0::/in /p' /proc/self/cgroup")
    plan["env"] |= {"NOTIFY_SOCKET": "/x", "MINE": "1"}
    plan |= {"uid": 12345, "gid": 12345, "unit": "other", "notify": "/x", "cgroups": []}
    lines = client.done("probe", **WHICH, plan=plan, within=5.0)["output"].splitlines()
    assert {"AGENTD_UNIT=a", "AGENTD_INVOCATION=0000000000000001", "MINE=1"} <= set(lines)
    assert not [line for line in lines if line.startswith("NOTIFY_SOCKET")]
    if keeper.cgroup is not None and "in " in lines[-1] and "agentd-test" in lines[-1]:
        assert lines[-1].endswith(f"{keeper.cgroup.name}/a/probe")


@pytest.mark.skipif(not ROOT, reason="needs a second uid")
def test_it_has_the_ids_and_limits_of_its_unit(keeper: Keeper) -> None:
    """A probe can never do more than its unit."""
    client = keeper.client()
    limit = {"name": "RLIMIT_NOFILE", "soft": 33, "hard": 33}
    client.done("spawn", plan=keeper.shell("exec sleep 1000", uid=65534, gid=65534, rlimits=[limit]))
    expected = ["65534", "33", "NoNewPrivs:", "1"]
    assert ask(keeper, client, "id -u; ulimit -n; grep NoNewPrivs /proc/self/status")["output"].split() == expected


def test_a_late_one_is_killed_with_its_tree(keeper: Keeper, client: Client) -> None:
    """At its time-out, with what it started in sessions of their own; the unit lives on, and the next one runs."""
    file = keeper.directory / "work" / "pid"
    plan = keeper.python(ESCAPES + "\ntime.sleep(1000)", str(file))
    answer = client.done("probe", **WHICH, plan=plan, within=0.5)
    assert (answer["exit"], answer["late"]) == (-signal.SIGKILL, True)
    wait_until(lambda: not alive(written(file)))
    assert ask(keeper, client, "true")["exit"] == 0
    assert not client.events


def test_what_it_leaves_behind_is_killed(keeper: Keeper, client: Client) -> None:
    """One that exits 0 and leaves a process in another session has left nothing."""
    file = keeper.directory / "work" / "pid"
    assert client.done("probe", **WHICH, plan=keeper.python(ESCAPES, str(file)), within=5.0)["exit"] == 0
    wait_until(lambda: not alive(written(file)))


def test_it_does_not_outlive_its_unit(keeper: Keeper, client: Client) -> None:
    """The unit's end is its own, and is told once both are gone."""
    file = keeper.directory / "work" / "pid"
    number = client.start("probe", **WHICH, plan=keeper.shell(f"echo $$ >{file}; sleep 1000; true"), within=60.0)
    pid = written(file)
    client.done("kill", **WHICH)
    assert client.event("ended")["left"] == []
    assert not alive(pid)
    client2 = keeper.client()
    client2.done("release", **WHICH)
    assert number


def test_a_flood_is_bounded(keeper: Keeper, client: Client) -> None:
    """100 MB of output: the last of it is told, and the keeper answers meanwhile."""
    number = client.start(
        "probe", **WHICH, plan=keeper.shell("head -c 100000000 /dev/zero; echo; echo end"), within=30.0
    )
    other = client.start("beats")
    assert "beats" in client.packet()
    answer = client.packet()
    assert (answer["answer"], other) == (number, number + 1)
    assert answer["output"].endswith("\nend\n")
    assert len(answer["output"]) <= 1024


def test_refused_where_it_makes_no_sense(keeper: Keeper, client: Client) -> None:
    """Of an invocation that does not live, a second at once, a time-out that is none; a program that is not there."""
    plan = keeper.shell("true")
    assert client.refused("probe", unit="a", invocation="0", plan=plan, within=1.0)["code"] == "gone"
    assert client.refused("probe", **WHICH, plan=plan, within=0)["code"] == "bad"
    assert client.refused("probe", **WHICH, plan=plan | {"argv": []}, within=1.0)["step"] == "check"
    missing = plan | {"executable": "/nowhere/x"}
    assert client.refused("probe", **WHICH, plan=missing, within=1.0)["step"] == "exec"
    first = client.start("probe", **WHICH, plan=keeper.shell("sleep 0.3"), within=5.0)
    assert client.refused("probe", **WHICH, plan=plan, within=1.0)["code"] == "exists"
    assert client.answer(first)["exit"] == 0


def test_an_upgrade_waits_for_it(keeper: Keeper, client: Client) -> None:
    """The answer is given before the exec; nothing of it is left to a program that does not know it."""
    first = client.start("probe", **WHICH, plan=keeper.shell("sleep 0.3; echo well"), within=5.0)
    client.start("upgrade")
    assert client.answer(first)["output"] == "well\n"
    wait_until(keeper._serves)
    assert ask(keeper, keeper.client(), "true")["exit"] == 0
