"""100 agents that crash at once, for ever: what keeper and daemon spend on them after the first minute."""

from __future__ import annotations

import time

from tests.bench.lines import report
from tests.bench.processes import share
from tests.bench.scene import pids, running, scene

UNITS = 100
MINUTE, INTERVAL = 60.0, 20.0
UNIT = '[agent]\nexec = ["/bin/false"]\n'


def run(count: int) -> bool:
    """The measure of this file: no gate."""
    first = MINUTE if count >= 20 else 3.0
    with scene() as (base, _), running(base, {f"crashing{n}": UNIT for n in range(UNITS)}) as fleet:
        time.sleep(first)  # the time after which it is measured
        keeper, daemon = pids(fleet)
        spent = share(INTERVAL if count >= 20 else 2.0, keeper, daemon)
        parked = sum(unit["state"] == "parked" for unit in fleet.status()["units"])
    report("crash_loop_of_100_cpu", spent, "% of a core", None, "aim <= 5 % after the first minute")
    report("crash_loop_of_100_parked", parked, "units parked by then")
    return True
