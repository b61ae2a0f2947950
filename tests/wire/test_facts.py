"""The facts protocol: level-triggered, resyncing, never blocking."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentd.errors import BadInput, NoSuchUnit, NotFound, TooLate, Unavailable
from agentd.wire import facts as wire
from agentd.wire.facts import Change, Client, Facts, Server
from tests.waiting import until

UIDS = frozenset({os.geteuid()})


@asynccontextmanager
async def running(client: Client) -> AsyncIterator[Client]:
    task = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def serving(facts: Facts, path: Path, methods: dict[str, Any] | None = None) -> AsyncIterator[Server]:
    server = Server(facts, methods or {}, uids=UIDS)
    await server.start(path=path)
    try:
        yield server
    finally:
        await server.close()


async def test_a_client_learns_everything_and_then_each_change(short_dir: Path) -> None:
    """Full on connect, deltas after, gone for what is no more."""
    facts, heard = Facts("owner"), list[Change]()
    facts.set("unit/a", {"pending": 1})
    async with serving(facts, short_dir / "s"), running(Client(short_dir / "s", "t", on_change=heard.append)) as client:
        await until(lambda: client.connected)
        assert client.facts == {"unit/a": {"pending": 1}}
        facts.set("unit/b", 2)
        facts.drop("unit/a")
        await until(lambda: client.facts == {"unit/b": 2})
    assert [change.full for change in heard][:2] == [True, False]
    assert "unit/a" in heard[-1].gone


async def test_an_equal_value_is_no_change() -> None:
    """Stating what is so already costs no revision and wakes nobody."""
    facts = Facts("owner")
    facts.set("k", {"a": 1})
    facts.set("k", {"a": 1})
    assert facts.rev == 1


async def test_after_the_owners_restart_the_client_has_the_new_truth(short_dir: Path) -> None:
    """A new epoch means everything again, and names what vanished; meanwhile the last known facts stay."""
    heard = list[Change]()
    client = Client(short_dir / "s", "t", on_change=heard.append)
    async with running(client):
        old = Facts("owner")
        old.set("x", 1)
        old.set("y", 1)
        async with serving(old, short_dir / "s"):
            await until(lambda: client.connected)
        await until(lambda: not client.connected)
        assert client.facts == {"x": 1, "y": 1}
        new = Facts("owner")
        new.set("y", 2)
        async with serving(new, short_dir / "s"):
            await until(lambda: client.facts == {"y": 2})
    assert heard[-1].full
    assert heard[-1].gone == ("x",)


async def test_a_reconnecting_client_gets_only_what_changed(short_dir: Path) -> None:
    """With a known epoch and revision the answer is a delta."""
    facts = Facts("owner")
    for n in range(10):
        facts.set(f"k{n}", n)
    line = facts.since((facts.epoch, 8))
    assert line["set"] == {"k8": 8, "k9": 9}
    assert "full" not in line


async def test_a_client_too_far_behind_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the owner no longer remembers it does not guess."""
    monkeypatch.setattr(wire, "_HISTORY", 3)
    facts = Facts("owner")
    for n in range(10):
        facts.set("k", n)
    assert "full" in facts.since((facts.epoch, 2))
    assert "full" in facts.since(("another epoch", 10))
    assert "full" in facts.since((facts.epoch, 99))


async def test_calls_answer_and_fail_with_the_owners_error(short_dir: Path) -> None:
    """An error crosses the socket as itself: class, message, hint."""

    async def double(params: dict[str, Any]) -> int:
        if params["n"] < 0:
            raise NoSuchUnit("no unit -1.", hint="Choose another.")
        return int(params["n"]) * 2

    async def never(_: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    facts = Facts("owner")
    async with (
        serving(facts, short_dir / "s", {"double": double, "never": never}),
        running(Client(short_dir / "s", "t")) as client,
    ):
        await until(lambda: client.connected)
        assert await client.call("double", {"n": 21}) == 42
        with pytest.raises(NoSuchUnit) as caught:
            await client.call("double", {"n": -1})
        assert caught.value.hint == "Choose another."
        with pytest.raises(NotFound):
            await client.call("absent", {})
        with pytest.raises(TooLate):
            await client.call("never", {}, timeout=0.05)


async def test_a_call_fails_when_the_owner_goes_away(short_dir: Path) -> None:
    """Nobody waits for the dead."""

    async def never(_: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    async with running(Client(short_dir / "s", "t")) as client:
        async with serving(Facts("owner"), short_dir / "s", {"never": never}):
            await until(lambda: client.connected)
            call = asyncio.create_task(client.call("never", {}))
            await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await call
        with pytest.raises(Unavailable):
            await client.call("never", {})


async def test_records_come_once_each_and_survive_the_clients_absence(short_dir: Path) -> None:
    """The spool keeps what the journal has not stored; what is stored is forgotten."""
    facts, seen = Facts("owner"), list[int]()

    async def store(batch: list[dict[str, Any]]) -> int:
        seen.extend(record["seq"] for record in batch)
        return int(batch[-1]["seq"])

    async with serving(facts, short_dir / "s"):
        client = Client(short_dir / "s", "t", on_records=store)
        async with running(client):
            await until(lambda: client.connected)
            facts.record("a", "u")
            facts.record("b", "u")
            await until(lambda: seen == [1, 2])
            await until(lambda: not facts.records_after(0))
        facts.record("c", "u")
        async with running(client):
            await until(lambda: seen == [1, 2, 3])


async def test_a_journal_that_does_not_store_holds_up_neither_facts_nor_calls(short_dir: Path) -> None:
    """Supervision never waits for the journal: while a batch is not stored, facts and answers are heard as ever."""
    facts, paused, seen = Facts("owner"), asyncio.Event(), list[int]()

    async def store(batch: list[dict[str, Any]]) -> int:
        await paused.wait()
        seen.extend(record["seq"] for record in batch)
        return int(batch[-1]["seq"])

    async def answer(params: dict[str, Any]) -> int:
        return 7

    client = Client(short_dir / "s", "t", on_records=store)
    async with serving(facts, short_dir / "s", {"m": answer}), running(client):
        await until(lambda: client.connected)
        facts.record("a", "u")
        await asyncio.sleep(0.05)
        facts.set("unit/a", {"exhausted": True})
        await until(lambda: "unit/a" in client.facts)
        assert await client.call("m", {}, timeout=1.0) == 7
        facts.record("b", "u")
        paused.set()
        await until(lambda: seen == [1, 2] and not facts.records_after(0))


async def test_records_that_come_faster_than_they_are_stored_are_bounded(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client keeps some batches, then begins anew from what is stored; the owner's spool keeps the rest."""
    monkeypatch.setattr(wire, "_BATCHES_MOST", 2)
    facts, paused, seen = Facts("owner"), asyncio.Event(), list[int]()

    async def store(batch: list[dict[str, Any]]) -> int:
        await paused.wait()
        seen.extend(record["seq"] for record in batch)
        return int(batch[-1]["seq"])

    links: list[bool] = []
    client = Client(short_dir / "s", "t", on_records=store, on_link=links.append)
    async with serving(facts, short_dir / "s"), running(client):
        for _ in range(8):
            facts.record("a", "u")
            await asyncio.sleep(0.02)
        await until(lambda: False in links)
        paused.set()
        await until(lambda: sorted(set(seen)) == list(range(1, 9)) and not facts.records_after(0))


async def test_a_store_that_fails_is_not_silent(short_dir: Path) -> None:
    """What goes wrong in the client's own hands ends the client: whoever runs it hears of it."""
    facts = Facts("owner")

    async def store(batch: list[dict[str, Any]]) -> int:
        raise ZeroDivisionError

    async with serving(facts, short_dir / "s"):
        facts.record("a", "u")
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(5):
                await Client(short_dir / "s", "t", on_records=store).run()


async def test_a_full_spool_drops_the_oldest_and_says_so() -> None:
    """Bounded, counted, visible."""
    facts = Facts("owner", spool=3)
    for _ in range(5):
        facts.record("a")
    assert [record["seq"] for record in facts.records_after(0)] == [3, 4, 5]
    assert facts.get("spool") == {"dropped": 2}


async def test_a_client_that_does_not_read_is_cut_off_and_blocks_nobody(short_dir: Path) -> None:
    """A stopped neighbour costs memory up to the bound, then its connection."""
    facts = Facts("owner")
    async with serving(facts, short_dir / "s"), running(Client(short_dir / "s", "t")) as good:
        await until(lambda: good.connected)
        reader, writer = await asyncio.open_unix_connection(short_dir / "s")
        writer.write(b'{"facts":1,"client":"stuck","have":null}\n')
        await reader.readline()
        writer.transport.pause_reading()
        for n in range(40):
            facts.set("big", f"{n}" + "x" * 400_000)
            await until(lambda n=n: str(good.facts.get("big", "")).startswith(f"{n}x"))  # type: ignore[misc]
        writer.transport.resume_reading()
        while await reader.read(1 << 20):
            pass
        writer.close()


@pytest.mark.parametrize("line", [b"garbage\n", b"[]\n", b'{"facts":99}\n', b"x" * (2 << 20) + b"\n"])
async def test_garbage_ends_the_connection_only(short_dir: Path, line: bytes) -> None:
    """A broken peer is closed; the others go on."""
    facts = Facts("owner")
    async with serving(facts, short_dir / "s"), running(Client(short_dir / "s", "t")) as good:
        reader, writer = await asyncio.open_unix_connection(short_dir / "s")
        try:
            writer.write(line)
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        writer.close()
        facts.set("k", 1)
        await until(lambda: good.facts == {"k": 1})


async def test_a_foreign_uid_is_refused(short_dir: Path) -> None:
    """Only root, the owner's uid and the configured ones may listen."""
    server = Server(Facts("owner"), {}, uids=frozenset())
    server._uids = frozenset()
    await server.start(path=short_dir / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(short_dir / "s"))
        sock.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
    await server.close()


async def test_an_unknown_error_code_is_still_an_error() -> None:
    """A newer neighbour's error is not swallowed."""
    from agentd.errors import from_wire

    error = from_wire({"code": "from_the_future", "message": "m"})
    assert str(error) == "m"
    assert from_wire(BadInput("x", hint="y").to_wire()).exit_code == 2
