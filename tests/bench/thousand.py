"""1000 idle agents: start, what they cost, a change of one, stop."""

from __future__ import annotations

import time

from tests.bench.bare import bare
from tests.bench.lines import median, print_line, report
from tests.bench.processes import resident, share
from tests.bench.scene import IDLE, deploy, halt, pids, running, scene, unit, until_spawned
from tests.bench.stamps import Stamps
from tests.fleet import Fleet

UNITS = 1000
REST, INTERVAL = 3.0, 20.0
"""Seconds after the start until the idle interval begins, and how long it is."""
CHANGES = 20


def run(count: int) -> bool:
    """All measures of this file."""
    units = UNITS if count >= 20 else 10 * count
    with scene() as (base, stamps):
        with bare("reference.py", units, base / "ref", "--", "/bin/sleep", "1000000") as plain:
            plain_start, plain_stop = plain.ready, plain.stop()
        with running(base) as fleet:
            keeper, daemon = pids(fleet)
            system = len(fleet.status()["units"])
            at = time.monotonic()
            deploy(fleet, {f"idle{n}": IDLE for n in range(units)})
            until_spawned(keeper, system + 1 + units)
            started = time.monotonic() - at
            fleet.settle(120)
            time.sleep(REST)
            idle = share(INTERVAL, keeper, daemon)
            memory = resident(daemon)
            change(fleet, stamps)
            stopped, left = halt(fleet)
    return all(
        [
            print_line("thousand_start", started, "s", plain_start, "<= 3x", started <= 3 * plain_start),
            print_line("thousand_stop", stopped, "s", plain_stop, "<= 1 s", stopped <= 1),
            print_line("thousand_left", len(left), "processes and cgroups", None, "0", not left),
            print_line("thousand_idle_cpu", idle, "% of a core", None, "<= 0.2 %", idle <= 0.2),
            print_line("thousand_daemon_memory", memory, "MB", None, "<= 100 MB", memory <= 100),
        ]
    )


def change(fleet: Fleet, stamps: Stamps) -> None:
    """One unit gets another file: the time until the answer, and until it runs by it. No other may be touched."""
    before = {row["name"]: row["pid"] for row in fleet.status()["units"]}
    answered, runs = [], []
    for number in range(CHANGES):
        at = time.time()
        deploy(fleet, {"idle7": unit(stamps.trivial(f"change{number}"))})
        answered.append(1000 * (time.time() - at))
        runs.append(1000 * (stamps.of(f"change{number}").at - at))
    fleet.settle()
    after = {row["name"]: row["pid"] for row in fleet.status()["units"]}
    others = sum(after[name] != pid for name, pid in before.items() if name != "idle7")
    report("one_change_of_thousand_answered", median(answered), "ms")
    report("one_change_of_thousand_runs", median(runs), "ms", None, "aim <= 20 ms: the changed one runs")
    report("one_change_of_thousand_others_touched", others, "units", None, "aim 0")
