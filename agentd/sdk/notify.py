"""READY, heartbeat and status to whoever started us, by the sd_notify protocol. Knows no message and no channel.

The heartbeat is a timer of the very loop that runs the handlers: when a handler blocks the loop, it stops, and that
is its meaning. Nothing here ever blocks: what the socket does not take now is said again a moment later.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

AGAIN = 0.05
"""Seconds until a word that could not be said is tried again."""


class Notifier:
    """Speaks to NOTIFY_SOCKET; without one every word is free of effect."""

    def __init__(self, address: str | None, beat_every: float | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._every = beat_every
        self._unsaid: list[str] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls) -> Notifier:
        """NOTIFY_SOCKET and WATCHDOG_USEC as the supervisor gave them."""
        return cls(os.environ.get("NOTIFY_SOCKET"), _beat_period())

    def start_beating(self) -> None:
        """Beat from the running loop, now and then three times per watchdog period."""
        if self._every is not None and self._socket is not None:
            self._beat(asyncio.get_running_loop())

    def say(self, text: str) -> None:
        """READY=1, STOPPING=1 or STATUS=…: arrives in order, now or as soon as the socket takes it."""
        if self._socket is not None:
            self._unsaid.append(text)
            self._flush()

    def close(self) -> None:
        """Stop beating."""
        for timer in self._timers:
            timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._every is not None
        self._send("WATCHDOG=1")
        self._after(self._every, lambda: self._beat(loop))

    def _flush(self) -> None:
        while self._unsaid:
            if not self._send(self._unsaid[0]):
                self._after(AGAIN, self._flush)
                return
            self._unsaid.pop(0)

    def _after(self, delay: float, call: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        self._timers = [timer for timer in self._timers if timer.when() > loop.time()]
        self._timers.append(loop.call_later(delay, call))

    def _send(self, text: str) -> bool:
        if self._socket is None or self._address is None:
            return True
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:  # full, or the keeper is being replaced: it is said again
            return False
        return True


def _beat_period() -> float | None:
    usec, pid = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not usec or not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6 / 3
