"""The ledger file: what is written counts, what cannot be read is refused, old files are read for ever."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentd.errors import Conflict
from agentd.gateway.clock import Clock
from agentd.gateway.ledgerfile import LedgerCorrupt, LedgerFile, LedgerUnwritable, decode, encode
from agentd.gateway.meter import Meter
from agentd.model.ledger import Ask, Hold, Ledger, Limit, Mark, Raise, Record, Reset, Settle, Share

DAY = Share("unit/a", "day", 20_778)
FLEET = Share("fleet", "month", 24_322)
RECORDS: list[Record] = [
    Limit("unit/a", 50_000, "day"),
    Limit("fleet", None, "month"),
    Hold(1, 100, 400, 400, (DAY, FLEET), {"unit": "a", "model": "größe", "message": None}),
    Settle(1, 321, "usage"),
    Raise(DAY, 1000, "eve", "more\nplease"),
    Hold(2, 1, 2, 2, (DAY,), {}),
    Mark("unit/a", DAY, 356),
    Reset(DAY, "eve", ""),
]
TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.ledger"))


async def write(path: Path, records: list[Record]) -> None:
    file = LedgerFile(path)
    file.replay(lambda record: pytest.fail("a new file has no records"))
    for record in records:
        file.append(record)
    await file.close()


async def reread(path: Path) -> tuple[list[Record], int]:
    file = LedgerFile(path)
    records: list[Record] = []
    try:
        file.replay(records.append)
        return records, file.torn
    finally:
        await file.close()


def books(ledger: Ledger) -> dict[str, Any]:
    """The books as JSON."""
    return {
        "limits": {s: [limit.amount, limit.window] for s, limit in ledger.limits.items()},
        "accounts": {
            f"{s} {w}": [account.period, account.used, account.held, account.raised]
            for (s, w), account in ledger.accounts.items()
        },
        "open": {str(hold.id): hold.total for hold in ledger.holds.values()},
        "marks": {scope: mark.need for scope, mark in ledger.marks.items()},
        "last_id": ledger.last_id,
    }


async def test_every_record_comes_back_as_it_was(tmp_path: Path) -> None:
    """Writing and reading are inverse, for every kind of record."""
    await write(tmp_path / "ledger", RECORDS)
    assert await reread(tmp_path / "ledger") == (RECORDS, 0)
    assert (tmp_path / "ledger").stat().st_mode & 0o777 == 0o600


async def test_a_torn_last_line_is_cut_off_wherever_it_tore(tmp_path: Path) -> None:
    """A file cut at any byte gives the records that were whole, and can be written on."""
    path = tmp_path / "ledger"
    await write(path, RECORDS)
    data = path.read_bytes()
    for cut in range(len(data) - 1, 0, -37):
        path.write_bytes(data[:cut])
        records, torn = await reread(path)
        assert records == RECORDS[: len(records)]
        whole = data[:cut].rfind(b"\n") + 1
        assert torn == cut - whole
        file = LedgerFile(path)
        count = len(records)
        file.replay(lambda record: None)
        file.append(Reset(DAY))
        await file.close()
        assert await reread(path) == ([*RECORDS[:count], Reset(DAY)], 0)


@pytest.mark.parametrize("line", [1, 2, 4, 8])
async def test_a_damaged_line_is_refused_by_file_and_line(tmp_path: Path, line: int) -> None:
    """Damage anywhere but at the very end fails closed: the error names file, line and what to do."""
    path = tmp_path / "ledger"
    await write(path, RECORDS)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b'"v":1', b'"v":7', 1)
    path.write_bytes(b"".join(lines))
    before = path.read_bytes()
    with pytest.raises(LedgerCorrupt, match=f"ledger:{line}: ") as caught:
        await reread(path)
    assert "backup" in str(caught.value)
    assert path.read_bytes() == before, "evidence is left alone"


async def test_a_missing_line_a_strange_version_and_a_strange_kind_are_refused(tmp_path: Path) -> None:
    """A valid checksum is not enough: records must be without a gap, and of a version and kind that we know."""
    path = tmp_path / "ledger"
    await write(path, RECORDS)
    lines = path.read_bytes().splitlines(keepends=True)
    newer = encode(3, {"r": "limit", "v": 2, "scope": "x", "limit": 1, "window": "day"})
    strange = encode(3, {"r": "gift"})
    cases = [(lines[:2] + lines[3:], "record 3 was due"), (lines[1:], "record 1 was due")]
    cases += [([*lines[:2], line, *lines[3:]], said) for line, said in ((newer, "version"), (strange, "gift"))]
    for damaged, said in cases:
        path.write_bytes(b"".join(damaged))
        with pytest.raises(LedgerCorrupt, match=said):
            await reread(path)


async def test_records_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    """A settlement of nothing is damage too, with its line number."""
    await write(tmp_path / "ledger", [*RECORDS, Settle(1, 5, "usage"), Reset(DAY)])
    file = LedgerFile(tmp_path / "ledger")
    with pytest.raises(LedgerCorrupt, match=r"ledger:10: .*not open"):
        file.replay(Ledger().apply)
    await file.close()


async def test_a_file_that_is_no_ledger_is_left_alone(tmp_path: Path) -> None:
    """Another program's file is not taken for a torn ledger."""
    (tmp_path / "ledger").write_text("my notes\n")
    with pytest.raises(LedgerCorrupt, match="ledger:1: "):
        await reread(tmp_path / "ledger")
    assert (tmp_path / "ledger").read_text() == "my notes\n"


async def test_a_corrupt_ledger_stops_the_process_with_one_clear_error(short_dir: Path) -> None:
    """The gateway does not start, serves nothing, and says which file and line and what to do."""
    state = short_dir / "state"
    await write(state / "ledger", RECORDS)
    data = (state / "ledger").read_bytes()
    (state / "ledger").write_bytes(data.replace(b"50000", b"90000", 1))
    config = short_dir / "gateway.json"
    key = {"key": "k", "unit": "a"}
    config.write_text(json.dumps({"listen": "127.0.0.1:0", "state": str(state), "key": [key]}))
    command = [sys.executable, "-m", "agentd.gateway.main", "--config", str(config)]
    run = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=20)
    assert run.returncode == 1
    assert run.stderr.startswith(f"agentd-gateway: {state}/ledger:2: the ledger is damaged")
    assert "Traceback" not in run.stderr


async def test_two_gateways_cannot_share_a_ledger(tmp_path: Path) -> None:
    """The second one is told that the file is in use."""
    file = LedgerFile(tmp_path / "ledger")
    with pytest.raises(Conflict, match="another gateway"):
        LedgerFile(tmp_path / "ledger")
    await file.close()


async def test_what_cannot_be_written_whole_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk a record is refused, the file stays readable, and writing goes on when there is room."""
    file = LedgerFile(tmp_path / "ledger")
    file.replay(lambda record: None)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:9]))
    with pytest.raises(LedgerUnwritable):
        file.append(RECORDS[0])

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LedgerUnwritable, match="No space left"):
        file.append(RECORDS[0])
    monkeypatch.setattr(os, "write", real)
    file.append(RECORDS[0])
    await file.close()
    assert await reread(tmp_path / "ledger") == (RECORDS[:1], 0)


async def test_records_are_synced_together_within_10_ms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst costs one or two fdatasyncs, and none is forgotten."""
    synced: list[int] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    file = LedgerFile(tmp_path / "ledger")
    file.replay(lambda record: None)

    def sync(fd: int) -> None:
        synced.append(os.fstat(fd).st_size)
        loop.call_soon_threadsafe(done.set)

    monkeypatch.setattr(os, "fdatasync", sync)
    for number in range(1, 101):
        file.append(Hold(number, 1, 1, 1, (DAY,), {}))
    await asyncio.wait_for(done.wait(), 5)
    assert synced[-1] == (tmp_path / "ledger").stat().st_size
    assert len(synced) <= 2
    await file.close()


async def test_a_hold_is_refused_when_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record, no admission: the books do not change either."""
    meter = Meter(LedgerFile(tmp_path / "ledger"), Clock(), lambda scopes: None)
    meter.open()
    meter.limit("unit/a", None)
    real = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LedgerUnwritable):
        await meter.reserve(Ask(1, 1, ("unit/a",)), "refuse", 0.1, lambda: None)
    assert meter.standing("unit/a").held == 0
    monkeypatch.setattr(os, "write", real)
    hold = await meter.reserve(Ask(1, 1, ("unit/a",)), "refuse", 0.1, lambda: None)
    assert hold.id == 1
    await meter.close()


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
async def test_recorded_files_give_the_books_that_they_gave(path: Path, tmp_path: Path) -> None:
    """Every version replays what an older one wrote."""
    copy = tmp_path / "ledger"
    copy.write_bytes(path.read_bytes())
    ledger, file = Ledger(), LedgerFile(copy)
    file.replay(ledger.apply)
    await file.close()
    assert books(ledger) == json.loads(path.with_suffix(".json").read_text())


def test_there_are_transcripts() -> None:
    """At least a plain day and a crash are recorded, and each line follows the page."""
    assert {path.stem for path in TRANSCRIPTS} >= {"v1-day", "v1-crash"}
    for path in TRANSCRIPTS:
        for line in path.read_bytes().splitlines():
            if line != path.read_bytes().splitlines()[-1]:
                assert decode(line)["v"] == 1
