"""1000 units that beat once a second: what keeper and daemon spend on it, against a bare epoll and recv loop.

And, as they are there: how long the daemon takes to adopt 1000.
"""

from __future__ import annotations

import json
import os
import sys
import time

from tests.bench.bare import bare
from tests.bench.lines import median, print_line, report
from tests.bench.processes import share
from tests.bench.scene import adoptions, deploy, halt, kill_daemon, pids, running, scene, until_spawned

UNITS = 1000
REST, INTERVAL = 4.0, 10.0
RETURNS = 5
PROGRAM = """
import _socket, os, time
s, path, due = _socket.socket(1, 2), os.environ["NOTIFY_SOCKET"], time.monotonic()
while True:
    s.sendto(b"WATCHDOG=1", path)
    due += 1
    time.sleep(max(0, due - time.monotonic()))
"""
ARGV = ["-I", "-S", "-c", PROGRAM]
BEATING = f'[agent]\nexec = {json.dumps(["python", *ARGV])}\n[liveness]\nheartbeat = "5s"\n'


def run(count: int) -> bool:
    """The measure of this file. Both receive from the same program, one after the other."""
    units = UNITS if count >= 20 else 10 * count
    with scene() as (base, _):
        with bare("reference_beats.py", units, base / "ref", 0, "--", os.path.realpath(sys.executable), *ARGV) as plain:
            time.sleep(REST)
            least = share(INTERVAL, plain.pid)
        with running(base) as fleet:
            keeper, daemon = pids(fleet)
            system = len(fleet.status()["units"])
            deploy(fleet, {f"beating{n}": BEATING for n in range(units)})
            until_spawned(keeper, system + 1 + units)
            fleet.settle(120)
            time.sleep(REST)
            ours = share(INTERVAL, keeper, daemon)
            back = [kill_daemon(fleet) for _ in range(RETURNS)]
            taken = adoptions(fleet)[-RETURNS:]
            fleet.settle(120)
            restarts = sum(unit["restarts"] for unit in fleet.status()["units"])
            for record in fleet.records(kind="unit.ended"):
                print(f"{record['unit']} at {record['at']:.3f}: {record['reason']}", file=sys.stderr)
            halt(fleet)
    report("thousand_adopted_median", 1000 * median(taken), "ms")
    report("thousand_control_api_back_median", median(back), "s")
    return all(
        [
            print_line("thousand_beating_cpu", ours, "% of a core", least, "<= 2x", ours <= 2 * least),
            print_line("thousand_beating_restarts", restarts, "units", None, "0", not restarts),
        ]
    )
