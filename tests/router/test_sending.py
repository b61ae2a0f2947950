"""Sending: what is accepted, what is refused, what is stored once, who gets an answer."""

from __future__ import annotations

import asyncio

import pytest

from agentd.errors import AgentdError, BadInput, Full, NoSuchLetter, NoSuchUnit, TooLate
from tests.router.world import Agent, Json, World
from tests.waiting import until


async def pair(world: World, **bus: object) -> tuple[Agent, Agent]:
    """A sender `a` and a receiver `b`, both connected."""
    await world.unit("a", **bus)
    await world.unit("b")
    return await world.agent("a"), await world.agent("b")


async def test_the_envelope_is_stamped_by_the_router(world: World) -> None:
    """Sender, hop, conversation, correlation and causation are the router's word; what an agent claims is ignored."""
    a, b = await pair(world)
    sent = await a.send("b", "one", {"n": 1}, **{"from": "b", "hop": 9, "sender": "root"})
    first = await b.next()
    assert (first["from"], first["hop"], first["message"]) == ("a", 0, sent["id"])
    assert first["conversation"] == first["correlation"] == sent["id"]
    answer = await b.send("a", "two", delivery=first["delivery"], key="k", conversation="other")
    second = await a.next()
    assert second["message"] == answer["id"]
    assert (second["from"], second["hop"], second["causation"]) == ("b", 1, sent["id"])
    assert (second["conversation"], second["correlation"]) == (sent["id"], sent["id"])
    assert second["traceparent"].split("-")[1] == first["traceparent"].split("-")[1]
    assert second["traceparent"] != first["traceparent"]


async def test_a_repeated_id_is_stored_once_per_sender(world: World) -> None:
    """The same id again: duplicate, delivered once. Another sender's same id is another message."""
    a, b = await pair(world)
    await world.unit("c")
    c = await world.agent("c")
    first = await a.send("b", id="x")
    again = await a.send("b", id="x")
    other = await c.send("b", id="x")
    assert (first["duplicate"], again["duplicate"], other["duplicate"]) == (False, True, False)
    got = []
    for _ in range(2):
        delivery = await b.next()
        got.append(delivery["from"])
        b.done(delivery)
    assert got == ["a", "c"]
    await until(lambda: world.of("b")["done"] == 2)
    assert b.deliveries.empty()


async def test_effects_of_a_handler_that_runs_again_are_stored_once(world: World) -> None:
    """Sends by key and by order, then a crash: the second run repeats them, each is stored once."""
    a, b = await pair(world)
    await world.send("a")
    delivery = await a.next()
    before = [
        await a.send("b", data="by key", delivery=delivery["delivery"], key="k"),
        await a.send("b", data="first", delivery=delivery["delivery"]),
    ]
    world.ended("a", f"{1:016x}", "crashed")
    a = await world.agent("a", 2)
    delivery = await a.next()
    assert delivery["attempt"] == 2
    after = [
        await a.send("b", data="by key", delivery=delivery["delivery"], key="k"),
        await a.send("b", data="first", delivery=delivery["delivery"]),
        await a.send("b", data="new", delivery=delivery["delivery"]),
    ]
    assert [s["id"] for s in after[:2]] == [s["id"] for s in before]
    assert [s["duplicate"] for s in after] == [True, True, False]
    a.done(delivery)
    for expected in ("by key", "first", "new"):
        got = await b.next()
        assert got["data"] == expected
        b.done(got)
    await until(lambda: world.of("b")["done"] == 3)
    assert b.deliveries.empty()


async def test_refusals(world: World) -> None:
    """Unknown unit, not allowed, bad parameters: a typed error each, recorded, and the connection goes on."""
    a, _ = await pair(world, may_send=["b"])
    await world.unit("c")
    cases: list[tuple[Json, int, str]] = [
        ({"to": "nobody", "kind": "x"}, -32001, "no_such_unit"),
        ({"to": "c", "kind": "x"}, -32002, "denied"),
        ({"kind": "x"}, -32602, "bad_input"),
        ({"to": "b"}, -32602, "bad_input"),
        ({"to": 7, "kind": "x"}, -32602, "bad_input"),
        ({"to": "b", "kind": ""}, -32602, "bad_input"),
        ({"to": "b", "kind": "a\nb"}, -32602, "bad_input"),
        ({"to": "b", "kind": "x", "id": "with space"}, -32602, "bad_input"),
        ({"to": "b", "kind": "x", "key": 1}, -32602, "bad_input"),
        ({"to": "b", "kind": "x", "delivery": "nothing.1"}, -32602, "bad_input"),
        ({"to": "b", "kind": "x", "data": "\ud800"}, -32602, "bad_input"),
        ({"to": "b", "kind": "x", "data": "x" * 1_045_000}, -32602, "bad_input"),
    ]  # fmt: skip
    for params, number, code in cases:
        error = (await a.call("send", params))["error"]
        assert (error["code"], error["data"]["code"]) == (number, code), error
        assert error["message"]
    assert (await a.send("b"))["stored"]
    await until(lambda: world.kinds().count("message.rejected") == len(cases))


async def test_a_full_inbox_refuses_and_takes_again(world: World) -> None:
    """inbox_max bounds what waits; more is refused with retry_after until the reader makes room."""
    await world.unit("b", inbox_max=3)
    await world.unit("a")
    a = await world.agent("a")
    for _ in range(3):
        assert (await a.send("b"))["stored"]
    error = await a.send("b")
    assert (error["code"], error["data"]["code"]) == (-32003, "full")
    assert error["data"]["retry_after"] > 0
    with pytest.raises(Full):
        await world.send("b")
    b = await world.agent("b")
    b.done(await b.next())
    await until(lambda: world.of("b")["done"] == 1)
    assert (await a.send("b"))["stored"]


async def test_ask_brings_the_result_back(world: World) -> None:
    """The receiver's result is the answer; its refusal is an error with its words; silence is too_late."""
    a, b = await pair(world)
    asked = a.begin("ask", {"to": "b", "kind": "sum", "data": [1, 2]})
    delivery = await b.next()
    assert delivery["reply"] is True
    b.done(delivery, {"sum": 3})
    assert (await asked)["result"] == {"id": delivery["message"], "result": {"sum": 3}}
    asked = a.begin("ask", {"to": "b", "kind": "sum"})
    b.refuse(await b.next(), retry=False)
    error = (await asked)["error"]
    assert (error["code"], error["data"]["code"], error["message"]) == (-32000, "failed", "no")
    late = await a.call("ask", {"to": "b", "kind": "sum", "timeout": 0.1})
    assert (late["error"]["code"], late["error"]["data"]["code"]) == (-32005, "too_late")


async def test_ask_is_answered_by_a_successor(world: World) -> None:
    """The receiver dies over an ask; its successor's result answers it. The operator can ask, too."""
    _, b = await pair(world)
    asked = asyncio.create_task(world.router.call("send", {"to": "b", "kind": "q", "wait": 5}, timeout=6))
    await b.next()
    world.ended("b", f"{1:016x}", "crashed")
    b = await world.agent("b", 2)
    b.done(await b.next(), 42)
    assert (await asked)["result"] == 42
    with pytest.raises(TooLate):
        await world.router.call("send", {"to": "b", "kind": "q", "wait": 0.05})


async def test_an_asker_that_runs_again_gets_the_same_result(world: World) -> None:
    """The asker crashed after its ask was answered: the repeated ask is not sent again, and has its answer."""
    a, b = await pair(world)
    await world.send("a")
    delivery = await a.next()
    asked = a.begin("ask", {"to": "b", "kind": "q", "delivery": delivery["delivery"], "key": "1"})
    b.done(await b.next(), "once")
    await asked
    world.ended("a", f"{1:016x}", "crashed")
    a = await world.agent("a", 2)
    delivery = await a.next()
    answer = await a.call("ask", {"to": "b", "kind": "q", "delivery": delivery["delivery"], "key": "1"})
    assert answer["result"]["result"] == "once"
    assert b.deliveries.empty()


async def test_operator_errors(world: World) -> None:
    """The daemon's calls answer with typed errors."""
    await world.unit("b")
    with pytest.raises(NoSuchUnit):
        await world.send("nobody")
    with pytest.raises(BadInput):
        await world.router.call("send", {"to": "b"})
    with pytest.raises(BadInput):
        await world.router.call("dlq.list", {"limit": 0})
    with pytest.raises(AgentdError):
        await world.router.call("nothing", {})


async def dead(world: World, unit: str, data: object = None) -> str:
    """A message that the unit refuses; the id of its letter."""
    agent = await world.agent(unit)
    before = {x["id"] for x in (await world.router.call("dlq.list", {}))["letters"]}
    await world.send(unit, "bad", data)
    agent.refuse(await agent.next(), retry=False)
    await until(lambda: world.of(unit)["dead"] > 0 and not world.of(unit)["held"])
    letters = (await world.router.call("dlq.list", {}))["letters"]
    (ident,) = {x["id"] for x in letters} - before
    return str(ident)


async def test_dead_letters_are_shown_and_replayed_once(world: World) -> None:
    """A letter has the whole message and why; replayed twice it is delivered once, to the same or another unit."""
    await world.unit("a")
    await world.unit("b")
    one = await dead(world, "a", {"x": 1})
    two = await dead(world, "a", {"x": 2})
    shown = await world.router.call("dlq.show", {"id": one})
    assert (shown["unit"], shown["kind"], shown["data"], shown["reason"]) == ("a", "bad", {"x": 1}, "refused")
    assert (shown["from"], shown["attempts"], shown["text"]) == ("@operator", 1, "no")
    a, b = await world.agent("a"), await world.agent("b")
    both = await asyncio.gather(*(world.router.call("dlq.replay", {"ids": [one]}) for _ in range(2)))
    assert one in [*both[0]["replayed"], *both[1]["replayed"]]
    assert (await world.router.call("dlq.replay", {"ids": [one]})) == {"replayed": []}
    delivery = await a.next()
    assert (delivery["message"], delivery["attempt"], delivery["data"]) == (shown["message"], 1, {"x": 1})
    a.done(delivery)
    assert (await world.router.call("dlq.replay", {"ids": [two], "to": "b"})) == {"replayed": [two]}
    assert (await b.next())["data"] == {"x": 2}
    await until(lambda: world.of("a")["done"] == 1 and world.of("a")["dead"] == 0)
    assert a.deliveries.empty()
    assert (await world.router.call("dlq.list", {})) == {"letters": []}
    assert world.kinds().count("message.replayed") >= 2


async def test_dead_letters_are_purged(world: World) -> None:
    """Purge by id and by unit; an unknown letter is named."""
    await world.unit("a")
    await world.unit("b")
    one, two, other = await dead(world, "a"), await dead(world, "a"), await dead(world, "b")
    assert (await world.router.call("dlq.purge", {"ids": [one]})) == {"purged": 1}
    with pytest.raises(NoSuchLetter):
        await world.router.call("dlq.purge", {"ids": [one]})
    with pytest.raises(NoSuchLetter):
        await world.router.call("dlq.show", {"id": one})
    with pytest.raises(NoSuchLetter):
        await world.router.call("dlq.replay", {"ids": ["9999"]})
    with pytest.raises(NoSuchUnit):
        await world.router.call("dlq.replay", {"ids": [two], "to": "nobody"})
    assert (await world.router.call("dlq.purge", {"unit": "a"})) == {"purged": 1}
    letters = (await world.router.call("dlq.list", {}))["letters"]
    assert [x["id"] for x in letters] == [other]
    await until(lambda: (world.of("a")["dead"], world.of("b")["dead"]) == (0, 1))
