"""1000 idle agents: start, what they cost, a change of one, the daemon's return, stop."""

from __future__ import annotations

import time

from tests.bench.bare import bare
from tests.bench.lines import median, print_line, report
from tests.bench.processes import resident, share
from tests.bench.scene import IDLE, adoptions, deploy, halt, kill_daemon, pids, running, scene, until_spawned
from tests.fleet import Fleet

UNITS = 1000
REST, INTERVAL = 3.0, 20.0
"""Seconds after the start until the idle interval begins, and how long it is."""
CHANGES, RETURNS = 20, 5


def run(count: int) -> bool:
    """All measures of this file."""
    units = UNITS if count >= 20 else 10 * count
    with scene() as (base, _):
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
            change(fleet)
            back = [kill_daemon(fleet) for _ in range(RETURNS)]
            taken = adoptions(fleet)[-RETURNS:]
            fleet.settle(120)
            stopped, left = halt(fleet)
    report("thousand_adopted_median", 1000 * median(taken), "ms")
    report("thousand_daemon_back_median", median(back), "s")
    return all(
        [
            print_line("thousand_start", started, "s", plain_start, "<= 3x", started <= 3 * plain_start),
            print_line("thousand_stop", stopped, "s", plain_stop, "<= 1 s", stopped <= 1),
            print_line("thousand_left", len(left), "processes and cgroups", None, "0", not left),
            print_line("thousand_idle_cpu", idle, "% of a core", None, "<= 0.2 %", idle <= 0.2),
            print_line("thousand_daemon_memory", memory, "MB", None, "<= 100 MB", memory <= 100),
        ]
    )


def change(fleet: Fleet) -> None:
    """One unit gets another file: the time until it runs by it. No other may be touched."""
    before = {unit["name"]: unit["pid"] for unit in fleet.status()["units"]}
    took = []
    for number in range(CHANGES):
        at = time.monotonic()
        deploy(fleet, {"idle7": f'{IDLE}description = "{number}"\n'})
        took.append(1000 * (time.monotonic() - at))
    fleet.settle()
    after = {unit["name"]: unit["pid"] for unit in fleet.status()["units"]}
    others = sum(after[name] != pid for name, pid in before.items() if name != "idle7")
    report("one_change_of_thousand_median", median(took), "ms", None, "aim <= 20 ms: request to answer")
    report("one_change_of_thousand_others_touched", others, "units", None, "aim 0")
