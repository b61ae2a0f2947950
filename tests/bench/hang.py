"""A unit falls silent → it is judged hung: never before the limit, and not long after. From its last beat."""

from __future__ import annotations

import os
import sys
from bisect import bisect
from collections import defaultdict
from pathlib import Path

from chaos.fleet import Broken
from tests.bench.bare import bare
from tests.bench.lines import median, p99, print_line, report
from tests.bench.scene import running, scene, unit
from tests.bench.stamps import Stamps

UNITS = 20
LIMIT = 1.0
PROGRAM = """
import _socket, os, sys, time
s, path = _socket.socket(1, 2), os.environ["NOTIFY_SOCKET"]
for _ in range(5):
    s.sendto(b"WATCHDOG=1", path)
    time.sleep(0.05)
at = time.time()
s.sendto(b"WATCHDOG=1", path)
fifo = os.open(sys.argv[2], os.O_WRONLY)
os.write(fifo, b"%b silent %d %.6f\\n" % (sys.argv[1].encode(), os.getpid(), at))
time.sleep(1000000)
"""
LIVENESS = f'[liveness]\nheartbeat = "{LIMIT:g}s"\n'


def argv(name: str, fifo: Path) -> list[str]:
    """The arguments of a Python that beats for a while, says when it did so last, and hangs."""
    return ["-I", "-S", "-c", PROGRAM, name, str(fifo)]


def silences(stamps: Stamps, units: int, rounds: int) -> dict[str, list[float]]:
    """When each unit beat last, so many times; what comes after that is not waited for."""
    found: dict[str, list[float]] = defaultdict(list)
    while len(found) < units or min(map(len, found.values())) <= rounds:
        stamp = stamps.next()
        found[stamp.name].append(stamp.at)
    return {name: moments[:rounds] for name, moments in found.items()}


def late(last: list[float], judged: list[float]) -> list[float]:
    """Milliseconds beyond the limit: of each last beat, the judgement that follows it."""
    found = []
    for at in last:
        if (index := bisect(judged, at)) == len(judged):
            raise Broken(f"no judgement follows the beat at {at}")
        found.append((judged[index] - at - LIMIT) * 1000)
    return found


def plain(rounds: int) -> list[float]:
    """The bare loop."""
    with scene() as (base, stamps):
        python = os.path.realpath(sys.executable)
        command = [python, *argv("{}", stamps.path)]
        judged: dict[str, list[float]] = defaultdict(list)
        with bare("reference_beats.py", UNITS, base / "ref", str(LIMIT), "--", *command) as loop:
            last = silences(stamps, UNITS, rounds)
            while len(judged) < UNITS or min(map(len, judged.values())) < rounds:
                _, number, at = loop.line()
                judged[str(base / "ref" / number)].append(float(at))
        return [value for name, moments in last.items() for value in late(moments, judged[name])]


def run(count: int) -> bool:
    """The measures of this file."""
    rounds = max(1, count // UNITS)
    least = plain(rounds)
    with scene() as (base, stamps):
        names = [f"silent{n}" for n in range(UNITS)]
        units = {name: unit(["python", *argv(name, stamps.path)], LIVENESS) for name in names}
        with running(base, units) as fleet:
            last = silences(stamps, UNITS, rounds)
            judged = {n: [r["at"] for r in fleet.records(kind="unit.stopping", unit=n)] for n in names}
        ours = [value for name in names for value in late(last[name], judged[name])]
    most = max(50.0, 3 * p99(least))
    report("hang_found_late_median", median(ours), "ms", median(least))
    target = "<= max(50 ms, 3x) beyond the limit"
    return all(
        [
            print_line("hang_found_late_p99", p99(ours), "ms", p99(least), target, p99(ours) <= most),
            print_line("hang_found_late_least", min(ours), "ms", min(least), ">= 0: never too early", min(ours) >= 0),
        ]
    )
