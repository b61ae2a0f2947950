"""Delivery: what a reader gets, how often, and what its end means."""

from __future__ import annotations

import asyncio
import time

import nats

from agentd.bus.topology import MESSAGES
from tests.bus.servers import PASSWORD
from tests.router.world import World
from tests.waiting import until


async def test_a_message_is_delivered_and_acknowledged_once(world: World) -> None:
    """send → deliver → result: delivered once, acknowledged once, counted, recorded."""
    await world.unit("writer")
    writer = await world.agent("writer")
    ident = await world.send("writer", "draft", {"text": "zażółć"})
    delivery = await writer.next()
    assert delivery["message"] == ident
    assert delivery["delivery"] == f"{ident}.1"
    assert (delivery["kind"], delivery["from"], delivery["data"]) == ("draft", "@operator", {"text": "zażółć"})
    assert (delivery["attempt"], delivery["hop"], delivery["reply"]) == (1, 0, False)
    await until(lambda: [h["message"] for h in world.of("writer")["held"]] == [ident])
    writer.done(delivery, {"ok": True})
    await until(lambda: world.of("writer")["done"] == 1)
    assert (world.of("writer")["pending"], world.of("writer")["held"]) == (0, [])
    await until(lambda: world.kinds(ident) == ["message.delivered", "message.done"])
    assert writer.deliveries.empty()


async def test_messages_wait_for_a_stopped_unit_in_order(world: World) -> None:
    """What was sent before the unit ran comes in order, one at a time."""
    await world.unit("writer")
    idents = [await world.send("writer", data=n) for n in range(10)]
    await until(lambda: world.of("writer")["pending"] == 10)
    writer = await world.agent("writer")
    for ident in idents:
        delivery = await writer.next()
        assert delivery["message"] == ident
        assert writer.deliveries.empty()
        writer.done(delivery)


async def test_a_crash_gives_the_message_to_the_successor(world: World) -> None:
    """The holder is killed: its successor gets attempt 2 within milliseconds of its hello."""
    await world.unit("writer")
    writer = await world.agent("writer")
    ident = await world.send("writer")
    await writer.next()
    await writer.close()
    world.ended("writer", f"{1:016x}", "crashed")
    await until(lambda: world.of("writer")["held"] == [])
    successor = await world.agent("writer", 2)
    begun = time.monotonic()
    delivery = await successor.next()
    assert time.monotonic() - begun < 0.1
    assert delivery["delivery"] == f"{ident}.2"
    assert delivery["attempt"] == 2
    successor.done(delivery)
    await until(lambda: world.of("writer")["done"] == 1)


async def test_a_successor_before_the_fact(world: World) -> None:
    """The successor's hello comes before the old one's ending: the message waits for the cause, not for ever."""
    await world.unit("writer")
    writer = await world.agent("writer")
    ident = await world.send("writer")
    await writer.next()
    successor = await world.connect("writer")
    answer = await successor.call("hello", {"protocol": 1, "invocation": f"{2:016x}", "holding": []})
    assert "result" in answer
    async with asyncio.timeout(2):
        await writer.closed.wait()
    world.ended("writer", f"{1:016x}", "stopped")
    delivery = await successor.next(0.9)
    assert (delivery["message"], delivery["attempt"]) == (ident, 1)


async def test_a_successor_without_any_fact(world: World) -> None:
    """No fact within a second: the old one crashed."""
    await world.unit("writer")
    writer = await world.agent("writer")
    await world.send("writer")
    await writer.next()
    successor = await world.connect("writer")
    begun = time.monotonic()
    await successor.call("hello", {"protocol": 1, "invocation": f"{2:016x}", "holding": []})
    delivery = await successor.next()
    assert delivery["attempt"] == 2
    assert 0.9 < time.monotonic() - begun < 2


async def test_innocent_endings_do_not_count(world: World) -> None:
    """Stopped by us: back with the same attempt, as often as it happens."""
    await world.unit("writer", max_deliver=2)
    await world.send("writer")
    for number in range(1, 6):
        writer = await world.agent("writer", number)
        assert (await writer.next())["attempt"] == 1
        world.ended("writer", f"{number:016x}", "stopped")
        async with asyncio.timeout(5):
            await writer.closed.wait()


async def test_three_unexplained_exits_are_poison(world: World) -> None:
    """The third unexplained exit dead-letters the message with reason and exits; the next message goes on."""
    await world.unit("writer")
    ident = await world.send("writer", "bad", {"x": 1})
    after = await world.send("writer", "good")
    for number, cause in enumerate(("failed", "hung", "left"), 1):
        writer = await world.agent("writer", number)
        assert (await writer.next())["message"] == ident
        world.ended("writer", f"{number:016x}", cause)
        async with asyncio.timeout(5):
            await writer.closed.wait()
    writer = await world.agent("writer", 4)
    assert (await writer.next())["message"] == after
    letters = (await world.router.call("dlq.list", {}))["letters"]
    assert [(x["message"], x["reason"], x["attempts"]) for x in letters] == [(ident, "poison", 3)]
    assert [end[1] for end in letters[0]["exits"]] == ["failed", "hung", "left"]
    await until(lambda: world.of("writer")["dead"] == 1)
    await until(lambda: "message.dead" in world.kinds(ident))


async def test_refused_with_retry_backs_off_and_counts(world: World) -> None:
    """Refused with retry: again after the delay, counted; at max_deliver a dead letter."""
    await world.unit("writer", max_deliver=3)
    writer = await world.agent("writer")
    ident = await world.send("writer")
    writer.refuse(await writer.next(), retry=True, delay=0.3)
    begun = time.monotonic()
    delivery = await writer.next()
    assert 0.28 <= time.monotonic() - begun < 1
    assert delivery["attempt"] == 2
    writer.refuse(delivery, retry=True)
    begun = time.monotonic()
    delivery = await writer.next()
    assert 0.04 <= time.monotonic() - begun < 0.5, "the unit's own back-off"
    assert delivery["attempt"] == 3
    writer.refuse(delivery, retry=True)
    await until(lambda: world.of("writer")["dead"] == 1)
    letter = (await world.router.call("dlq.list", {"unit": "writer"}))["letters"][0]
    assert (letter["message"], letter["reason"], letter["attempts"], letter["text"]) == (ident, "max_deliver", 3, "no")


async def test_refused_without_retry_is_a_dead_letter(world: World) -> None:
    """Refused without retry: dead at once, reason refused."""
    await world.unit("writer")
    writer = await world.agent("writer")
    await world.send("writer")
    writer.refuse(await writer.next(), retry=False)
    await until(lambda: world.of("writer")["dead"] == 1)
    assert (await world.router.call("dlq.list", {}))["letters"][0]["reason"] == "refused"


async def test_down_takes_back_and_later_redelivers(world: World) -> None:
    """A unit that stays down gives back; nothing comes while it is down; then the same message, uncounted."""
    await world.unit("writer")
    writer = await world.agent("writer")
    ident = await world.send("writer")
    later = await world.send("writer")
    await writer.next()
    world.ended("writer", f"{1:016x}", "held", down=True)
    await until(lambda: world.of("writer")["pending"] == 2 and world.of("writer")["held"] == [])
    writer = await world.agent("writer", 2)
    begun = time.monotonic()
    delivery = await writer.next()
    assert time.monotonic() - begun < 0.5
    assert (delivery["message"], delivery["attempt"]) == (ident, 1)
    writer.done(delivery)
    assert (await writer.next())["message"] == later


async def test_no_progress_is_overdue(world: World) -> None:
    """A message without result or progress for the deadline is named in the fact `overdue`; progress puts it off."""
    await world.unit("writer", deadline=0.4)
    writer = await world.agent("writer")
    ident = await world.send("writer")
    delivery = await writer.next()
    begun = time.monotonic()
    await until(lambda: time.monotonic() - begun > 0.2)
    writer.write({"jsonrpc": "2.0", "method": "progress", "params": {"delivery": delivery["delivery"], "note": "x"}})
    await until(lambda: world.of("writer")["overdue"] == [f"{1:016x}", ident])
    assert time.monotonic() - begun > 0.55
    writer.done(delivery)
    await until(lambda: world.of("writer")["overdue"] is None)


async def test_several_in_flight_and_the_guilty_one_is_found(world: World) -> None:
    """in_flight > 1: after a crash the suspects come one at a time, so only the guilty one is dead-lettered."""
    await world.unit("pool", in_flight=3, poison_after=2)
    idents = [await world.send("pool", data=n) for n in range(3)]
    pool = await world.agent("pool", 1)
    assert {(await pool.next())["message"] for _ in range(3)} == set(idents)
    world.ended("pool", f"{1:016x}", "crashed")
    pool = await world.agent("pool", 2)
    first = await pool.next()
    assert first["message"] == idents[0]
    assert pool.deliveries.empty()
    pool.done(first)
    assert (await pool.next())["message"] == idents[1]
    world.ended("pool", f"{2:016x}", "crashed")
    pool = await world.agent("pool", 3)
    last = await pool.next()
    assert last["message"] == idents[2]
    pool.done(last)
    letters = (await world.router.call("dlq.list", {}))["letters"]
    assert [x["message"] for x in letters] == [idents[1]]


async def test_a_unit_without_a_channel_has_nothing_on_the_server(apart: World) -> None:
    """A unit gets its consumer when it says hello or somebody writes to it; what waited before is delivered all the
    same, over restarts of the router too."""
    world = apart
    for name in ("silent", "written", "reader"):
        await world.unit(name)
    reader = await world.agent("reader")
    ident = await world.send("written")
    await until(lambda: world.of("written")["pending"] == 1)
    assert await consumers(world) == {"in-reader", "in-written"}
    await reader.close()
    await world.kill_router()
    await world.start_router()
    await until(lambda: world.router.connected and (world.of("written") or {}).get("pending") == 1)
    written = await world.agent("written")
    delivery = await written.next()
    assert delivery["message"] == ident
    written.done(delivery)
    assert "in-silent" not in await consumers(world)


async def consumers(world: World) -> set[str]:
    """The names of all consumers that the server has."""
    client = await nats.connect(world.nats.url, user="router", password=PASSWORD)
    try:
        return {info.name for info in await client.jetstream().consumers_info(MESSAGES)}
    finally:
        await client.close()
