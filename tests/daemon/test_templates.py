"""Templates, instances, replicas and drop-ins on a real fleet: who is started, restarted, left alone and remembered."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import Fleet, fleet
from tests.waiting import wait_until

Json = dict[str, Any]
LEVEL = '[isolation]\nlevel = "rlimit"\n'
"""Named, so that no host has anything to warn of."""


def sleeper(more: str = "", seconds: str = "1000") -> str:
    """A unit file."""
    return f'[agent]\nexec = ["sleep", "{seconds}"]\n{more}\n{LEVEL}'


def template(replicas: int, more: str = "") -> str:
    """A template that prints its instance."""
    return f'[agent]\nexec = ["sh", "-c", "echo I am %i; exec sleep 1000"]\nreplicas = {replicas}\n{more}\n{LEVEL}'


def pids(f: Fleet) -> dict[str, int | None]:
    """The pid of every unit that is no system unit."""
    return {unit["name"]: unit["pid"] for unit in f.status()["units"] if not unit["system"]}


@pytest.fixture(scope="module")
def shared() -> Iterator[Fleet]:
    """One fleet without units, for tests that bring and remove their own."""
    base = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))
    base.chmod(0o711)
    with fleet(base) as running:
        yield running
    shutil.rmtree(base)


@contextlib.contextmanager
def units(f: Fleet, **texts: str) -> Iterator[None]:
    """These units, deployed and running; gone afterwards. A template is named with a trailing underscore."""
    files = {name.replace("_", "@", 1): text for name, text in texts.items()}
    assert not errors(deploy_paths(f, {f"{name}.toml": text for name, text in files.items()}))
    f.settle()
    yield
    for name in sorted(files, key=lambda name: (not name.endswith("@"), name)):
        f.ask("DELETE", f"/v1/units/{name}")
    assert pids(f) == {}
    assert list(f.units.iterdir()) == []


def deploy(f: Fleet, **texts: str) -> Json:
    """Deploy unit files, by the names of their units, from another directory."""
    return deploy_paths(f, {f"{name}.toml": text for name, text in texts.items()})


def deploy_paths(f: Fleet, texts: dict[str, str]) -> Json:
    """Deploy files from another directory, by their paths in it."""
    files = [{"path": str(f.base / "elsewhere" / path), "text": text} for path, text in texts.items()]
    return f.post("/v1/deploy", {"files": files})


def errors(answer: Json) -> list[str]:
    """The errors among the findings of an answer."""
    return [found["message"] for found in answer["findings"] if found["severity"] == "error"]


def test_replicas_grow_and_shrink_and_touch_no_other(shared: Fleet) -> None:
    """They start with their template; more are started, fewer stopped and removed, to none; the others keep their
    pids."""
    f = shared
    with units(f, coder_=template(2), other=sleeper()):
        before = pids(f)
        assert set(before) == {"coder@1", "coder@2", "other"}
        wait_until(lambda: f.log_of("coder@2") == "I am 2\n")
        grown = deploy_paths(f, {"coder@.toml": template(4)})
        assert (grown["started"], grown["restarted"]) == (["coder@3", "coder@4"], [])
        assert grown["unchanged"] == ["coder@1", "coder@2"]
        f.wait("coder@4", state="running")
        assert pids(f).items() >= before.items()
        f.post("/v1/units/coder@4/start")  # by hand, but it is a replica: that changes nothing
        shrunk = deploy_paths(f, {"coder@.toml": template(1)})
        assert (shrunk["removed"], shrunk["unchanged"]) == (["coder@2", "coder@3", "coder@4"], ["coder@1"])
        assert pids(f) == {name: before[name] for name in ("coder@1", "other")}
        assert deploy_paths(f, {"coder@.toml": template(0)})["removed"] == ["coder@1"]
        assert pids(f) == {"other": before["other"]}
        assert {r["unit"] for r in f.records(kind="unit.removed")} == {f"coder@{n}" for n in range(1, 5)}


def test_an_instance_that_was_started_by_name_is_remembered(short_dir: Path) -> None:
    """It survives the deaths of daemon and keeper, comes back after down and up, stays down once it was stopped, and is
    gone with remove. The template does not even ask for any; once it asks for two, these come up with the fleet."""
    with fleet(short_dir, {"coder@": template(0)}) as f:
        assert pids(f) == {}
        for name in ("coder@eu", "coder@us", "coder@gone"):
            assert f.post(f"/v1/units/{name}/start")["state"] == "running"
        f.post("/v1/units/coder@us/stop")
        assert f.ask("DELETE", "/v1/units/coder@gone")[1]["removed"] == "coder@gone"
        before = pids(f)
        f.kill_daemon()
        assert pids(f) == before
        assert f.process is not None
        f.process.kill()
        f.process.wait()
        f.start(settle=False)
        wait_until(lambda: f._died() or f.status()["agentd"]["keeper_pid"] == f.process.pid, 10)
        assert f.wait("coder@us", state="inactive")["pid"] is None
        assert pids(f) == before
    with fleet(short_dir, {"coder@": template(0)}) as f:
        assert f.wait("coder@eu", state="running")["pid"]
        assert f.wait("coder@us", state="inactive")["pid"] is None
        assert set(pids(f)) == {"coder@eu", "coder@us"}
        assert f.post("/v1/units/coder@us/start")["state"] == "running"
        for name in ("coder@eu", "coder@us"):
            assert f.ask("DELETE", f"/v1/units/{name}")[0] == 200
    (short_dir / "u" / "coder@.toml").write_text(template(2))
    with fleet(short_dir) as f:
        assert set(pids(f)) == {"coder@1", "coder@2"}


def test_a_changed_template_restarts_exactly_those_whose_unit_is_another(shared: Fleet) -> None:
    """coder@2 has a file of its own, coder@3 a drop-in for the very setting: only coder@1 is restarted; a comment
    restarts nobody."""
    f = shared
    with units(f, coder_=template(3), coder_2=sleeper()):
        stop = '[agent]\nstop_timeout = "3s"\n'
        assert deploy_paths(f, {"coder@3.toml.d/stop.toml": stop})["restarted"] == ["coder@3"]
        f.wait("coder@3", state="running", last={"cause": "stopped"})
        before = pids(f)
        same = deploy_paths(f, {"coder@.toml": template(3) + "\n# a comment\n"})
        assert same["unchanged"] == ["coder@2", "coder@1", "coder@3"]
        changed = deploy_paths(f, {"coder@.toml": template(3, 'stop_timeout = "7s"')})
        assert (changed["restarted"], changed["started"], changed["removed"]) == (["coder@1"], [], [])
        assert changed["unchanged"] == ["coder@2", "coder@3"]
        f.wait("coder@1", state="running", last={"cause": "stopped"})
        after = pids(f)
        assert {name for name in before if before[name] != after[name]} == {"coder@1"}


def test_a_dropin_changes_exactly_one_unit_and_stays_in_force(shared: Fleet) -> None:
    """Deployed by itself it restarts its unit; a unit file deployed alone later leaves it in place; its paths start
    where it stands, and every place that names files names it. Gone, the unit is as it was."""
    f = shared
    with units(f, a=sleeper(), b=sleeper()):
        before = pids(f)
        home = f.base / "elsewhere" / "home"
        home.mkdir(parents=True)
        for path in (home.parent, home):
            path.chmod(0o755)
        dropin = '[agent]\nworkdir = "../home"\nenv = { WHO = "me" }\n'
        assert deploy_paths(f, {"a.toml.d/home.toml": dropin})["restarted"] == ["a"]
        pid = f.wait("a", state="running", last={"cause": "stopped"})["pid"]
        assert Path(f"/proc/{pid}/cwd").readlink() == home
        assert pids(f)["b"] == before["b"]
        file = str(f.units / "a.toml.d" / "home.toml")
        assert f.unit("a")["dropins"] == [file]
        settings = {row["key"]: row for row in f.get("/v1/units/a")["settings"] if row["section"] == "agent"}
        assert settings["workdir"]["file"] == file
        assert settings["exec"]["file"] == str(f.units / "a.toml")
        assert deploy(f, a=sleeper(seconds="999"))["restarted"] == ["a"]
        pid = f.wait("a", state="running")["pid"]
        assert Path(f"/proc/{pid}/cwd").readlink() == home
        paths = [each["path"] for each in f.get("/v1/units/a/files")["files"]]
        assert paths == [str(f.units / "a.toml"), file]
        Path(file).unlink()
        assert deploy(f, a=sleeper(seconds="999"))["restarted"] == ["a"]
        assert f.unit("a")["dropins"] == []
        deploy_paths(f, {"a.toml.d/home.toml": dropin})
        removed = f.ask("DELETE", "/v1/units/a")[1]
        assert removed == {"removed": "a", "files": [str(f.units / "a.toml"), file]}
        assert [path.name for path in f.units.iterdir()] == ["b.toml"]
        shutil.rmtree(home.parent)


def test_a_broken_dropin_leaves_the_running_unit_alone(shared: Fleet) -> None:
    """Deployed it is refused, by its own name and line; put there by hand it is shown, and the unit runs on with what
    it had, over the death of the daemon too; the other unit is not even looked at."""
    f = shared
    with units(f, a=sleeper(), b=sleeper(), coder_=template(1)):
        before = pids(f)
        broken = "[limits]\nmemory = 'lots'\n"
        for owner in ("a", "coder@", "coder@1"):
            answer = deploy_paths(f, {f"{owner}.toml.d/big.toml": broken, "b.toml": sleeper()})
            assert answer["unchanged"] == ["b"]
            (error,) = errors(answer)
            assert error.startswith(f"{f.base}/elsewhere/{owner}.toml.d/big.toml:2: [limits] memory: ")
            assert not (f.units / f"{owner}.toml.d").exists()
        (f.units / "a.toml.d").mkdir()
        (f.units / "a.toml.d" / "big.toml").write_text(broken)
        f.kill_daemon()
        f.wait("coder@1", state="running")
        assert pids(f) == before
        (told,) = f.status()["agentd"]["broken"]
        assert told["message"].startswith(f"{f.units}/a.toml.d/big.toml:2: [limits] memory: ")
        (error,) = errors(deploy(f, a=sleeper(seconds="999")))  # what is installed counts
        assert "a.toml.d/big.toml:2:" in error
        assert pids(f) == before


def test_a_template_and_its_instances_change_together_or_not_at_all(shared: Fleet) -> None:
    """One instance of three could not follow the new text: nothing is installed, nobody restarted."""
    f = shared
    with units(f, coder_=template(3)):
        before, text = pids(f), (f.units / "coder@.toml").read_text()
        circle = template(3, 'after = ["coder@3"]')
        assert any("cycle coder@3 → coder@3" in error for error in errors(deploy_paths(f, {"coder@.toml": circle})))
        assert (f.units / "coder@.toml").read_text() == text
        assert pids(f) == before


def test_a_template_stands_for_its_instances(shared: Fleet) -> None:
    """status, stop, start and restart of NAME@ are about all of them, and of no other; remove takes the file too."""
    f = shared
    with units(f, coder_=template(2), coder=sleeper(), **{"coder-x_": template(1)}):
        f.post("/v1/units/coder@eu/start")
        ours = ["coder@1", "coder@2", "coder@eu"]
        before = pids(f)
        assert [u["name"] for u in f.get("/v1/status?unit=coder@")["units"]] == ours
        stopped = f.post("/v1/units/coder@/stop")
        assert [(u["name"], u["state"]) for u in stopped["units"]] == [(name, "inactive") for name in ours]
        started = f.post("/v1/units/coder@/start")
        assert [(u["name"], u["state"]) for u in started["units"]] == [(name, "running") for name in ours]
        again = f.post("/v1/units/coder@/restart")
        assert all(a["pid"] != b["pid"] for a, b in zip(started["units"], again["units"], strict=True))
        assert [pids(f)[name] == before[name] for name in ("coder", "coder-x@1")] == [True, True]
        status, answer = f.ask("DELETE", "/v1/units/coder@2")
        assert (status, answer["error"]["code"]) == (409, "conflict")
        removed = f.ask("DELETE", "/v1/units/coder@")[1]
        assert removed == {"removed": "coder@", "units": ours, "files": [str(f.units / "coder@.toml")]}
        assert set(pids(f)) == {"coder", "coder-x@1"}
        assert f.ask("POST", "/v1/units/coder@1/start", {})[0] == 404


def test_an_instance_is_addressed_by_its_name(shared: Fleet) -> None:
    """Units may name an instance, in a template by %i too; a template, or a plain name, is told what was meant."""
    f, plain = shared, sleeper('after = ["coder@1"]\nbinds_to = ["coder@2"]')
    with units(f, db_=template(0), web_=template(0, 'requires = ["db@%i"]'), plain=plain, coder_=template(2)):
        assert f.unit("plain")["state"] == "running"
        status, answer = f.ask("POST", "/v1/units/web@eu/start", {})
        assert status == 400
        assert answer["error"]["hint"] == "Start it first: agentctl start db@eu makes it from db@.toml."
        assert f.post("/v1/units/db@eu/start")["state"] == "running"
        assert f.post("/v1/units/web@eu/start")["state"] == "running"
        f.post("/v1/units/db@eu/stop")
        assert f.wait("web@eu", state="inactive")["pid"] is None
        for word in ("coder", "coder@"):
            found = deploy(f, new=sleeper(f'requires = ["{word}"]'))["findings"]
            assert [each["hint"] for each in found] == ["Did you mean coder@1?"]
            assert (
                f.ask("POST", "/v1/run", {"name": "x", "unit": {"agent": {"exec": ["true"], "after": [word]}}})[0]
                == 400
            )
        status, answer = f.ask("POST", "/v1/units/coder/start", {})
        assert (status, answer["error"]["hint"]) == (404, "Did you mean coder@1?")
        status, answer = f.ask("POST", "/v1/units/coder@1/kill", {"signal": "SIGTERM"})
        assert status == 200


def test_a_dropin_without_a_unit_is_noticed(shared: Fleet) -> None:
    """A warning with its file and a hint, at check and deploy; it is installed, and in force once its unit is there."""
    f, limits = shared, "[agent]\nstop_timeout = '3s'\n"
    (warning,) = deploy_paths(f, {"a.toml.d/stop.toml": limits})["findings"]
    assert (warning["severity"], warning["file"]) == ("warning", f"{f.base}/elsewhere/a.toml.d/stop.toml")
    assert warning["message"].endswith("there is no a.toml that it could change. Ignoring.")
    assert "deploy a.toml, or remove this one" in warning["hint"]
    with units(f, a=sleeper()):
        (row,) = [row for row in f.get("/v1/units/a")["settings"] if row["key"] == "stop_timeout"]
        assert (row["value"], row["file"]) == ("3s", str(f.units / "a.toml.d" / "stop.toml"))


def test_a_dropin_that_cannot_be_read_breaks_its_unit_only(shared: Fleet) -> None:
    """Its unit is refused with the drop-in's name; nothing is installed, all go on."""
    f = shared
    with units(f, a=sleeper(), b=sleeper()):
        before = pids(f)
        (f.units / "a.toml.d").mkdir()
        (f.units / "a.toml.d" / "bytes.toml").write_bytes(b"# \xff")
        answer = deploy_paths(f, {"a.toml": sleeper(seconds="9"), "b.toml": sleeper()})
        assert errors(answer) == [f"{f.units}/a.toml.d/bytes.toml:1: this is not UTF-8 text."]
        assert answer["unchanged"] == ["b"]
        assert pids(f) == before
        assert (f.units / "a.toml").read_text() == sleeper()
