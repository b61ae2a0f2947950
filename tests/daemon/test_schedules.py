"""Scheduled units on a real fleet: on time, never two at once, as an operator says, and over the daemon's own death."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from agentd.store.memory import Memory
from tests.fleet import Fleet, fleet
from tests.waiting import wait_until

Json = dict[str, Any]


def unit(schedule: str, script: str = "date +%s.%N", more: str = "", kind: str = "oneshot") -> str:
    """A unit file whose program prints when it runs."""
    return f"[agent]\nexec = ['sh', '-c', '''{script}''']\ntype = '{kind}'\nschedule = {schedule}\n{more}"


def runs(f: Fleet, name: str) -> list[float]:
    """When it ran."""
    return [float(line) for line in f.log_of(name).split()]


def records(f: Fleet, name: str, *kinds: str) -> list[Json]:
    """What the journal says of a unit, of these kinds."""
    found = f.get(f"/v1/journal?unit={name}&limit=1000")["records"]
    return [record for record in found if record["kind"] in kinds]


def next_run(f: Fleet, name: str) -> float:
    """When its next run is, as status says."""
    told = f.unit(name)
    assert told["next"] == told["schedule"]["next"]
    moment: float = told["schedule"]["next"]
    return moment


def gaps(times: Sequence[float]) -> list[float]:
    """The seconds between one and the next."""
    return [b - a for a, b in itertools.pairwise(times)]


def test_a_unit_runs_when_its_schedule_says_so_and_not_with_the_fleet(short_dir: Path) -> None:
    """Every second from one start to the next, whatever the type; each with actor, reason and a chain of its own."""
    units = {"tick": unit('"every 1s"'), "plain": unit('"every 1s"', kind="simple"), "night": unit('"0 3 * * *"')}
    with fleet(short_dir, units) as f:
        wait_until(lambda: min(len(runs(f, "tick")), len(runs(f, "plain"))) >= 3, 15)
        assert all(0.95 < gap < 1.5 for name in ("tick", "plain") for gap in gaps(runs(f, name)))
        starts = records(f, "tick", "unit.starting")
        assert {record["actor"] for record in starts} == {"schedule"}
        assert starts[0]["reason"].startswith("started by schedule: due at 20")
        assert len({record["correlation"] for record in starts}) == len(starts)
        assert f.unit("tick")["schedule"]["runs"] >= 3
        night = f.unit("night")
        assert (night["state"], night["last"], night["schedule"]["text"]) == ("inactive", None, "0 3 * * * UTC")
        assert 0 < next_run(f, "night") - time.time() <= 86400
        assert next_run(f, "night") % 86400 == 3 * 3600
        page = httpx.get(f"http://{f.status()['agentd']['metrics']}/metrics").text
        assert 'agentd_schedule_next_time_seconds{unit="night"}' in page
        assert 'agentd_schedule_runs_total{unit="night"} 0.0' in page
        assert 'agentd_schedule_skipped_in_a_row{unit="tick"} 0.0' in page


def test_a_run_that_is_due_while_the_last_one_goes_on_is_skipped(short_dir: Path) -> None:
    """It is counted and told, three in a row are an alarm; and the next one after the end is run."""
    flag = short_dir / "go"
    script = f"echo 1; while ! test -e {flag}; do sleep 0.05; done"
    with fleet(short_dir, {"slow": unit('"every 1s"', script)}) as f:
        told = f.wait("slow", schedule={"skipped_in_a_row": 3})
        assert f.log_of("slow") == "1\n"
        assert any("its last 3 scheduled runs were skipped" in text for text in told["warnings"])
        skipped = records(f, "slow", "unit.skipped")
        assert {record["actor"] for record in skipped} == {"schedule"}
        assert "skipped, the last one is not over: the unit is running" in skipped[0]["reason"]
        assert skipped[2]["reason"].endswith("(3 in a row)")
        flag.touch()
        told = f.wait("slow", schedule={"skipped_in_a_row": 0, "runs": 2})
        assert not any("scheduled runs" in text for text in told["warnings"])


def test_a_failed_run_is_retried_by_policy_only_and_due_runs_do_not_meddle(short_dir: Path) -> None:
    """Without a policy the failure stays until the next run; with on-failure its back-off goes on, and nothing else."""
    retried = unit('"every 1s"', "exit 3", '[restart]\npolicy = "on-failure"\ndelay = "60s"\nmax_delay = "60s"\n')
    with fleet(short_dir, {"fails": unit('"every 1s"', "exit 3"), "tries": retried}) as f:
        f.wait("fails", state="failed", restarts=0, last={"cause": "failed"}, schedule={"runs": 3, "skipped": 0})
        told = f.wait("tries", state="backoff", schedule={"runs": 1, "skipped_in_a_row": 2})
        assert told["next"] > time.time() - 1
        assert "the unit is backoff" in records(f, "tries", "unit.skipped")[0]["reason"]


def test_an_operators_stop_ends_the_schedule_and_a_start_takes_it_up(short_dir: Path) -> None:
    """Also over the death of the daemon; status says how to go on."""
    with fleet(short_dir, {"tick": unit('"every 1s"'), "night": unit('"@daily"'), "new": unit('"@daily"')}) as f:
        wait_until(lambda: runs(f, "tick"))
        for name in ("tick", "night"):
            told = f.post(f"/v1/units/{name}/stop")
            assert (told["state"], told["schedule"]["armed"], told["next"]) == ("inactive", False, None)
        assert records(f, "tick", "unit.unscheduled")[0]["reason"].startswith("stopped by ")
        count = len(runs(f, "tick"))
        f.kill_daemon()
        f.settle()
        assert [f.unit(name)["schedule"]["armed"] for name in ("tick", "night", "new")] == [False, False, True]
        began = time.time()
        assert f.post("/v1/units/night/start")["last"]["cause"] == "done"
        assert time.time() - began < 5, "it does not wait for its time"
        assert f.unit("night")["schedule"]["armed"]
        assert next_run(f, "night") > time.time()
        assert len(runs(f, "tick")) == count
        again = time.time()
        f.post("/v1/units/tick/start")
        wait_until(lambda: len(runs(f, "tick")) >= count + 3)
        begun = [record["at"] for record in records(f, "tick", "unit.starting") if record["at"] >= again]
        assert all(gap > 0.95 for gap in gaps(begun)), "the second counts from the start by hand"


def test_the_daemon_dies_around_the_due_time_and_each_run_is_made_once(short_dir: Path) -> None:
    """kill -9 at every phase of the second: no run comes early or twice, and none is lost by more than the absence."""
    rng = random.Random(7)
    with fleet(short_dir, {"tick": unit('"every 1s"'), "rare": unit('{ every = "3s", missed = "skip" }')}) as f:
        wait_until(lambda: runs(f, "tick"))
        deadline, killed = time.monotonic() + 8, 0
        while time.monotonic() < deadline:
            due = next_run(f, "tick") if f.unit("tick")["next"] else time.time()
            moment = due + rng.uniform(-0.02, 0.03)
            wait_until(lambda moment=moment: time.time() >= moment)
            f.kill_daemon()
            f.settle()
            killed += 1
        assert killed >= 4
        for name, least in (("tick", 0.6), ("rare", 2.6)):  # as the program saw it, which a busy machine delays
            times = runs(f, name)
            assert all(gap > least for gap in gaps(times)), gaps(times)
            agenda = f.unit(name)["schedule"]
            ended = [r for r in records(f, name, "unit.ended") if "unstarted" not in str(r.get("cause"))]
            assert len({r["invocation"] for r in ended}) >= len(times) - 1
            assert agenda["runs"] + agenda["missed"] + agenda["skipped"] >= len(times) - 1
        assert len(runs(f, "tick")) > killed // 2  # a kill just before the due time moves the run behind the next kill
        count = len(runs(f, "tick"))
        wait_until(lambda: len(runs(f, "tick")) > count, what="it goes on")


def test_what_was_missed_while_agentd_was_down_is_run_once_or_not_at_all(short_dir: Path) -> None:
    """By policy, however many there were; and what is stopped by hand is not stopped for ever."""
    units = {"once": unit('"* * * * *"'), "skip": unit('{ cron = "* * * * *", missed = "skip" }')}
    with fleet(short_dir, units) as f:
        assert all(next_run(f, name) % 60 == 0 for name in units)
    memory = Memory(f.state / "units.log")
    for name, blob in memory.load().items():
        if name in units:
            agenda = blob["schedule"]
            memory.save(name, {**blob, "schedule": {**agenda, "base": time.time() // 60 * 60 - 7200 - 65}})
    memory.close()
    with fleet(short_dir) as f:
        once = f.wait("once", schedule={"runs": 1})["schedule"]
        skip = f.unit("skip")["schedule"]
        assert 120 <= once["missed"] <= 122
        assert (once["skipped"], skip["runs"]) == (0, skip["runs"])
        (started,) = records(f, "once", "unit.starting")
        assert "were missed" in started["reason"]
