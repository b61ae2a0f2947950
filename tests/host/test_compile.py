"""Units become plans, or errors that say what to change."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import stat
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from agentd.errors import HostCannot, UnitFileError
from agentd.host.capability import Capabilities
from agentd.host.compile import Compiled, System, check_host, compile_system, near
from agentd.host.compile import compile as compile_unit
from agentd.host.identity import Account, Identities
from agentd.host.place import Place
from agentd.host.program import find
from agentd.keeper.plan import Listener, SpawnPlan
from agentd.model import reading
from agentd.model.unit import Unit
from agentd.wire.key import verify

INVOCATION = "00000000000000a1"
WriteUnit = Callable[..., Unit]


@pytest.fixture
def bare(place: Place) -> Place:
    """The place on a host without cgroups."""
    uid = os.geteuid()
    reason = f"/sys/fs/cgroup/memory is not writable by uid {uid} (unit needs Delegate=yes)"
    missing = dict.fromkeys(("memory", "cpu", "pids", "kill"), reason)
    return dataclasses.replace(place, capabilities=Capabilities(uid, uid == 0, "none", {}, missing))


@pytest.fixture
def script(short_dir: Path) -> Path:
    """A program that everybody can reach."""
    directory = short_dir / "bin"
    directory.mkdir()
    directory.chmod(0o755)
    path = directory / "program"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def environment_of(compiled: Compiled) -> dict[str, str]:
    return compiled.plan.env


def test_the_environment_is_exactly_this(
    place: Place, write_unit: WriteUnit, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden: every variable an agent gets; nothing of agentd's own environment passes."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    monkeypatch.setenv("SECRET_OF_AGENTD", "x")
    unit = write_unit("writer", str(script), liveness={"heartbeat": "2s"})
    env = environment_of(compile_unit(unit, INVOCATION, place))
    key, path, user = env.pop("OPENAI_API_KEY"), env.pop("PATH"), env.pop("USER")
    assert verify(place.secret, key) == ("writer", INVOCATION)
    assert path.endswith("/bin:/usr/local/bin:/usr/bin:/bin")
    assert user
    home = f"{place.state}/home/writer"
    assert env == {
        "AGENTD_CHANNEL": f"{place.runtime}/c/b93006774cbd",
        "AGENTD_INVOCATION": INVOCATION,
        "AGENTD_STATE_DIR": home,
        "AGENTD_UNIT": "writer",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CREWAI_DISABLE_TELEMETRY": "true",
        "DISABLE_TELEMETRY": "1",
        "HOME": home,
        "LANG": "C.UTF-8",
        "NO_PROXY": "127.0.0.1,localhost,::1",
        "NOTIFY_SOCKET": f"{place.runtime}/n/b93006774cbd",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "OPENAI_API_BASE": "http://127.0.0.1:4180/v1",
        "OPENAI_BASE_URL": "http://127.0.0.1:4180/v1",
        "PYTHONUNBUFFERED": "1",
        "SHELL": "/bin/sh",
        "TMPDIR": f"{home}/tmp",
        "TRACEPARENT": env["TRACEPARENT"],
        "WATCHDOG_USEC": "2000000",
    }
    assert env["TRACEPARENT"].startswith("00-")
    assert len(env["TRACEPARENT"]) == 55


def test_without_heartbeat_or_gateway_nothing_is_promised(place: Place, write_unit: WriteUnit, script: Path) -> None:
    """No WATCHDOG_USEC where none is asked for; no address of a gateway that is not there."""
    env = environment_of(
        compile_unit(write_unit("a", str(script)), INVOCATION, dataclasses.replace(place, gateway=None))
    )
    assert not {"WATCHDOG_USEC", "OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_KEY"} & set(env)


def test_env_file_then_env_win(place: Place, write_unit: WriteUnit, script: Path, short_dir: Path) -> None:
    """The unit's env_file is read at each start, env stands above it, both above agentd's own."""
    file = short_dir / "units/a.env"
    file.write_text("# note\n\nexport A=1\nB='two words'\nLANG=de_DE.UTF-8\n")
    unit = write_unit("a", str(script), agent={"env_file": "a.env", "env": {"A": "3"}})
    env = environment_of(compile_unit(unit, INVOCATION, place))
    assert (env["A"], env["B"], env["LANG"]) == ("3", "two words", "de_DE.UTF-8")
    file.write_text("A=1\nnot a pair\n")
    with pytest.raises(UnitFileError, match=r"a\.env:2: agent\.env_file: 'not a pair' is not KEY=VALUE"):
        compile_unit(unit, INVOCATION, place)
    file.unlink()
    with pytest.raises(UnitFileError, match="cannot be read: No such file"):
        compile_unit(unit, INVOCATION, place)


def test_programs_are_found_as_the_key_says(place: Place, write_unit: WriteUnit, script: Path) -> None:
    """A bare name comes from agentd's environment, then the host's PATH; a relative path starts at workdir."""
    assert compile_unit(write_unit("a", "sh", "-c", "x"), INVOCATION, place).plan.executable.endswith("/bin/sh")
    assert compile_unit(write_unit("a", "sh"), INVOCATION, place).plan.argv[0] == "sh"
    there = compile_unit(write_unit("b", "./program", agent={"workdir": "../bin"}), INVOCATION, place).plan
    assert (there.executable, there.cwd) == (str(script), str(script.parent))
    env = {"PATH": str(script.parent)}
    assert compile_unit(write_unit("c", "program", agent={"env": env}), INVOCATION, place).plan.executable == str(
        script
    )
    python = Path(compile_unit(write_unit("d", "python"), INVOCATION, place).plan.executable)
    assert python.name == "python"
    assert place.stage.directory in python.parents or python.parent == Path(sys.prefix) / "bin"


@pytest.mark.parametrize(
    ("argv", "more", "message"),
    [
        (["no-such-program"], {}, r"a\.toml: agent\.exec: there is no program 'no-such-program' on its PATH"),
        (["/no/such"], {}, r"a\.toml: agent\.exec: /no/such does not exist"),
        (["/etc/passwd"], {}, r"agent\.exec: /etc/passwd is not executable\. Run: chmod \+x"),
        (["/etc"], {}, r"agent\.exec: /etc is no file"),
        (["sh"], {"workdir": "nowhere"}, r"agent\.workdir: .*/units/nowhere is not a directory"),
        (["python3", "gone.py"], {}, r"agent\.exec: .*/gone\.py does not exist"),
    ],
)
def test_what_does_not_exist_is_the_units_error(
    place: Place, write_unit: WriteUnit, argv: list[str], more: dict[str, str], message: str
) -> None:
    """A missing program, script or directory names file, key and path; ``check`` finds the same."""
    unit = write_unit("a", *argv, agent=more)
    with pytest.raises(UnitFileError, match=message):
        compile_unit(unit, INVOCATION, place)
    errors = [f for f in check_host(unit, place) if f.severity == "error"]
    assert [f.key for f in errors] == ["agent.workdir" if more else "agent.exec"]


@pytest.mark.root
def test_a_closed_program_names_uid_path_and_component(place: Place, write_unit: WriteUnit, script: Path) -> None:
    """The error for a program below a 0700 directory names who cannot reach what, and the way out."""
    script.parent.chmod(0o700)
    unit = write_unit("a", str(script))
    uid = place.identities.own("a").uid
    with pytest.raises(HostCannot) as caught:
        compile_unit(unit, INVOCATION, place)
    assert f"[agent] exec: uid {uid} cannot reach {script}: {script.parent} is closed to it" in str(caught.value)
    assert f"chmod o+x {script.parent}" in str(caught.value)
    assert [f.severity for f in check_host(unit, place)] == ["error"]
    allowed = write_unit("a", str(script), agent={"user": "root", "allow_root": True})
    assert compile_unit(allowed, INVOCATION, place).plan.uid == 0


@pytest.mark.root
def test_closed_scripts_and_directories_are_named_too(place: Place, write_unit: WriteUnit, short_dir: Path) -> None:
    """A script for Python, a working directory, and the fleet's own directories are checked before anything runs."""
    closed = short_dir / "closed"
    closed.mkdir(mode=0o700)
    (closed / "agent.py").write_text("")
    with pytest.raises(HostCannot, match=rf"cannot reach {closed}/agent\.py: {closed} is closed"):
        compile_unit(write_unit("a", "python", str(closed / "agent.py")), INVOCATION, place)
    with pytest.raises(HostCannot, match=rf"\[agent\] workdir: uid \d+ cannot reach {closed}"):
        compile_unit(write_unit("a", "sh", agent={"workdir": str(closed)}), INVOCATION, place)
    place.state.chmod(0o700)
    with pytest.raises(HostCannot, match=rf"cannot reach {place.state}/home/a: {place.state} is closed"):
        compile_unit(write_unit("a", "sh"), INVOCATION, place)


@pytest.mark.root
def test_without_root_what_we_cannot_see_is_closed_not_missing(
    place: Place,
    write_unit: WriteUnit,
    script: Path,
    short_dir: Path,
    stranger: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """A daemon that is not root names the directory that closes the way to a program or behind a link."""
    script.parent.chmod(0o700)
    link = short_dir / "units/python"
    link.symlink_to(script)
    us = Account(69_999, 69_999, (), "us", switch=False)
    for path in (script, link):
        with stranger(), pytest.raises(HostCannot, match=f"uid 69999 cannot reach {path}: {script.parent} is closed"):
            find(write_unit("a", str(path)), us, short_dir, None, place.stage)


def test_a_home_that_cannot_be_made_is_one_clear_error(place: Place, write_unit: WriteUnit) -> None:
    """Something else in the place of a unit's directory fails this unit only."""
    (place.state / "home/a").write_text("")
    with pytest.raises(HostCannot, match="home/a: cannot make the unit's directory"):
        compile_unit(write_unit("a", "sh"), INVOCATION, place)
    compile_unit(write_unit("b", "sh"), INVOCATION, place)


@pytest.mark.root
def test_somebody_elses_closed_python_is_refused_by_check_too(
    place: Place, write_unit: WriteUnit, short_dir: Path
) -> None:
    """An environment that root does not own is never staged: plan and check say so alike."""
    home = short_dir / "home"
    home.mkdir(mode=0o700)
    venv.create(home / "venv", symlinks=True)
    os.chown(home / "venv", 69_999, 69_999)
    unit = write_unit("a", str(home / "venv/bin/python"), "-c", "pass")
    with pytest.raises(HostCannot, match="belongs to uid 69999"):
        compile_unit(unit, INVOCATION, place)
    assert "belongs to uid 69999" in next(f.message for f in check_host(unit, place) if f.severity == "error")


@pytest.mark.root
def test_each_unit_has_its_own_uid_and_private_home(place: Place, write_unit: WriteUnit) -> None:
    """As root the plan switches to the unit's uid, whose home no other uid can enter; the uid stays."""
    plans = [compile_unit(write_unit(name, "sh"), INVOCATION, place).plan for name in ("a", "b", "a")]
    assert plans[0].uid == plans[2].uid != plans[1].uid
    for plan in plans:
        for path in (Path(plan.cwd), Path(plan.env["TMPDIR"])):
            info = path.stat()
            assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (plan.uid, 0o700)
    assert stat.S_IMODE((place.state / "log").stat().st_mode) == 0o700


@pytest.mark.root
def test_a_home_is_not_a_lever_on_other_files(place: Place, write_unit: WriteUnit, short_dir: Path) -> None:
    """An agent that replaces its tmp by a link gets nothing of root's: links are not followed."""
    victim = short_dir / "victim"
    victim.mkdir()
    home = Path(compile_unit(write_unit("a", "sh"), INVOCATION, place).plan.cwd)
    (home / "tmp").rmdir()
    (home / "tmp").symlink_to(victim)
    compile_unit(write_unit("a", "sh"), INVOCATION, place)
    assert victim.stat().st_uid == 0


@pytest.mark.root
def test_a_changed_user_is_told_about_old_files(place: Place, write_unit: WriteUnit) -> None:
    """When `user` changes, the home follows and a warning names the uid that older files may still belong to."""
    before = compile_unit(write_unit("a", "sh"), INVOCATION, place).plan.uid
    after = compile_unit(write_unit("a", "sh", agent={"user": "nobody"}), INVOCATION, place)
    assert any(f"may still belong to uid {before}" in warning for warning in after.warnings)
    assert Path(after.plan.cwd).stat().st_uid == after.plan.uid != before


def test_root_is_refused_unless_allowed(place: Place, write_unit: WriteUnit) -> None:
    """user = root without allow_root never becomes a plan."""
    with pytest.raises(HostCannot, match="is root"):
        compile_unit(write_unit("a", "sh", agent={"user": "root"}), INVOCATION, place)


def test_without_root_the_plan_switches_nobody(place: Place, write_unit: WriteUnit) -> None:
    """No ids in the plan: the unit runs as agentd's user, from an environment used where it is. A root that cannot
    switch users runs no agent unless the unit allows root.
    """
    mine = dataclasses.replace(place, identities=Identities(place.state / "none.json", switch=False))
    if os.geteuid() == 0:
        with pytest.raises(HostCannot, match="cannot switch to another uid"):
            compile_unit(write_unit("a", "python"), INVOCATION, mine)
    plan = compile_unit(write_unit("a", "python", agent={"allow_root": True}), INVOCATION, mine).plan
    assert (plan.uid, plan.gid, plan.groups) == (None, None, ())
    assert plan.executable == str(Path(sys.prefix) / "bin/python")


def test_a_host_without_cgroups_gives_rlimit_and_says_so(bare: Place, write_unit: WriteUnit) -> None:
    """The default level falls back to rlimit with the reason; memory never becomes RLIMIT_AS."""
    compiled = compile_unit(write_unit("a", "sh"), INVOCATION, bare)
    assert compiled.level == "rlimit"
    assert "Delegate=yes" in compiled.warnings[0]
    assert {r.name for r in compiled.plan.rlimits} == {"RLIMIT_CORE", "RLIMIT_NOFILE"}
    assert compiled.plan.cgroups == ()
    assert [f.severity for f in check_host(write_unit("a", "sh"), bare)] == ["warning"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"isolation": {"level": "cgroup"}},
            r'\[isolation\] level = "cgroup": this host cannot give it: .*Delegate=yes',
        ),
        ({"limits": {"memory": "64M"}}, r"a\.toml: \[limits\] memory = 64M: this limit cannot be enforced: .*Delegate"),
        ({"limits": {"cpu": 0.5}}, r"\[limits\] cpu = 0\.5"),
        ({"limits": {"pids": 20}}, r"\[limits\] pids = 20"),
    ],
)
def test_what_is_asked_for_by_name_is_never_weaker(
    bare: Place, write_unit: WriteUnit, sections: dict[str, dict[str, object]], message: str
) -> None:
    """A level or limit that was named and cannot be had refuses to start, and ``check`` says it first."""
    unit = write_unit("a", "sh", **sections)
    with pytest.raises(HostCannot, match=message):
        compile_unit(unit, INVOCATION, bare)
    section, keys = next(iter(sections.items()))
    assert f"{section}.{next(iter(keys))}" in [f.key for f in check_host(unit, bare) if f.severity == "error"]


def test_a_limit_contradicts_a_named_weaker_level(place: Place, write_unit: WriteUnit) -> None:
    """level = rlimit with a memory limit is refused on every host."""
    unit = write_unit("a", "sh", isolation={"level": "rlimit"}, limits={"memory": "64M"})
    with pytest.raises(HostCannot, match=r"\[limits\] memory = 64M: .* cannot be enforced"):
        compile_unit(unit, INVOCATION, place)


def test_level_none_takes_nothing_away(place: Place, write_unit: WriteUnit) -> None:
    """level = none: no cgroup, no rlimits but one asked for, and setuid programs work."""
    unit = write_unit("a", "sh", isolation={"level": "none"}, limits={"open_files": 64})
    plan = compile_unit(unit, INVOCATION, place).plan
    assert (plan.cgroups, plan.no_new_privs) == ((), False)
    assert [(r.name, r.hard) for r in plan.rlimits] == [("RLIMIT_NOFILE", 64)]


def test_v2_limits_are_one_cgroup(place: Place, write_unit: WriteUnit, short_dir: Path) -> None:
    """On v2 one directory has all settings, whole-tree OOM, and is the one to kill by."""
    parent = short_dir / "v2"
    parent.mkdir()
    parents = dict.fromkeys(("memory", "cpu", "pids", "kill"), parent)
    v2 = dataclasses.replace(place, capabilities=Capabilities(0, True, "v2", parents, swap=True))
    unit = write_unit("a", "sh", limits={"memory": "64M", "cpu": 0.25})
    (group,) = compile_unit(unit, INVOCATION, v2).plan.cgroups
    assert (group.path, group.kill) == (f"{parent}/a", True)
    assert group.settings == (
        ("memory.max", str(64 << 20)),
        ("memory.oom.group", "1"),
        ("memory.swap.max", "0"),
        ("cpu.max", "25000 100000"),
        ("pids.max", "512"),
    )


def test_check_touches_nothing(place: Place, write_unit: WriteUnit, short_dir: Path) -> None:
    """A check makes no directory, no uid, no stage."""
    before = sorted(short_dir.rglob("*"))
    assert [f for f in check_host(write_unit("a", "python"), place) if f.severity == "error"] == []
    assert sorted(short_dir.rglob("*")) == before


def test_a_system_unit_gets_secrets_by_descriptor(place: Place, short_dir: Path) -> None:
    """Secrets are sealed memfds named in the plan, in neither argv nor environment; the environment is minimal."""
    ledger = short_dir / "state/gateway"
    system = System(
        "gateway",
        ("sh", "-c", "true"),
        listeners=(Listener("http", "tcp:127.0.0.1:0"),),
        secrets={"secret": b"s3cret", "keys": b"{}"},
        directories={ledger: 0o700},
        heartbeat=5.0,
        env={"AGENTD_KEEPER": "x"},
    )
    compiled = compile_system(system, INVOCATION, place)
    try:
        assert compiled.plan.fds == ("secret", "keys")
        assert os.read(compiled.fds["secret"], 100) == b"s3cret"
        with pytest.raises(PermissionError):
            os.pwrite(compiled.fds["secret"], b"x", 0)
    finally:
        compiled.close()
    assert "s3cret" not in str(compiled.plan)
    assert set(compiled.plan.env) == {
        "AGENTD_INVOCATION", "AGENTD_KEEPER", "AGENTD_UNIT", "HOME", "LANG", "NOTIFY_SOCKET", "PATH",
        "PYTHONUNBUFFERED", "SHELL", "TMPDIR", "USER", "WATCHDOG_USEC",
    }  # fmt: skip
    assert ledger.stat().st_mode & 0o777 == 0o700
    assert compiled.plan.uid in (None, ledger.stat().st_uid)


@pytest.mark.parametrize(("mode", "weight"), [("v2", ("cpu.weight", "800")), ("v1", ("cpu.shares", "8192"))])
def test_a_system_unit_comes_before_units(
    place: Place, write_unit: WriteUnit, short_dir: Path, mode: Literal["v1", "v2"], weight: tuple[str, str]
) -> None:
    """Everybody waits for it: units that start by the thousand must not make it look hung. Units are equal."""
    parent = short_dir / "cgroups"
    parent.mkdir()
    parents = dict.fromkeys(("memory", "cpu", "pids", "kill"), parent)
    there = dataclasses.replace(place, capabilities=Capabilities(0, True, mode, parents))
    compiled = compile_system(System("gateway", ("sh", "-c", "true")), INVOCATION, there)
    compiled.close()
    ordinary = compile_unit(write_unit("a", "sh", "-c", "exit"), INVOCATION, there).plan
    assert weight in [setting for group in compiled.plan.cgroups for setting in group.settings]
    assert weight[0] not in [name for group in ordinary.cgroups for name, _ in group.settings]


def test_plans_survive_the_wire(place: Place, write_unit: WriteUnit) -> None:
    """What we compile is what the keeper reads."""
    plan = compile_unit(write_unit("a", "sh", "-c", "exit"), INVOCATION, place).plan
    assert SpawnPlan.from_dict(plan.to_dict()) == plan


def test_one_broken_unit_leaves_the_others(place: Place, write_unit: WriteUnit) -> None:
    """An error for one unit changes nothing of the next."""
    with pytest.raises(UnitFileError):
        compile_unit(write_unit("a", "no-such-program"), INVOCATION, place)
    assert compile_unit(write_unit("b", "sh"), INVOCATION, place).plan.executable == shutil.which("sh")


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ('exec = ["sleep", "1"]', True),
        ('exec = ["/bin/bash", "-c", "echo"]', True),
        ('exec = ["python", "-m", "agent"]', True),
        ('exec = ["python", "/mnt/agent.py"]', False),
        ('exec = ["/mnt/agent"]', False),
        ('exec = ["sleep", "1"]\nworkdir = "/mnt"', False),
        ('exec = ["sleep", "1"]\nenv_file = "keys"', False),
        ('exec = ["sleep", "1"]\nuser = "me"', False),
        ('exec = ["sleep", "1"]\nenv = { PATH = "/mnt/bin" }', False),
    ],
)
def test_what_may_not_answer_is_not_near(agent: str, expected: bool) -> None:
    """The daemon's loop makes a plan itself only where no mount, directory of users or file of somebody else can hold
    it up: a server that has gone away may stop one unit, never supervision."""
    assert near(reading.parse(f"[agent]\n{agent}\n", "a", "/u/a.toml")) is expected
