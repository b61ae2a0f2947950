"""A canned fleet in every state, as the control API tells it."""

from __future__ import annotations

from typing import Any

NOW = 1_792_548_000.0
DAY = {"window": "day", "resets_at": NOW + 4 * 3600}


def unit(name: str, **changes: Any) -> dict[str, Any]:
    """A quiet running unit, changed where the caller says."""
    quiet = {
        "name": name,
        "system": False,
        "file": f"/etc/agentd/units/{name}.toml",
        "description": "",
        "type": "notify",
        "state": "running",
        "activity": "idle",
        "pid": 4711,
        "invocation": "0000000000000003",
        "since": NOW - 8040,
        "started": NOW - 8040,
        "restarts": 0,
        "failures": 0,
        "last": None,
        "reason": "started with the fleet",
        "next": None,
        "status": "",
        "memory": 43 << 20,
        "cpu_seconds": 3.2,
        "processes": 1,
        "level": "cgroup",
        "tokens": {"used": 0, "held": 0, "limit": 2_000_000, **DAY},
        "inbox": {"pending": 0, "held": 0, "dead": 0},
        "holding": None,
        "call": None,
        "warnings": [],
    }
    return quiet | changes


def ended(cause: str, text: str, at: float, **how: Any) -> dict[str, Any]:
    """How an invocation ended."""
    return {
        "invocation": "0000000000000002",
        "cause": cause,
        "exit": how.get("exit"),
        "signal": how.get("signal"),
        "text": text,
        "at": at,
        "ran": 7800.0,
    }


def system(name: str, **changes: Any) -> dict[str, Any]:
    """A system unit."""
    own = {"system": True, "file": None, "activity": None, "tokens": None, "inbox": None, "memory": 24 << 20}
    return unit(name, **(own | changes))


def agentd(**changes: Any) -> dict[str, Any]:
    """The daemon's own part of the status."""
    return {
        "version": "0.1.0",
        "pid": 400,
        "keeper_pid": 399,
        "started": NOW - 8043,
        "units": 7,
        "state_dir": "/var/lib/agentd",
        "runtime_dir": "/run/agentd",
        "units_dir": "/etc/agentd/units",
        "gateway": "127.0.0.1:4180",
        "metrics": "127.0.0.1:9464",
        "bus": {"connected": True, "server": "2.15.1", "error": None},
        "warnings": [],
        "broken": [],
        "stopping": False,
    } | changes


def calm() -> dict[str, Any]:
    """Three agents at work, and nothing to complain about."""
    return {
        "agentd": agentd(units=3),
        "units": [
            unit(
                "researcher",
                activity="thinking",
                pid=4711,
                tokens={"used": 12_400, "held": 900, "limit": 200_000, **DAY},
                call={"model": "dry-run", "since": NOW - 3},
                inbox={"pending": 2, "held": 1, "dead": 0},
            ),
            unit("writer", activity="working", pid=4713, tokens={"used": 3_412, "held": 0, "limit": 2_000_000, **DAY}),
            unit("reviewer", pid=4715),
            system("bus", pid=401, since=NOW - 8042),
            system("router", pid=402, memory=38 << 20),
            system("gateway", pid=403, memory=41 << 20),
        ],
    }


def stormy() -> dict[str, Any]:
    """Something of everything that can go wrong."""
    memory = (
        "limits.memory is not enforced: no cgroup is writable here. Run as root, or under systemd with Delegate=yes."
    )
    return {
        "agentd": agentd(
            units=7,
            warnings=["bus: the disk that holds /var/lib/agentd is 96% full. Free some, or move it with --state."],
            broken=[
                {
                    "file": "/etc/agentd/units/planner.toml",
                    "message": "/etc/agentd/units/planner.toml:7: restart.burts: unknown key. Did you mean burst?",
                }
            ],
        ),
        "units": [
            unit(
                "researcher",
                activity="hung",
                since=NOW - 8040,
                reason="no heartbeat for 12s (liveness.heartbeat = 10s); it is being restarted",
                tokens={"used": 190_000, "held": 900, "limit": 200_000, **DAY},
                warnings=[memory],
            ),
            unit(
                "writer",
                activity="working",
                pid=48812,
                since=NOW - 4,
                restarts=2,
                failures=1,
                reason="restarted after it was killed by SIGKILL",
                last=ended("crashed", "killed by SIGKILL", NOW - 4, signal="SIGKILL"),
                tokens={"used": 3_412, "held": 512, "limit": 2_000_000, **DAY},
                inbox={"pending": 14, "held": 1, "dead": 0},
                holding={"message": "01JD4W", "kind": "draft", "from": "researcher", "since": NOW - 3},
                call={"model": "dry-run", "since": NOW - 1},
                status="section 2 of 5",
                description="Writes a draft from the researcher's notes.",
                processes=3,
                warnings=[memory],
            ),
            unit(
                "reviewer",
                state="backoff",
                activity=None,
                pid=None,
                memory=None,
                since=NOW - 1,
                next=NOW + 3.2,
                restarts=4,
                failures=4,
                last=ended("failed", "exited with status 1", NOW - 1, exit=1),
                reason="it exited with status 1 after 300ms; failure 4 of 10 in 2m",
            ),
            unit(
                "runaway",
                state="held",
                activity=None,
                pid=None,
                memory=None,
                since=NOW - 190,
                next=NOW + 4 * 3600,
                last=ended("held", "stopped by SIGTERM", NOW - 190, signal="SIGTERM"),
                tokens={"used": 50_000, "held": 0, "limit": 50_000, **DAY},
                reason="its budget is used up: 50000 of 50000 tokens per day",
            ),
            unit(
                "poisoned-reader",
                state="parked",
                activity=None,
                pid=None,
                memory=None,
                since=NOW - 61,
                next=NOW + 239,
                restarts=10,
                failures=10,
                last=ended("crashed", "killed by SIGSEGV", NOW - 61, signal="SIGSEGV"),
                inbox={"pending": 0, "held": 0, "dead": 2},
                reason="10 failures within 2m",
            ),
            unit(
                "importer",
                type="oneshot",
                state="failed",
                activity=None,
                pid=None,
                memory=None,
                tokens=None,
                since=NOW - 86_400 * 3,
                last=ended("failed", "exited with status 2", NOW - 86_400 * 3, exit=2),
                reason="it exited with status 2 and restart.policy is never",
            ),
            unit(
                "nightly",
                type="oneshot",
                state="inactive",
                activity=None,
                pid=None,
                memory=None,
                tokens=None,
                inbox=None,
                since=NOW - 1800,
                reason="stopped by root",
            ),
            system("bus", pid=401, since=NOW - 8042),
            system("router", pid=402, memory=38 << 20),
            system(
                "gateway", pid=403, restarts=1, last=ended("crashed", "killed by SIGKILL", NOW - 300, signal="SIGKILL")
            ),
        ],
    }


def shifted(value: Any, by: float) -> Any:
    """The same fleet at another time: every moment moves."""
    moments = ("since", "started", "at", "next", "resets_at")
    if isinstance(value, dict):
        return {
            key: each + by if key in moments and isinstance(each, int | float) else shifted(each, by)
            for key, each in value.items()
        }
    return [shifted(each, by) for each in value] if isinstance(value, list) else value
