"""One small record per inbox that outlives the router: the last one written counts.

What is in it is the router's business. Written before a message goes to its reader and before it comes again.
"""

from __future__ import annotations

import json
from typing import Any

from agentd.bus import reading
from agentd.bus.connection import Connection
from agentd.bus.publisher import Publisher
from agentd.bus.topology import STATE, state_subject


class State:
    """The records of all inboxes."""

    def __init__(self, connection: Connection, publisher: Publisher) -> None:
        self._connection = connection
        self._publisher = publisher

    async def load(self) -> dict[str, dict[str, Any]]:
        """Every inbox's record, by unit."""
        found = await reading.last(self._connection, STATE, state_subject("*"))
        return {record.subject.rsplit(".", 1)[1]: json.loads(record.body) for record in found}

    async def drop(self, unit: str) -> None:
        """Forget the record of a unit that is gone."""
        await self._connection.api(f"STREAM.PURGE.{STATE}", {"filter": state_subject(unit)})

    async def write(self, unit: str, record: dict[str, Any]) -> None:
        """Returns when it is stored. Write for one unit at a time: the last one counts."""
        await self._publisher.publish(state_subject(unit), json.dumps(record, separators=(",", ":")).encode())
