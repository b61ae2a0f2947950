"""One unit's inbox: a durable push consumer, its acknowledgements, and what the server says of it.

The server never gives up and never times out: attempts are the router's business. So a message that is neither held nor
acknowledged comes again only when it is asked for (``nak``).

Steps of ``unbind``, each done before the next: unsubscribed and seen by the server (PING) · the server no longer
counts us as interested (polled) · only then may what is held be given back; otherwise the server would redeliver
into the void and wait for a whole ack_wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from agentd.bus import reading
from agentd.bus.connection import Connection
from agentd.bus.topology import MESSAGES, deliver_subject, message_subject
from agentd.errors import BusUnavailable

_NANO = 1_000_000_000
_ACK_WAIT = 30 * 86400
_BIND_POLL = 0.005
_BIND_TIMEOUT = 5.0
_UNBIND_PATIENCE = 1.0
_UNBIND_TRIES = 4


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message as the server pushed it. ``reply`` is where its acknowledgement goes."""

    seq: int
    reply: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """What the server knows of an inbox: the last sequence pushed, the consumer's own number of that push, and the
    sequence up to which all is acknowledged."""

    delivered: int
    pushed: int
    floor: int
    unacknowledged: int
    waiting: int
    bound: bool

    @property
    def total(self) -> int:
        """Messages that are not done."""
        return self.waiting + self.unacknowledged


class Inbox:
    """The durable consumer of ``unit``. ``arrived`` is called for each message while bound."""

    def __init__(self, connection: Connection, unit: str, arrived: Callable[[Arrival], None]) -> None:
        self._connection = connection
        self._unit = unit
        self._arrived = arrived
        self._name = f"in-{unit}"
        self._subscription: Subscription | None = None
        self._leaving = False

    @property
    def bound(self) -> bool:
        """Whether we asked for messages."""
        return self._subscription is not None and not self._leaving

    @property
    def idle(self) -> bool:
        """Whether the server knows that we ask for none; an ``unbind`` that failed is to be repeated."""
        return self._subscription is None and not self._leaving

    async def declare(self, in_flight: int) -> None:
        """Create the consumer, or change how much may be held at once. Repeating it is harmless."""
        config = {
            "durable_name": self._name,
            "name": self._name,
            "deliver_subject": deliver_subject(self._unit),
            "filter_subject": message_subject(self._unit),
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": _ACK_WAIT * _NANO,
            "max_deliver": -1,
            "max_ack_pending": in_flight,
            "replay_policy": "instant",
        }
        call = f"CONSUMER.CREATE.{MESSAGES}.{self._name}.{message_subject(self._unit)}"
        await self._connection.api(call, {"stream_name": MESSAGES, "config": config})

    async def bind(self) -> None:
        """Ask for messages; returns when the server counts us as interested."""
        await self._subscribe()
        self._leaving = False
        await self._connection.ping()
        await self._until(bound=True)

    async def unbind(self) -> None:
        """Ask for no more; returns when the server knows it for sure.

        A server under load was seen to miss that interest had gone, for good. It is then shown interest once more, so
        that there is something new to notice; what it pushes in that moment arrives like anything else.
        """
        if self.idle:
            return
        self._leaving = True
        for _ in range(_UNBIND_TRIES):
            if self._subscription is not None:
                await self._connection.unsubscribe(self._subscription)
                self._subscription = None
            if await self._noticed(bound=False, within=_UNBIND_PATIENCE):
                self._leaving = False
                return
            await self._subscribe()
            await self._connection.ping()
        raise self._unnoticed()

    async def _subscribe(self) -> None:
        if self._subscription is None:
            self._subscription = await self._connection.subscribe(deliver_subject(self._unit), self._pushed)

    async def ack(self, reply: str) -> None:
        """The message is done. Not confirmed; ``standing`` and a repeat make sure."""
        await self._connection.publish(reply, b"+ACK")

    async def nak(self, reply: str) -> None:
        """Ask for the message again, at once or at the next bind."""
        await self._connection.publish(reply, b"-NAK")

    async def ack_seq(self, seq: int, standing: Standing) -> None:
        """Acknowledge again by number, after the server forgot it."""
        await self.ack(self._reply(seq, standing))

    async def nak_seq(self, seq: int, standing: Standing) -> None:
        """Ask again by number, for what was pushed to an earlier connection."""
        await self.nak(self._reply(seq, standing))

    async def standing(self) -> Standing:
        """Ask the server."""
        info = await self._connection.api(f"CONSUMER.INFO.{MESSAGES}.{self._name}")
        return Standing(
            delivered=info["delivered"]["stream_seq"],
            pushed=info["delivered"]["consumer_seq"],
            floor=info["ack_floor"]["stream_seq"],
            unacknowledged=info["num_ack_pending"],
            waiting=info["num_pending"],
            bound=bool(info.get("push_bound")),
        )

    async def unacknowledged(self, standing: Standing, in_flight: int) -> list[int]:
        """Sequences among which the server's unacknowledged messages are: exact with one in flight."""
        if standing.unacknowledged == 0:
            return []
        if in_flight == 1 and standing.unacknowledged == 1:
            return [standing.delivered]
        stored = await reading.read(self._connection, MESSAGES, message_subject(self._unit), standing.floor + 1)
        return [record.seq for record in stored if record.seq <= standing.delivered]

    async def purge(self, floor: int) -> None:
        """Remove what is acknowledged, up to ``floor``."""
        body = {"filter": message_subject(self._unit), "seq": floor + 1}
        await self._connection.api(f"STREAM.PURGE.{MESSAGES}", body)

    async def waiting(self) -> list[tuple[int, bytes]]:
        """Sequence and stored form of all that is not acknowledged up to the floor."""
        floor = (await self.standing()).floor
        stored = await reading.read(self._connection, MESSAGES, message_subject(self._unit), floor + 1)
        return [(record.seq, record.body) for record in stored]

    async def delete(self) -> None:
        """Remove the consumer with all its messages. Its next ``declare`` begins anew."""
        await self._connection.api(f"CONSUMER.DELETE.{MESSAGES}.{self._name}")
        await self._connection.api(f"STREAM.PURGE.{MESSAGES}", {"filter": message_subject(self._unit)})

    def _reply(self, seq: int, standing: Standing) -> str:
        # The consumer's own number must be one that it may have given; which one of them makes no difference.
        return f"$JS.ACK.{MESSAGES}.{self._name}.1.{seq}.{standing.pushed}.0.0"

    def _pushed(self, message: Msg) -> None:
        seq = sequence(message.reply)
        if seq is not None:  # else a status line of the server, which asks for nothing
            self._arrived(Arrival(seq, message.reply, message.data))

    async def _until(self, *, bound: bool) -> None:
        if not await self._noticed(bound=bound, within=_BIND_TIMEOUT):
            raise self._unnoticed()

    async def _noticed(self, *, bound: bool, within: float) -> bool:
        """The server tells of interest only when asked, so ask until it is so; whether it came to be in time."""
        end = asyncio.get_running_loop().time() + within
        while (await self.standing()).bound is not bound:
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(_BIND_POLL)
        return True

    def _unnoticed(self) -> BusUnavailable:
        return BusUnavailable(f"bus: inbox {self._unit}: the server did not take notice of our interest")


def sequence(reply: str) -> int | None:
    """The stream sequence in a message's reply subject (both forms of the server), or None."""
    parts = reply.split(".")
    if parts[:2] != ["$JS", "ACK"]:
        return None
    if len(parts) == 9:
        return int(parts[5])
    return int(parts[7]) if len(parts) >= 11 else None
