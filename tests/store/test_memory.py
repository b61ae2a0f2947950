"""What the daemon remembers of its units."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentd.errors import Full, HostCannot
from agentd.store import memory as module
from agentd.store.memory import Memory
from tests.store.conftest import Disk


def remembered(path: Path) -> dict[str, dict[str, object]]:
    memory = Memory(path)
    try:
        assert memory.notice is None
        return memory.load()
    finally:
        memory.close()


def test_last_blob_of_each_unit_comes_back(tmp_path: Path) -> None:
    """Over a restart each unit has its last blob, and a dropped one is gone."""
    memory = Memory(tmp_path / "units")
    memory.save("writer", {"invocation": "0000000000000001", "wanted": True})
    memory.save("reader", {"invocation": "0000000000000009", "text": "naïve\n☃"})
    memory.save("writer", {"invocation": "0000000000000002", "wanted": False})
    memory.save("gone", {})
    memory.drop("gone")
    memory.drop("never seen")
    memory.close()
    assert remembered(tmp_path / "units") == {
        "writer": {"invocation": "0000000000000002", "wanted": False},
        "reader": {"invocation": "0000000000000009", "text": "naïve\n☃"},
    }


def test_what_was_saved_survives_kill_9(tmp_path: Path) -> None:
    """A process that is killed the moment its save has returned has saved."""
    code = (
        "import os, signal, sys; from pathlib import Path; from agentd.store.memory import Memory\n"
        "memory = Memory(Path(sys.argv[1]))\n"
        "for number in range(50): memory.save('writer', {'invocation': number})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "units")])
    assert done.returncode == -signal.SIGKILL
    assert remembered(tmp_path / "units") == {"writer": {"invocation": 49}}


def test_the_file_is_private(tmp_path: Path) -> None:
    """Nobody but the owner may read it, whatever the umask."""
    old = os.umask(0)
    try:
        Memory(tmp_path / "units").close()
    finally:
        os.umask(old)
    assert (tmp_path / "units").stat().st_mode & 0o777 == 0o600


def test_a_save_is_cheap(tmp_path: Path) -> None:
    """The median save costs less than 0.3 ms: it is on the way to every spawn."""
    memory = Memory(tmp_path / "units")
    costs = []
    for number in range(500):
        begin = time.perf_counter()
        memory.save("writer", {"invocation": f"{number:016x}", "why": "x" * 500})
        costs.append(time.perf_counter() - begin)
    memory.close()
    assert sorted(costs)[250] < 0.0003


def test_the_file_stays_small(tmp_path: Path) -> None:
    """However often a unit is saved, the file is written anew and holds what lives."""
    memory = Memory(tmp_path / "units")
    for number in range(200):
        memory.save("writer", {"number": number, "much": "x" * 10_000})
    memory.save("reader", {"number": 1})
    memory.close()
    assert (tmp_path / "units").stat().st_size < module.COMPACT_AT + 3 * module.ROOM
    loaded = remembered(tmp_path / "units")
    assert (loaded["writer"]["number"], loaded["reader"]) == (199, {"number": 1})
    assert os.listdir(tmp_path) == ["units"]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_record_is_forgotten(tmp_path: Path, cut: int) -> None:
    """A record that the power cut in half never counted; the one before it does, and new ones follow it."""
    path = tmp_path / "units"
    memory = Memory(path)
    memory.save("writer", {"number": 1})
    memory.save("writer", {"number": 2, "long": "x" * 40})
    memory.close()
    os.truncate(path, len(path.read_bytes().rstrip(b"\0")) - cut)
    assert remembered(path) == {"writer": {"number": 1}}
    memory = Memory(path)
    memory.save("writer", {"number": 3})
    memory.close()
    assert remembered(path) == {"writer": {"number": 3}}


@pytest.mark.parametrize("garbage", [os.urandom(5000), b"no newline", b'{"units": {}}\n'])
def test_a_file_of_garbage_is_moved_aside(tmp_path: Path, garbage: bytes) -> None:
    """Garbage is kept under another name, said in words, and the start is empty."""
    path = tmp_path / "units"
    path.write_bytes(garbage)
    memory = Memory(path)
    assert memory.load() == {}
    (moved,) = tmp_path.glob("units.corrupt-*")
    assert moved.read_bytes() == garbage
    assert memory.notice is not None
    assert str(moved) in memory.notice
    memory.save("writer", {"number": 1})
    memory.close()
    assert remembered(path) == {"writer": {"number": 1}}


def test_damage_in_the_middle_costs_only_what_it_hit(tmp_path: Path) -> None:
    """Units whose records are whole are kept, although the file is moved aside."""
    path = tmp_path / "units"
    memory = Memory(path)
    for unit in ("one", "two", "three"):
        memory.save(unit, {"name": unit})
    memory.close()
    path.write_bytes(path.read_bytes().replace(b'"name":"two"', b'"name":"twx"'))
    memory = Memory(path)
    assert set(memory.load()) == {"one", "three"}
    assert memory.notice is not None
    assert "1 of 3 records" in memory.notice
    memory.close()
    assert set(remembered(path)) == {"one", "three"}


def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """The error says which file, why, and what to do."""
    with pytest.raises(HostCannot, match=r"missing/units.*No such file.*state directory writable"):
        Memory(tmp_path / "missing" / "units")


@pytest.mark.root
def test_a_full_disk_refuses_only_when_its_own_room_is_used_up(disk: Disk) -> None:
    """With the disk full it still remembers, from its reserve; then it says Full and keeps the last blob."""
    path = disk.path / "units"
    memory = Memory(path)
    disk.fill()
    refusal, last = None, 0
    for number in range(1000):
        try:
            memory.save("writer", {"number": number, "much": "x" * 1000})
        except Full as error:
            refusal = error
            break
        last = number
    assert last > 100, "the reserve held for a while"
    assert refusal is not None
    assert str(path) in str(refusal)
    assert memory.load()["writer"]["number"] == last
    disk.free()
    memory.save("writer", {"number": "after"})
    memory.close()
    assert remembered(path) == {"writer": {"number": "after"}}
