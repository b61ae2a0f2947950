"""requires, binds_to, strategies and the parallel start on a real fleet; what an operator says wins each time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fleet import CONFIG, DRY_RUN, Fleet, fleet
from tests.waiting import wait_until

Json = dict[str, Any]


def unit(exec_: Iterable[str] = ("sleep", "1000"), agent: str = "", restart: str = "") -> str:
    """A unit file."""
    argv = ", ".join(f"'''{word}'''" for word in exec_)
    return f"[agent]\nexec = [{argv}]\n{agent}\n[restart]\n{restart}\n"


def fails_if(flag: Path) -> tuple[str, str, str]:
    """A program that exits 3 while this file is there, and else runs."""
    return ("sh", "-c", f"test -e {flag} && exit 3; exec sleep 1000")


def pids(f: Fleet, *names: str) -> list[int]:
    """The pids of these units, which all run."""
    return [f.wait(name, state="running")["pid"] for name in names]


def kinds(f: Fleet, name: str) -> list[str]:
    """What the journal says of a unit."""
    return [record["kind"] for record in f.get(f"/v1/journal?unit={name}&limit=1000")["records"]]


# --- requires -------------------------------------------------------------------------------------------------------


def test_a_transient_unit_is_verified_like_a_file(short_dir: Path) -> None:
    """A relation that can never hold is refused before anything is changed."""
    with fleet(short_dir) as f:
        for other in ("nobody", "me"):
            body = {"name": "me", "unit": {"agent": {"exec": ["sleep", "9"], "requires": [other]}}}
            status, answer = f.ask("POST", "/v1/run", body)
            assert (status, answer["error"]["code"]) == (400, "unit_file_error")
            assert "[agent] requires" in answer["error"]["message"]
        assert f.ask("GET", "/v1/status?unit=me")[0] == 404


def test_what_is_required_is_started_too_and_waited_for(short_dir: Path) -> None:
    """An operator's start of the last one brings up the chain, each once the one before is ready, under one id."""
    units = {
        "c": unit(agent='requires = ["b"]'),
        "b": unit(agent='requires = ["a"]'),
        "a": unit(),
    }
    with fleet(short_dir, units) as f:
        f.post("/v1/units/a/stop")
        assert [f.wait(name, state="inactive")["state"] for name in "abc"] == ["inactive"] * 3
        began = time.time()
        assert f.post("/v1/units/c/start")["state"] == "running"
        a, b, c = (f.unit(name) for name in "abc")
        assert a["started"] <= b["started"] <= c["started"]
        wait_until(lambda: kinds(f, "c")[-1] == "unit.running")
        since = f.get(f"/v1/journal?since={began}")["records"]
        starts = [record for record in since if record["kind"] == "unit.starting"]
        assert [record["unit"] for record in starts] == ["a", "b", "c"]
        assert len({record["correlation"] for record in starts}) == 1
        assert "c requires it" in starts[0]["reason"]


def test_a_required_unit_that_cannot_start_keeps_its_dependant_down_and_says_why(short_dir: Path) -> None:
    """The dependant is not started, its status and the journal name the culprit; mended, it comes up by itself."""
    flag = short_dir / "broken"
    flag.touch()
    migrate = unit(("sh", "-c", f"test -e {flag} && exit 3; exit 0"), agent='type = "oneshot"')
    with fleet(short_dir, {"db": migrate, "app": unit(agent='requires = ["db"]')}) as f:
        assert f.wait("db", state="failed")
        app = f.wait("app", state="inactive", waits=True)
        assert app["reason"] == "does not start: it requires db, which is failed: exited 3: not restarted by policy"
        assert f.post("/v1/units/app/start", {"wait": 30})["reason"] == app["reason"]
        wait_until(lambda: any(r["reason"] == app["reason"] for r in f.records(unit="app", kind="unit.waiting")))
        assert "unit.starting" not in kinds(f, "app")
        flag.unlink()
        assert f.post("/v1/units/db/start")["last"]["cause"] == "done"
        assert f.wait("app", state="running")["restarts"] == 0


def test_a_required_unit_that_the_operator_stops_takes_its_dependants_along_in_order(short_dir: Path) -> None:
    """Dependants first, for good, under the operator's name; a start of the required one alone brings none back."""
    slow = ("sh", "-c", "trap 'sleep 0.4; exit 0' TERM; while :; do sleep 0.05; done")
    units = {"db": unit(), "app": unit(slow, agent='requires = ["db"]'), "other": unit()}
    with fleet(short_dir, units) as f:
        pids(f, "db", "app")
        other = f.unit("other")["pid"]
        assert f.post("/v1/units/db/stop")["state"] == "inactive"
        app = f.unit("app")
        assert (app["state"], app["last"]["cause"]) == ("inactive", "stopped")
        assert "db, which it requires, is stopped" in app["reason"]
        assert app["last"]["at"] <= f.unit("db")["last"]["at"]
        assert f.post("/v1/units/db/start")["state"] == "running"
        assert f.unit("app")["state"] == "inactive"
        assert f.unit("other")["pid"] == other


NEWS = """
from agentd.sdk import Agent

app = Agent()

@app.on_unit_changed
async def news(unit: str, state: str) -> None:
    app.status(f"{unit} is {state}")

app.run()
"""


def test_a_degraded_unit_is_told_on_its_channel(short_dir: Path) -> None:
    """The SDK's hook hears of the required unit's death and return, and at a start how it is."""
    program = short_dir / "news.py"
    program.write_text(NEWS)
    program.chmod(0o644)
    app = unit(("python", str(program)), agent='type = "notify"\nrequires = ["db"]')
    with fleet(short_dir, {"db": unit(restart="burst = 1"), "app": app}) as f:
        told = f.wait("app", state="running", status="db is ready")
        f.kill(f.unit("db")["pid"])
        f.wait("app", status="db is gone", degraded=["db"])
        f.post("/v1/units/db/start")
        assert f.wait("app", status="db is ready", degraded=[])["pid"] == told["pid"]


def test_one_request_is_one_chain_in_the_journal(short_dir: Path) -> None:
    """A deploy of three units, an operator's kill: all that follows is found under the id of the request."""
    names = ("x", "y", "z")
    texts = {name: unit(agent='requires = ["x"]' if name != "x" else "") for name in names}
    with fleet(short_dir) as f:
        files = [{"path": str(short_dir / f"{name}.toml"), "text": text} for name, text in texts.items()]
        deployed = f._http.post("/v1/deploy", json={"files": files})
        chain = deployed.headers["X-Agentd-Correlation"]
        pids(f, *names)

        def led_to(chain: str) -> list[tuple[str | None, str]]:
            found = f.get(f"/v1/journal?correlation={chain}")["records"]
            return [(record["unit"], record["kind"]) for record in found]

        wait_until(lambda: {("z", "unit.running"), (None, "fleet.deployed")} <= set(led_to(chain)))
        assert {unit for unit, kind in led_to(chain) if kind == "unit.running"} == set(names)
        killed = f._http.post("/v1/units/x/kill", json={"signal": "SIGKILL"}).headers["X-Agentd-Correlation"]
        assert killed != chain
        wait_until(lambda: ("x", "unit.running") in led_to(killed))
        kinds_of_x = [kind for unit, kind in led_to(killed) if unit == "x"]
        assert kinds_of_x == ["unit.signalled", "unit.ended", "unit.starting", "unit.running"]
        assert {("y", "unit.degraded"), ("z", "unit.degraded")} <= set(led_to(killed))


def test_a_required_unit_that_dies_degrades_its_dependant_until_it_is_back(short_dir: Path) -> None:
    """The dependant goes on; status, journal and metric say what it lacks, once, and that it is over."""
    units = {"db": unit(restart="burst = 1"), "app": unit(agent='requires = ["db"]')}
    with fleet(short_dir, units) as f:
        db, app = pids(f, "db", "app")
        f.kill(db)
        f.wait("db", state="parked")
        seen = f.wait("app", state="running", degraded=["db"], pid=app)
        assert any("db, which is parked" in warning for warning in seen["warnings"])
        f.kill_daemon()
        assert f.wait("app", state="running", degraded=["db"])["pid"] == app
        assert 'agentd_unit_degraded{unit="app"} 1.0' in scrape(f)
        assert f.post("/v1/units/db/start")["state"] == "running"
        assert f.wait("app", degraded=[], pid=app)["warnings"] == []
        assert 'agentd_unit_degraded{unit="app"} 0.0' in scrape(f)
        wait_until(lambda: kinds(f, "app")[-1] == "unit.restored")
        told = [kind for kind in kinds(f, "app") if kind in ("unit.degraded", "unit.restored")]
        assert told == ["unit.degraded", "unit.restored"]
        degraded, restored = f.records(unit="app", kind="unit.degraded")[0], f.records(kind="unit.restored")[0]
        died = f.records(unit="db", kind="unit.ended")[0]
        assert degraded["correlation"] == died["correlation"]
        assert restored["correlation"] == f.records(unit="db", kind="unit.starting")[-1]["correlation"]


def test_a_unit_is_not_restarted_before_what_it_requires(short_dir: Path) -> None:
    """A crash while the required one is down: it waits instead of burning its restarts, and then comes."""
    flag = short_dir / "broken"
    units = {"db": unit(fails_if(flag), restart='policy = "never"'), "app": unit(agent='requires = ["db"]')}
    with fleet(short_dir, units) as f:
        db, app = pids(f, "db", "app")
        flag.touch()
        f.kill(db)
        f.wait("db", state="failed")
        f.kill(app)
        assert "requires db" in f.wait("app", state="inactive", waits=True)["reason"]
        flag.unlink()
        f.post("/v1/units/db/start")
        assert f.wait("app", state="running")["pid"] != app


# --- binds_to and strategies ----------------------------------------------------------------------------------------


def group(strategy: str) -> dict[str, str]:
    """base ← left, right; left ← leaf: one group. ``left`` has the strategy, ``apart`` is none of theirs."""
    return {
        "base": unit(),
        "left": unit(agent='binds_to = ["base"]', restart=f'strategy = "{strategy}"'),
        "leaf": unit(agent='binds_to = ["left"]'),
        "right": unit(agent='binds_to = ["base"]'),
        "apart": unit(),
    }


NAMES = ("base", "left", "leaf", "right", "apart")
RESTARTED = {
    "one_for_one": {"left", "leaf"},
    "rest_for_one": {"left", "leaf"},
    "one_for_all": {"base", "left", "leaf", "right"},
}


@pytest.mark.parametrize("strategy", RESTARTED)
def test_a_strategy_restarts_whom_it_names_in_order(short_dir: Path, strategy: str) -> None:
    """One of the group is killed: exactly those named run anew, after those that they depend on; one chain in all."""
    with fleet(short_dir, group(strategy)) as f:
        before = dict(zip(NAMES, pids(f, *NAMES), strict=True))
        f.kill(before["left"])
        named = RESTARTED[strategy]
        for name in named:
            wait_until(lambda name=name: f.wait(name, state="running")["pid"] != before[name], 10)  # type: ignore[misc]
        now = {name: f.wait(name, state="running") for name in NAMES}
        assert {name for name in NAMES if now[name]["pid"] != before[name]} == named
        assert now["base"]["started"] <= now["left"]["started"] <= now["leaf"]["started"]
        died = f.records(unit="left", kind="unit.ended")[0]["correlation"]
        for name in named:
            wait_until(lambda name=name: f.records(unit=name, kind="unit.starting", correlation=died))  # type: ignore[misc]
        assert {name for name in NAMES if now[name]["failures"]} == {"left"}


def test_rest_for_one_takes_those_that_start_after_it(short_dir: Path) -> None:
    """``after`` counts within the group; units beside it and before it go on."""
    units = {
        "base": unit(),
        "one": unit(agent='binds_to = ["base"]', restart='strategy = "rest_for_one"'),
        "two": unit(agent='binds_to = ["base"]\nafter = ["one"]'),
        "three": unit(agent='binds_to = ["base"]'),
    }
    with fleet(short_dir, units) as f:
        before = dict(zip(units, pids(f, *units), strict=True))
        f.kill(before["one"])
        wait_until(lambda: f.wait("two", state="running")["pid"] != before["two"], 10)
        after = dict(zip(units, pids(f, *units), strict=True))
        assert {name for name in units if after[name] != before[name]} == {"one", "two"}


def test_what_is_bound_stops_with_it_and_starts_again_with_it(short_dir: Path) -> None:
    """Also when an operator does it, dependants first; they remain wanted."""
    with fleet(short_dir, group("one_for_one")) as f:
        before = dict(zip(NAMES, pids(f, *NAMES), strict=True))
        assert f.post("/v1/units/base/stop")["state"] == "inactive"
        states = {name: f.unit(name) for name in NAMES}
        assert {n: s["state"] for n, s in states.items()} == {**dict.fromkeys(NAMES, "inactive"), "apart": "running"}
        assert "base, which is inactive" in states["right"]["reason"]
        ends = {name: states[name]["last"]["at"] for name in NAMES[:4]}
        assert ends["leaf"] <= ends["left"] <= ends["base"]
        assert f.post("/v1/units/base/start")["state"] == "running"
        now = {name: f.wait(name, state="running") for name in NAMES}
        assert {name for name in NAMES if now[name]["pid"] == before[name]} == {"apart"}
        assert now["base"]["started"] <= now["left"]["started"] <= now["leaf"]["started"]


def test_an_operators_stop_wins_over_every_automation(short_dir: Path) -> None:
    """Stopped by hand is not brought back: not by what it is bound to, not by a strategy, not by a daemon's crash."""
    with fleet(short_dir, group("one_for_all")) as f:
        pids(f, *NAMES)
        f.post("/v1/units/right/stop")
        for victim in ("base", "left", "daemon", "base"):
            leaf = f.wait("leaf", state="running")["pid"]
            if victim == "daemon":
                f.kill_daemon()
                f.settle()
            else:
                f.kill(f.unit(victim)["pid"])
                wait_until(lambda: f.wait("leaf", state="running")["pid"] != leaf, 10)  # noqa: B023
        assert f.unit("right")["state"] == "inactive"
        assert kinds(f, "right").count("unit.starting") == 1


def test_a_stop_of_a_unit_that_waits_is_heard(short_dir: Path) -> None:
    """It waits for what it is bound to; stopped, it does not come when that is back."""
    flag = short_dir / "broken"
    units = {"base": unit(fails_if(flag), restart='policy = "never"'), "w": unit(agent='binds_to = ["base"]')}
    with fleet(short_dir, units) as f:
        base, _ = pids(f, "base", "w")
        flag.touch()
        f.kill(base)
        f.wait("w", state="inactive", waits=True)
        assert f.post("/v1/units/w/stop")["waits"] is False
        flag.unlink()
        f.post("/v1/units/base/start")
        assert f.unit("w")["state"] == "inactive"


def test_who_waits_still_waits_after_a_crash_of_the_daemon(short_dir: Path) -> None:
    """What was wanted and whom it waits for outlive the daemon; nothing is started too early or twice."""
    flag = short_dir / "broken"
    units = {"base": unit(fails_if(flag), restart='policy = "never"'), "w": unit(agent='binds_to = ["base"]')}
    with fleet(short_dir, units) as f:
        base, w = pids(f, "base", "w")
        flag.touch()
        f.kill(base)
        f.wait("w", state="inactive", waits=True)
        f.kill_daemon()
        assert f.wait("w", state="inactive", waits=True)["reason"].startswith("does not start: it requires base")
        flag.unlink()
        f.post("/v1/units/base/start")
        assert f.wait("w", state="running")["pid"] != w


def test_a_death_while_the_daemon_is_away_has_the_same_consequences(short_dir: Path) -> None:
    """The daemon that comes back restarts the whole group, as the one before would have."""
    with fleet(short_dir, group("one_for_all")) as f:
        before = dict(zip(NAMES, pids(f, *NAMES), strict=True))
        daemon = f.status()["agentd"]["pid"]
        f.kill(daemon, signal.SIGSTOP)
        f.kill(before["left"])
        f.kill(daemon)
        wait_until(lambda: f.answers() and f.status()["agentd"]["pid"] != daemon, 20)
        for name in NAMES[:4]:
            wait_until(lambda name=name: f.wait(name, state="running")["pid"] != before[name], 10)  # type: ignore[misc]
        assert f.unit("apart")["pid"] == before["apart"]


# --- runs that are too long, endings that are successes -------------------------------------------------------------


def test_a_run_that_lasts_too_long_is_asked_to_stop_and_counts_as_a_failure(short_dir: Path) -> None:
    """The signal first, the reason in words, the policy after it."""
    polite = ("sh", "-c", "trap 'echo asked; exit 0' TERM; while :; do sleep 0.02; done")
    units = {
        "once": unit(polite, agent='runtime_max = "300ms"', restart='policy = "never"'),
        "again": unit(polite, agent='runtime_max = "300ms"', restart='healthy_after = "100ms"'),
    }
    with fleet(short_dir, units) as f:
        once = f.wait("once", state="failed")
        assert (once["last"]["cause"], once["last"]["text"]) == ("failed", "ran longer than runtime_max = 300ms")
        assert 0.3 <= once["last"]["ran"] < 2.0
        assert f.log_of("once").count("asked") == 1
        again = f.wait("again", restarts=2)
        assert again["state"] in ("running", "starting", "stopping")


def test_a_listed_ending_is_a_success(short_dir: Path) -> None:
    """Exit statuses and signals that ``success`` names are treated like exit 0, and others are not."""
    restart = 'policy = "on-failure"\nsuccess = [75, "USR1"]'
    units = {
        "status": unit(("sh", "-c", "exit 75"), restart=restart),
        "signal": unit(restart=restart),
        "oneshot": unit(("sh", "-c", "exit 75"), agent='type = "oneshot"', restart="success = [75]"),
        "next": unit(agent='after = ["oneshot"]'),
        "other": unit(("sh", "-c", "exit 74"), restart=restart + "\nburst = 1"),
    }
    with fleet(short_dir, units) as f:
        assert f.wait("status", state="inactive")["last"]["text"] == "exited 75, a success of this unit"
        f.kill(f.wait("signal", state="running")["pid"], signal.SIGUSR1)
        assert f.wait("signal", state="inactive")["last"]["cause"] == "left"
        assert f.wait("oneshot", state="inactive")["last"]["cause"] == "done"
        assert f.wait("next", state="running")
        assert f.wait("other", state="parked")["last"]["cause"] == "failed"


# --- parked is loud -------------------------------------------------------------------------------------------------


def test_a_parked_unit_is_never_silent(short_dir: Path) -> None:
    """Metric, journal, status with the next try and what to do; the slow retry comes; an operator's start un-parks."""
    flag = short_dir / "broken"
    flag.touch()
    restart = 'burst = 2\nparked_delay = "400ms"'
    with fleet(short_dir, {"a": unit(fails_if(flag), restart=restart)}) as f:
        parked = f.wait("a", state="parked")
        assert "agentctl start tries now" in parked["reason"]
        assert parked["next"] is not None
        wait_until(lambda: kinds(f, "a").count("unit.parked") >= 3, 10)
        assert 'agentd_unit_state{state="parked",unit="a"}' in scrape(f)
        flag.unlink()
        started = f.post("/v1/units/a/start")
        assert (started["state"], started["failures"], started["restarts"]) == ("running", 0, 0)


# --- the fleet as a whole -------------------------------------------------------------------------------------------

READY = """
import os, socket, time
while not os.path.exists({gate!r}):
    time.sleep(0.02)
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
time.sleep(1000)
"""


def test_no_more_units_are_starting_at_once_than_the_bound(short_dir: Path) -> None:
    """Six slow starters, two at a time: the others say that they wait for their turn, and nobody jumps the queue."""
    gate = short_dir / "gate"
    slow = unit(("python", "-c", READY.format(gate=str(gate))), agent='type = "notify"')
    names = [f"u{n}" for n in range(6)]
    f = Fleet(short_dir, dict.fromkeys(names, slow), CONFIG + DRY_RUN + "[fleet]\nparallel_starts = 2\n")
    try:
        f.start(settle=False)

        def waiting() -> list[str]:
            return [u["name"] for u in f.status()["units"] if u["reason"] == "waits for its turn: 2 units are starting"]

        wait_until(lambda: len(waiting()) == 4, 20)
        assert waiting() == names[2:]
        gate.touch()
        f.settle()
        assert len(pids(f, *names)) == 6
        wait_until(lambda: len(f.records(kind="unit.running")) >= 9)
        starting: set[str] = set()
        for record in f.records():
            if record["unit"] in names and record["kind"] == "unit.starting":
                starting.add(record["unit"])
            elif record["kind"] == "unit.running":
                starting.discard(record["unit"])
            assert len(starting) <= 2
    finally:
        f.stop()


def test_a_fleet_stops_in_the_reverse_order_of_all_relations(short_dir: Path) -> None:
    """Who depends on another, in whatever way, has ended before that one is asked to."""
    slow = ("sh", "-c", "trap 'sleep 0.2; exit 0' TERM; while :; do sleep 0.02; done")
    units = {
        "a": unit(),
        "b": unit(slow, agent='binds_to = ["a"]'),
        "c": unit(slow, agent='requires = ["b"]'),
        "d": unit(slow, agent='after = ["c"]'),
    }
    with fleet(short_dir, units) as f:
        pids(f, *units)
    with fleet(short_dir) as f:
        at = {r["unit"]: r["at"] for r in f.records(kind="unit.stopping")}
        ended = {r["unit"]: r["at"] for r in f.records(kind="unit.ended")}
        assert ended["d"] <= at["c"] <= ended["c"] <= at["b"] <= ended["b"] <= at["a"]


def requests(f: Fleet) -> dict[str, float]:
    """How often the daemon asked the keeper for what; beats are asked, and that we live is told, by the clock."""
    found = {}
    for line in scrape(f).splitlines():
        if line.startswith('agentd_keeper_requests_total{do="'):
            name, _, value = line.partition('do="')[2].partition('"} ')
            found[name] = float(value)
    for clocked in ("beats", "alive"):
        found.pop(clocked, None)
    return found


def cost(f: Fleet, what: Any) -> dict[str, float]:
    """What the keeper was asked in the course of this, until nothing more is asked for a while."""
    before = requests(f)
    what()
    seen: list[dict[str, float]] = []

    def quiet() -> bool:
        seen.append(requests(f))
        return len(seen) > 4 and all(counts == seen[-1] for counts in seen[-4:])

    wait_until(quiet, 60)  # without cgroups each look walks the process trees of all units
    return {do: count - before.get(do, 0.0) for do, count in seen[-1].items() if count != before.get(do, 0.0)}


def test_one_change_in_a_fleet_touches_no_other_and_costs_the_same_in_a_big_one(short_dir: Path) -> None:
    """Add, change, restart and remove one of 200: all others keep their pids, and the keeper is asked as with one."""
    path = str(short_dir / "elsewhere" / "new.toml")
    new, changed = unit(), unit(("sleep", "999"))

    def add() -> None:
        f.post("/v1/deploy", {"files": [{"path": path, "text": new}]})
        f.wait("new", state="running")

    def change() -> None:
        f.post("/v1/deploy", {"files": [{"path": path, "text": changed}]})
        f.wait("new", state="running", activity="idle", last={"cause": "stopped"})

    def remove() -> None:
        assert f.ask("DELETE", "/v1/units/new")[0] == 200

    costs = []
    for size in (1, 200):
        base = short_dir / str(size)
        base.mkdir(mode=0o711)
        base.chmod(0o711)
        others = {f"u{n}": unit() for n in range(size)}
        with fleet(base, others) as f:
            before = {u["name"]: u["pid"] for u in f.status()["units"]}
            costs.append([cost(f, add), cost(f, change), cost(f, remove)])
            assert {u["name"]: u["pid"] for u in f.status()["units"]} == before
            assert len(before) == size + 3
            touched = {r["unit"] for r in f.records() if r["kind"].startswith("unit.") and r["at"] > 0}
            assert touched == {*before, "new"}
    for one, many in zip(*costs, strict=True):
        beats = abs(one.pop("blob", 0.0) - many.pop("blob", 0.0))
        assert beats <= 6, "lives are also remembered when router or gateway beat, and no more often than that"
        assert one == many


def scrape(f: Fleet) -> str:
    """The metrics page."""
    return httpx.get(f"http://{f.status()['agentd']['metrics']}/metrics").text
