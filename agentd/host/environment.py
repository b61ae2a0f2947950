"""The environment that a unit starts with: made from nothing, never inherited.

agentd's own variables and the real API keys are not known here at all. DESIGN names the variables; agents rely on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from agentd.errors import UnitFileError
from agentd.wire.key import virtual_key

PATH = "/usr/local/bin:/usr/bin:/bin"

TELEMETRY_OFF: Mapping[str, str] = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "DISABLE_TELEMETRY": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
"""Switches of frameworks that call home. OTEL_SDK_DISABLED is not among them: it ends the agent's own tracing too."""


def basic(unit: str, invocation: str, home: Path, user: str, path: str, notify: Path) -> dict[str, str]:
    """What every unit gets, system units too."""
    return {
        "AGENTD_INVOCATION": invocation,
        "AGENTD_UNIT": unit,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "NOTIFY_SOCKET": str(notify),
        "PATH": path,
        "PYTHONUNBUFFERED": "1",
        "SHELL": "/bin/sh",
        "TMPDIR": str(home / "tmp"),
        "USER": user,
    }


def watchdog(heartbeat: float | None) -> dict[str, str]:
    """WATCHDOG_USEC in microseconds, where a heartbeat (seconds) is asked for."""
    return {} if heartbeat is None else {"WATCHDOG_USEC": str(int(heartbeat * 1_000_000))}


def agent(unit: str, invocation: str, state: Path, channel: Path) -> dict[str, str]:
    """What an agent gets besides: its channel, its directory, its place in the trace, and quiet frameworks."""
    return {
        "AGENTD_CHANNEL": str(channel),
        "AGENTD_STATE_DIR": str(state),
        "NO_PROXY": "127.0.0.1,localhost,::1",
        "TRACEPARENT": traceparent(unit, invocation),
        **TELEMETRY_OFF,
    }


def model(gateway: str, secret: bytes, unit: str, invocation: str) -> dict[str, str]:
    """Where the gateway (``host:port``) is and the virtual key for it."""
    return {
        "OPENAI_API_BASE": f"http://{gateway}/v1",
        "OPENAI_API_KEY": virtual_key(secret, unit, invocation),
        "OPENAI_BASE_URL": f"http://{gateway}/v1",
    }


def traceparent(unit: str, invocation: str) -> str:
    """The root of an invocation's trace (W3C form): the same for the same invocation."""
    digest = hashlib.sha256(f"{unit}\0{invocation}".encode()).hexdigest()
    return f"00-{digest[:32]}-{digest[32:48]}-01"


def read_env_file(file: Path, unit_file: str | None) -> dict[str, str]:
    """KEY=VALUE lines; blank lines and those that begin with # are passed over, quotes around a value are removed."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UnitFileError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}",
            file=unit_file,
            key="agent.env_file",
            hint="Write the file, or drop the key.",
        ) from error
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip().removeprefix("export ")
        if not entry or entry.startswith("#"):
            continue
        key, equals, value = entry.partition("=")
        if not equals or not key.strip().isidentifier():
            raise UnitFileError(f"{entry[:40]!r} is not KEY=VALUE", file=str(file), line=number, key="agent.env_file")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        found[key.strip()] = value
    return found
