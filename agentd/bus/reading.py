"""Reading stored messages of a stream in batches (JetStream direct get)."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass
from typing import Any

from nats.aio.msg import Msg

from agentd.bus.connection import REQUEST_TIMEOUT, Connection
from agentd.errors import BusUnavailable

_BATCH = 256
_PAUSE = 0.02
_tokens = itertools.count(1)


class _Unserved(BusUnavailable):
    """Nobody answers for the stream."""


@dataclass(frozen=True, slots=True)
class Record:
    """One stored message."""

    seq: int
    subject: str
    body: bytes


async def read(connection: Connection, stream: str, subject: str, first: int = 1) -> list[Record]:
    """All messages of ``subject`` (wildcards allowed) with a sequence of at least ``first``, oldest first."""
    records: list[Record] = []
    while True:
        batch = await _ask(connection, stream, {"seq": first, "next_by_subj": subject, "batch": _BATCH})
        records += batch
        if len(batch) == 0:
            return records
        first = batch[-1].seq + 1


async def last(connection: Connection, stream: str, subjects: str) -> list[Record]:
    """The last message of each subject that matches."""
    return await _ask(connection, stream, {"multi_last": [subjects]})


async def get(connection: Connection, stream: str, seq: int) -> Record | None:
    """The message with this sequence, if it is stored."""
    found = await _ask(connection, stream, {"seq": seq})
    return found[0] if found else None


async def _ask(connection: Connection, stream: str, request: dict[str, Any]) -> list[Record]:
    """One batch. A server that has just made or restored a stream serves it a moment later, and nothing tells when."""
    clock = asyncio.get_running_loop().time
    end, pause = clock() + REQUEST_TIMEOUT, _PAUSE
    while True:
        try:
            return await _batch(connection, stream, request)
        except _Unserved:
            if clock() + pause > end:
                raise
        await asyncio.sleep(pause)
        pause *= 2


async def _batch(connection: Connection, stream: str, request: dict[str, Any]) -> list[Record]:
    """One attempt: the server sends messages and ends with a status line, or one message if no batch was asked."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    records: list[Record] = []
    single = "batch" not in request and "multi_last" not in request

    def arrived(message: Msg) -> None:
        headers = message.headers or {}
        if ("Status" in headers and "Nats-Sequence" not in headers) or not headers:
            ended(headers.get("Status", "503"), headers.get("Description", "no answer"))
            return
        records.append(Record(int(headers["Nats-Sequence"]), headers["Nats-Subject"], message.data))
        if single and not done.done():
            done.set_result(None)

    def ended(status: str, text: str) -> None:
        if done.done():
            return
        if status in ("204", "404"):
            done.set_result(None)
        else:
            unserved = status == "503"
            what = "nobody serves it" if unserved else text
            error = _Unserved if unserved else BusUnavailable
            done.set_exception(error(f"bus: reading {stream}: {status} {what}"))

    inbox = f"{connection.inbox}.get{next(_tokens)}"
    subscription = await connection.subscribe(inbox, arrived)
    try:
        await connection.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
        async with asyncio.timeout(REQUEST_TIMEOUT):
            await done
    except TimeoutError:
        raise BusUnavailable(f"bus: reading {stream}: no answer within {REQUEST_TIMEOUT:g} s") from None
    finally:
        done.cancel()
        await _end(subscription)
    return records


async def _end(subscription: Any) -> None:
    import nats.errors

    try:
        await subscription.unsubscribe()
    except nats.errors.Error:
        return  # the connection is gone, and the subscription with it
