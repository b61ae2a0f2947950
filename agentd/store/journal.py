"""The journal: what happened, when, to whom and why, in one SQLite file.

Nothing waits for it. ``append`` puts records into a bounded queue and returns; one thread writes them in groups. When
the disk is full or the file cannot be written, the journal pauses, says so in ``error``, counts what it had to
drop and goes on by itself. A damaged file is moved aside. It knows neither units nor lifecycle: a record is a
dict with ``kind`` and whatever else is worth keeping.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentd.errors import BadInput, Unavailable
from agentd.store import aside
from agentd.store.record import Record, Row, from_row, to_row

SQL = Path(__file__).parent / "sql"
INSERT = (SQL / "insert.sql").read_text()
SELECT = tuple((SQL / "select.sql").read_text().splitlines())
MIGRATIONS = tuple(sorted(SQL.glob("[0-9][0-9][0-9]_*.sql")))

ROWS_MAX = 10_000
"""Rows that may wait; more are dropped and counted."""
GROUP_MAX = 1_000
"""Rows of one transaction."""
LIMIT_MAX = 10_000
RETRY_FIRST, RETRY_MAX = 1.0, 30.0
"""Seconds between attempts while paused."""
DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class NewerSchema(sqlite3.Error):
    """The file was written by a newer agentd."""


@dataclass(slots=True)
class _Batch:
    """Rows that go into one transaction, and who waits for it."""

    rows: list[Row]
    done: Future[bool] | None = None
    """Set to True when they are on disk; to False where the asker does not wait out a pause."""
    patient: bool = True


class Journal:
    """One open journal. ``append`` and the properties are for any thread, the rest for the event loop."""

    def __init__(self, path: Path, *, rows_max: int = ROWS_MAX, retry: float = RETRY_FIRST) -> None:
        self.path = path
        self.dropped = 0
        self.error: str | None = None
        self.notice: str | None = None
        self._rows_max, self._retry = rows_max, retry
        self._queue: deque[_Batch] = deque()
        self._waiting = 0
        self._closing = False
        self._changed = threading.Condition()
        self._db: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._write_forever, name="journal", daemon=True)

    @classmethod
    def open(cls, path: Path, *, rows_max: int = ROWS_MAX, retry: float = RETRY_FIRST) -> Journal:
        """Open or create the journal. Never fails: what is wrong stands in ``error`` and ``notice``.

        ``retry`` is the first pause in seconds after a failed write; it doubles up to 30.
        """
        journal = cls(path, rows_max=rows_max, retry=retry)
        journal._attempt([])
        journal._thread.start()
        return journal

    @property
    def healthy(self) -> bool:
        """Whether the last attempt to write succeeded."""
        return self.error is None

    @property
    def waiting(self) -> int:
        """Rows not yet written."""
        return self._waiting

    def append(self, records: Iterable[Record]) -> None:
        """Write these soon. Returns at once; records over the bound are dropped and counted in ``dropped``."""
        rows = [to_row(record) for record in records]
        with self._changed:
            room = 0 if self._closing else max(0, self._rows_max - self._waiting)
            self.dropped += max(0, len(rows) - room)
            if rows[:room]:
                self._put(_Batch(rows[:room]))

    async def store(self, records: Iterable[Record]) -> None:
        """Write these and return once they are on disk; waits as long as the journal is paused.

        Records with ``source``, ``epoch`` and ``seq`` that are there already are left alone, so repeating is harmless.
        Raises Unavailable if the journal is closed before.
        """
        await self._wait_for(_Batch([to_row(record) for record in records], Future()))

    async def flush(self) -> bool:
        """Return once everything appended so far is on disk: true; or at once, false, while the journal is paused."""
        return await self._wait_for(_Batch([], Future(), patient=False))

    async def _wait_for(self, batch: _Batch) -> bool:
        assert batch.done is not None
        with self._changed:
            if self._closing:
                raise Unavailable(f"{self.path}: the journal is closed.")
            if not batch.patient and self.error is not None:
                return False
            self._put(batch)
        return await asyncio.wrap_future(batch.done)

    async def query(
        self,
        unit: str | None = None,
        kind: str | None = None,
        since: float | None = None,
        until: float | None = None,
        limit: int = 200,
        conversation: str | None = None,
        message: str | None = None,
        correlation: str | None = None,
    ) -> list[Record]:
        """The newest ``limit`` records that fit, newest last. Times are unix seconds, both ends included.

        ``kind`` is a whole kind or its first words: ``message`` finds ``message.sent`` and ``message.dead``.
        Raises Unavailable where the file cannot be read.
        """
        if not 1 <= limit <= LIMIT_MAX:
            raise BadInput(f"limit: {limit} is not between 1 and {LIMIT_MAX}.")
        wanted = {"unit": unit, "kind": kind, "since": since, "until": until}
        wanted |= {"limit": limit, "conversation": conversation, "message": message, "correlation": correlation}
        return await asyncio.to_thread(self._select, wanted)

    async def close(self) -> None:
        """Write what waits, once, and close; what cannot be written is dropped and counted."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        await asyncio.to_thread(self._thread.join)

    def _put(self, batch: _Batch) -> None:
        self._queue.append(batch)
        self._waiting += len(batch.rows)
        self._changed.notify_all()

    # -- the writer thread ------------------------------------------------------------------------------------

    def _write_forever(self) -> None:
        pause = self._retry
        while group := self._next_group():
            if self._attempt(group):
                pause = self._retry
                self._finish(group)
                continue
            self._release_impatient()
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=pause)
            pause = min(pause * 2, RETRY_MAX)
            if self._closing and not self._attempt(group):
                self._give_up()
                break
        self._disconnect()

    def _next_group(self) -> list[_Batch]:
        """The oldest waiting batches, which stay in the queue until they are written; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            group, rows = [], 0
            for batch in self._queue:
                group.append(batch)
                rows += len(batch.rows)
                if rows >= GROUP_MAX:
                    break
            return group

    def _finish(self, group: list[_Batch]) -> None:
        with self._changed:
            for batch in group:
                self._queue.popleft()
                self._waiting -= len(batch.rows)
        for batch in group:
            _answer(batch, True)

    def _release_impatient(self) -> None:
        """Paused: who only flushes need not wait for its end."""
        with self._changed:
            impatient = [batch for batch in self._queue if not batch.patient]
            self._queue = deque(batch for batch in self._queue if batch.patient)
        for batch in impatient:
            _answer(batch, False)

    def _give_up(self) -> None:
        """Closing while paused: nobody will write these."""
        for batch in self._queue:
            self.dropped += len(batch.rows)
            if batch.done is not None and batch.done.set_running_or_notify_cancel():
                batch.done.set_exception(Unavailable(f"{self.path}: the journal was closed: {self.error}"))
        self._queue.clear()
        self._waiting = 0

    def _attempt(self, group: list[_Batch]) -> bool:
        """Write this group in one transaction, over a fresh file if the present one is damaged."""
        for _ in range(2):
            try:
                self._write([row for batch in group for row in batch.rows])
            except (sqlite3.Error, OSError) as error:
                self._disconnect()
                self.error = self._explain(error)
                if not _is_damage(error) or not self._move_aside(error):
                    return False
            else:
                self.error = None
                return True
        return False

    def _write(self, rows: list[Row]) -> None:
        if self._db is None:
            self._db = _connect(self.path)
        if not rows:
            return
        with self._db:  # commits, or rolls back on an error
            self._db.executemany(INSERT, rows)

    def _move_aside(self, error: BaseException) -> bool:
        try:
            moved = aside.move(self.path, ("-wal", "-shm"))
        except OSError as failed:
            self.error = f"{self.path}: damaged ({error}) and cannot be moved aside: {failed}. Move it yourself."
            return False
        self.notice = (
            f"{self.path}: damaged ({error}). Moved to {moved}, a new journal was begun; supervision is not "
            f"affected. `sqlite3 {moved} .recover` may save its records."
        )
        return True

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _explain(self, error: BaseException) -> str:
        if isinstance(error, NewerSchema):
            return str(error)
        return (
            f"{self.path}: the journal is paused, it cannot be written: {error}. Supervision goes on; records wait "
            f"in memory. Free or repair the disk, it goes on by itself."
        )

    # -- reading ----------------------------------------------------------------------------------------------

    def _select(self, wanted: dict[str, Any]) -> list[Record]:
        given = {name: value for name, value in wanted.items() if value is not None}
        lines = [line for line in SELECT if not line.startswith("AND ") or _parameter(line) in given]
        try:
            with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as db:
                db.row_factory = sqlite3.Row
                rows = db.execute("\n".join(lines), given).fetchall()
        except sqlite3.Error as error:
            raise Unavailable(f"{self.path}: the journal cannot be read: {error}.", hint=self.error) from error
        return [from_row(dict(row)) for row in reversed(rows)]


def _answer(batch: _Batch, stored: bool) -> None:
    """Tell who waits, unless it waits no more."""
    if batch.done is not None and batch.done.set_running_or_notify_cancel():
        batch.done.set_result(stored)


def _parameter(line: str) -> str:
    """The name after the colon: ``AND unit = :unit`` → ``unit``."""
    return line.split(":", 1)[1].split(maxsplit=1)[0]


def _is_damage(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in DAMAGED


def _connect(path: Path) -> sqlite3.Connection:
    """Open for writing and bring the schema up to date."""
    db = sqlite3.connect(path, timeout=1.0, check_same_thread=False, isolation_level="IMMEDIATE")
    try:
        path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA journal_size_limit = 67108864")
        _migrate(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise NewerSchema(
            f"{path}: written by a newer agentd (schema {version}, this one knows {len(MIGRATIONS)}): the journal is "
            f"paused, supervision goes on. Install that version again, or move the file away."
        )
    for number, file in enumerate(MIGRATIONS[version:], version + 1):
        db.executescript(f"BEGIN IMMEDIATE;\n{file.read_text()}\nPRAGMA user_version = {number};\nCOMMIT;")
