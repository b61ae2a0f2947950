"""The keeper's event loop: epoll, deadlines, signals. One thread, no ticks.

Knows descriptors and times, not what they are for. Ordinary events of a turn run before bulk ones, and all bulk
work of a turn shares one quota, so that a flood of output delays no exit.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import sys
import time
from collections.abc import Callable

BULK_QUOTA = 1 << 20
"""Bytes that all bulk watches together may move in one turn."""
BULK_MOST = 16
"""Bulk watches that are served in one turn; the others come next."""

CROWD_GAP = 0.005
"""Seconds for which a crowd gathers before it is heard again, where it says more than that."""

EPOLLIN, EPOLLOUT, EPOLLPRI = select.EPOLLIN, select.EPOLLOUT, select.EPOLLPRI


class Watch:
    """One watched descriptor."""

    __slots__ = ("action", "bulk", "epoll", "fd", "live")

    def __init__(self, fd: int, action: Callable[[int], object], bulk: bool, epoll: select.epoll) -> None:
        self.fd, self.action, self.bulk, self.epoll, self.live = fd, action, bulk, epoll, True


class Timer:
    """One deadline; ``cancel`` may be called at any time."""

    __slots__ = ("action", "at", "live")

    def __init__(self, at: float, action: Callable[[], None]) -> None:
        self.at, self.action, self.live = at, action, True

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at

    def cancel(self) -> None:
        """Forget it; nothing happens if it has run."""
        self.live = False


class Loop:
    """Waits for descriptors, deadlines and signals, and calls what was registered for them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._crowd = select.epoll()
        """Nested in the other: those that are heard together."""
        self._heard = (0.0, -1)
        """When the crowd was heard last, and who spoke, if one did alone."""
        self._watches: dict[int, Watch] = {}
        self._timers: list[Timer] = []
        self._last: list[Callable[[], None]] = []
        self._rotation = 0
        self._running = False
        self._on_signal: dict[int, Callable[[], None]] = {}
        self._wakeup = -1
        self._epoll.register(self._crowd, EPOLLIN | select.EPOLLONESHOT)
        self._watches[self._crowd.fileno()] = Watch(self._crowd.fileno(), self._hear_crowd, False, self._epoll)

    def watch(self, fd: int, action: Callable[[int], None], mask: int = EPOLLIN) -> None:
        """Call ``action(events)`` while fd is ready; with mask 0, when it has hung up. PermissionError: it cannot be
        watched, as a regular file."""
        self._epoll.register(fd, mask)
        self._watches[fd] = Watch(fd, action, False, self._epoll)

    def watch_crowd(self, fd: int, action: Callable[[int], None]) -> None:
        """As ``watch``, of one among many that each say little: where they keep us busy, all are heard together, each
        CROWD_GAP once. A thousand heartbeats a second then cost a fifth of the turns."""
        self._crowd.register(fd, EPOLLIN)
        self._watches[fd] = Watch(fd, action, False, self._crowd)

    def watch_bulk(self, fd: int, pump: Callable[[int], object]) -> None:
        """Call ``pump(quota)`` while fd is readable, after all other events of the turn."""
        self._watches[fd] = Watch(fd, pump, True, self._epoll)
        self._epoll.register(fd, EPOLLIN)

    def modify(self, fd: int, mask: int) -> None:
        """Change what fd is watched for."""
        self._watches[fd].epoll.modify(fd, mask)

    def rest(self, fd: int, seconds: float) -> None:
        """Leave fd alone for so long, whatever comes: who fills it waits meanwhile."""
        watch = self._watches[fd]
        watch.epoll.modify(fd, 0)

        def go_on() -> None:
            if watch.live:
                watch.epoll.modify(fd, EPOLLIN)

        self.after(seconds, go_on)

    def unwatch(self, fd: int) -> None:
        """Stop watching fd, before it is closed; nothing happens if it is not watched."""
        watch = self._watches.pop(fd, None)
        if watch is not None:
            watch.live = False
            watch.epoll.unregister(fd)

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call action once, this many seconds from now."""
        timer = Timer(time.monotonic() + seconds, action)
        heapq.heappush(self._timers, timer)
        return timer

    def last(self, action: Callable[[], None]) -> None:
        """Call action at the end of this turn's ordinary events, before bulk ones; or of the next turn's."""
        self._last.append(action)

    def on_signals(self, actions: dict[int, Callable[[], None]]) -> None:
        """Call the action of each signal from the loop, never in the middle of something else."""
        reader, self._wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._on_signal = actions
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for number in actions:
            signal.signal(number, _ignore)
        self.watch(reader, lambda _: self._signals(reader))

    def run(self) -> None:
        """Serve until ``stop``."""
        self._running = True
        while self._running:
            self._turn()

    def stop(self) -> None:
        """Leave ``run`` after this turn."""
        self._running = False

    def close(self) -> None:
        """Give the epoll descriptors back."""
        self._crowd.close()
        self._epoll.close()

    def _turn(self) -> None:
        # Stopped and continued, the wait for a timer returns nothing though sockets are full: they come before timers.
        events = self._epoll.poll(self._timeout()) or self._epoll.poll(0)
        ready = [(watch, mask) for fd, mask in events if (watch := self._watches.get(fd)) is not None]
        bulk = False
        for watch, mask in ready:
            if watch.bulk:
                bulk = True
            elif watch.live:
                _guarded(watch.action, mask)
        if self._timers:
            self._due()
        if self._last:
            self._finish()
        if bulk:
            self._bulk([watch for watch, _ in ready if watch.bulk])

    def _hear_crowd(self, _: int) -> None:
        """What anybody of the crowd has said. If others spoke just now, it gathers for a while; one who speaks alone is
        heard at once."""
        events = self._crowd.poll(0)
        for fd, mask in events:
            watch = self._watches.get(fd)
            if watch is not None and watch.live:
                _guarded(watch.action, mask)
        heard, speaker = time.monotonic(), events[0][0] if len(events) == 1 else -1
        (before, last), self._heard = self._heard, (heard, speaker)
        if heard - before < 2 * CROWD_GAP and (speaker < 0 or speaker != last):
            self.after(CROWD_GAP, self._listen)
        else:
            self._listen()

    def _listen(self) -> None:
        self._epoll.modify(self._crowd, EPOLLIN | select.EPOLLONESHOT)

    def _finish(self) -> None:
        last, self._last = self._last, []
        for action in last:
            _guarded(lambda _, action=action: action(), 0)  # type: ignore[misc]

    def _bulk(self, ready: list[Watch]) -> None:
        if len(ready) > BULK_MOST:
            start = self._rotation % len(ready)
            self._rotation += BULK_MOST
            ready = (ready + ready)[start : start + BULK_MOST]
        for watch in ready:
            if watch.live:
                _guarded(watch.action, BULK_QUOTA // len(ready))

    def _timeout(self) -> float:
        if self._last:
            return 0.0
        while self._timers and not self._timers[0].live:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].at - time.monotonic()) if self._timers else -1

    def _due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].at <= now:
            timer = heapq.heappop(self._timers)
            if timer.live:
                timer.live = False
                _guarded(lambda _, action=timer.action: action(), 0)  # type: ignore[misc]

    def _signals(self, reader: int) -> None:
        for number in os.read(reader, 65536):
            if number in self._on_signal:
                self._on_signal[number]()


def _ignore(number: int, frame: object) -> None:
    """Python needs a handler; the number arrives through the wake-up pipe."""


def _guarded(action: Callable[[int], object], argument: int) -> None:
    """The root of all that the keeper does: one broken turn must not end the parent of everything."""
    try:
        action(argument)
    except Exception:  # noqa: BLE001 - the task root
        import traceback

        say(f"error in the keeper itself, going on:\n{traceback.format_exc()}")


def say(text: str) -> None:
    """One line on stderr; a closed stderr is ignored."""
    try:
        sys.stderr.write(f"agentd-keeper: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
