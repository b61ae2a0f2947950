"""Units that are given back a few at a time, after the answer: sockets, files and cgroups of many cost some time, in
which nobody's exit or heartbeat is to wait. Knows names and an order; what giving back means is the fleet's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from agentd.keeper.loop import Loop, say

TURN = 0.005
"""Seconds of one turn of the loop that it may take."""


class Forgetting:
    """The names that wait. ``forget`` gives one back; ``rest`` is called after some were."""

    def __init__(self, loop: Loop, forget: Callable[[str], None], rest: Callable[[], None]) -> None:
        self._loop, self._forget, self._rest = loop, forget, rest
        self._names: dict[str, None] = {}

    def add(self, names: Iterable[str]) -> None:
        """Give these back soon."""
        idle = not self._names
        self._names.update(dict.fromkeys(names))
        if idle and self._names:
            self._loop.last(self._some)

    def first(self, name: str) -> None:
        """Somebody asks for this one again: it is given back before."""
        if name in self._names:
            del self._names[name]
            self._forget(name)

    def finish(self) -> None:
        """Give back all that wait, now."""
        self._work(float("inf"))

    def _some(self) -> None:
        self._work(time.monotonic() + TURN)
        if self._names:
            self._loop.last(self._some)

    def _work(self, end: float) -> None:
        while self._names and time.monotonic() < end:
            name = next(iter(self._names))
            try:
                self.first(name)
            except OSError as error:
                say(f"something of {name} stays: {error}; going on")
        self._rest()
