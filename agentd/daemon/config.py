"""agentd.toml and the command line: where things are, and what the fleet as a whole may do."""

from __future__ import annotations

import difflib
import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from agentd.errors import ConfigError, Conflict
from agentd.model import quantity, reading
from agentd.wire import config as files

LONGEST_SOCKET = 107
"""Bytes that the path of a unix socket holds."""
FEWEST_UIDS = 10
_MARKS = frozenset({"lock", "keeper.lock", "secret", "units.log", "units.json", "log"})
"""What only a directory of ours has in it."""


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

    @field_validator("base_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("http", "https"):
            raise ValueError(f"{value!r} is not an http:// or https:// address")
        if value is not None and "@" in urlsplit(value).netloc:
            raise ValueError("a password has no place here; give the key as key_env or key_file")
        return value

    def key(self) -> bytes | None:
        """The real API key, read now; ConfigError (without the file's name) where there is none."""
        if self.key_file and self.key_env:
            raise ConfigError("key_file and key_env are both given.", hint="Give one of them.")
        if self.key_file:
            where, key = f'key_file = "{self.key_file}"', self._read(Path(self.key_file).expanduser())
        elif self.key_env:
            where, key = f'key_env = "{self.key_env}"', os.environ.get(self.key_env, "").encode()
            if self.key_env not in os.environ:
                raise ConfigError(
                    f"{where}: agentd's environment has no such variable.", hint="Export it, or use key_file."
                )
        else:
            return None
        key = key.strip()
        if not key or not all(33 <= byte < 127 for byte in key):
            raise ConfigError(f"{where}: holds no API key.", hint="It is one line of visible ASCII, without spaces.")
        return key

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            message = f'key_file = "{path}": cannot be read: {error.strerror}.'
            raise ConfigError(
                message, hint="Write the key into this file, readable for agentd, or name another."
            ) from error


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


Size = Annotated[int, BeforeValidator(quantity.size)]
Duration = Annotated[float, BeforeValidator(quantity.duration)]


class Logs(_Table):
    """How much of each unit's output is kept, in files of its own."""

    max_size: Size = Field(16 << 20, ge=4096, le=1 << 40)
    keep: int = Field(4, ge=1, le=100)
    max_age: Duration = Field(30 * 86400.0, ge=0)


class Uids(_Table):
    """The range that units' own uids are taken from, as root."""

    first: int = Field(70_000, ge=1000)
    last: int = Field(79_999, ge=1000)

    @model_validator(mode="after")
    def _enough(self) -> Uids:
        if self.last - self.first + 1 < FEWEST_UIDS:
            raise ValueError(f"{self.first} to {self.last} is not a range of at least {FEWEST_UIDS} uids")
        return self


class Config(_Table):
    """Everything in agentd.toml, with the directories of this run."""

    units: Path
    state: Path
    runtime: Path
    file: Path | None = None
    gateway: Gateway = Gateway()
    bus: Bus = Bus()
    metrics: Metrics = Metrics()
    logs: Logs = Logs()
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
        said = table.get(name, dirs[name])
        value = option if option and isinstance(said, str | Path) else said
        table[name] = Path(value).absolute() if isinstance(value, str | Path) and str(value) else value
    try:
        config = Config.model_validate({**table, "file": given})
    except ValidationError as error:
        raise _config_error(given, error) from error
    _refuse_same_twice(config)
    return config


SECTIONS: dict[str, type[_Table]] = {
    "gateway": Gateway,
    "bus": Bus,
    "metrics": Metrics,
    "logs": Logs,
    "uids": Uids,
    "upstream": Upstream,
}
_SHAPES = {
    "path_type": "expected a path in quotes",
    "tuple_type": "expected a list",
    "model_type": "expected a table",
    "int_parsing": "expected a whole number",
    "missing": "missing",
}


def _config_error(file: Path | None, error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    section, key = path[0], path[-1] if len(path) > 1 else None
    kind = SECTIONS.get(section)
    head = (f"[[{section}]]" if section == "upstream" else f"[{section}]") if kind else ""
    if not kind:
        head, key = (f"[{section}]" if isinstance(first["input"], dict) else section), None
    where = f"{place(file, section, key)}: {f'{head} {key}' if key else head}"
    if first["type"] == "extra_forbidden":
        known = list(kind.model_fields) if kind else [n for n in Config.model_fields if n != "file"]
        near = difflib.get_close_matches(path[-1], known, n=1)
        what = "section" if head == f"[{section}]" and key is None else "setting"
        meant = f"[{near[0]}]" if near and what == "section" else "".join(near)
        hint = f"Did you mean {meant}?" if near else f"Known here: {', '.join(known)}."
        return ConfigError(f"{where}: there is no such {what}.", hint=hint)
    return ConfigError(f"{where}: {_in_words(section, key, dict(first))}", hint="Mend it; nothing was started.")


def _in_words(section: str, key: str | None, detail: dict[str, Any]) -> str:
    if key is None and section == "upstream":
        return "expected a list of tables: write [[upstream]] in two pairs of brackets."
    if detail["type"] == "model_type":
        return f"expected a table: write [{section}] on a line of its own."
    got = "" if detail["type"] == "missing" else f", got {json.dumps(detail['input'], default=str)}"
    if detail["type"] in _SHAPES:
        return f"{_SHAPES[detail['type']]}{got}."
    return reading.in_words(detail)


def place(file: Path | None, section: str, key: str | None) -> str:
    """``FILE:LINE`` of a setting, as far as it can be found."""
    try:
        line = reading.locate(file.read_text(encoding="utf-8"), section, key) if file else None
    except (OSError, UnicodeDecodeError):
        line = None
    return f"{file or 'agentd.toml'}{f':{line}' if line else ''}"


def _refuse_same_twice(config: Config) -> None:
    """Two upstreams of one name, or two parts of agentd on one port."""
    names = [upstream.name for upstream in config.upstream]
    for name in names:
        if names.count(name) > 1:
            where = place(config.file, "upstream", "name")
            raise ConfigError(f"{where}: [[upstream]] name: {name!r} stands twice.", hint="Rename one of the two.")
    if config.gateway.listen == config.metrics.listen and not config.gateway.listen.endswith(":0"):
        where = place(config.file, "metrics", "listen")
        message = f"{where}: [metrics] listen: {config.metrics.listen} is the gateway's address already."
        raise ConfigError(message, hint="Give one of the two another port.")


def check(config: Config) -> None:
    """What can be tried before anything is started: keys that can be read, ports that are free. Leaves no trace."""
    for upstream in config.upstream:
        try:
            upstream.key()
        except ConfigError as error:
            raise refusal(config, upstream, error) from error
    _require_free(config, "gateway", "listen", config.gateway.listen)
    if config.bus.port:
        _require_free(config, "bus", "port", f"127.0.0.1:{config.bus.port}")


def refusal(config: Config, upstream: Upstream, error: ConfigError) -> ConfigError:
    """An upstream's error with its place."""
    where = place(config.file, "upstream", "key_file" if upstream.key_file else "key_env")
    return ConfigError(f"{where}: [[upstream]] {upstream.name}: {error.message}", hint=error.hint)


def _require_free(config: Config, section: str, key: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    where = f"{place(config.file, section, key)}: [{section}] {key}"
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, int(port)))
    except socket.gaierror as error:
        raise ConfigError(f"{where}: {address}: there is no host {host!r}.", hint="Use 127.0.0.1.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = f"ss -ltnp 'sport = :{port}' shows it: stop it, or set another port here (0: any free one)."
            raise Conflict(f"{where}: {address} is taken by another program.", hint=hint) from error
        hint = "Set an address that this host has and a port that you may use, such as 127.0.0.1:4180."
        raise ConfigError(f"{where}: cannot listen on {address}: {error.strerror}.", hint=hint) from error


def prepare(config: Config) -> None:
    """Make the directories of this run; ConfigError says which one cannot be used, and why."""
    room = LONGEST_SOCKET - len("/facts/gateway.sock")
    if (length := len(os.fsencode(config.runtime))) > room:
        message = f"{config.runtime}: too long for sockets: {length} bytes, and at most {room} fit."
        raise ConfigError(message, hint="Choose a shorter --runtime.")
    fresh = [path for path in (config.units, config.state, config.runtime) if not path.exists()]
    try:
        _make(config.units, 0o755, "units")
        for path, option in ((config.state, "state"), (config.runtime, "runtime")):
            _make(path, 0o711, option)
            _own(path, 0o711, option)
    except ConfigError:
        for path in reversed(fresh):
            with suppress(OSError):  # it was never made
                path.rmdir()
        raise


def _make(path: Path, mode: int, option: str) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        what = "a file is in its place" if isinstance(error, FileExistsError) else error.strerror
        message = f"{path}: the {option} directory cannot be made: {what}."
        raise ConfigError(message, hint=f"Choose another with --{option}, or mend what is in the way.") from error


def _own(path: Path, mode: int, option: str) -> None:
    """Nobody else may own a directory that sockets and secrets are put into, nor write to it."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{path}: the {option} directory belongs to uid {status.st_uid}, and agentd runs as uid {os.geteuid()}.",
            hint=f"Choose a directory of your own with --{option}.",
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{path}: the {option} directory is not writable.",
            hint=f"Choose another with --{option}, or mend its permissions (chmod u+rwx).",
        )
    found = set(os.listdir(path))
    if not found or found & _MARKS:
        path.chmod(mode)  # never the mode of a directory that is another's, such as /tmp
    elif status.st_mode & 0o022:
        raise ConfigError(
            f"{path}: this is not agentd's {option} directory, and others may write to it.",
            hint=f"Choose a directory of its own with --{option}, such as {path / 'agentd'}.",
        )
