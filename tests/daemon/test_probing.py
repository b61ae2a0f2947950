"""Probes over real sockets: what counts as an answer, and when a failure counts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from agentd.daemon.probing import Finding, Unwell, ask, watch_probe
from agentd.model.probe import Probe


@contextlib.asynccontextmanager
async def server(says: bytes, first: bool = False) -> AsyncIterator[str]:
    """A server that says one thing, after it was asked or at once; its HOST:PORT."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            if not first:
                await reader.readuntil(b"\r\n\r\n")
            writer.write(says)
            await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("line", [b"HTTP/1.1 200 OK", b"HTTP/1.0 302 Found", b"HTTP/1.1 204"])
async def test_an_http_answer_below_400_is_good(line: bytes) -> None:
    """Any HTTP server, in any version 1."""
    async with server(line + b"\r\n\r\n") as where:
        await ask(Probe(http=f"http://{where}/health?deep=1"))


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b"HTTP/1.1 503 Busy\r\n\r\n", "it answered 503 Busy"),
        (b"220 smtp\r\n", "it does not answer in HTTP"),
        (b"", "it does not answer in HTTP"),
        (b"x" * 100_000, "it does not answer in HTTP"),
    ],
)
async def test_any_other_answer_is_not(says: bytes, words: str) -> None:
    """The reason says what came; an endless line is not read to its end."""
    async with server(says) as where:
        with pytest.raises(Unwell, match=words):
            await ask(Probe(http=f"http://{where}/"))


async def test_a_tcp_server_may_have_to_say_something() -> None:
    """Without ``expect`` a connection is enough; with it the words must come."""
    async with server(b'INFO {"x": 1}\r\n', first=True) as where:
        await ask(Probe(tcp=where))
        await ask(Probe(tcp=where, expect="INFO"))
        with pytest.raises(Unwell, match="it did not say 'PONG'"):
            await ask(Probe(tcp=where, expect="PONG"))


async def test_silence_is_a_failure_once_it_was_well() -> None:
    """A server that takes connections and says nothing: counted in a row, with the reason, after the first success."""
    found: asyncio.Queue[Finding] = asyncio.Queue()
    says = bytearray(b"INFO\r\n")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(says))
        says.clear()
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until the other side gives up
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    where = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    probe = Probe(tcp=where, expect="INFO", interval=0.1, timeout=0.2)
    async with asyncio.timeout(5), listening:
        watching = asyncio.create_task(watch_probe(probe, 60.0, found.put_nowait))
        assert [await found.get(), await found.get()] == [
            Finding(1, "no answer within 200ms"),
            Finding(2, "no answer within 200ms"),
        ]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_before_the_first_success_it_is_given_time() -> None:
    """A server that is not up yet: its failures count after ``patience``, not before."""
    async with server(b"") as where:
        pass
    found: asyncio.Queue[Finding] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    before = loop.time()
    watching = asyncio.create_task(watch_probe(Probe(tcp=where, interval=0.1), 0.5, found.put_nowait))
    async with asyncio.timeout(5):
        assert (await found.get()).failures == 1
    assert loop.time() - before >= 0.5
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
