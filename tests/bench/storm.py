"""The daemon is killed each time that it says that its adoption is complete, while 100 agents write numbered lines."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from chaos.fleet import Broken
from tests.bench.lines import median, p99, print_line, report
from tests.bench.output import files
from tests.bench.scene import adoptions, kill_daemon, pids, running, scene
from tests.bench.stamps import Stamps
from tests.fleet import Fleet

UNITS = 100
STORM = 60.0
KILLS = 30
RETURNS = 5
HEALTHY = 1.5
"""Seconds that a daemon is left alone, so that its next restart is an undisturbed one."""
PROGRAM = """
import os, signal, sys, time
name, fifo = sys.argv[1:3]
going, number = [1], 0
signal.signal(signal.SIGTERM, lambda *_: going.clear())
due = time.monotonic()
while going:
    os.write(1, b"%s %d %s end\\n" % (name.encode(), number, b"." * (number % 89)))
    number += 1
    due += 0.02
    time.sleep(max(0, due - time.monotonic()))
with open(fifo, "w") as told:
    told.write("%s wrote-%d %d 0\\n" % (name, number, os.getpid()))
"""
UNIT = '[agent]\nexec = {argv}\nstop_timeout = "30s"\n'


def reports(log: Path, until: float) -> Iterator[int]:
    """The daemons that say in agentd's log that their adoption is complete, by pid, as they say it."""
    with log.open() as lines:
        lines.seek(0, os.SEEK_END)
        part = ""
        while time.monotonic() < until:
            if not (more := lines.readline()):
                time.sleep(0.001)
                continue
            part += more
            if part.endswith("\n"):
                if '"daemon.adopted"' in part:
                    yield int(json.loads(part)["pid"])
                part = ""


def storm(fleet: Fleet, seconds: float) -> int:
    """Kill the daemon, and each next one as soon as it says so; how many."""
    until = time.monotonic() + seconds
    coming = reports(fleet.log, until)
    os.kill(pids(fleet)[1], 9)
    kills = 1
    for pid in coming:
        os.kill(pid, 9)
        kills += 1
    return kills


def written(stamps: Stamps, count: int) -> dict[str, int]:
    """How many lines each of them wrote, by its own word."""
    found: dict[str, int] = {}
    while len(found) < count:
        stamp = stamps.next(40)
        found[stamp.name] = int(stamp.role.removeprefix("wrote-"))
    return found


def judge(text: bytes, name: str, count: int) -> Counter[str]:
    """What is wrong with a log that should hold so many numbered lines."""
    pattern = re.compile(rb"%b (\d+) (\.*) end" % name.encode())
    numbers: Counter[int] = Counter()
    wrong: Counter[str] = Counter()
    for line in text.split(b"\n")[:-1]:
        match = pattern.fullmatch(line)
        if match is None or len(match[2]) != int(match[1]) % 89:
            wrong["torn"] += 1
        else:
            numbers[int(match[1])] += 1
    wrong["torn"] += bool(text) and not text.endswith(b"\n")
    wrong["lost"] += sum(number not in numbers for number in range(count))
    wrong["duplicated"] += numbers.total() - len(numbers)
    wrong["of lines"] += count
    return wrong


def run(count: int) -> bool:
    """All measures of this file."""
    seconds = STORM if count >= 20 else 6.0
    with scene() as (base, stamps):
        names = [f"writer{n}" for n in range(UNITS)]
        command = ["python", "-I", "-S", "-c", PROGRAM]
        units = {name: UNIT.format(argv=json.dumps([*command, name, str(stamps.path)])) for name in names}
        with running(base, units) as fleet:
            before = {u["name"]: u["pid"] for u in fleet.status()["units"]}
            first = len(adoptions(fleet))
            kills = storm(fleet, seconds)
            back = calm(fleet)
            taken = adoptions(fleet)[first:]
            rows = {u["name"]: u for u in fleet.status()["units"]}
            moved = sum(rows[name]["pid"] != pid or rows[name]["restarts"] > 0 for name, pid in before.items())
            for name in names:
                fleet.post(f"/v1/units/{name}/stop", {"wait": 0})
            counts = written(stamps, UNITS)
            fleet.settle()
            wrong: Counter[str] = Counter()
            for name in names:
                wrong += judge(b"".join(path.read_bytes() for path in files(fleet, name)), name, counts[name])
    report("storm_lines", wrong["of lines"], "lines written")
    report("storm_adoption_median", 1000 * median(taken), "ms")
    faults = wrong["lost"] + wrong["duplicated"] + wrong["torn"]
    target = f">= {KILLS} in 60 s"
    return all(
        [
            print_line("storm_kills", kills, f"kills in {seconds:g} s", None, target, kills * 60 >= KILLS * seconds),
            print_line("storm_restarts", moved, "units", None, "0", not moved),
            print_line("storm_lines_wrong", faults, f"lines: {dict(wrong)}", None, "0", not faults),
            print_line("storm_adoption_p99", 1000 * p99(taken), "ms", None, "<= 50 ms", p99(taken) <= 0.05),
            print_line("control_api_back", max(back), "s", None, "<= 1 s, the worst of 5", max(back) <= 1),
        ]
    )


def calm(fleet: Fleet) -> list[float]:
    """Seconds until the control API is back, each time after a daemon that was left alone."""
    until = time.monotonic() + 20
    while not fleet.answers():
        if time.monotonic() > until:
            raise Broken("the daemon is not back after the storm")
        time.sleep(0.01)
    back = []
    for _ in range(RETURNS):
        time.sleep(HEALTHY)  # left alone: this is the premise of the measure
        back.append(kill_daemon(fleet))
    return back
