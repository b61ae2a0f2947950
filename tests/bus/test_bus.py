"""The bus against a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agentd.bus import reading, topology
from agentd.bus.connection import Connection
from agentd.bus.inbox import Arrival, Inbox
from agentd.bus.letters import Letters
from agentd.bus.publisher import Publisher
from agentd.bus.state import State
from agentd.errors import BusUnavailable, NoSuchLetter
from tests.bus.servers import PASSWORD, NatsServer
from tests.waiting import STEP, until


@pytest.fixture
def nats(short_dir: Path) -> Iterator[NatsServer]:
    server = NatsServer(short_dir)
    server.start()
    yield server
    server.close()


@pytest.fixture
async def connection(nats: NatsServer) -> AsyncIterator[Connection]:
    connection = Connection(nats.url, user="router", password=PASSWORD)
    await connection.start()
    await topology.declare(connection, topology.Bounds())
    yield connection
    await connection.close()


@pytest.fixture
async def publisher(connection: Connection) -> Publisher:
    publisher = Publisher(connection)
    await publisher.start()
    return publisher


async def test_a_message_is_stored_once_and_delivered_until_acknowledged(
    connection: Connection, publisher: Publisher
) -> None:
    """The same id is stored once; an acknowledged message is gone, another one comes again after a NAK."""
    got: list[Arrival] = []
    inbox = Inbox(connection, "writer", got.append)
    await inbox.declare(1)
    first = await publisher.publish(topology.message_subject("writer"), b"one", id="a/1")
    again = await publisher.publish(topology.message_subject("writer"), b"one", id="a/1")
    await publisher.publish(topology.message_subject("writer"), b"two", id="a/2")
    assert (first.duplicate, again.duplicate) == (False, True)
    await inbox.bind()
    await until(lambda: len(got) == 1)
    standing = await inbox.standing()
    assert (standing.total, standing.unacknowledged) == (2, 1)
    assert await inbox.unacknowledged(standing, 1) == [got[0].seq]
    await inbox.nak_seq(got[0].seq, await inbox.standing())
    await until(lambda: len(got) == 2)
    assert got[1].body == b"one"
    await inbox.ack(got[1].reply)
    await until(lambda: len(got) == 3)
    await inbox.ack(got[2].reply)
    async with asyncio.timeout(5):
        while (standing := await inbox.standing()).total:  # noqa: ASYNC110 - the server tells only when asked
            await asyncio.sleep(STEP)
    await inbox.purge(standing.floor)
    info = await connection.api(f"STREAM.INFO.{topology.MESSAGES}")
    assert info["state"]["messages"] == 0


async def test_unbind_gives_back_and_the_next_bind_gets_it(connection: Connection, publisher: Publisher) -> None:
    """After unbind nothing is pushed into the void; a bind brings the message at once."""
    got: list[Arrival] = []
    inbox = Inbox(connection, "writer", got.append)
    await inbox.declare(1)
    await inbox.bind()
    await publisher.publish(topology.message_subject("writer"), b"one", id="a/1")
    await until(lambda: len(got) == 1)
    await inbox.unbind()
    await inbox.nak(got[0].reply)
    await connection.ping()
    assert not inbox.bound
    assert len(got) == 1
    await inbox.bind()
    await until(lambda: len(got) == 2, 2)


async def test_unacknowledged_with_many_in_flight(connection: Connection, publisher: Publisher) -> None:
    """With several in flight the candidates contain all that is not acknowledged."""
    got: list[Arrival] = []
    inbox = Inbox(connection, "writer", got.append)
    await inbox.declare(4)
    for n in range(6):
        await publisher.publish(topology.message_subject("writer"), b"%d" % n, id=f"a/{n}")
        await publisher.publish(topology.message_subject("other"), b"%d" % n, id=f"b/{n}")
    await inbox.bind()
    await until(lambda: len(got) == 4)
    await inbox.ack(got[1].reply)
    await until(lambda: len(got) == 5)
    candidates = await inbox.unacknowledged(await inbox.standing(), 4)
    assert {got[i].seq for i in (0, 2, 3, 4)} <= set(candidates) <= {a.seq for a in got}
    for seq in candidates:
        await inbox.nak_seq(seq, await inbox.standing())
    await until(lambda: len(got) == 9)
    assert [a.body for a in got[5:]] == [got[i].body for i in (0, 2, 3, 4)], "an acknowledged one does not come again"


async def test_publishing_survives_a_kill_of_the_server(
    nats: NatsServer, connection: Connection, publisher: Publisher
) -> None:
    """What was not confirmed when the server was killed is sent again with its id and stored once."""
    connection.listeners.append(lambda up: tasks.append(asyncio.ensure_future(publisher.resend())) if up else None)
    tasks: list[asyncio.Future[None]] = []
    subject = topology.message_subject("writer")
    stored = [await publisher.publish(subject, b"x", id=f"a/{n}") for n in range(20)]
    nats.kill()
    waiting = [asyncio.ensure_future(publisher.publish(subject, b"x", id=f"b/{n}", timeout=10)) for n in range(20)]
    nats.start()
    stored += await asyncio.gather(*waiting)
    assert len({s.seq for s in stored}) == 40
    info = await connection.api(f"STREAM.INFO.{topology.MESSAGES}")
    assert info["state"]["messages"] == 40
    await asyncio.gather(*tasks)


async def test_without_a_server_a_publisher_hears_it_in_time(
    nats: NatsServer, connection: Connection, publisher: Publisher
) -> None:
    """BusUnavailable within three seconds while the server is away, and also while it hangs."""
    loop = asyncio.get_running_loop()
    nats.pause(stopped=True)
    begun = loop.time()
    with pytest.raises(BusUnavailable):
        await publisher.publish(topology.message_subject("writer"), b"x", id="a/1")
    assert loop.time() - begun < 3
    nats.pause(stopped=False)
    nats.kill()
    await until(lambda: not connection.up.is_set())
    with pytest.raises(BusUnavailable):
        await publisher.publish(topology.message_subject("writer"), b"x", id="a/1", timeout=0.05)


async def test_state_is_the_last_record_of_each_unit(connection: Connection, publisher: Publisher) -> None:
    """Only the last record of a unit counts and is kept."""
    state = State(connection, publisher)
    assert await state.load() == {}
    await state.write("a", {"n": 1})
    await state.write("a", {"n": 2})
    await state.write("b@x", {"n": 3})
    assert await state.load() == {"a": {"n": 2}, "b@x": {"n": 3}}


async def test_letters(connection: Connection, publisher: Publisher) -> None:
    """A letter is kept once per message, listed, shown, counted and removed once."""
    letters = Letters(connection, publisher)
    assert await letters.all() == []
    one = await letters.put("writer", 7, {"unit": "writer", "reason": "poison"}, b"{}")
    assert await letters.put("writer", 7, {"unit": "writer", "reason": "poison"}, b"{}") == one
    two = await letters.put("editor", 8, {"unit": "editor", "reason": "refused"}, b"a\nb")
    assert [letter["id"] for letter in await letters.all()] == [one, two]
    assert [letter["id"] for letter in await letters.all("editor")] == [two]
    assert (await letters.get(one))["reason"] == "poison"
    assert (await letters.get(two))["body"] == b"a\nb"
    assert await letters.counts() == {"writer": 1, "editor": 1}
    assert await letters.remove(one)
    assert not await letters.remove(one)
    for unknown in (one, "999", "x", "²"):
        with pytest.raises(NoSuchLetter):
            await letters.get(unknown)
    assert await letters.counts() == {"editor": 1}


async def test_declaring_again_is_harmless_and_adapts_bounds(connection: Connection) -> None:
    """Streams are declared idempotently; a changed bound is taken over."""
    await topology.declare(connection, topology.Bounds())
    await topology.declare(connection, topology.Bounds(messages=1 << 20))
    info = await connection.api(f"STREAM.INFO.{topology.MESSAGES}")
    assert info["config"]["max_bytes"] == 1 << 20
    assert not any(info["config"].get(f) for f in ("allow_rollup_hdrs", "allow_msg_ttl", "allow_msg_schedules"))


async def test_a_stream_that_is_not_served_yet_is_asked_again(nats: NatsServer) -> None:
    """Reading waits a moment for a stream that is being made; one that is nobody's is named as such."""
    connection = Connection(nats.url, user="router", password=PASSWORD)
    await connection.start()
    try:
        early = asyncio.create_task(reading.get(connection, topology.DEAD, 1))
        await asyncio.wait({early}, timeout=0.05)
        assert not early.done()
        await topology.declare(connection, topology.Bounds())
        assert await early is None
        with pytest.raises(BusUnavailable, match="reading NOBODYS: 503 nobody serves it"):
            await reading.get(connection, "NOBODYS", 1)
    finally:
        await connection.close()
