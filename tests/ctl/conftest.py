"""agentctl as a process, and a stand-in daemon for it to talk to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ctl import fleet
from tests.ctl.stand_in import StandIn, serving

Agentctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[StandIn]:
    """A daemon with the stormy fleet, now."""
    now = fleet.shifted(fleet.stormy(), time.time() - fleet.NOW)
    answers = {"GET /v1/status": (200, now)}
    for unit in now["units"]:
        answers[f"GET /v1/status?unit={unit['name']}"] = (200, {**now, "units": [unit]})
    with serving(short_dir / "control.sock", answers) as stand_in:
        yield stand_in


@pytest.fixture
def agentctl(short_dir: Path) -> Agentctl:
    """Run agentctl against the socket in short_dir."""

    def run(*args: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AGENTD_", "XDG_", "FORCE_", "NO_COLOR"))}
        return subprocess.run(
            [sys.executable, "-m", "agentd.ctl.main", *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            env=clean | {"AGENTD_SOCKET": str(short_dir / "control.sock"), "COLUMNS": "100"} | env,
        )

    return run
