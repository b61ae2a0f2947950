"""Asks a unit's probe, over and over: one question at a time, each with its time-out.

Knows sockets and the first line of an HTTP answer; what a failure means is for others to say.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from agentd.model.probe import Probe, address
from agentd.model.quantity import show_duration

MOST = 4096
"""Bytes of an answer that are looked at."""
EAGER = 1.0
"""Seconds between two questions, at most, until the first good answer."""


class Unwell(Exception):
    """An answer that is no good, in words."""


class Unasked(Exception):
    """The question could not be put, which says nothing of the unit."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the last question found: failures in a row, and the reason of the last."""

    failures: int
    reason: str = ""


async def watch_probe(
    probe: Probe,
    patience: float,
    told: Callable[[Finding], None],
    command: Callable[[], Awaitable[None]] | None = None,
    pause: Callable[[float], float] = float,
) -> None:
    """Ask for ever; ``told`` gets each finding that differs from the last. ``command`` asks a probe that is one.

    Before the first good answer no failure counts for ``patience`` seconds. ``pause`` makes of the interval the seconds
    until the next question.
    """
    began, well, last = time.monotonic(), False, Finding(0)
    while True:
        try:
            found = await _finding(probe, last, command)
        except Unasked:
            await asyncio.sleep(probe.interval)
            continue
        well = well or not found.failures
        if found.failures and not well and time.monotonic() - began < patience:
            found = Finding(0)
        if found != last:
            last = found
            told(found)
        await asyncio.sleep(pause(probe.interval) if well else min(probe.interval, EAGER))


async def _finding(probe: Probe, last: Finding, command: Callable[[], Awaitable[None]] | None) -> Finding:
    try:
        if probe.exec is not None and command is not None:
            await command()  # whoever executes it keeps its time
            return Finding(0)
        async with asyncio.timeout(probe.timeout):
            await ask(probe)
    except TimeoutError:
        return Finding(last.failures + 1, f"no answer within {show_duration(probe.timeout)}")
    except OSError as error:
        return Finding(last.failures + 1, error.strerror or str(error))
    except Unwell as error:
        return Finding(last.failures + 1, str(error))
    return Finding(0)


async def ask(probe: Probe) -> None:
    """One question; raises Unwell or OSError where the answer is not good. Waits as long as it takes."""
    host, port = address(probe)
    if probe.http is None and (family := _family(host)) is not None:
        await _ask_socket(family, host, port, probe.expect)
        return
    reader, writer = await asyncio.open_connection(host, port, limit=MOST)
    try:
        if probe.http is not None:
            await _get(reader, writer, probe.http)
        elif probe.expect is not None:
            await _hear(reader.read, probe.expect.encode())
    finally:
        writer.transport.abort()


def _family(host: str) -> socket.AddressFamily | None:
    """Of an address that is written as a number; None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return family
    return None


async def _ask_socket(family: socket.AddressFamily, host: str, port: int, expect: str | None) -> None:
    """Without streams, which cost three times as much: the bus is asked each second, for ever."""
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            await loop.sock_connect(sock, (host, port))
            if expect is not None:
                await _hear(partial(loop.sock_recv, sock), expect.encode())
        finally:  # before the number is anybody else's: cancelled, the loop itself would do it too late
            loop.remove_reader(sock)
            loop.remove_writer(sock)


async def _hear(read: Callable[[int], Awaitable[bytes]], wanted: bytes) -> None:
    heard = b""
    while wanted not in heard and len(heard) < MOST:
        piece = await read(MOST)
        if not piece:
            break
        heard += piece
    if wanted not in heard:
        raise Unwell(f"it did not say {wanted.decode()!r}")


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: str) -> None:
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
    try:
        line = await reader.readline()
    except ValueError:
        line = b""
    version, _, rest = line.partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/1.") or not status.isdigit():
        raise Unwell("it does not answer in HTTP")
    if int(status) >= 400:
        raise Unwell(f"it answered {rest.decode('latin-1').strip()[:80]}")
