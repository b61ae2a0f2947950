"""Under which uid a unit runs. Knows the user database and ``<state>/units.json``; starts nothing.

As root each unit has a uid of its own, taken from a range once and recorded, so that its files stay its own over
restarts and no other unit ever inherits them: a uid is free again only after ``remove``.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agentd.errors import ConfigError, HostCannot
from agentd.host.capability import can_switch_user

RANGE = range(70_000, 80_000)
"""Above every 16-bit uid (people from 1000, systemd's DynamicUser 61184-65519, nobody 65534) and below 100000, where
the subordinate uids of /etc/subuid begin: systemd's table of uids calls this stretch unused."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a unit runs as. ``switch`` is false where the keeper's own ids are kept (not root)."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    switch: bool


class Identities:
    """The uids of one fleet, kept in one file.

    Two fleets on one host begin at different places of the range (a hash of the file's path), so that they do not share
    uids by accident; numbers that the user database knows are passed over.
    """

    def __init__(self, file: Path, uids: range = RANGE, *, switch: bool | None = None) -> None:
        self.file = file
        self.uids = uids
        self.switch = can_switch_user() if switch is None else switch
        self._lock = threading.Lock()  # plans are compiled in threads: staging may take a second
        self._known: dict[str, int] = self._read()

    def own(self, unit: str) -> Account:
        """The unit's own account, recorded on disk before it is returned. Not root: the account that we run as."""
        if not self.switch:
            return _ourselves()
        with self._lock:
            uid = self._known.get(unit)
            if uid is None:
                uid = self._next(unit)
                self._write(self._known | {unit: uid})
        return Account(uid, uid, (), unit, switch=True)

    def reserve(self, units: Iterable[str]) -> None:
        """Record the accounts of many units by one write; who gets none here is told so by ``own``."""
        if not self.switch:
            return
        with self._lock:
            fresh = dict(zip((unit for unit in units if unit not in self._known), self._free(), strict=False))
            if fresh:
                self._write(self._known | fresh)

    def peek(self, unit: str) -> Account | None:
        """The same without recording anything; None for a unit that has no uid yet."""
        if not self.switch:
            return _ourselves()
        uid = self._known.get(unit)
        return None if uid is None else Account(uid, uid, (), unit, switch=True)

    def remove(self, unit: str) -> None:
        """The unit and its files are gone for good: its uid may be used again."""
        with self._lock:
            if unit in self._known:
                self._write({name: uid for name, uid in self._known.items() if name != unit})

    def named(self, user: str, *, allow_root: bool) -> Account:
        """The account that ``user =`` of a unit file names (name or number); HostCannot where it cannot be had."""
        account = _lookup(user, self.switch)
        if account.uid == 0 and not allow_root:
            raise HostCannot(
                f"user = {user!r} is root",
                hint="Leave `user` out for a uid of the unit's own, or say allow_root = true.",
                key="agent.user",
            )
        if account.uid != os.geteuid() and not self.switch:
            raise HostCannot(
                f"user = {user!r}: agentd runs as uid {os.geteuid()} and cannot switch to uid {account.uid}",
                hint="Run agentd as root, or leave `user` out.",
                key="agent.user",
            )
        return account

    def _free(self) -> Iterator[int]:
        """Uids that nobody has."""
        taken = set(self._known.values())
        start = int.from_bytes(hashlib.sha256(os.fsencode(self.file.absolute())).digest()[:4]) % len(self.uids)
        for step in range(len(self.uids)):
            uid = self.uids[(start + step) % len(self.uids)]
            if uid not in taken and not _has_entry(uid):
                yield uid

    def _next(self, unit: str) -> int:
        for uid in self._free():
            return uid
        raise HostCannot(
            f"no uid is left for {unit}: all of {self.uids.start}-{self.uids.stop - 1} are in use",
            hint="Remove units that are no longer needed, or configure a larger range of uids.",
        )

    def _read(self) -> dict[str, int]:
        try:
            rows = json.loads(self.file.read_bytes())["uids"]
            return {str(unit): int(uid) for unit, uid in rows.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.file}: not readable as the table of uids: {error}.",
                hint="Restore it from a backup. Deleting it gives every unit a new uid: then chown <state>/home/* too.",
            ) from error

    def _write(self, known: dict[str, int]) -> None:
        """On disk first: a uid that was handed out is never forgotten."""
        text = json.dumps({"version": 1, "uids": known}, indent=1, sort_keys=True)
        fresh = self.file.with_suffix(".new")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "w") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(self.file)
        except OSError as error:
            raise HostCannot(
                f"{self.file}: cannot record a uid: {error.strerror}", hint="Make the state directory writable."
            ) from error
        self._known = known


def _ourselves() -> Account:
    uid = os.geteuid()
    name = pwd.getpwuid(uid).pw_name if _has_entry(uid) else str(uid)
    return Account(uid, os.getegid(), tuple(os.getgroups()), name, switch=False)


def _lookup(user: str, switch: bool) -> Account:
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        if user.isdecimal():
            return Account(int(user), int(user), (), user, switch)
        raise HostCannot(
            f"user = {user!r}: this host has no such user", hint="Create it, or name another.", key="agent.user"
        ) from None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_uid, entry.pw_gid, groups, entry.pw_name, switch)


def _has_entry(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
