"""Under which uid a unit runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentd.errors import ConfigError, HostCannot
from agentd.host.identity import RANGE, Identities


def test_a_uid_is_kept_over_restarts(short_dir: Path) -> None:
    """The same unit has the same uid in every later daemon, and no two units share one."""
    first = Identities(short_dir / "units.json", switch=True)
    uids = {name: first.own(name).uid for name in ("a", "b", "c")}
    again = Identities(short_dir / "units.json", switch=True)
    assert {name: again.own(name).uid for name in ("c", "b", "a")} == uids
    assert len(set(uids.values())) == 3
    assert all(uid in RANGE for uid in uids.values())


def test_a_uid_is_free_only_after_remove(short_dir: Path) -> None:
    """A full range refuses, with a hint; removing a unit frees its uid and no other."""
    identities = Identities(short_dir / "units.json", range(70_000, 70_002), switch=True)
    first, second = identities.own("a"), identities.own("b")
    with pytest.raises(HostCannot, match="no uid is left for c: all of 70000-70001"):
        identities.own("c")
    identities.remove("a")
    assert identities.peek("a") is None
    assert identities.own("c").uid == first.uid
    assert identities.own("b") == second


def test_numbers_of_real_users_are_passed_over(short_dir: Path) -> None:
    """A uid that the user database knows is never given to a unit."""
    identities = Identities(short_dir / "units.json", range(2), switch=True)
    with pytest.raises(HostCannot, match="no uid is left"):
        identities.own("a")


def test_two_fleets_begin_at_different_places(short_dir: Path) -> None:
    """Fleets side by side do not share uids by accident."""
    uids = {Identities(short_dir / f"{n}/units.json", switch=True).own("a").uid for n in range(20)}
    assert len(uids) > 15


def test_the_table_is_private_and_whole(short_dir: Path) -> None:
    """The file is 0600, and a table that cannot be read is one clear error, never a fresh start."""
    file = short_dir / "units.json"
    Identities(file, switch=True).own("a")
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text('{"uids": {"a": "x"}}')
    with pytest.raises(ConfigError, match=r"units\.json: not readable"):
        Identities(file, switch=True)


def test_a_uid_that_cannot_be_recorded_is_not_given(short_dir: Path) -> None:
    """First on disk, then in use."""
    identities = Identities(short_dir / "file/units.json", switch=True)
    (short_dir / "file").write_text("")
    with pytest.raises(HostCannot, match="cannot record a uid"):
        identities.own("a")
    assert identities.peek("a") is None


def test_root_is_refused_unless_allowed(short_dir: Path) -> None:
    """user = root by name or number needs allow_root."""
    identities = Identities(short_dir / "units.json", switch=True)
    for name in ("root", "0"):
        with pytest.raises(HostCannot, match="is root"):
            identities.named(name, allow_root=False)
        assert identities.named(name, allow_root=True).uid == 0


def test_users_by_name_and_number(short_dir: Path) -> None:
    """A known user comes with its groups; a number needs no entry; an unknown name is refused."""
    identities = Identities(short_dir / "units.json", switch=True)
    nobody = identities.named("nobody", allow_root=False)
    assert nobody.uid == identities.named(str(nobody.uid), allow_root=False).uid
    assert nobody.gid in nobody.groups
    assert identities.named("4000123", allow_root=False).gid == 4000123
    with pytest.raises(HostCannot, match="no such user"):
        identities.named("no-such-user-here", allow_root=False)


def test_without_root_everybody_is_us(short_dir: Path) -> None:
    """Not root: units run as agentd's own user, nothing is recorded, another user is refused in words."""
    identities = Identities(short_dir / "units.json", switch=False)
    account = identities.own("a")
    assert (account.uid, account.switch) == (os.geteuid(), False)
    assert not (short_dir / "units.json").exists()
    with pytest.raises(HostCannot, match="cannot switch to uid 4000123"):
        identities.named("4000123", allow_root=False)


def test_many_are_recorded_by_one_write(short_dir: Path) -> None:
    """A fleet that is deployed at once waits for the disk once; each unit has what it would have had alone, and a range
    that is too small gives what it has."""
    identities = Identities(short_dir / "units.json", range(70_000, 70_004), switch=True)
    own = identities.own("b")
    inode = (short_dir / "units.json").stat().st_ino
    identities.reserve(["a", "b", "c"])
    once = (short_dir / "units.json").stat().st_ino
    accounts = [identities.own(name) for name in "abc"]
    assert accounts[1] == own
    assert len({account.uid for account in accounts}) == 3
    assert inode != once == (short_dir / "units.json").stat().st_ino
    identities.reserve(["d", "e"])
    assert identities.peek("d") is not None
    with pytest.raises(HostCannot, match="no uid is left for e"):
        identities.own("e")
