"""Dead letters: messages that were given up, with why, kept until somebody replays or purges them.

Steps of giving up: 1. the letter is stored (id of the publication: unit and sequence of the message, so that a
repeat is stored once) · 2. the message is acknowledged. A crash in between repeats both.

Steps of a replay: 1. the message is stored in the inbox (id of the publication: the letter's) · 2. the letter is
removed. A crash in between leaves the letter; replaying it again within two minutes stores nothing twice.
"""

from __future__ import annotations

import json
from typing import Any

from agentd.bus import reading
from agentd.bus.connection import Connection
from agentd.bus.publisher import Publisher
from agentd.bus.topology import DEAD, dead_subject
from agentd.errors import BusUnavailable, NoSuchLetter

_NO_MESSAGE = 10037

Letter = dict[str, Any]
"""``{unit, seq, reason, text, attempts, exits, at}``; when read also ``id`` and ``body``, the message as stored."""


class Letters:
    """The dead letters of all units. Ids are numbers as text; they grow with time."""

    def __init__(self, connection: Connection, publisher: Publisher) -> None:
        self._connection = connection
        self._publisher = publisher

    async def put(self, unit: str, seq: int, letter: Letter, body: bytes) -> str:
        """Keep a letter of ``unit`` about the message with this sequence and stored form; its id."""
        head = json.dumps(letter, separators=(",", ":")).encode()
        stored = await self._publisher.publish(dead_subject(unit), head + b"\n" + body, id=f"dead/{unit}/{seq}")
        return str(stored.seq)

    async def all(self, unit: str | None = None) -> list[Letter]:
        """The letters of one unit or of all, oldest first."""
        found = await reading.read(self._connection, DEAD, dead_subject(unit or "*"))
        return [_letter(record) for record in found]

    async def get(self, id: str) -> Letter:  # noqa: A002
        """One letter; NoSuchLetter."""
        found = await reading.get(self._connection, DEAD, int(id)) if id.isascii() and id.isdigit() else None
        if found is None:
            raise NoSuchLetter(f"there is no dead letter {id}", hint="agentctl dlq list shows what there is.")
        return _letter(found)

    async def remove(self, id: str) -> bool:  # noqa: A002
        """Delete one; whether it was there."""
        try:
            await self._connection.api(f"STREAM.MSG.DELETE.{DEAD}", {"seq": int(id), "no_erase": True})
        except BusUnavailable as e:
            if e.detail.get("status") == 404 or e.detail.get("err_code") in (_NO_MESSAGE, 10057, 10043):
                return False
            raise
        return True

    async def counts(self) -> dict[str, int]:
        """How many letters each unit has."""
        info = await self._connection.api(f"STREAM.INFO.{DEAD}", {"subjects_filter": dead_subject("*")})
        subjects = info["state"].get("subjects") or {}
        return {subject.rsplit(".", 1)[1]: count for subject, count in subjects.items()}


def _letter(record: reading.Record) -> Letter:
    head, _, body = record.body.partition(b"\n")
    return {**json.loads(head), "id": str(record.seq), "body": body}
