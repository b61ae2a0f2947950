"""Where things lie. Agrees with the daemon's own configuration (options win over agentd.toml, it over the defaults);
asks nobody and creates nothing."""

from __future__ import annotations

import os
from pathlib import Path

from agentd.errors import ConfigError


def default_runtime() -> Path:
    """The runtime directory: ``/run/agentd`` for root, else ``$XDG_RUNTIME_DIR/agentd`` or ``/tmp/agentd-<uid>``."""
    if os.geteuid() == 0:
        return Path("/run/agentd")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "agentd" if base else Path(f"/tmp/agentd-{os.geteuid()}")  # noqa: S108


def default_state() -> Path:
    """The state directory: ``/var/lib/agentd`` for root, else ``$XDG_STATE_HOME/agentd`` (``~/.local/state``)."""
    if os.geteuid() == 0:
        return Path("/var/lib/agentd")
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "agentd"


def default_config() -> Path:
    """The configuration that the daemon reads unless told otherwise; it may be missing."""
    if os.geteuid() == 0:
        return Path("/etc/agentd/agentd.toml")
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "agentd" / "agentd.toml"


def runtime(option: Path | None = None, config: Path | None = None) -> Path:
    """The runtime directory of a daemon that gets these options."""
    return (option or _configured("runtime", config) or default_runtime()).absolute()


def state(option: Path | None = None, config: Path | None = None) -> Path:
    """The state directory of a daemon that gets these options."""
    return (option or _configured("state", config) or default_state()).absolute()


def control_socket(directory: Path) -> Path:
    """The control socket of a runtime directory."""
    return directory / "control.sock"


def _configured(key: str, config: Path | None) -> Path | None:
    """What agentd.toml says of a directory. A missing default file says nothing."""
    file = config or default_config()
    if config is None and not file.exists():
        return None
    try:
        text = file.read_bytes()
    except OSError as error:
        if config is None:  # a default file that only the daemon may read
            return None
        raise ConfigError(f"{file}: {error.strerror}.", hint="Name a configuration that can be read.") from error
    if file.suffix == ".json":
        import json as reader
    else:
        import tomllib as reader  # type: ignore[no-redef]
    try:
        value = reader.loads(text.decode()).get(key)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}.", hint="Mend it first: the daemon would refuse it too.") from error
    return Path(value) if isinstance(value, str) else None
