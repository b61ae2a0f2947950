"""What a mailbox has to do in its next turn, when that is due, and what it counts. Knows timers, not messages."""

from __future__ import annotations

import asyncio
import time

PURGE_AFTER = 1.0
"""Seconds after which acknowledged messages are removed from the bus."""


class Tally:
    """Counts of one mailbox, for facts and metrics. ``total``: messages that are not done; ``moves``: its changes."""

    def __init__(self) -> None:
        self.total = self.moves = self.sending = self.dead = 0
        self.done = self.sent = self.delivered = self.refused = self.buried = self.rejected = 0
        self.seconds, self.handled = 0.0, 0


class Todo:
    """What the next turn has to do, and when the next turn is due."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.declare = False
        self.look = False
        self.record = False
        self.acked = 0
        self._acked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def later(self, delay: float, *, if_past: bool = True) -> None:
        """A turn is due in ``delay`` seconds, or sooner if one was planned sooner."""
        loop = asyncio.get_running_loop()
        if not if_past and delay <= 0.001:
            return
        if self._timer is None or self._timer.cancelled() or self._timer.when() > loop.time() + delay:
            self.cancel()
            self._timer = loop.call_later(delay, self._due)

    def look_again(self, delay: float) -> None:
        """A second comparison with the server."""
        asyncio.get_running_loop().call_later(delay, self._look)

    def purge_due(self) -> bool:
        """Whether acknowledgements have waited long enough for a purge."""
        now = time.monotonic()
        if self._acked_at == 0.0:
            self._acked_at = now
        if now - self._acked_at < PURGE_AFTER * 0.9:
            return False
        self._acked_at = 0.0
        return True

    def cancel(self) -> None:
        """No turn is planned any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def turned(self, timeout: float) -> None:
        """Wait for the end of a turn."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await asyncio.wait([waiter], timeout=timeout)

    def tell(self) -> None:
        """A turn ended."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.set_result(None)

    def _due(self) -> None:
        self._timer = None
        self.event.set()

    def _look(self) -> None:
        self.look = True
        self.event.set()
