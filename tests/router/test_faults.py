"""Kills of the bus and of the router: nothing accepted is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
import time

from tests.router.world import Agent, World
from tests.waiting import until


async def drain(agent: Agent, count: int) -> list[int]:
    """Take and acknowledge deliveries until ``count`` different ones came; what came, in order."""
    got: list[int] = []
    while len(set(got)) < count:
        delivery = await agent.next(15)
        got.append(delivery["data"])
        agent.done(delivery)
    return got


async def reliably(agent: Agent, to: str, n: int) -> None:
    """Send with an id of our own until it is accepted, as the SDK does."""
    async with asyncio.timeout(15):
        while True:
            answer = await agent.send(to, data=n, id=f"n{n}")
            if answer.get("stored"):
                return
            assert answer["data"]["code"] == "bus_unavailable", answer


async def test_a_kill_of_the_bus_loses_nothing(world: World) -> None:
    """nats-server is killed three times under load: every accepted message comes, each to the live holder once."""
    await world.unit("a")
    await world.unit("b", in_flight=4)
    a, b = await world.agent("a"), await world.agent("b")
    sending = asyncio.create_task(_send_many(a, 300))
    receiving = asyncio.create_task(drain(b, 300))
    for done in (40, 120, 200):
        await until(lambda done=done: (world.of("b") or {}).get("done", 0) >= done, 15)
        world.nats.kill()
        world.nats.start()
    await sending
    got = await receiving
    assert sorted(got) == list(range(300)), "each exactly once"
    await until(lambda: world.of("b")["pending"] == 0 and world.of("b")["held"] == [])
    assert b.deliveries.empty()
    assert world.router.facts["bus"]["connected"]


async def _send_many(agent: Agent, count: int) -> None:
    for n in range(count):
        await reliably(agent, "b", n)


async def test_a_holder_keeps_its_message_over_a_kill_of_the_bus(world: World) -> None:
    """The bus dies while a reader holds a message: not delivered again, its result is accepted, the next one comes."""
    await world.unit("b")
    b = await world.agent("b")
    await world.send("b", data=1)
    await world.send("b", data=2)
    delivery = await b.next()
    world.nats.kill()
    await until(lambda: world.router.facts["bus"]["connected"] is False)
    b.done(delivery)
    world.nats.start()
    following = await b.next(10)
    assert following["data"] == 2
    b.done(following)
    await until(lambda: world.of("b")["done"] == 2)
    assert b.deliveries.empty()


async def test_without_a_bus_a_sender_hears_it_in_time(world: World) -> None:
    """The bus hangs, then is gone: each sender gets bus_unavailable in under three seconds, others as well."""
    await world.unit("a")
    a = await world.agent("a")
    await a.send("a", id="warm")
    world.nats.pause(stopped=True)
    begun = time.monotonic()
    error = await a.send("a", id="x")
    assert time.monotonic() - begun < 3
    assert (error["code"], error["data"]["code"]) == (-32004, "bus_unavailable")
    assert error["data"]["retry_after"] > 0
    world.nats.kill()
    world.nats.start()
    await reliably(a, "a", 1)


async def test_a_kill_of_the_router_keeps_what_is_held(apart: World) -> None:
    """The router is killed while a message is held: its holder comes back with `holding`; not delivered again."""
    world = apart
    await world.unit("b")
    b = await world.agent("b")
    await world.send("b", data=1)
    await world.send("b", data=2)
    delivery = await b.next()
    await world.kill_router()
    async with asyncio.timeout(5):
        await b.closed.wait()
    b = await _back(world, "b", 1, [delivery["delivery"]])
    await until(lambda: [h["message"] for h in (world.of("b") or {}).get("held", [])] == [delivery["message"]], 10)
    b.done(delivery)
    assert (await b.next())["data"] == 2
    assert b.deliveries.empty()


async def test_a_result_may_come_after_a_kill_of_the_router(apart: World) -> None:
    """The holder finished while no router lived: it repeats the result on its next connection; that acknowledges."""
    world = apart
    await world.unit("b")
    b = await world.agent("b")
    await world.send("b", data=1)
    await world.send("b", data=2)
    delivery = await b.next()
    await world.kill_router()
    b = await _back(world, "b", 1, [])
    b.done(delivery)
    got = await b.next()
    if got["data"] == 1:  # the redelivery was faster than the repeated result; both are one attempt
        assert got["delivery"] == delivery["delivery"]
        b.done(got)
        got = await b.next()
    assert got["data"] == 2
    assert b.deliveries.empty()


async def test_a_holder_that_died_with_the_router_is_counted(apart: World) -> None:
    """Router and holder die together: the record names the holder, its crash counts, the successor gets attempt 2."""
    world = apart
    await world.unit("b")
    b = await world.agent("b")
    await world.send("b", data=1)
    await b.next()
    await world.kill_router()
    world.ended("b", f"{1:016x}", "crashed")
    b = await _back(world, "b", 2, [])
    assert (await b.next(10))["attempt"] == 2


async def test_kills_of_the_router_under_load(apart: World) -> None:
    """The router is killed three times under load: nothing lost, nothing stored twice, nothing handled twice."""
    world = apart
    await world.unit("a")
    await world.unit("b")
    stop = asyncio.Event()
    handled: list[int] = []
    receiving = asyncio.create_task(_persistent(world, handled, stop))
    sending = asyncio.create_task(_persistent_sender(world, 200))
    for done in (30, 90, 150):
        await until(lambda done=done: len(handled) >= done, 20, "handled")
        await world.kill_router()
        await world.start_router()
    await sending
    await until(lambda: len(set(handled)) == 200, 20)
    stop.set()
    await receiving
    assert sorted(handled) == list(range(200)), "each exactly once"


async def _back(world: World, name: str, number: int, holding: list[str]) -> Agent:
    """Start the router again and say hello as soon as it listens."""
    (world.directory / "c" / name).unlink(missing_ok=True)
    await world.start_router()
    return await _reconnect(world, name, holding, number)


async def _reconnect(world: World, name: str, holding: list[str], number: int = 1) -> Agent:
    async with asyncio.timeout(15):
        while True:
            try:
                return await world.agent(name, number, holding)
            except (OSError, TimeoutError):
                await asyncio.sleep(0.02)


async def _persistent(world: World, handled: list[int], stop: asyncio.Event) -> None:
    """A reader as the SDK is one: it repeats its last result on a new connection, and knows what it has done."""
    agent = await _reconnect(world, "b", [])
    last = None
    stopping = asyncio.create_task(stop.wait())
    while not stop.is_set():
        getting = asyncio.create_task(agent.deliveries.get())
        ended = asyncio.create_task(agent.closed.wait())
        await asyncio.wait([getting, ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if getting.done():
            delivery = getting.result()["params"]
            if last is None or delivery["delivery"] != last["delivery"]:
                handled.append(delivery["data"])
            last = delivery
            agent.done(delivery)
            continue
        getting.cancel()
        if agent.closed.is_set() and not stop.is_set():
            agent = await _reconnect(world, "b", [])
            if last is not None:
                agent.done(last)


async def _persistent_sender(world: World, count: int) -> None:
    """A sender as the SDK is one: it repeats the same id on a new connection until it is accepted."""
    agent = await _reconnect(world, "a", [])
    for n in range(count):
        while True:
            try:
                if (await agent.send("b", data=n, id=f"n{n}")).get("stored"):
                    break
            except ConnectionError:
                agent = await _reconnect(world, "a", [])
