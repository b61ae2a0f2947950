"""Where a fleet lives on this host, and what its plans are made with: directories, ids, capabilities, secret.

Knows the layout of the runtime and the state directory as far as units' processes touch it.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentd.errors import HostCannot
from agentd.host.capability import Capabilities
from agentd.host.identity import Account, Identities
from agentd.host.stage import Stage


@dataclass(frozen=True, slots=True)
class Rotation:
    """How much of each unit's output is kept."""

    max_bytes: int = 16 << 20
    """Bytes of one file."""
    keep: int = 4
    """Rotated files beside the present one."""
    max_age: float = 30 * 86400.0
    """Seconds; 0: of any age."""


@dataclass(frozen=True, slots=True)
class Place:
    """One fleet's place. ``dataclasses.replace`` makes another, for example once the gateway's port is known."""

    runtime: Path
    state: Path
    secret: bytes
    capabilities: Capabilities
    identities: Identities
    stage: Stage
    gateway: str | None = None
    """``host:port`` of the gateway as agents reach it; None: they are told of none."""
    logs: Rotation = Rotation()

    def channel(self, unit: str) -> Path:
        """The socket on which the router serves the unit."""
        return channel(self.runtime, unit)

    def notify(self, unit: str) -> Path:
        """The socket on which the keeper hears the unit."""
        return self.runtime / "n" / short(unit)

    def fifo(self, unit: str) -> Path:
        """The FIFO of its stdout and stderr."""
        return self.runtime / "o" / short(unit)

    def log(self, unit: str) -> Path:
        """The file that its output goes to."""
        return self.state / "log" / f"{unit}.log"

    def home(self, unit: str) -> Path:
        """Its state directory, HOME and default working directory."""
        return self.state / "home" / unit

    def prepare(self) -> None:
        """Make the directories that plans rely on. Agents pass through runtime and state but list neither."""
        for path, mode in (
            (self.runtime, 0o711),
            (self.runtime / "n", 0o711),
            (self.runtime / "o", 0o711),
            (self.state, 0o711),
            (self.state / "home", 0o711),
            (self.state / "log", 0o700),
        ):
            make_directory(path, mode)

    def make_home(self, unit: str, account: Account) -> tuple[Path, str | None]:
        """The unit's directory with its tmp, given to its account; a warning where older files are not its own."""
        home = self.home(unit)
        make_directory(self.state / "home", 0o711)
        try:
            home.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise HostCannot(
                f"{home}: cannot make the unit's directory: {error.strerror}",
                hint="Remove what is in its place, or make the state directory writable.",
            ) from error
        try:
            before = os.fstat(fd).st_uid
            if account.switch:
                os.fchown(fd, account.uid, account.gid)
            os.fchmod(fd, 0o700)
            _make_tmp(fd, account)
        finally:
            os.close(fd)
        if account.switch and before not in (0, account.uid):
            return home, f"files in {home} may still belong to uid {before}; it runs as uid {account.uid} now"
        return home, None


def channel(runtime: Path, unit: str) -> Path:
    """The socket on which the router serves the unit."""
    return runtime / "c" / short(unit)


def short(unit: str) -> str:
    """The first 12 hex digits of sha256(unit): socket paths hold 107 bytes, names may be longer."""
    return hashlib.sha256(unit.encode()).hexdigest()[:12]


def make_directory(path: Path, mode: int) -> None:
    """Make it with its parents; one that is there keeps its mode."""
    try:
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)
    except OSError as error:
        raise HostCannot(
            f"{path}: cannot make this directory: {error.strerror}",
            hint="Give agentd a directory that it may write to (--state, --runtime).",
        ) from error


def _make_tmp(home: int, account: Account) -> None:
    """The directory inside is the agent's to rename or link: go by descriptor, give away only what we just made."""
    with suppress(FileExistsError):
        os.mkdir("tmp", 0o700, dir_fd=home)
    try:
        fd = os.open("tmp", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=home)
    except OSError:
        return  # the agent put something else there: its own affair
    try:
        if account.switch and os.fstat(fd).st_uid == 0:
            os.fchown(fd, account.uid, account.gid)
    finally:
        os.close(fd)
