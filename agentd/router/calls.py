"""What the daemon may ask of the router (agentd/wire/FACTS.md): send on behalf of people, and the dead letters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agentd.bus.letters import Letter, Letters
from agentd.bus.publisher import Publisher
from agentd.bus.topology import message_subject
from agentd.errors import BadInput, Full, NoSuchLetter, NoSuchUnit
from agentd.router.mailbox import Mailbox
from agentd.router.message import decode
from agentd.router.post import Post, draft
from agentd.router.report import Report, pending

_LIMIT = 100
_REMEMBERED = 4096

Json = dict[str, Any]


class Calls:
    """The methods; ``table`` is given to the facts server."""

    def __init__(
        self, boxes: Mapping[str, Mailbox], post: Post, letters: Letters, publisher: Publisher, report: Report
    ) -> None:
        self._boxes, self._post, self._letters = boxes, post, letters
        self._publisher, self._report = publisher, report
        self._gone: OrderedDict[str, None] = OrderedDict()

    def table(self) -> dict[str, Callable[[Json], Awaitable[Any]]]:
        """Method name → method."""
        return {
            "send": self.send,
            "dlq.list": self.list_letters,
            "dlq.show": self.show,
            "dlq.replay": self.replay,
            "dlq.purge": self.purge,
        }

    async def send(self, params: Json) -> Json:
        """Send as the operator; with ``wait`` (seconds) also the receiver's result."""
        wait = params.get("wait")
        said = draft({**params, "timeout": wait} if wait is not None else params)
        if wait is None:
            sent = await self._post.send(None, None, said, reply=False)
            return {"id": sent.message.id, "stored": True, "duplicate": sent.duplicate}
        message, result = await self._post.ask(None, None, said)
        return {"id": message.id, "stored": True, "result": result}

    async def list_letters(self, params: Json) -> Json:
        """The newest letters, oldest of them first, without their data."""
        limit = params.get("limit", _LIMIT)
        if not isinstance(limit, int) or limit < 1:
            raise BadInput("limit: a number above 0")
        letters = (await self._letters.all(_optional(params, "unit")))[-limit:]
        return {"letters": [_line(letter) for letter in letters]}

    async def show(self, params: Json) -> Json:
        """One letter with its data."""
        letter = await self._letters.get(_required(params, "id"))
        message = decode(letter["body"])
        return {
            **_line(letter),
            "data": message.data,
            "conversation": message.conversation,
            "correlation": message.correlation,
            "causation": message.causation,
            "hop": message.hop,
            "time": message.time,
            "traceparent": message.traceparent,
        }

    async def replay(self, params: Json) -> Json:
        """Put letters back into their inbox, or into that of ``to``. Each letter is replayed once."""
        to = _optional(params, "to")
        replayed = []
        for letter in await self._chosen(params, forgiving=True):
            await self._replay(letter, to or letter["unit"])
            replayed.append(letter["id"])
        return {"replayed": replayed}

    async def purge(self, params: Json) -> Json:
        """Delete letters."""
        purged = 0
        for letter in await self._chosen(params, forgiving=False):
            purged += await self._remove(letter)
        return {"purged": purged}

    async def _replay(self, letter: Letter, to: str) -> None:
        box = self._boxes.get(to)
        if box is None:
            raise NoSuchUnit(f"letter {letter['id']}: there is no unit {to!r}", hint="Name another one with to.")
        if pending(box) >= box.known.inbox_max:
            raise Full(f"letter {letter['id']}: the inbox of {to} is full (inbox_max)")
        message = decode(letter["body"])
        self._post.replayed(message)
        stored = await self._publisher.publish(
            message_subject(to), letter["body"], id=f"replay/{letter['id']}/{letter['at']}"
        )
        if not stored.duplicate:
            box.stored()
        await self._remove(letter)
        self._report.record(
            "replayed",
            letter["unit"],
            message=message.id,
            **{"from": message.sender},
            to=to,
            type=message.kind,
            conversation=message.conversation,
            letter=letter["id"],
        )

    async def _remove(self, letter: Letter) -> bool:
        there = await self._letters.remove(letter["id"])
        self._gone[letter["id"]] = None
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        box = self._boxes.get(letter["unit"])
        if there and box is not None:
            box.tally.dead = max(0, box.tally.dead - 1)
            self._report.changed(box.unit)
        return there

    async def _chosen(self, params: Json, *, forgiving: bool) -> list[Letter]:
        """The letters by ids or of a unit; with neither: all. ``forgiving``: one that just left is passed over."""
        ids = params.get("ids")
        if ids is None:
            return await self._letters.all(_optional(params, "unit"))
        if not isinstance(ids, list) or not all(isinstance(i, str | int) for i in ids):
            raise BadInput("ids: a list of letter ids")
        found = []
        for ident in dict.fromkeys(map(str, ids)):
            try:
                found.append(await self._letters.get(ident))
            except NoSuchLetter:
                if not forgiving or ident not in self._gone:
                    raise
        return found


def _line(letter: Letter) -> Json:
    message = decode(letter["body"])
    return {
        "id": letter["id"],
        "unit": letter["unit"],
        "message": message.id,
        "kind": message.kind,
        "from": message.sender,
        "reason": letter["reason"],
        "text": letter.get("text", ""),
        "attempts": letter["attempts"],
        "at": letter["at"],
        "exits": letter["exits"],
    }


def _optional(params: Json, name: str) -> str | None:
    value = params.get(name)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"{name}: must be a string")
    return value


def _required(params: Json, name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str | int):
        raise BadInput(f"{name}: is missing")
    return str(value)
