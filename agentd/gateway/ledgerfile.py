"""The ledger file: every record of the books, appended before it counts. The format is in LEDGER.md beside this file.

Knows lines, checksums, record numbers and fsync; knows nothing of limits or calls. A record is *written* when
``append`` returns (it then survives the death of this process); ``fdatasync`` follows within 10 ms in a thread. What
cannot be read back is refused, never skipped: only a torn last line, which no call ever relied on, is cut off.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentd.errors import AgentdError, ConfigError, Conflict
from agentd.model.ledger import Hold, Limit, Mark, Raise, Record, Reset, Settle, Share

VERSION = 1
SYNC_WITHIN = 0.01


class LedgerCorrupt(AgentdError):
    """The ledger file cannot be read."""


class LedgerUnwritable(AgentdError):
    """The ledger file cannot be written, so no call can be admitted."""

    status = 503


def _share(share: Share) -> list[Any]:
    return [share.scope, share.window, share.period]


def to_json(record: Record) -> dict[str, Any]:
    """The fields of a record's line, as LEDGER.md lists them."""
    match record:
        case Limit():
            return {"r": "limit", "scope": record.scope, "limit": record.amount, "window": record.window}
        case Hold():
            return {
                "r": "hold",
                "id": record.id,
                "in": record.tokens_in,
                "out": record.tokens_out,
                "each": record.each,
                "of": [_share(share) for share in record.shares],
                "call": dict(record.call),
            }
        case Settle():
            return {"r": "settle", "id": record.id, "charged": record.charged, "why": record.why}
        case Raise():
            fields = {"of": _share(record.share), "tokens": record.tokens}
            return {"r": "raise", **fields, "actor": record.actor, "reason": record.reason}
        case Reset():
            return {"r": "reset", "of": _share(record.share), "actor": record.actor, "reason": record.reason}
        case Mark():
            return {"r": "mark", "scope": record.scope, "of": _share(record.share), "need": record.need}


def from_json(line: dict[str, Any]) -> Record | None:
    """The record in a line's fields; None for the header. ValueError or KeyError if it is none."""
    match line["r"]:
        case "ledger":
            return None
        case "limit":
            return Limit(line["scope"], line["limit"], line["window"])
        case "hold":
            shares = tuple(Share(*of) for of in line["of"])
            return Hold(line["id"], line["in"], line["out"], line["each"], shares, line["call"])
        case "settle":
            return Settle(line["id"], line["charged"], line["why"])
        case "raise":
            return Raise(Share(*line["of"]), line["tokens"], line["actor"], line["reason"])
        case "reset":
            return Reset(Share(*line["of"]), line["actor"], line["reason"])
        case "mark":
            return Mark(line["scope"], Share(*line["of"]), line["need"])
    raise ValueError(f"unknown record {line['r']!r}")


def encode(number: int, fields: dict[str, Any]) -> bytes:
    """One line of the file."""
    text = json.dumps({"v": VERSION, "n": number, **fields}, separators=(",", ":"), ensure_ascii=False)
    body = text.encode("utf-8", "replace")
    return b"%08x %b\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> dict[str, Any]:
    """The fields of a line without its newline; ValueError says what is wrong with it."""
    if line[8:9] != b" " or line[:8] != b"%08x" % zlib.crc32(line[9:]):
        raise ValueError("the checksum does not fit")
    fields = json.loads(line[9:])
    if not isinstance(fields, dict) or fields.get("v") != VERSION:
        raise ValueError(f"it is not of format version {VERSION}, the only one that this version reads")
    return fields


def read(path: Path, data: bytes) -> Iterator[tuple[int, Record | None, int]]:
    """Each record (None for the header), its number and where it ends. LedgerCorrupt names file, line and reason."""
    start, number = 0, 0
    while (end := data.find(b"\n", start)) >= 0:
        try:
            fields = decode(data[start:end])
            if fields["n"] != number + 1:
                raise ValueError(f"it is record {fields['n']} where record {number + 1} was due")
            record = from_json(fields)
            if (record is None) != (number == 0):
                raise ValueError("the header stands first, and only there")
        except (ValueError, KeyError, TypeError) as error:
            if number and end + 1 == len(data):
                return  # torn by a power cut: the last line, and only it
            raise _corrupt(path, number + 1, error) from error
        number, start = number + 1, end + 1
        yield number, record, start


def _corrupt(path: Path, number: int, error: Exception) -> LedgerCorrupt:
    return LedgerCorrupt(
        f"{path}:{number}: the ledger is damaged: {error}. No model call is admitted, so that no budget is overrun.",
        hint=f"Restore the file from a backup; or move it away (mv {path.name} {path.name}.damaged) to begin again "
        "with nothing spent.",
        file=str(path),
        line=number,
    )


class LedgerFile:
    """The open file. One process at a time; every method runs on the event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = 0
        self._fd = self._open()
        self._number = 0
        self._size = 0
        self._broken: str | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._dirty = False

    def replay(self, apply: Callable[[Record], None]) -> None:
        """Apply all records from the beginning; a torn end is cut off and counted in ``torn``. Call it once, first.

        LedgerCorrupt names the line that cannot be read, or that contradicts what stands before it.
        """
        data = self.path.read_bytes()
        for number, record, end in read(self.path, data):
            try:
                if record is not None:
                    apply(record)
            except (ValueError, KeyError) as error:
                raise _corrupt(self.path, number, error) from error
            self._number, self._size = number, end
        self.torn = len(data) - self._size
        if self.torn:
            os.ftruncate(self._fd, self._size)
        if not self._number:
            self._write({"r": "ledger"})

    def append(self, record: Record) -> None:
        """Write one record. LedgerUnwritable if it is not wholly in the file; then it is not in it at all."""
        self._write(to_json(record))
        if self._syncing is None or self._syncing.done():
            self._syncing = asyncio.get_running_loop().create_task(self._sync())
        self._dirty = True

    async def close(self) -> None:
        """Sync what is left and close."""
        if self._syncing is not None:
            await self._syncing
        os.fdatasync(self._fd)
        os.close(self._fd)

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: the ledger cannot be opened: {error.strerror}.",
                hint="Give the gateway a state directory that it may write.",
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Conflict(
                f"{self.path}: another gateway uses this ledger.", hint="Stop it, or choose another state directory."
            ) from None
        return fd

    def _write(self, fields: dict[str, Any]) -> None:
        if self._broken:
            raise LedgerUnwritable(f"{self.path}: {self._broken}.", hint="Make room on the disk.")
        line = encode(self._number + 1, fields)
        try:
            done = os.write(self._fd, line)
        except OSError as error:
            raise LedgerUnwritable(f"{self.path}: {error.strerror}.", hint="Make room on the disk.") from error
        if done != len(line):
            self._cut()
            raise LedgerUnwritable(f"{self.path}: the disk is full.", hint="Make room on the disk.")
        self._number += 1
        self._size += done

    def _cut(self) -> None:
        """Take back a line that was written in part, so that the next one begins on a line of its own."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError as error:
            self._broken = f"a line written in part could not be taken back: {error.strerror}"

    async def _sync(self) -> None:
        """Make the records of the next 10 ms durable together."""
        while True:
            await asyncio.sleep(SYNC_WITHIN / 2)
            self._dirty = False
            try:
                await asyncio.to_thread(os.fdatasync, self._fd)
            except OSError as error:
                self._broken = f"fdatasync failed: {error.strerror}"
            if not self._dirty or self._broken:
                return
