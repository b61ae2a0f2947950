"""The channel: identity, hello, reconnects, and everything malformed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

import pytest

from tests.router.world import Agent, World
from tests.waiting import until


async def test_malformed_lines_are_refused_and_the_connection_stays(world: World) -> None:
    """Each broken line gets its typed error; the connection works afterwards."""
    await world.unit("a")
    a = await world.agent("a")
    cases: list[tuple[bytes, int]] = [
        (b"garbage", -32700),
        (b"\xff\xfe{}", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"send","params":{"x":NaN}}', -32700),
        (b"[" * 100_000, -32700),
        (b'{"a":' * 50_000, -32700),
        (b'{"n":' + b"9" * 5000 + b"}", -32700),
        (b"[]", -32600),
        (b'"text"', -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"send"}', -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"send"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"send"}', -32600),
        (b'{"jsonrpc":"2.0","id":"q","method":7}', -32600),
        (b'{"jsonrpc":"2.0","id":"q","method":"send","params":[1]}', -32600),
        (b'{"jsonrpc":"2.0","id":"q","result":1,"error":{}}', -32600),
        (b'{"jsonrpc":"2.0","id":"q","method":"steal"}', -32601),
        (b'{"jsonrpc":"2.0","id":"q","method":"hello","params":{"protocol":"x"}}', -32602),
    ]
    for line, number in cases:
        a.raw(line + b"\n")
        async with asyncio.timeout(5):
            error = (await a.other.get())["error"]
        assert error["code"] == number, (line[:60], error)
        assert error["data"]["code"] == ("bad_input" if number == -32602 else "protocol_error")
    a.raw(b'{"jsonrpc":"2.0","method":"unknown notification"}\n\n  \n')
    a.write({"jsonrpc": "2.0", "id": "nothing.1", "result": 1})
    a.write({"jsonrpc": "2.0", "id": None, "error": "text"})
    assert (await a.send("a"))["stored"]


async def test_news_of_required_units(world: World) -> None:
    """After each hello how each of them is, then once for each change; units that require nobody hear nothing."""
    await world.unit("a")
    await world.unit("b")
    world.fact("a", requires=["db", "cache"], degraded=["db"])

    async def told(agent: Agent) -> tuple[str, str]:
        async with asyncio.timeout(5):
            line = await agent.other.get()
        assert line["method"] == "unit_changed"
        assert "id" not in line
        return line["params"]["unit"], line["params"]["state"]

    a, b = await world.agent("a"), await world.agent("b")
    assert [await told(a), await told(a)] == [("db", "gone"), ("cache", "ready")]
    world.fact("a", degraded=[])
    assert await told(a) == ("db", "ready")
    world.fact("a", degraded=["cache"], phase="running")
    assert await told(a) == ("cache", "gone")
    await a.close()
    again = await world.agent("a")
    assert [await told(again), await told(again)] == [("db", "ready"), ("cache", "gone")]
    assert (await again.send("a"))["stored"]
    assert again.other.empty()
    assert b.other.empty()


async def test_hello_comes_first(world: World) -> None:
    """Before hello nothing is done for anybody."""
    await world.unit("a")
    a = await world.connect("a")
    answer = await a.call("send", {"to": "a", "kind": "x"})
    assert (answer["error"]["code"], answer["error"]["data"]["code"]) == (-32600, "protocol_error")
    a.write({"jsonrpc": "2.0", "id": "x.1", "result": 1})
    answer = await a.call("hello", {"protocol": 7, "invocation": f"{1:016x}"})
    assert answer["result"] == {"protocol": 1, "unit": "a", "in_flight": 1, "max_line": 1 << 20}


async def test_an_oversized_line_closes_the_connection(world: World) -> None:
    """More than max_line without an end: an error, then the end; others go on."""
    await world.unit("a")
    await world.unit("b")
    a, b = await world.agent("a"), await world.agent("b")
    a.raw(b"x" * (1 << 20) + b"yy")
    async with asyncio.timeout(5):
        error = (await a.other.get())["error"]
        await a.closed.wait()
    assert error["data"]["code"] == "protocol_error"
    assert "bytes" in error["message"]
    assert (await b.send("a"))["stored"]


async def test_the_largest_message_fits(world: World) -> None:
    """Data of a million bytes is delivered whole, through a dead letter and back as well."""
    await world.unit("a")
    a = await world.agent("a")
    text = '"\\\n' * 170_000  # each of them takes two bytes on the line: about 1,020,000
    assert (await a.send("a", data=text))["stored"]
    a.refuse(await a.next(), retry=False)
    await until(lambda: world.of("a")["dead"] == 1)
    await world.router.call("dlq.replay", {})
    assert (await a.next())["data"] == text


async def test_a_dead_invocation_is_refused(world: World) -> None:
    """An invocation that is over cannot say hello, nor stay connected, nor answer."""
    await world.unit("a")
    first = await world.agent("a", 1)
    world.ended("a", f"{1:016x}", "stopped")
    async with asyncio.timeout(5):
        await first.closed.wait()
    again = await world.connect("a")
    answer = await again.call("hello", {"protocol": 1, "invocation": f"{1:016x}"})
    assert (answer["error"]["code"], answer["error"]["data"]["code"]) == (-32002, "denied")
    await world.agent("a", 3)
    answer = await again.call("hello", {"protocol": 1, "invocation": f"{2:016x}"})
    assert answer["error"]["code"] == -32002


async def test_closing_releases_nothing(world: World) -> None:
    """A reader whose connection broke comes back with what it holds: not delivered again, its result is taken."""
    await world.unit("a")
    a = await world.agent("a")
    await world.send("a")
    delivery = await a.next()
    await a.close()
    await until(lambda: world.of("a")["connected"] is None)
    assert len(world.of("a")["held"]) == 1
    a = await world.agent("a", 1, holding=[delivery["delivery"]])
    a.done(delivery)
    await until(lambda: world.of("a")["done"] == 1)
    assert a.deliveries.empty()


async def test_a_reader_that_lost_it_gets_it_again(world: World) -> None:
    """The same invocation reconnects without naming its delivery: it comes again, uncounted."""
    await world.unit("a")
    a = await world.agent("a")
    await world.send("a")
    delivery = await a.next()
    a = await world.agent("a", 1)
    assert (await a.next())["delivery"] == delivery["delivery"]


async def test_a_reader_that_does_not_read_blocks_nobody(world: World) -> None:
    """An agent that asks without end and reads nothing is throttled; another one is served at once."""
    await world.unit("deaf")
    await world.unit("b")
    _, writer = await asyncio.open_unix_connection(world.directory / "c" / "deaf", limit=1)
    b = await world.agent("b")
    hello = {"jsonrpc": "2.0", "id": 1, "method": "hello", "params": {"protocol": 1, "invocation": f"{1:016x}"}}
    writer.write(json.dumps(hello).encode() + b"\n")
    junk = b"[" + b"x" * 60_000 + b"]\n"
    for _ in range(400):
        writer.write(junk)
    begun = time.monotonic()
    for _ in range(20):
        assert (await b.send("b"))["stored"]
        b.done(await b.next())
    assert time.monotonic() - begun < 2
    writer.transport.abort()


async def test_many_sends_at_once(world: World) -> None:
    """A thousand sends without waiting are all answered, stored once, and come in order."""
    await world.unit("a")
    await world.unit("b", in_flight=8)
    a, b = await world.agent("a"), await world.agent("b")
    answers = [a.begin("send", {"to": "b", "kind": "n", "data": n, "id": f"n{n}"}) for n in range(1000)]
    got = []
    while len(got) < 1000:
        delivery = await b.next()
        got.append(delivery["data"])
        b.done(delivery)
    assert sorted(got) == list(range(1000))
    assert all(answer["result"]["stored"] for answer in await asyncio.gather(*answers))
    await until(lambda: world.of("b")["done"] == 1000)
    assert world.of("b")["pending"] == 0


async def test_a_unit_that_is_removed_and_comes_back(world: World) -> None:
    """Removed: its socket and facts vanish, its messages stay; when it is back they are delivered."""
    await world.unit("a")
    a = await world.agent("a")
    ident = await world.send("a")
    await a.next()
    world.daemon.drop("unit/a")
    await until(lambda: not (world.directory / "c" / "a").exists() and world.of("a") is None)
    await world.unit("a")
    a = await world.agent("a", 2)
    assert (await a.next())["message"] == ident


async def test_facts_of_the_bus_and_metrics(world: World) -> None:
    """The facts show the server's version and the metrics count per unit."""
    await world.unit("a")
    await until(lambda: (world.router.facts.get("bus") or {}).get("connected"))
    assert world.router.facts["bus"]["server"].startswith("2.")
    a = await world.agent("a")
    await a.send("a")
    a.done(await a.next())
    await until(lambda: world.of("a")["done"] == 1)

    def done() -> object:
        metrics = world.router.facts.get("metrics") or {}
        return metrics.get("agentd_messages_done_total", {}).get("samples")

    await until(lambda: done() == [[["a"], 1]])


@pytest.mark.root
async def test_another_uid_is_not_the_unit(world: World) -> None:
    """A unit with a uid of its own: the socket is open to all, and every other uid is closed at once."""
    await world.unit("a")
    world.fact("a", uid=60123)
    path = world.directory / "c" / "a"
    await until(lambda: path.exists() and path.stat().st_mode & 0o777 == 0o666)
    root = Agent(path)
    await root.open()
    async with asyncio.timeout(5):
        await root.closed.wait()
    await root.close()
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        's.sendall(b\'{"jsonrpc":"2.0","id":1,"method":"hello","params":{"protocol":1,"invocation":"1"}}\\n\'); '
        "print(s.recv(4096).decode())"
    )
    said = await asyncio.to_thread(
        subprocess.run,
        ["/usr/bin/env", "python3", "-c", script, str(path)],
        capture_output=True,
        text=True,
        user=60123,
        group=60123,
        extra_groups=[],
        timeout=10,
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
    )
    assert '"unit":"a"' in said.stdout, said
    assert os.geteuid() == 0
    assert sys.version_info
