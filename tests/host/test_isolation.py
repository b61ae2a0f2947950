"""Plans executed by a real keeper: ids, limits and usage as the kernel sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.host import usage
from agentd.host.compile import compile as compile_unit
from agentd.host.keeper import Keeper
from agentd.host.place import Place
from agentd.keeper.plan import Process
from agentd.model.unit import Unit
from tests.waiting import until

INVOCATION = "00000000000000a1"
WriteUnit = Callable[..., Unit]
REPORT = """
import json, os, resource, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "cwd": os.getcwd(),
    "umask": status["Umask"].strip(), "nnp": status["NoNewPrivs"].strip(), "caps": status["CapEff"].strip(),
    "core": resource.getrlimit(resource.RLIMIT_CORE), "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "env": sorted(os.environ), "sdk": __import__("agentd.sdk").__file__,
}))
"""
HOG = "import sys\nkept = bytearray(128 << 20)\nkept[::4096] = b'x' * (128 << 8)\n"
BOMB = """
import os, sys, time
count = 0
try:
    while count < 200:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        count += 1
except BlockingIOError:
    print("refused at", count, flush=True)
time.sleep(60)
"""


async def ended(keeper: Keeper) -> Process:
    async with asyncio.timeout(10):
        while (event := await keeper.events.get())["event"] != "ended":
            pass
    process = event["process"]
    assert isinstance(process, Process)
    return process


async def spawn(keeper: Keeper, place: Place, unit: Unit) -> Process:
    compiled = compile_unit(unit, INVOCATION, place)
    process, _ = await keeper.spawn(compiled.plan, compiled.fds)
    return process


async def said(place: Place, unit: str) -> str:
    log = place.log(unit)
    await until(lambda: log.exists() and log.read_text().endswith("\n"), 10, f"output of {unit}")
    return log.read_text()


async def test_an_agent_is_what_its_plan_says(keeper: Keeper, place: Place, write_unit: WriteUnit) -> None:
    """A Python agent runs as its uid, in its home, with our SDK, without privileges, core files or stray variables."""
    unit = write_unit("a", "python", "-c", REPORT, limits={"open_files": 128})
    plan = compile_unit(unit, INVOCATION, place).plan
    await spawn(keeper, place, unit)
    assert (await ended(keeper)).exit == 0
    seen = json.loads(await said(place, "a"))
    if plan.uid is not None:
        assert seen["uid"] == [plan.uid] * 3
        assert seen["gid"] == [plan.gid] * 3
        assert seen["groups"] == []
        assert int(seen["caps"], 16) == 0
    assert (seen["cwd"], seen["umask"], seen["nnp"]) == (str(place.home("a")), "0077", "1")
    assert (seen["core"], seen["files"]) == ([0, 0], [128, 128])
    assert set(seen["env"]) - {"LC_CTYPE", "AGENTD_RUNTIME"} == set(plan.env)
    await keeper.forget("a")


@pytest.mark.root
async def test_a_private_log_and_a_private_home(keeper: Keeper, place: Place, write_unit: WriteUnit) -> None:
    """One agent can read neither the log nor the home of another."""
    await spawn(keeper, place, write_unit("a", "sh", "-c", "echo secret; echo secret > $HOME/file"))
    await ended(keeper)
    await said(place, "a")
    script = f"cat {place.log('a')} {place.home('a')}/file 2>/dev/null; echo nothing"
    await spawn(keeper, place, write_unit("b", "sh", "-c", script))
    await ended(keeper)
    assert await said(place, "b") == "nothing\n"
    assert place.log("a").stat().st_mode & 0o077 == 0
    assert place.log("a").stat().st_uid == 0
    for unit in ("a", "b"):
        await keeper.forget(unit)


async def test_a_hog_is_killed_at_its_limit(keeper: Keeper, place: Place, write_unit: WriteUnit) -> None:
    """128M under a limit of 64M: SIGKILL by the kernel, counted as such, while a neighbour lives on."""
    if not place.capabilities.cgroup:
        pytest.skip(place.capabilities.why_not)
    neighbour = await spawn(keeper, place, write_unit("b", "sleep", "60", limits={"memory": "64M"}))
    before = usage.read("b", neighbour.pid, "cgroup", place.capabilities)
    await spawn(keeper, place, write_unit("a", "python", "-c", HOG, limits={"memory": "64M"}))
    process = await ended(keeper)
    assert (process.unit, process.exit) == ("a", -9)
    assert usage.read("a", None, "cgroup", place.capabilities).oom_kills >= 1
    after = usage.read("b", neighbour.pid, "cgroup", place.capabilities)
    assert (after.oom_kills, after.processes) == (before.oom_kills, 1) == (0, 1)
    await keeper.kill("b", INVOCATION)
    await ended(keeper)
    for unit in ("a", "b"):
        await keeper.forget(unit)


async def test_a_limit_can_be_raised_and_lowered(keeper: Keeper, place: Place, write_unit: WriteUnit) -> None:
    """The next invocation has the new limits although its cgroup was kept."""
    if not place.capabilities.cgroup:
        pytest.skip(place.capabilities.why_not)
    for number, limits in enumerate(({"memory": "64M", "cpu": 0.5}, {"memory": "1G"}, {"memory": "64M"})):
        compiled = compile_unit(write_unit("a", "true", limits=limits), f"{number:016x}", place)
        await keeper.spawn(compiled.plan)
        await ended(keeper)
        for group in compiled.plan.cgroups:
            for name, value in dict(group.settings).items():
                assert (Path(group.path) / name).read_text().strip() == value
    await keeper.forget("a")


async def test_a_fork_bomb_is_refused_and_dies_as_one(keeper: Keeper, place: Place, write_unit: WriteUnit) -> None:
    """fork fails at limits.pids; usage counts every process; killing the unit leaves none."""
    if not place.capabilities.cgroup:
        pytest.skip(place.capabilities.why_not)
    process = await spawn(keeper, place, write_unit("a", "python", "-c", BOMB, limits={"pids": 20}))
    assert await said(place, "a") == "refused at 19\n"
    seen = usage.read("a", process.pid, "cgroup", place.capabilities)
    assert seen.processes == 20
    assert seen.memory is not None
    assert 0 < seen.memory < 256 << 20
    assert seen.cpu_seconds is not None
    assert seen.cpu_seconds > 0
    await keeper.kill("a", INVOCATION)
    assert (await ended(keeper)).exit == -9
    assert usage.read("a", None, "cgroup", place.capabilities).processes == 0
    await keeper.forget("a")
    assert usage.read("a", None, "cgroup", place.capabilities).memory is None


async def test_usage_without_cgroups_is_the_tree(keeper: Keeper, place: Place, write_unit: WriteUnit) -> None:
    """At level rlimit usage sums main process and children; a dead pid uses nothing."""
    unit = write_unit("a", "sh", "-c", "sleep 60 & sleep 60 & echo up; wait", isolation={"level": "rlimit"})
    process = await spawn(keeper, place, unit)
    await said(place, "a")
    seen = usage.read("a", process.pid, "rlimit", place.capabilities)
    assert seen.processes == 3
    assert seen.memory is not None
    assert seen.memory > 0
    await keeper.kill("a", INVOCATION)
    await ended(keeper)
    assert usage.read("a", process.pid, "rlimit", place.capabilities) == usage.Usage()
    assert usage.read("a", None, "none", place.capabilities) == usage.Usage()
    await keeper.forget("a")
