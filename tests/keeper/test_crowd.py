"""Many that each say little are heard together, and nobody is forgotten."""

from __future__ import annotations

import os
from collections.abc import Callable

from agentd.keeper.loop import Loop, Timer

SPEAKERS, WORDS = 20, 200


class Counting(Loop):
    """Counts how often it turns to the crowd, and how often it waits for something."""

    def __init__(self) -> None:
        self.hearings = self.waits = 0
        super().__init__()

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        self.waits += 1
        return super().after(seconds, action)

    def _hear_crowd(self, mask: int) -> None:
        self.hearings += 1
        super()._hear_crowd(mask)


def hearings(speakers: int) -> int:
    """How often the loop hears so many who say WORDS words in turns, one each millisecond; all of them are heard."""
    loop, heard = Counting(), []
    pipes = [os.pipe() for _ in range(speakers)]

    def hear(reader: int) -> None:
        heard.append(os.read(reader, 1))
        if len(heard) == WORDS:
            loop.stop()

    for reader, _ in pipes:
        loop.watch_crowd(reader, lambda _, reader=reader: hear(reader))  # type: ignore[misc]
    for n in range(WORDS):
        loop.after(n / 1000, lambda n=n: os.write(pipes[n % speakers][1], b"x"))  # type: ignore[misc]
    late = loop.after(10.0, loop.stop)
    loop.run()
    assert late.live, f"{len(heard)} of {WORDS} words heard"
    for reader, writer in pipes:
        loop.unwatch(reader)
        os.close(reader)
        os.close(writer)
    loop.close()
    return loop.hearings


def test_a_crowd_is_heard_together() -> None:
    """Twenty who speak by turns cost a fraction of the hearings that their words are."""
    assert hearings(SPEAKERS) < WORDS / 2


def test_who_speaks_alone_is_heard_at_once() -> None:
    """Its words do not gather: nothing would be saved by it."""
    loop = Counting()
    reader, writer = os.pipe()
    words = []

    def hear(_: int) -> None:
        words.append(os.read(reader, 1))
        if len(words) == 5:
            loop.stop()
        else:
            os.write(writer, b"x")

    loop.watch_crowd(reader, hear)
    os.write(writer, b"x")
    loop.run()
    assert (loop.hearings, loop.waits) == (5, 0)
    loop.unwatch(reader)
    os.close(reader)
    os.close(writer)
    loop.close()
