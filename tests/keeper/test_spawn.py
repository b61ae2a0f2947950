"""Spawning: what the child gets, and how each step that fails is named."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from agentd.keeper import trail
from agentd.keeper.process import PRIORITY
from tests.keeper.conftest import ROOT, Keeper, alive

SELF_PORTRAIT = """
import json, os, resource, signal, sys
fds = sorted(int(n) for n in os.listdir('/proc/self/fd'))
status = dict(l.split(':', 1) for l in open('/proc/self/status').read().splitlines() if ':' in l)
print(json.dumps({
    'fds': [f for f in fds if os.path.exists(f'/proc/self/fd/{f}')], 'env': dict(os.environ), 'cwd': os.getcwd(),
    'sid': os.getsid(0), 'pid': os.getpid(), 'umask': os.umask(0), 'uid': os.getresuid(), 'gid': os.getresgid(),
    'groups': os.getgroups(), 'nnp': status['NoNewPrivs'].strip(), 'blocked': status['SigBlk'].strip(),
    'ignored': status['SigIgn'].strip(), 'nofile': resource.getrlimit(resource.RLIMIT_NOFILE),
    'core': resource.getrlimit(resource.RLIMIT_CORE), 'stdin': os.readlink('/proc/self/fd/0')}))
"""


def portrait(keeper: Keeper, handed: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
    """What a child of this plan sees of itself."""
    client = keeper.client()
    client.done("spawn", handed, plan=keeper.python(SELF_PORTRAIT, **fields))
    assert client.event("ended")["process"]["exit"] == 0
    seen: dict[str, Any] = json.loads(keeper.log())
    return seen


def test_answer_names_the_process_and_the_end_its_exit_code(keeper: Keeper) -> None:
    """A spawn answers after exec; the end says with which code."""
    client = keeper.client()
    row = client.done("spawn", plan=keeper.shell("read x < /dev/null; exit 3"))["process"]
    assert (row["unit"], row["invocation"], row["exit"], row["ended"]) == ("a", "0000000000000001", None, None)
    ended = client.event("ended")
    assert ended["process"]["pid"] == row["pid"]
    assert ended["process"]["exit"] == 3
    assert ended["left"] == []
    assert ended["process"]["ended"] >= row["started"]


def test_start_time_is_the_kernels(keeper: Keeper) -> None:
    """pid and start_time together name the process as /proc does."""
    client = keeper.client()
    row = client.done("spawn", plan=keeper.shell("exec sleep 60"))["process"]
    stat = Path(f"/proc/{row['pid']}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[19]) == row["start_time"]


def test_child_starts_clean(keeper: Keeper) -> None:
    """No descriptor but 0, 1, 2; a session of its own; no signal ignored or blocked; the keeper's limits not raised."""
    seen = portrait(keeper, umask=0o027, cwd="/tmp")
    assert seen["fds"] == [0, 1, 2]
    assert seen["stdin"] == "/dev/null"
    assert seen["sid"] == seen["pid"]
    assert seen["umask"] == 0o027
    assert seen["cwd"] == "/tmp"
    assert seen["nnp"] == "1"
    assert int(seen["blocked"], 16) == 0
    # Python ignores these two itself; everything else must be at its default.
    own = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    # And what is no program's to set: glibc keeps 32 and 33, and leaves them ignored in what posix_spawn (make) starts.
    own |= sum(1 << (number - 1) for number in range(32, signal.SIGRTMIN))
    assert int(seen["ignored"], 16) & ~own == 0
    assert seen["nofile"] == list(resource.getrlimit(resource.RLIMIT_NOFILE))
    assert set(seen["env"]) <= {"PATH", "AGENTD_UNIT", "AGENTD_INVOCATION", "AGENTD_RUNTIME", "LC_CTYPE"}
    assert seen["env"]["AGENTD_INVOCATION"] == "0000000000000001"


def test_descriptors_of_the_request_follow_the_listeners(keeper: Keeper) -> None:
    """Listeners and descriptors are announced by LISTEN_FDS, in this order, from 3 on."""
    memfd = os.memfd_create("secret")
    os.write(memfd, b"hidden")
    listener = {"name": "http", "address": "tcp:127.0.0.1:0"}
    seen = portrait(keeper, (memfd,), listeners=[listener], fds=["secret"])
    os.close(memfd)
    assert seen["fds"] == [0, 1, 2, 3, 4]
    assert seen["env"]["LISTEN_FDS"] == "2"
    assert seen["env"]["LISTEN_FDNAMES"] == "http:secret"
    assert seen["env"]["LISTEN_PID"] == str(seen["pid"])


def test_content_of_a_descriptor_arrives(keeper: Keeper) -> None:
    """The very descriptor that was sent is the one that the child reads."""
    client = keeper.client()
    reader, writer = os.pipe()
    os.write(writer, b"through the keeper\n")
    os.close(writer)
    client.done("spawn", (reader,), plan=keeper.shell("cat <&3", fds=["input"]))
    os.close(reader)
    client.event("ended")
    assert keeper.log() == "through the keeper\n"


def test_limits_are_set(keeper: Keeper) -> None:
    """Resource limits of the plan hold in the child."""
    limits = [{"name": "RLIMIT_NOFILE", "soft": 64, "hard": 128}, {"name": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    seen = portrait(keeper, rlimits=limits)
    assert (seen["nofile"], seen["core"]) == ([64, 128], [0, 0])


@pytest.mark.root
def test_ids_are_dropped_for_good(keeper: Keeper) -> None:
    """uid, gid and groups of the plan, real, effective and saved."""
    client = keeper.client()
    script = "id -u; id -g; id -G; grep -E '^(Uid|Gid)' /proc/self/status; cat /proc/1/environ || echo closed"
    client.done("spawn", plan=keeper.shell(script, uid=60001, gid=60002, groups=[60003]))
    client.event("ended")
    lines = keeper.log().split("\n")
    assert lines[:3] == ["60001", "60002", "60002 60003"]
    assert lines[3].split() == ["Uid:"] + ["60001"] * 4
    assert "closed" in lines


REFUSALS: list[tuple[dict[str, Any], str, int | None, str]] = [
    ({"executable": "/nonexistent/program"}, "exec", errno.ENOENT, "/nonexistent does not exist"),
    ({"executable": "/etc/passwd"}, "exec", errno.EACCES, "may not execute /etc/passwd"),
    ({"cwd": "/nonexistent"}, "directory", errno.ENOENT, "/nonexistent"),
    ({"cwd": "relative"}, "check", errno.EINVAL, "not an absolute path"),
    ({"fds": ["missing"]}, "check", errno.EINVAL, "1 names for 0 descriptors"),
    ({"version": 99}, "check", errno.EINVAL, "plan version 99"),
    ({"rlimits": [{"name": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]}, "check", errno.EINVAL, "RLIMIT_NONSENSE"),
    ({"rlimits": [{"name": "RLIMIT_NOFILE", "soft": 9, "hard": 8}]}, "rlimit", errno.EINVAL, "RLIMIT_NOFILE"),
    ({"uid": 60001}, "check", errno.EINVAL, "a uid needs a gid"),
    ({"cgroups": [{"path": "/proc/self/nothing"}]}, "cgroup", errno.ENOENT, "/proc/self/nothing"),
    ({"notify": "/proc/self/n"}, "notify", None, "/proc/self/n"),
    ({"notify": "/tmp/" + "x" * 110}, "notify", None, "too long"),
    ({"output": {"fifo": "/proc/self/o", "file": "/dev/null"}}, "output", None, "/proc/self/o"),
    ({"listeners": [{"name": "x", "address": "udp:1"}]}, "listen", errno.EINVAL, "udp:1"),
]


@pytest.mark.bad_input("exits before exec")
def test_each_step_that_fails_is_named(keeper: Keeper) -> None:
    """A plan that cannot be executed says which step, errno and path; and the unit can be spawned right after."""
    client = keeper.client()
    for fields, step, number, words in REFUSALS:
        error = client.refused("spawn", plan=keeper.shell("exit 0", **fields))
        assert (error["code"], error["step"]) == ("step", step), error
        assert number in (None, error["errno"]), error
        assert words in error["message"]
        client.done("spawn", plan=keeper.shell("exit 0"))
        assert client.event("ended")["process"]["exit"] == 0
    assert client.events == []


@pytest.mark.root
@pytest.mark.parametrize("field", ["executable", "cwd"])
@pytest.mark.bad_input("unreachable interpreter, cwd or file")
def test_first_closed_directory_is_named(keeper: Keeper, field: str) -> None:
    """A program or directory below one that the unit's uid may not pass: the error names that one."""
    closed = keeper.directory / "work" / "closed"
    inside = closed / "deep" / "inside"
    inside.mkdir(parents=True)
    keeper.directory.joinpath("work").chmod(0o755)
    closed.chmod(0o700)
    client = keeper.client()
    error = client.refused("spawn", plan=keeper.shell("exit 0", uid=60001, gid=60001, **{field: str(inside)}))
    assert error["errno"] == errno.EACCES
    assert error["path"] == str(inside)
    assert error["message"].endswith(f"uid 60001 may not pass {closed}")


@pytest.mark.root
@pytest.mark.bad_input("unreachable interpreter, cwd or file")
def test_closed_directory_behind_a_link_is_named(keeper: Keeper) -> None:
    """An environment's interpreter is a link into a home that is closed: the home is named."""
    closed = keeper.directory / "work" / "home"
    closed.mkdir(parents=True)
    keeper.directory.joinpath("work").chmod(0o755)
    (closed / "python").write_text("#!/bin/sh\n")
    (keeper.directory / "work" / "python").symlink_to(closed / "python")
    closed.chmod(0o700)
    plan = keeper.shell("exit 0", uid=60001, gid=60001, executable=str(keeper.directory / "work" / "python"))
    assert f"may not pass {closed}" in keeper.client().refused("spawn", plan=plan)["message"]


@pytest.mark.bad_input("unreachable interpreter, cwd or file")
def test_missing_interpreter_of_a_script_is_named(keeper: Keeper) -> None:
    """A script whose #! program does not exist: ENOENT is about that one."""
    (keeper.directory / "work").mkdir()
    script = keeper.directory / "work" / "script"
    script.write_text("#!/nonexistent/python\n")
    script.chmod(0o755)
    error = keeper.client().refused("spawn", plan=keeper.shell("", executable=str(script)))
    assert "its interpreter /nonexistent/python" in error["message"]


def test_one_process_of_a_unit_at_a_time(keeper: Keeper) -> None:
    """A second spawn is refused while the first lives, and changes nothing."""
    client = keeper.client()
    row = client.done("spawn", plan=keeper.shell("exec sleep 60"))["process"]
    again = keeper.shell("exit 0", invocation="0000000000000002")
    assert client.refused("spawn", plan=again)["code"] == "exists"
    assert alive(row["pid"])


@pytest.mark.root
def test_populated_cgroup_refuses(keeper: Keeper) -> None:
    """Whoever lives in the unit's kill-cgroup, a new process is not started beside it."""
    if keeper.cgroup is None:
        pytest.skip("no writable cgroup2 mount")
    client = keeper.client()
    group = {"cgroups": [{"path": str(keeper.cgroup / "x"), "kill": True}]}
    client.done("spawn", plan=keeper.shell("exec sleep 60", unit="x", **group))
    error = client.refused("spawn", plan=keeper.shell("exit 0", unit="y", **group))
    assert error["code"] == "exists"
    assert str(keeper.cgroup / "x") in error["message"]


@pytest.mark.root
def test_directory_that_is_no_cgroup_is_refused_and_removed(keeper: Keeper) -> None:
    """A path beside the mounts would be an ordinary directory without any effect."""
    path = keeper.directory / "work" / "g"
    error = keeper.client().refused("spawn", plan=keeper.shell("", cgroups=[{"path": str(path)}]))
    assert (error["step"], error["errno"], error["path"]) == ("cgroup", errno.ENODEV, str(path))
    assert not path.parent.exists()


@pytest.mark.root
def test_bad_cgroup_setting_is_named(keeper: Keeper) -> None:
    """A setting that this host does not have is refused with its path."""
    if keeper.cgroup is None:
        pytest.skip("no writable cgroup2 mount")
    group = {"path": str(keeper.cgroup / "a"), "settings": [["memory.nonsense", "1"]], "kill": True}
    error = keeper.client().refused("spawn", plan=keeper.shell("", cgroups=[group]))
    assert (error["step"], error["path"]) == ("cgroup", f"{keeper.cgroup}/a/memory.nonsense")


@pytest.mark.root
def test_limits_of_a_v1_hierarchy_hold(keeper: Keeper) -> None:
    """Several directories in one plan: a v1 controller and the v2 mount; both are entered, both are removed."""
    pids = Path("/sys/fs/cgroup/pids")
    if keeper.cgroup is None or not pids.joinpath("cgroup.procs").exists():
        pytest.skip("no hybrid hierarchy")
    parent = pids / keeper.cgroup.name
    groups = [{"path": f"{parent}/a", "settings": [["pids.max", "7"]]}, {"path": f"{keeper.cgroup}/a", "kill": True}]
    client = keeper.client()
    client.done("spawn", plan=keeper.shell("cat /proc/self/cgroup", cgroups=groups))
    client.event("ended")
    assert f"pids:/{parent.name}/a\n" in keeper.log()
    assert f"0::/{parent.name}/a\n" in keeper.log()
    assert parent.joinpath("a/pids.max").read_text() == "7\n"
    client.done("forget", unit="a")
    assert not parent.joinpath("a").exists()
    assert keeper.stop() == 0
    assert not parent.exists()


def test_without_output_the_keepers_own_is_inherited(bare: Keeper) -> None:
    """A plan without output writes where the keeper writes."""
    path = bare.directory / "out"
    with path.open("wb") as file:
        bare.start(stdout=file)
    client = bare.client()
    client.done("spawn", plan=bare.shell("echo inherited", output=None))
    client.event("ended")
    assert path.read_text() == "inherited\n"
    assert bare.stop() == 0


def test_secrets_of_the_environment_are_not_written(keeper: Keeper) -> None:
    """The keeper's file of a unit has names of variables, never values; mode 0600; and the process."""
    client = keeper.client()
    plan = keeper.shell("exec sleep 60", env={"KEY": "sk-hidden", "PATH": "/bin:/usr/bin"})
    row = client.done("spawn", plan=plan)["process"]
    (path,) = (keeper.directory / "keeper").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert "sk-hidden" not in path.read_text()
    content = trail.read(str(path))
    assert (content["state"], content["process"]["pid"]) == ("running", row["pid"])
    assert content["plan"]["env"] == ["AGENTD_RUNTIME", "KEY", "PATH"]


def test_process_of_an_earlier_keeper_is_not_doubled(bare: Keeper) -> None:
    """After kill -9 of the keeper, a new one refuses to start what still lives."""
    bare.start()
    client = bare.client()
    row = client.done("spawn", plan=bare.shell("exec sleep 60"))["process"]
    bare.process.kill()
    bare.process.wait()
    client.close()
    bare.start()
    try:
        error = bare.client().refused("spawn", plan=bare.shell("exit 0", invocation="0000000000000002"))
        assert error["code"] == "exists"
        assert str(row["pid"]) in error["message"]
    finally:
        os.kill(row["pid"], signal.SIGKILL)
    assert bare.stop() == 0


def test_seqpacket_socket_is_private(keeper: Keeper) -> None:
    """The keeper's socket is for its own uid alone."""
    path = keeper.directory / "keeper.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(path))


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_output_fifo_belongs_to_the_unit(keeper: Keeper) -> None:
    """A unit with a uid of its own can open /dev/stdout again."""
    client = keeper.client()
    client.done("spawn", plan=keeper.shell("echo again > /dev/stdout", uid=60001, gid=60001))
    assert client.event("ended")["process"]["exit"] == 0
    assert keeper.log() == "again\n"


@pytest.mark.root
def test_the_keeper_comes_before_its_units(keeper: Keeper) -> None:
    """A unit that burns every processor does not delay the one who is to restart it; units are equal."""
    row = keeper.client().done("spawn", plan=keeper.shell("exec sleep 1000"))["process"]
    assert os.getpriority(os.PRIO_PROCESS, keeper.process.pid) == PRIORITY
    assert os.getpriority(os.PRIO_PROCESS, row["pid"]) == os.getpriority(os.PRIO_PROCESS, 0)
