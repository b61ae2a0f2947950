"""What a host can do, on this one and on hosts made of files."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from agentd.host import capability

MiB = 1 << 20


def make_proc(root: Path, mounts: list[str], own: str) -> Path:
    proc = root / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_text("".join(f"{line}\n" for line in mounts))
    (proc / "self/cgroup").write_text(own)
    (proc / "self/status").write_text("CapEff:\t000001ffffffffff\n")
    return proc


def make_v2(root: Path, own: str, controllers: str = "cpu memory pids io") -> Path:
    """A host with one v2 hierarchy, made of files."""
    top = root / "cgroup"
    for directory in (top, top / own.strip("/")):
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("cgroup.procs", "cgroup.subtree_control"):
            (directory / name).write_text("")
        (directory / "cgroup.controllers").write_text(controllers)
    return make_proc(root, [f"30 1 0:1 / {top} rw - cgroup2 cgroup2 rw"], f"0::{own}\n")


def test_this_host_is_understood(short_dir: Path) -> None:
    """Each controller is either found with a directory that exists, or missing with a reason."""
    found = capability.probe(short_dir)
    assert set(found.parents) | set(found.missing) == {"memory", "cpu", "pids", "kill"}
    assert not set(found.parents) & set(found.missing)
    assert all(parent.parent.is_dir() for parent in found.parents.values())
    assert found.cgroup == (not found.why_not)


def test_two_fleets_never_share_a_cgroup(short_dir: Path) -> None:
    """The names of cgroups depend on the runtime directory."""
    assert capability.fleet(short_dir / "a") != capability.fleet(short_dir / "b")
    assert capability.fleet(Path("a")) == capability.fleet(Path.cwd() / "a")


@pytest.mark.root
def test_v2_as_root_uses_the_top_unless_delegated(short_dir: Path) -> None:
    """Without delegation root's fleet lies at the top of the tree; a delegated cgroup contains it."""
    own = "/system.slice/agentd-keeper.service"
    proc = make_v2(short_dir, own)
    top = short_dir / "cgroup"
    assert capability.probe(short_dir, proc=proc).parents["memory"].parent == top
    delegated = top / own.strip("/")
    os.setxattr(delegated, "trusted.delegate", b"1")
    found = capability.probe(short_dir, proc=proc)
    assert (found.mode, found.cgroup) == ("v2", True)
    assert {parent.parent for parent in found.parents.values()} == {delegated}


@pytest.mark.root
def test_v2_after_moving_aside_finds_the_same_base(short_dir: Path) -> None:
    """A daemon that starts from <base>/supervisor finds <base> again, not its child."""
    own = "/system.slice/agentd-keeper.service/supervisor"
    proc = make_v2(short_dir, own)
    base = (short_dir / "cgroup" / own.strip("/")).parent
    for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.controllers"):
        (base / name).write_text("cpu memory pids")
    os.setxattr(base, "trusted.delegate", b"1")
    assert capability.probe(short_dir, proc=proc).parents["kill"].parent == base


def test_v2_names_the_controller_that_is_not_offered(short_dir: Path) -> None:
    """A user session that delegates memory and pids only has the level cgroup, without cpu limits."""
    own = "/user.slice/app"
    proc = make_v2(short_dir, own, "memory pids")
    found = capability.probe(short_dir, proc=proc)
    assert found.cgroup
    assert "cpu controller (unit needs Delegate=yes)" in found.missing["cpu"]


@pytest.mark.root
def test_what_is_not_writable_is_named_with_uid_and_remedy(
    short_dir: Path, stranger: Callable[[], AbstractContextManager[None]]
) -> None:
    """Without delegation another uid learns which path refuses it and what the unit needs."""
    proc = make_v2(short_dir, "/system.slice/x")
    with stranger():
        found = capability.probe(short_dir, proc=proc)
        here = capability.probe(short_dir)
    path = short_dir / "cgroup/system.slice/x"
    assert not found.cgroup
    assert found.why_not == f"{path} is not writable by uid 69999 (agentd needs root or Delegate=yes)"
    assert not here.cgroup
    assert not here.can_switch_user


def test_hybrid_v1_uses_each_controller_where_it_is(short_dir: Path) -> None:
    """On a hybrid host the limits come from v1 hierarchies and the kill from the v2 mount; a missing one is named."""
    lines = []
    for name in ("memory", "cpu,cpuacct", "unified"):
        point = short_dir / name
        point.mkdir()
        kind = "cgroup2 cgroup2 rw" if name == "unified" else f"cgroup cgroup rw,{name}"
        lines.append(f"30 1 0:1 / {point} rw - {kind}")
    (short_dir / "unified/cgroup.controllers").write_text("\n")
    own = "3:memory:/\n2:cpu,cpuacct:/\n0::/\n"
    found = capability.probe(short_dir, proc=make_proc(short_dir, lines, own))
    name = capability.fleet(short_dir)
    assert found.mode == "v1"
    assert found.parents == {
        "memory": short_dir / "memory" / name,
        "cpu": short_dir / "cpu,cpuacct" / name,
        "kill": short_dir / "unified" / name,
    }
    assert found.missing == {"pids": "no pids controller is mounted"}
    assert not found.cgroup


def test_a_host_without_cgroups_says_so(short_dir: Path) -> None:
    """No hierarchy at all: the mode is none and every part has a reason."""
    found = capability.probe(short_dir, proc=make_proc(short_dir, [], ""))
    assert (found.mode, found.parents) == ("none", {})
    assert "no cgroup v2 hierarchy" in found.why_not


def test_ensure_hands_the_controllers_down(short_dir: Path) -> None:
    """On v2 the fleet's cgroup and the one above get the controllers switched on; sweep removes what is empty."""
    proc = make_v2(short_dir, "/a")
    found = capability.probe(short_dir, proc=proc)
    parent = found.parents["kill"]
    capability.ensure(found)
    capability.ensure(found)
    assert (parent.parent / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    assert (parent / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    (parent / "cgroup.subtree_control").unlink()
    capability.sweep(found)
    assert not parent.exists()


@pytest.mark.root
def test_processes_are_moved_aside(short_dir: Path) -> None:
    """What sits in the base of a v2 hierarchy is moved into <base>/supervisor, by the real kernel."""
    import subprocess

    unified = capability.probe(short_dir).parents.get("kill")
    if unified is None:
        pytest.skip("no cgroup v2 hierarchy")
    base = unified.parent / f"{unified.name}-test"
    base.mkdir()
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            (base / "cgroup.procs").write_text(str(child.pid))
            capability._move_aside(base)
            assert (base / "cgroup.procs").read_text() == ""
            assert (base / "supervisor/cgroup.procs").read_text().split() == [str(child.pid)]
        finally:
            child.kill()
            child.wait()
            (base / "supervisor").rmdir()
            base.rmdir()
