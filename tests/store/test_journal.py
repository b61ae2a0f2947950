"""The journal: stored, found again, bounded, and never in anybody's way."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from agentd.errors import BadInput, Unavailable
from agentd.store.journal import SQL, Journal
from tests.store.conftest import Disk
from tests.waiting import until

Open = Callable[..., Journal]
T = TypeVar("T")


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    """Opens journals and closes them after the test."""
    journals: list[Journal] = []

    def open_journal(path: Path, **options: float) -> Journal:
        journals.append(Journal.open(path, **options))  # type: ignore[arg-type]
        return journals[-1]

    yield open_journal
    for journal in journals:
        await journal.close()


def within(what: Awaitable[T]) -> Awaitable[T]:
    return asyncio.wait_for(what, 5)


async def test_records_come_back_whole(tmp_path: Path, opened: Open) -> None:
    """Named fields are named again and all others are in detail."""
    journal = opened(tmp_path / "journal.db")
    journal.append(
        [
            {
                "at": 12.5,
                "kind": "unit.running",
                "unit": "writer",
                "invocation": "01",
                "actor": "ann",
                "reason": "asked",
                "pid": 7,
            }
        ]
    )
    assert await within(journal.flush()) is True
    (record,) = await journal.query()
    assert record.pop("detail") == {"pid": 7}
    named = {name: value for name, value in record.items() if value is not None}
    assert named.pop("source") == "daemon"
    assert list(named.values()) == [1, 12.5, "unit.running", "writer", "01", "ann", "asked"]
    assert list(named) == ["id", "at", "kind", "unit", "invocation", "actor", "reason"]
    assert journal.healthy


async def test_queries_select_and_end_with_the_newest(tmp_path: Path, opened: Open) -> None:
    """Each filter selects; the limit keeps the newest; the newest is last, also when it was stored late."""
    journal = opened(tmp_path / "journal.db")
    journal.append(
        [
            {"at": 3.0, "kind": "message.sent", "unit": "a", "message": "m1", "conversation": "c"},
            {"at": 1.0, "kind": "unit.starting", "unit": "a"},
            {"at": 2.0, "kind": "message.dead", "unit": "b", "message": "m2", "conversation": "c"},
            {"at": 4.0, "kind": "messages", "unit": "b"},
        ]
    )
    await within(journal.flush())

    async def times(**wanted: object) -> list[float]:
        return [record["at"] for record in await journal.query(**wanted)]  # type: ignore[arg-type]

    assert await times() == [1.0, 2.0, 3.0, 4.0]
    assert await times(limit=2) == [3.0, 4.0]
    assert await times(unit="a") == [1.0, 3.0]
    assert await times(kind="message") == [2.0, 3.0]
    assert await times(kind="message.dead") == [2.0]
    assert await times(since=2.0, until=3.0) == [2.0, 3.0]
    assert await times(conversation="c", unit="b") == [2.0]
    assert await times(message="m1") == [3.0]
    with pytest.raises(BadInput, match="limit"):
        await journal.query(limit=0)


async def test_a_record_that_comes_twice_is_stored_once(tmp_path: Path, opened: Open) -> None:
    """The same (source, epoch, seq) is one record; another epoch is another record; the daemon's own have no seq."""
    journal = opened(tmp_path / "journal.db")
    record = {"kind": "call.ended", "source": "gateway", "epoch": "e1", "seq": 1}
    await within(journal.store([record, record]))
    await within(journal.store([record, {**record, "epoch": "e2"}, {"kind": "x"}, {"kind": "x"}]))
    assert len(await journal.query()) == 4


async def test_stored_means_on_disk_after_kill_9(tmp_path: Path) -> None:
    """What store() has promised is there after the process was killed."""
    code = (
        "import asyncio, os, signal, sys; from pathlib import Path; from agentd.store.journal import Journal\n"
        "async def main():\n"
        "    journal = Journal.open(Path(sys.argv[1]))\n"
        "    await journal.store([{'kind': 'unit.running', 'n': n} for n in range(2500)])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, str(tmp_path / "journal.db")])
    assert done.returncode == -signal.SIGKILL
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db:
        assert db.execute("SELECT count(*) FROM record").fetchone() == (2500,)


async def test_what_a_peer_may_write_breaks_no_batch(tmp_path: Path, opened: Open) -> None:
    """Odd values are stored in a readable form, and their neighbours are stored too."""
    journal = opened(tmp_path / "journal.db")
    await within(
        journal.store(
            [
                {"kind": "one", "unit": "\ud800", "reason": ["list"], "at": float("nan"), "seq": 1 << 70},
                {"kind": None, "value": float("inf"), "path": Path("/x")},
                {"kind": "long", "text": "x" * 1_000_000},
                {"kind": "last"},
            ]
        )
    )
    first, second, third, _ = sorted(await journal.query(), key=lambda record: int(record["id"]))
    assert (first["unit"], first["reason"], first["seq"]) == ("?", "['list']", None)
    assert abs(first["at"] - time.time()) < 60
    assert "inf" in second["detail"]["unreadable"]
    assert third["detail"]["characters"] > 1_000_000
    assert len(third["detail"]["truncated"]) < 100_000


async def test_append_never_waits_and_drops_are_counted(tmp_path: Path, opened: Open) -> None:
    """With the file locked by another program, append returns at once; over the bound it counts; then it writes."""
    path = tmp_path / "journal.db"
    journal = opened(path, rows_max=100, retry=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        begin = time.monotonic()
        for number in range(150):
            journal.append([{"kind": "x", "n": number}])
        assert time.monotonic() - begin < 0.5
        assert journal.dropped == 50
        assert journal.waiting == 100
        await until(lambda: not journal.healthy)
        assert "locked" in str(journal.error)
        other.execute("ROLLBACK")
    await within(journal.store(()))
    assert [record["detail"]["n"] for record in await journal.query()] == list(range(100))
    assert (journal.healthy, journal.waiting) == (True, 0)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "page"])
async def test_a_corrupt_journal_is_moved_aside(tmp_path: Path, opened: Open, damage: str) -> None:
    """It is kept under another name, said in words, and a new one takes the records."""
    path = tmp_path / "journal.db"
    if damage == "garbage":
        path.write_bytes(os.urandom(20_000))
    else:
        first = Journal.open(path)
        await within(first.store([{"kind": "old", "text": "x" * 1000} for _ in range(100)]))
        await first.close()
        if damage == "truncated":
            os.truncate(path, path.stat().st_size // 2)
        else:  # the root page of the table
            with path.open("r+b") as file:
                file.seek(4096)
                file.write(os.urandom(4096))
    journal = opened(path)
    assert journal.healthy
    assert (journal.notice is None) == (damage == "page"), "only a damaged page is found as late as at the first write"
    await within(journal.store([{"kind": "new"}]))
    assert [record["kind"] for record in await journal.query()] == ["new"]
    (moved,) = tmp_path.glob("journal.db.corrupt-*")
    assert journal.healthy
    assert journal.notice is not None
    assert str(moved) in journal.notice
    assert moved.stat().st_size > 4096


async def test_a_second_damage_in_the_same_second_keeps_both(tmp_path: Path) -> None:
    """Nothing that was moved aside is ever written over."""
    for number in range(3):
        (tmp_path / "journal.db").write_bytes(b"garbage %d" % number * 100)
        await Journal.open(tmp_path / "journal.db").close()
    kept = sorted(path.read_bytes()[:9] for path in tmp_path.glob("journal.db.corrupt-*"))
    assert kept == [b"garbage 0", b"garbage 1", b"garbage 2"]


async def test_it_pauses_without_its_directory_and_goes_on_by_itself(tmp_path: Path, opened: Open) -> None:
    """Where the file cannot be made it says so and keeps the records; once it can be made they are written."""
    path = tmp_path / "later" / "journal.db"
    journal = opened(path, retry=0.02)
    assert "unable to open" in str(journal.error)
    assert "goes on by itself" in str(journal.error)
    journal.append([{"kind": "x"}])
    with pytest.raises(Unavailable, match="cannot be read"):
        await journal.query()
    waiting = asyncio.create_task(journal.store([{"kind": "y"}]))
    path.parent.mkdir()
    await within(waiting)
    assert [record["kind"] for record in await journal.query()] == ["x", "y"]
    assert journal.healthy
    assert journal.dropped == 0


async def test_a_flush_does_not_wait_out_a_pause(tmp_path: Path) -> None:
    """Whoever flushes on the way down is told at once that the disk is dead, and goes on."""
    journal = Journal.open(tmp_path / "soon" / "journal.db", retry=30)
    journal.append([{"kind": "x"}])
    assert await within(journal.flush()) is False
    await within(journal.close())

    (tmp_path / "soon").mkdir()
    journal = Journal.open(tmp_path / "soon" / "journal.db", retry=30)
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        journal.append([{"kind": "x"}])
        assert await within(journal.flush()) is False, "the pause began while we waited"
        other.execute("ROLLBACK")
    await within(journal.close())
    assert journal.dropped == 0


async def test_closing_while_paused_gives_up_at_once(tmp_path: Path) -> None:
    """Close does not hang on a dead disk: what waits is counted and whoever waits is told."""
    journal = Journal.open(tmp_path / "never" / "journal.db", retry=30)
    journal.append([{"kind": "x"}])
    waiting = asyncio.create_task(journal.store([{"kind": "y"}]))
    await until(lambda: journal.waiting == 2)
    await asyncio.wait_for(journal.close(), 5)
    with pytest.raises(Unavailable, match="closed"):
        await waiting
    assert journal.dropped == 2
    journal.append([{"kind": "z"}])
    assert journal.dropped == 3


async def test_close_writes_what_waits(tmp_path: Path, opened: Open) -> None:
    """Nothing that was appended before close is lost."""
    journal = Journal.open(tmp_path / "journal.db")
    journal.append({"kind": "x"} for _ in range(3000))
    await journal.close()
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db:
        assert db.execute("SELECT count(*) FROM record").fetchone() == (3000,)


async def test_a_cancelled_wait_disturbs_nobody(tmp_path: Path, opened: Open) -> None:
    """Who stops waiting for store() leaves the writer alive and the records stored."""
    path = tmp_path / "later" / "journal.db"
    journal = opened(path, retry=0.02)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(journal.store([{"kind": "x"}]), 0.05)
    path.parent.mkdir()
    await within(journal.store(()))
    assert len(await journal.query()) == 1


async def test_a_journal_of_an_older_agentd_is_brought_up_to_date(tmp_path: Path, opened: Open) -> None:
    """Its records stay, and records with a correlation are found among them."""
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript((SQL / "001_record.sql").read_text())
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO record (at, kind, source, detail) VALUES (1.0, 'unit.running', 'daemon', '{}')")
        db.commit()
    store = opened(path)
    store.append([{"at": 2.0, "kind": "unit.stopping", "correlation": "c1"}])
    await store.flush()
    assert [(r["kind"], r["correlation"]) for r in await store.query()] == [
        ("unit.running", None), ("unit.stopping", "c1")
    ]  # fmt: skip
    assert [r["kind"] for r in await store.query(correlation="c1")] == ["unit.stopping"]


async def test_a_journal_of_a_newer_agentd_is_left_alone(tmp_path: Path, opened: Open) -> None:
    """It is neither changed nor moved; the error says who wrote it."""
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    journal = opened(path)
    assert "newer agentd (schema 99" in str(journal.error)
    assert list(tmp_path.glob("*corrupt*")) == []


@pytest.mark.root
async def test_a_full_disk_pauses_it_and_room_resumes_it(disk: Disk, opened: Open) -> None:
    """On a full disk it says so and drops nothing within its bound; with room again everything is written."""
    journal = opened(disk.path / "journal.db", retry=0.02)
    await within(journal.store([{"kind": "before"}]))
    disk.fill()
    journal.append([{"kind": "during", "text": "x" * 1000} for _ in range(100)])
    await until(lambda: not journal.healthy)
    assert "full" in str(journal.error) or "disk I/O" in str(journal.error)
    assert [record["kind"] for record in await journal.query()] == ["before"]
    disk.free()
    await within(journal.store(()))
    assert len(await journal.query()) == 101
    assert journal.dropped == 0


@pytest.mark.root
async def test_a_read_only_disk_pauses_it(disk: Disk, opened: Open) -> None:
    """Read-only is a pause too, and ends with it."""
    journal = Journal.open(disk.path / "journal.db")
    await within(journal.store([{"kind": "before"}]))
    await journal.close()
    disk.remount("ro")
    journal = opened(disk.path / "journal.db", retry=0.02)
    journal.append([{"kind": "during"}])
    await until(lambda: not journal.healthy)
    disk.remount("rw")
    await within(journal.store(()))
    assert [record["kind"] for record in await journal.query()] == ["before", "during"]
