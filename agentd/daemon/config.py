"""agentd.toml and the command line: where things are, and what the fleet as a whole may do."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agentd.errors import ConfigError
from agentd.wire import config as files


def _address(value: Any) -> str:
    host, colon, port = str(value).rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'{value!r} is not an address; write for example "127.0.0.1:4180" (port 0: any free one)')
    return str(value)


Address = Annotated[str, BeforeValidator(_address)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Upstream(_Table):
    """One model provider behind the gateway."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    dialect: Literal["openai", "ollama", "dry-run"]
    base_url: str | None = None
    key_env: str | None = None
    key_file: str | None = None
    models: tuple[str, ...] = ()


class Gateway(_Table):
    """The LLM gateway."""

    listen: Address = "127.0.0.1:4180"


class Bus(_Table):
    """The embedded nats-server."""

    server: str | None = Field(None, description="A nats-server of your own (2.15 or newer).")
    port: int = Field(0, ge=0, le=65535)


class Metrics(_Table):
    """The Prometheus scrape."""

    listen: Address = "127.0.0.1:9464"


class Uids(_Table):
    """The range that units' own uids are taken from, as root."""

    first: int = Field(70_000, ge=1000)
    last: int = Field(79_999, ge=1000)


class Config(_Table):
    """Everything in agentd.toml, with the directories of this run."""

    units: Path
    state: Path
    runtime: Path
    file: Path | None = None
    gateway: Gateway = Gateway()
    bus: Bus = Bus()
    metrics: Metrics = Metrics()
    uids: Uids = Uids()
    upstream: tuple[Upstream, ...] = ()


def default_dirs() -> dict[str, Path]:
    """Where things are when nobody says otherwise: the system's places as root, else the XDG directories."""
    if os.geteuid() == 0:
        return {
            "config": Path("/etc/agentd/agentd.toml"),
            "units": Path("/etc/agentd/units"),
            "state": Path("/var/lib/agentd"),
            "runtime": Path("/run/agentd"),
        }
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "agentd"
    state = Path(os.environ.get("XDG_STATE_HOME") or home / ".local/state") / "agentd"
    given = os.environ.get("XDG_RUNTIME_DIR")
    runtime = Path(given) / "agentd" if given else Path(f"/tmp/agentd-{os.geteuid()}")  # noqa: S108 - made 0711, owner checked
    return {"config": config / "agentd.toml", "units": config / "units", "state": state, "runtime": runtime}


def load(
    file: Path | None = None, *, units: Path | None = None, state: Path | None = None, runtime: Path | None = None
) -> Config:
    """Read agentd.toml (a missing default file is an empty one); options win over the file, the file over defaults."""
    dirs = default_dirs()
    given = file or (dirs["config"] if dirs["config"].exists() else None)
    table = files.read(given) if given else {}
    for name, option in {"units": units, "state": state, "runtime": runtime}.items():
        value = option or table.get(name) or dirs[name]
        table[name] = Path(value).absolute()
    try:
        return Config.model_validate({**table, "file": given})
    except ValidationError as error:
        raise _config_error(given, error) from error


def _config_error(file: Path | None, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = f"{file or 'agentd.toml'}: {'.'.join(path)}"
    if first["type"] == "extra_forbidden":
        known = list(Config.model_fields) if len(path) == 1 else _keys_of(path[0])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known)}."
        return ConfigError(f"{where}: unknown key.", hint=hint)
    message = str(first["msg"]).removeprefix("Value error, ")
    return ConfigError(f"{where}: {message}.", hint="Nothing was started.")


def _keys_of(section: str) -> list[str]:
    tables: dict[str, type[_Table]] = {
        "gateway": Gateway,
        "bus": Bus,
        "metrics": Metrics,
        "uids": Uids,
        "upstream": Upstream,
    }
    return list(tables[section].model_fields) if section in tables else []


def prepare(config: Config) -> None:
    """Make the directories of this run; ConfigError says which one cannot be used, and why."""
    modes = {config.state: 0o711, config.runtime: 0o711, config.units: 0o755}
    for path, mode in modes.items():
        try:
            path.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be made: {error.strerror}.", hint="Choose another with --state, --runtime or --units."
            ) from error
        if path != config.units:
            _own(path, mode)


def _own(path: Path, mode: int) -> None:
    """Nobody else may own a directory that sockets and secrets are put into."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{path}: belongs to uid {status.st_uid}, not to you.", hint="Choose a directory of your own."
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: is not writable.", hint="Choose another directory, or mend its permissions.")
    path.chmod(mode)
