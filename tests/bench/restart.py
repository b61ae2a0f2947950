"""kill -9 → the first act of the replacement: alone, with the bus down, with a busy gateway, among 500 siblings."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from chaos.fleet import wait_until
from tests.bench.bare import bare
from tests.bench.lines import median, p99, print_line, report
from tests.bench.processes import children, cpu, program
from tests.bench.scene import IDLE, deploy, running, scene, unit
from tests.bench.stamps import Stamps
from tests.fleet import Fleet

AGES = (0.0, 0.005, 0.02, 0.05)
"""Seconds that a program has lived when it is killed, in turn."""
SIBLINGS = 500
CALLS = 32
"""Streaming calls at once: dry-run answers as fast as it can write, so that a few keep the gateway busy."""
LOAD = '[agent]\nexec = ["python", "-I", "-S", "{script}", "{calls}"]\n[budget]\ntokens = "1000000M/day"\n'


class Victims:
    """The programs that are killed in turn: ours, and the same one below the bare loop."""

    def __init__(self, stamps: Stamps, names: list[str]) -> None:
        self._stamps = stamps
        self._pids: dict[str, int] = {}
        while len(self._pids) < len(names):
            stamp = stamps.next()
            self._pids[stamp.name] = stamp.pid

    def pids(self) -> list[int]:
        """Those that run now."""
        return list(self._pids.values())

    def kill(self, name: str) -> float:
        """Milliseconds from its kill -9 to the first act of its replacement."""
        at = time.time()
        os.kill(self._pids[name], 9)
        stamp = self._stamps.of(name)
        self._pids[name] = stamp.pid
        return (stamp.at - at) * 1000

    def rounds(self, count: int, names: list[str], before: Callable[[], None] = lambda: None) -> list[list[float]]:
        """Kill them in turn, so many times each, at each age; the milliseconds of each."""
        found: list[list[float]] = [[] for _ in names]
        for _, age in zip(range(count), cycle(AGES)):
            for name, values in zip(names, found, strict=True):
                before()
                time.sleep(age)  # the age at which it dies, no waiting
                values.append(self.kill(name))
        return found


def gate(name: str, value: float, reference: float, most: float, of: str = "") -> bool:
    """A ratio that may not be more."""
    return print_line(name, value, "ms", reference, f"<= {most:g}x{of}", value <= most * reference)


@dataclass(frozen=True, slots=True)
class Alone:
    """What both took with nothing beside them, and how often they are killed."""

    victims: Victims
    names: list[str]
    count: int
    medians: list[float]

    def beside(self, name: str, most: float, of: str, before: Callable[[], None] = lambda: None) -> bool:
        """The same again, now that there is something; what it does to the bare loop is reported first."""
        reference, ours = (median(found) for found in self.victims.rounds(self.count, self.names, before))
        report(f"restart_median_{name}_bare_loop", reference, "ms", self.medians[0])
        return gate(f"restart_median_{name}", ours, self.medians[1], most, of)


def bus_down(fleet: Fleet, alone: Alone) -> bool:
    """nats-server is killed again whenever it is found running."""
    keeper = int(fleet.status()["agentd"]["keeper_pid"])
    kills = 0

    def down() -> None:
        nonlocal kills
        for pid in children(keeper):
            if program(pid) == "nats-server":
                os.kill(pid, 9)
                kills += 1

    held = alone.beside("bus_down", 1.5, " of with it", down)
    report("bus_kills_meanwhile", kills, "kills", None, "reported: it came back so often")
    fleet.settle()
    return held


def busy_gateway(fleet: Fleet, alone: Alone) -> bool:
    """An agent streams from the gateway as fast as it can."""
    script = fleet.base / "load.py"
    shutil.copy(Path(__file__).with_name("load.py"), script)
    script.chmod(0o755)
    deploy(fleet, {"load": LOAD.format(script=script, calls=CALLS)})
    fleet.wait("load", state="running")
    gateway = int(fleet.unit("gateway")["pid"])
    wait_until(lambda: cpu(gateway) > 2, 60, "the gateway has work")
    busy, at = cpu(gateway), time.monotonic()
    held = alone.beside("gateway_saturated", 1.5, " of idle")
    share = 100 * (cpu(gateway) - busy) / (time.monotonic() - at)
    fleet.ask("DELETE", "/v1/units/load")
    fleet.settle()
    report("gateway_load_meanwhile", share, "% of a core", None, "reported: saturated means about 100")
    return held


def siblings(fleet: Fleet, alone: Alone) -> bool:
    """Among so many idle ones."""
    idle = SIBLINGS if alone.count >= 20 else 10 * alone.count
    deploy(fleet, {f"idle{n}": IDLE for n in range(idle)})
    fleet.settle(120)
    return alone.beside(f"{idle}_siblings", 1.3, " of none")


def run(count: int) -> bool:
    """All measures of this file."""
    with scene() as (base, stamps), bare("reference.py", 1, base / "ref", "--", *stamps.trivial("{}")):
        with running(base, {"stamped": unit(stamps.trivial("stamped"))}) as fleet:
            names = [str(base / "ref" / "0"), "stamped"]
            victims = Victims(stamps, names)
            reference, ours = victims.rounds(count, names)
            limit = max(30.0, 3 * p99(reference))
            alone = Alone(victims, names, count, [median(reference), median(ours)])
            held = [
                gate("restart_median", median(ours), median(reference), 2.5),
                print_line("restart_p99", p99(ours), "ms", p99(reference), "<= max(30 ms, 3x)", p99(ours) <= limit),
                bus_down(fleet, alone),
                busy_gateway(fleet, alone),
                siblings(fleet, alone),
            ]
    return all(held)
