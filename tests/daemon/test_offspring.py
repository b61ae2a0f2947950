"""Units that spawn units, on a real fleet: a real agent asks over its channel, and nothing outlives or outgrows it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fleet import Fleet, fleet
from tests.waiting import wait_until

Json = dict[str, Any]

BOSS = """
import asyncio, os, sys
from agentd.sdk import Agent, CallError, Context

app = Agent(drain=1)
children = {}
heard = []


@app.on_unit_changed
async def changed(unit, state):
    heard.append([unit, state])


@app.on("spawn")
async def spawn(ctx: Context, data: dict):
    try:
        child = await ctx.spawn(data["name"], data["unit"], key=data.get("key"))
    except CallError as error:
        return {"code": error.code, "message": error.message}
    children[child.unit] = child
    return {"unit": child.unit, "duplicate": child.duplicate}


@app.on("burst")
async def burst(ctx: Context, data: dict):
    async def one(number):
        try:
            await app._link().call("spawn", {"name": f"b{number}", "unit": data["unit"]}, 0.5)
        except CallError as error:
            return error.code
        return "spawned"

    said = await asyncio.gather(*(one(number) for number in range(data["count"])))
    return {word: said.count(word) for word in set(said)}


@app.on("raw")
async def raw(ctx: Context, data: dict):
    try:
        return await app._link().call(data["method"], data["params"], 30)
    except CallError as error:
        return {"code": error.code, "message": error.message}


@app.on("ended")
async def ended(ctx: Context, data: str):
    end = await children[data].ended()
    return [end.cause, end.exit, end.done]


@app.on("stop")
async def stop(ctx: Context, data: str):
    return (await children[data].stop()).cause


@app.on("children")
async def show(ctx: Context, data: None):
    return await app.children()


@app.on("heard")
async def tell(ctx: Context, data: None):
    return heard


@app.on("ask")
async def ask(ctx: Context, data: dict):
    try:
        return await ctx.ask(data["to"], data["kind"], data.get("data"), timeout=20)
    except CallError as error:
        return {"code": error.code}


@app.on("echo")
async def echo(ctx: Context, data: object):
    return [data, ctx.message.sender, os.environ["AGENTD_UNIT"], os.getuid()]


@app.on("crash")
async def crash(ctx: Context, data: None):
    os._exit(9)


app.run()
"""
SLEEP = {"agent": {"exec": ["sleep", "1000"]}}
GRANT = "may_spawn = { number = 3 }"


def boss(directory: Path, grant: str = GRANT, more: str = "") -> str:
    """The unit file of an agent that does what messages tell it."""
    program = directory / "boss.py"
    program.write_text(BOSS)
    program.chmod(0o644)
    return f'[agent]\nexec = ["python", "{program}"]\ntype = "notify"\n{grant}\n{more}'


def own(directory: Path, **agent: Any) -> Json:
    """The same program as a child."""
    return {"agent": {"exec": ["python", str(directory / "boss.py")], "type": "notify", **agent}}


def tell(f: Fleet, kind: str, data: Any = None, to: str = "boss") -> Any:
    """Send, and the result. A bus that is slow to confirm is asked again, as its hint says."""
    body = {"to": to, "kind": kind, "data": data, "wait": 30, "id": secrets.token_hex(8)}
    while (answer := f.ask("POST", "/v1/send", body))[0] == 503:
        pass
    assert answer[0] == 200, answer
    return answer[1]["result"]


def spawn(f: Fleet, name: str, unit: Json = SLEEP, to: str = "boss", **more: Any) -> Json:
    """What the agent is answered."""
    return dict(tell(f, "spawn", {"name": name, "unit": unit, **more}, to))


def names(f: Fleet) -> set[str]:
    """All units that are there."""
    return {unit["name"] for unit in f.status()["units"] if not unit["system"]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet for the tests that leave it as it was."""
    import shutil
    import tempfile

    base = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))
    base.chmod(0o711)
    units = {
        "boss": boss(base),
        "meek": boss(base, grant=""),
        "other": '[agent]\nexec = ["sleep", "1000"]\n',
    }
    try:
        with fleet(base, units) as f:
            yield f
    finally:
        shutil.rmtree(base)


def free(f: Fleet) -> None:
    """Stop whatever the last test left."""
    for name in names(f) - {"boss", "meek", "other"}:
        f.ask("POST", f"/v1/units/{name}/stop")
    wait_until(lambda: names(f) == {"boss", "meek", "other"}, 20)


def test_a_child_is_a_unit_of_its_own_and_its_parents(shared: Fleet) -> None:
    """Own process tree, uid, log, inbox; status and journal say whose it is; parent and child send to each other."""
    f = shared
    free(f)
    assert spawn(f, "scout", own(f.base)) == {"unit": "boss~scout", "duplicate": False}
    child = f.wait("boss~scout", state="running", ready=True)
    parent = f.unit("boss")
    assert child["pid"] != parent["pid"]
    assert (child["parent"], parent["children"], parent["children_max"]) == ("boss", 1, 3)
    data, sender, unit, uid = tell(f, "ask", {"to": "boss~scout", "kind": "echo", "data": 7})
    assert (data, sender, unit) == (7, "boss", "boss~scout")
    assert tell(f, "ask", {"to": "boss", "kind": "echo", "data": 8}, to="boss~scout")[1] == "boss~scout"
    if os.geteuid() == 0:
        assert uid not in (0, tell(f, "echo")[3])
    added = f.records(kind="unit.added", unit="boss~scout")[-1]
    starting = f.records(kind="unit.starting", unit="boss~scout")[-1]
    assert added["actor"] == starting["actor"] == "boss"
    assert parent["invocation"] in starting["reason"]
    assert added["correlation"] == starting["correlation"]
    assert ["boss~scout", "ready"] in tell(f, "heard")


def test_a_oneshot_that_ends_is_told_forgotten_and_makes_room(shared: Fleet) -> None:
    """The parent learns cause and exit, the number is free again, the log can still be read; its home is gone."""
    f = shared
    free(f)
    unit = {"agent": {"exec": ["sh", "-c", "echo found it; exit 3"], "type": "oneshot"}}
    for number in range(5):
        assert spawn(f, f"once{number}", unit)["unit"] == f"boss~once{number}"
        assert tell(f, "ended", f"boss~once{number}") == ["failed", 3, False]
    wait_until(lambda: names(f) == {"boss", "meek", "other"})
    ended = {child["unit"]: child for child in tell(f, "children")}
    assert ended["boss~once0"]["state"] == "ended"
    assert ended["boss~once0"]["exit"] == 3
    assert "found it" in f.log_of("boss~once0")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(f.runtime / "control.sock"))) as client:
        assert "found it" in client.get("http://agentd/v1/units/boss~once0/logs").text
    wait_until(lambda: not (f.state / "home" / "boss~once0").exists())


def test_a_repeat_is_a_duplicate_and_another_unit_a_conflict(shared: Fleet) -> None:
    """By name and unit while it is there; by its key also when it has ended."""
    f = shared
    free(f)
    assert not spawn(f, "scout")["duplicate"]
    assert spawn(f, "scout")["duplicate"]
    assert spawn(f, "scout", {"agent": {"exec": ["sleep", "7"]}})["code"] == "conflict"
    quick = {"name": "quick", "key": "k", "unit": {"agent": {"exec": ["true"], "type": "oneshot"}}}
    raw = {"method": "spawn", "params": quick}
    assert not tell(f, "raw", raw)["duplicate"]
    wait_until(lambda: "boss~quick" not in names(f))
    assert tell(f, "raw", raw)["duplicate"]
    assert len(f.records(kind="unit.ended", unit="boss~quick")) == 1
    del quick["key"]
    assert not tell(f, "raw", raw)["duplicate"]
    wait_until(lambda: len(f.records(kind="unit.ended", unit="boss~quick")) == 2)


def test_what_is_not_granted_is_refused_in_words(shared: Fleet) -> None:
    """No grant, over the number, over the depth, bad names and keys, a program that is not there."""
    f = shared
    free(f)
    assert spawn(f, "x", to="meek")["code"] == "denied"
    for number in range(3):
        assert "unit" in spawn(f, f"n{number}")
    full = spawn(f, "n3")
    assert full["code"] == "over_budget"
    assert "3 descendants" in full["message"]
    free(f)
    for name in ("", "a~b", "../x", "A", "x" * 64, None, 3, {"a": 1}):
        assert spawn(f, name)["code"] == "bad_input"  # type: ignore[arg-type]
    units: list[Any] = [
        None,
        [],
        "x",
        {},
        {"agent": {"exec": "sleep 1"}},
        {"agnt": {}},
        {"agent": {"exec": ["no-such"]}},
    ]
    for unit in units:
        assert spawn(f, "x", unit)["code"] == "bad_input"
    deep = own(f.base, may_spawn={"number": 1})
    assert spawn(f, "deep", deep)["code"] == "denied"
    assert tell(f, "raw", {"method": "stop", "params": {"unit": "other"}})["code"] == "no_such_unit"
    assert f.unit("other")["state"] == "running"


def test_children_end_when_their_parents_process_does(shared: Fleet) -> None:
    """A crash of the parent: its children are stopped, their trees with them; the successor begins without any."""
    f = shared
    free(f)
    for name in ("a", "b"):
        spawn(f, name, {"agent": {"exec": ["sh", "-c", "sleep 1000 & sleep 1000"]}})
    pids = [f.wait(f"boss~{name}", state="running")["pid"] for name in ("a", "b")]
    f.kill(f.wait("boss", state="running")["pid"], signal.SIGKILL)
    wait_until(lambda: names(f) == {"boss", "meek", "other"}, 20)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    f.wait("boss", state="running", ready=True)
    assert tell(f, "children") == []
    assert "boss" in f.records(kind="unit.stopping", unit="boss~a")[-1]["reason"]


def test_a_burst_of_a_thousand_is_bounded_and_holds_up_nobody(shared: Fleet) -> None:
    """No more than granted come to be, and others are answered meanwhile."""
    f = shared
    free(f)
    said = tell(f, "burst", {"count": 1000, "unit": SLEEP})
    assert said.pop("spawned") == 3
    assert set(said) <= {"over_budget", "full", "too_late"}
    assert len([name for name in names(f) if name.startswith("boss~")]) == 3
    assert f.post("/v1/units/other/restart")["state"] == "running"
    free(f)


def test_messages_that_a_child_leaves_behind_are_dead_letters(shared: Fleet) -> None:
    """Nothing that was accepted is lost with it, and who waits for an answer is told at once."""
    f = shared
    free(f)
    spawn(f, "mute")
    stored = f.post("/v1/send", {"to": "boss~mute", "kind": "work", "data": {"n": 1}})["id"]
    assert tell(f, "stop", "boss~mute") == "stopped"
    wait_until(lambda: any(one["message"] == stored for one in f.get("/v1/dlq?unit=boss~mute")["letters"]))
    letter = f.get("/v1/dlq?unit=boss~mute")["letters"][0]
    assert (letter["reason"], letter["unit"]) == ("gone", "boss~mute")
    assert not spawn(f, "mute", own(f.base))["duplicate"]
    f.wait("boss~mute", state="running", ready=True)
    assert tell(f, "ask", {"to": "boss~mute", "kind": "echo", "data": 1})[0] == 1
    free(f)


def test_an_operators_stop_takes_the_children_down_first(short_dir: Path) -> None:
    """Grandchildren, then children, then the parent; remove leaves nothing of any of them."""
    grant = 'may_spawn = { number = 3, depth = 2, tokens = "90k/day" }'
    with fleet(short_dir, {"boss": boss(short_dir, grant)}) as f:
        spawn(f, "lead", own(short_dir, may_spawn={"number": 2}))
        f.wait("boss~lead", state="running", ready=True)
        assert spawn(f, "hand", to="boss~lead")["unit"] == "boss~lead~hand"
        f.wait("boss~lead~hand", state="running")
        assert f.unit("boss")["children"] == 2
        f.wait("boss~lead~hand", tokens={"limit": 15_000})  # half of its parent's third
        f.post("/v1/units/boss/stop")
        wait_until(lambda: names(f) == {"boss"})
        ends = [r["unit"] for r in f.records(kind="unit.ended")][-3:]
        assert ends == ["boss~lead~hand", "boss~lead", "boss"]
        f.post("/v1/units/boss/start")
        f.wait("boss", state="running", ready=True)
        spawn(f, "again")
        f.wait("boss~again", state="running")
        assert f.ask("DELETE", "/v1/units/boss")[0] == 200
        wait_until(lambda: names(f) == set())


def test_daemon_and_router_may_die_and_children_stay_children(short_dir: Path) -> None:
    """kill -9 of either: the children keep their pids and their parent; orphans of the time in between are ended."""
    with fleet(short_dir, {"boss": boss(short_dir)}) as f:
        for name in ("a", "b"):
            spawn(f, name)
        pids = {name: f.wait(name, state="running")["pid"] for name in ("boss", "boss~a", "boss~b")}
        f.kill_daemon()
        assert {name: f.wait(name, state="running")["pid"] for name in pids} == pids
        router = f.unit("router")["pid"]
        f.kill(router)
        wait_until(lambda: f.unit("router")["pid"] not in (None, router), 10)
        f.wait("router", state="running", ready=True)
        assert spawn(f, "a")["duplicate"]
        assert spawn(f, "c")["unit"] == "boss~c"
        assert spawn(f, "d")["code"] == "over_budget"
        f.post("/v1/units/boss~c/stop")
        wait_until(lambda: "boss~c" not in names(f))
        ended = [child for child in tell(f, "children") if child["state"] == "ended"]
        assert [child["unit"] for child in ended] == ["boss~c"]
        f.kill_daemon()
        assert [child for child in tell(f, "children") if child["state"] == "ended"] == ended
        daemon = f.status()["agentd"]["pid"]
        os.kill(daemon, signal.SIGSTOP)
        f.kill(pids["boss"])
        f.kill(daemon)
        wait_until(lambda: f.answers() and f.status()["agentd"]["pid"] != daemon, 20)
        wait_until(lambda: names(f) == {"boss"}, 20)
        assert not any(Path(f"/proc/{pid}").exists() for name, pid in pids.items() if name != "boss")


# --- as an attacker ---------------------------------------------------------------------------------------------------

FORGE = """
import json, socket, sys
path, parent, invocation = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(path)
    sock.sendall(b'{"facts":1,"client":"router","have":null}\\n')
    params = {"parent": parent, "invocation": invocation, "name": "forged", "spec": {"agent": {"exec": ["sleep", "9"]}}}
    sock.sendall(json.dumps({"call": 1, "method": "offspring.spawn", "params": params}).encode() + b"\\n")
    with sock.makefile() as lines:
        for line in lines:
            said = json.loads(line)
            if "answer" in said:
                print(said["error"]["code"])
                break
"""


def test_only_the_router_may_ask_in_a_units_name(shared: Fleet) -> None:
    """Another process of a permitted uid, with everything else right, is refused."""
    f = shared
    free(f)
    invocation = f.wait("boss", state="running")["invocation"]
    path = str(f.runtime / "facts" / "daemon.sock")
    said = subprocess.run(
        [sys.executable, "-c", FORGE, path, "boss", invocation], capture_output=True, text=True, timeout=20
    )
    assert said.stdout.strip() == "denied", said
    assert "boss~forged" not in names(f)


def test_a_privileged_process_does_nothing_on_a_childs_behalf(shared: Fleet) -> None:
    """No file is read, no port knocked at, no other unit moved, nobody else's rights had: each is refused by name."""
    f = shared
    free(f)
    for section, key, value in (
        ("agent", "env_file", "/etc/shadow"),
        ("agent", "requires", ["other"]),
        ("agent", "binds_to", ["other"]),
        ("agent", "after", ["other"]),
        ("agent", "allow_root", True),
        ("agent", "user", "root"),
        ("agent", "user", "nobody"),
        ("isolation", "level", "none"),
        ("liveness", "probe", "http://127.0.0.1:1/"),
        ("restart", "delay", "0s"),
    ):
        unit = {"agent": {"exec": ["sleep", "9"]}} | ({section: {key: value}} if section != "agent" else {})
        unit["agent"] |= {key: value} if section == "agent" else {}
        said = spawn(f, "spy", unit)
        assert said.get("code") == "denied", (key, said)
        assert key in said["message"]
    big = {"agent": {"exec": ["sleep", "9"], "env": {"X": "x" * 70_000}}}
    assert spawn(f, "spy", big)["code"] == "bad_input"
    assert names(f) == {"boss", "meek", "other"}


@pytest.mark.root
def test_roots_environments_are_not_published_for_a_child(shared: Fleet) -> None:
    """A Python that only root can reach is staged for an operator's unit, and never for one that an agent asks for."""
    f = shared
    free(f)
    closed = f.base / "closed"
    venv.create(closed / "env", with_pip=False, symlinks=True)
    closed.chmod(0o700)
    before = set((f.state / "stage").iterdir())
    python = str(closed / "env" / "bin" / "python")
    made = spawn(f, "thief", {"agent": {"exec": [python, "-c", "print('in')"], "type": "oneshot"}})
    assert tell(f, "ended", made["unit"])[0] == "unstarted"
    ended = {child["unit"]: child for child in tell(f, "children")}
    assert "closed" in ended["boss~thief"]["text"]
    assert set((f.state / "stage").iterdir()) == before
    assert "in" not in f.log_of("boss~thief")


@pytest.mark.root
def test_uids_of_children_are_their_familys_own_and_few(shared: Fleet) -> None:
    """However many come and go, a family uses as many uids as it may have children, and shares them with nobody."""
    f = shared
    free(f)
    for number in range(6):
        spawn(f, f"u{number}", {"agent": {"exec": ["sh", "-c", "id -u"], "type": "oneshot"}})
        tell(f, "ended", f"boss~u{number}")
    wait_until(lambda: names(f) == {"boss", "meek", "other"})
    uids = {f.log_of(f"boss~u{number}").strip() for number in range(6)}
    table = json.loads((f.state / "units.json").read_text())["uids"]
    assert uids <= {str(uid) for name, uid in table.items() if name.startswith("boss~#")}
    assert len([name for name in table if name.startswith("boss~")]) <= 3


@pytest.mark.root
def test_the_sum_of_memory_is_the_kernels_limit(short_dir: Path) -> None:
    """Shares become limits of the children's own cgroups; what does not fit names what is asked and what is left."""
    with fleet(short_dir, {"boss": boss(short_dir, 'may_spawn = { number = 2, memory = "96M", cpu = 1 }')}) as f:
        if f.wait("boss", state="running")["level"] != "cgroup":
            pytest.skip("no cgroups here")
        hog = "x = bytearray(80 << 20); import time; time.sleep(1000)"
        unit = {"agent": {"exec": ["python", "-c", hog]}, "restart": {"policy": "never"}}
        spawn(f, "hog", unit)
        assert tell(f, "ended", "boss~hog")[:2] == ["crashed", -9]
        assert spawn(f, "big", {**unit, "limits": {"memory": "90M"}})["unit"] == "boss~big"
        said = spawn(f, "more")
        assert said["code"] == "over_budget"
        assert "48M" in said["message"]
        assert "6M is left" in said["message"]
