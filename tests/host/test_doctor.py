"""The checks of ``agentctl doctor``."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from agentd.host.capability import Capabilities
from agentd.host.doctor import examine
from agentd.host.identity import Identities
from agentd.host.place import Place

NAMES = ["isolation", "tree kill", "memory limit", "own users", "python", "socket paths", "disk space", "open files",
         "pidfd", "clock"]  # fmt: skip


def test_every_check_is_done_quickly_and_leaves_nothing(place: Place, short_dir: Path) -> None:
    """All checks answer within two seconds; what is not good has a hint; no file and no cgroup stays."""
    before = sorted(short_dir.rglob("*"))
    start = time.monotonic()
    checks = examine(place)
    assert time.monotonic() - start < 2
    assert [check["name"] for check in checks] == NAMES
    assert all(check["hint"] for check in checks if check["ok"] is not True)
    assert [check for check in checks if check["ok"] is False and check["name"] != "disk space"] == []
    assert sorted(short_dir.rglob("*")) == before


@pytest.mark.root
def test_as_root_the_kernel_was_really_asked(place: Place) -> None:
    """Where cgroups can be had a probe process was killed by them, and one ran as another uid."""
    if not place.capabilities.cgroup:
        pytest.skip(place.capabilities.why_not)
    found = {check["name"]: check for check in examine(place)}
    assert found["tree kill"]["text"] == "cgroup.kill ended a probe process (exit -9)"
    assert found["memory limit"]["text"].endswith("took 96M was killed")
    assert found["own users"]["ok"] is True


def test_a_weak_host_is_told_what_is_missing(place: Place, short_dir: Path) -> None:
    """Without cgroups and root each weakness is named with its reason, as weaker and not as broken."""
    reason = "/sys/fs/cgroup is not writable by uid 1000 (unit needs Delegate=yes)"
    missing = dict.fromkeys(("memory", "cpu", "pids", "kill"), reason)
    weak = dataclasses.replace(
        place,
        runtime=short_dir / ("long" * 30),
        capabilities=Capabilities(1000, False, "none", {}, missing),
        identities=Identities(short_dir / "none.json", switch=False),
    )
    found = {check["name"]: check for check in examine(weak)}
    assert [found[name]["ok"] for name in ("isolation", "tree kill", "memory limit", "own users")] == [None] * 4
    assert reason in found["isolation"]["text"]
    assert found["socket paths"]["ok"] is False
    assert "--runtime" in found["socket paths"]["hint"]
