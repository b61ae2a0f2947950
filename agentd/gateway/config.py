"""The gateway's configuration: what agentd hands over, or a file of one's own.

Knows keys, types and defaults; every unknown key is an error. Real API keys are read here, once, and are shown by
nothing (their type prints as stars).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from agentd.errors import ConfigError
from agentd.model.quantity import WINDOWS, Allowance, token_allowance
from agentd.wire import config
from agentd.wire.activation import read_secret

Dialect = Literal["openai", "ollama", "dry-run"]
OnExhausted = Literal["hold", "refuse", "stop"]
DIALECTS: tuple[Dialect, ...] = ("openai", "ollama", "dry-run")
OLLAMA = "http://127.0.0.1:11434"
OPENAI = "https://api.openai.com/v1"
LISTEN = "127.0.0.1:4180"
MAX_OUTPUT = 16_384
"""The output that a call without max_tokens holds, and is clamped to."""

_TOP = ("gateway", "listen", "runtime", "state", "uids", "upstream", "key", "fleet", "ollama", "park")
_UPSTREAM = ("name", "dialect", "base_url", "key_env", "key_file", "secret", "models", "max_output")
_KEY = ("key", "unit", "tokens", "on_exhausted")


class Secret:
    """A real API key. It prints as stars."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key itself: for the Authorization header, and for blotting it out of what comes back."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """Where models are. No `models` means whatever it has."""

    name: str
    dialect: Dialect
    base_url: str = ""
    key: Secret | None = None
    models: tuple[str, ...] = ()
    max_output: int = MAX_OUTPUT


@dataclass(frozen=True, slots=True)
class KeyConfig:
    """A key for stand-alone use."""

    key: str = field(repr=False)
    unit: str
    tokens: Allowance | None
    on_exhausted: OnExhausted = "refuse"


@dataclass(frozen=True, slots=True)
class Config:
    """All that the gateway is told."""

    listen: str
    state: Path
    runtime: Path | None = None
    uids: frozenset[int] = frozenset()
    upstreams: tuple[UpstreamConfig, ...] = ()
    keys: tuple[KeyConfig, ...] = ()
    fleet: Allowance | None = None
    ollama: str = OLLAMA
    park: float = 10.0


def load(path: Path, fds: Mapping[str, int]) -> Config:
    """Read a configuration file. ConfigError names the file, the key and what to write."""
    try:
        return build(config.read(path), fds)
    except ConfigError as error:
        if str(path) in error.message:
            raise
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None


def build(table: Mapping[str, Any], fds: Mapping[str, int]) -> Config:
    """The configuration in a table as read from TOML or JSON."""
    top = {**table, **_table(table, "gateway")}
    _known(top, _TOP, "[gateway]")
    upstreams = tuple(_upstream(entry, fds) for entry in _tables(top, "upstream"))
    fleet = _table(top, "fleet")
    _known(fleet, ("tokens",), "[fleet]")
    names = [upstream.name for upstream in upstreams]
    if len(set(names)) < len(names):
        raise ConfigError("[[upstream]] name: two upstreams have the same name.")
    return Config(
        listen=_listen(top),
        state=Path(_text(top, "state", str(_default_state()))).expanduser(),
        runtime=Path(top["runtime"]) if top.get("runtime") else None,
        uids=frozenset(int(uid) for uid in top.get("uids", ())),
        upstreams=upstreams,
        keys=tuple(_key(entry) for entry in _tables(top, "key")),
        fleet=_allowance(fleet.get("tokens"), "[fleet] tokens"),
        ollama=_text(top, "ollama", OLLAMA),
        park=float(top.get("park", 10.0)),
    )


def _listen(table: Mapping[str, Any]) -> str:
    address = _text(table, "listen", LISTEN)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"[gateway] listen: {address!r} is not HOST:PORT.", hint=f"For example {LISTEN!r}.")
    return address


def _default_state() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/agentd/gateway")
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "agentd/gateway"


def _upstream(entry: Mapping[str, Any], fds: Mapping[str, int]) -> UpstreamConfig:
    _known(entry, _UPSTREAM, "[[upstream]]")
    name = _text(entry, "name", "")
    where = f"[[upstream]] {name}".strip()
    dialect = _text(entry, "dialect", "")
    if not name or dialect not in DIALECTS:
        raise ConfigError(f"{where}: it needs a name and a dialect, one of {', '.join(DIALECTS)}.")
    usual = {"openai": OPENAI, "ollama": OLLAMA, "dry-run": ""}[dialect]
    base_url = _text(entry, "base_url", usual).rstrip("/")
    if dialect != "dry-run" and urlsplit(base_url).scheme not in ("http", "https"):
        raise ConfigError(f"{where}: base_url {base_url!r} is not an http:// or https:// address.")
    if "@" in urlsplit(base_url).netloc:
        raise ConfigError(f"{where}: base_url must not hold a password.", hint="Give it as key_env or key_file.")
    models = entry.get("models", [])
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise ConfigError(f"{where}: models must be a list of names.")
    most = entry.get("max_output", MAX_OUTPUT)
    if type(most) is not int or most < 1:
        raise ConfigError(f"{where}: max_output must be a number of tokens.")
    return UpstreamConfig(name, dialect, base_url, _secret(entry, fds, where), tuple(models), most)


def _secret(entry: Mapping[str, Any], fds: Mapping[str, int], where: str) -> Secret | None:
    """The real key, from the one place that is named; never from the file itself."""
    places = [place for place in ("key_env", "key_file", "secret") if entry.get(place)]
    if not places:
        return None
    if len(places) > 1:
        raise ConfigError(f"{where}: {' and '.join(places)} are given; give one.")
    place = _text(entry, places[0], "")
    match places[0]:
        case "key_env":
            value = os.environ.pop(place, "")
        case "key_file":
            value = _file(Path(place).expanduser(), where)
        case _:
            value = (read_secret(fds, place) or b"").decode("utf-8", "replace")
    value = value.strip()
    if not value.isascii() or not value.isprintable() or " " in value or not value:
        raise ConfigError(f"{where}: {places[0]} {place!r} holds no API key (one line of visible ASCII).")
    return Secret(value)


def _file(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: key_file {path} cannot be read ({type(error).__name__}).") from None


def _key(entry: Mapping[str, Any]) -> KeyConfig:
    _known(entry, _KEY, "[[key]]")
    key, unit = _text(entry, "key", ""), _text(entry, "unit", "")
    if not key or not unit:
        raise ConfigError("[[key]]: it needs a key and a unit.")
    on_exhausted = _text(entry, "on_exhausted", "refuse")
    if on_exhausted not in ("hold", "refuse", "stop"):
        raise ConfigError(f"[[key]] of {unit}: on_exhausted must be hold, refuse or stop.")
    allowance = _allowance(entry.get("tokens"), f"[[key]] of {unit}: tokens")
    return KeyConfig(key, unit, allowance, cast("OnExhausted", on_exhausted))


def _allowance(value: Any, where: str) -> Allowance | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and type(value[0]) is int and value[1] in WINDOWS:
        return Allowance(value[0], value[1])
    try:
        return token_allowance(value)
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: {error}.") from None


def _known(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It may hold {', '.join(keys)}."
            raise ConfigError(f"{where}: there is no key {key!r}.", hint=hint)


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"[{key}] must be a table.")
    return value


def _tables(table: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = table.get(key) or []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ConfigError(f"[[{key}]] must be a list of tables.")
    return value


def _text(table: Mapping[str, Any], key: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise ConfigError(f"{key} must be text.")
    return value
