"""200 MB of stdout: how fast they reach the log, whether all do, and what a restart takes meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from chaos.fleet import wait_until
from tests.bench.bare import HERE
from tests.bench.lines import median, p99, print_line, report
from tests.bench.restart import Victims
from tests.bench.scene import deploy, running, scene, unit
from tests.bench.stamps import Stamps
from tests.fleet import Fleet

MEGA = 1_000_000
SIZE = 200 * MEGA
LOGS = '\n[logs]\nmax_size = "64M"\nkeep = 8\n'
TIMES = 5
PROGRAM = """
import os, sys, time
size, name, fifo = int(sys.argv[1]), *sys.argv[2:]
with open(fifo, "w") as told:
    told.write("%s begun 0 %.6f\\n" % (name, time.time()))
sent = number = 0
block = b"".join(b"%07d the quick brown fox jumps over the lazy dog, and nobody is any the wiser for it\\n" % n
                 for n in range(800))
while sent < size:
    data = (b"block %09d\\n" % number + block)[: size - sent]
    number += 1
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]
    sent += len(data)
"""


def argv(name: str, fifo: Path | str) -> list[str]:
    """The arguments of a Python that says when it begins and prints 200 MB, always the same."""
    return ["-I", "-S", "-c", PROGRAM, str(SIZE), name, str(fifo)]


def expected() -> str:
    """The checksum of what the program prints."""
    found = hashlib.sha256()
    with subprocess.Popen([sys.executable, *argv("", os.devnull)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while data := process.stdout.read(1 << 20):
            found.update(data)
    return found.hexdigest()


def copied(base: Path, stamps: Stamps) -> float:
    """Seconds of the bare copy, from the program's first act to the end of its output."""
    words = [str(base / "copy"), "--", os.path.realpath(sys.executable), *argv("copy", stamps.path)]
    command = [sys.executable, "-S", str(HERE / "reference_copy.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        ended = float(process.communicate()[0].split()[1])
    (base / "copy").unlink()
    return ended - stamps.of("copy").at


def files(fleet: Fleet, name: str) -> list[Path]:
    """Its log, oldest part first."""
    log = fleet.state / "log" / f"{name}.log"
    old = [path for number in range(16, 0, -1) if (path := log.with_name(f"{name}.log.{number}")).exists()]
    return [*old, log] if log.exists() else old


def size(fleet: Fleet, name: str) -> int:
    """Bytes in its log."""
    found = 0
    for path in files(fleet, name):
        try:
            found += path.stat().st_size
        except FileNotFoundError:
            return 0  # it is being rotated: looked at again
    return found


def digest(fleet: Fleet, name: str) -> str:
    """The checksum over all parts of its log."""
    found = hashlib.sha256()
    for path in files(fleet, name):
        with path.open("rb") as part:
            while data := part.read(1 << 20):
                found.update(data)
    return found.hexdigest()


def logged(fleet: Fleet, name: str, stamps: Stamps) -> float:
    """Seconds from the program's first act until all that it printed is in the log: the time of the last write."""
    text = f'[agent]\ntype = "oneshot"\nexec = {json.dumps(["python", *argv(name, stamps.path)])}\n'
    deploy(fleet, {name: text})
    begun = stamps.of(name).at
    fleet.wait(name, 60, state="inactive")
    wait_until(lambda: size(fleet, name) >= SIZE, 20, f"{SIZE} bytes in the log of {name}")
    return max(path.stat().st_mtime for path in files(fleet, name)) - begun


def sibling(fleet: Fleet, victims: Victims, count: int, alone: float, program: list[str]) -> bool:
    """Restarts while another unit prints 200 MB again and again."""
    deploy(fleet, {"printer": unit(program)})
    wait_until(lambda: size(fleet, "printer") > 50 * MEGA, 60, "output flows")
    (found,) = victims.rounds(count, ["stamped"])
    restarts = fleet.unit("printer")["restarts"]
    fleet.ask("DELETE", "/v1/units/printer")
    report("output_meanwhile", restarts * SIZE / MEGA, "MB", None, "reported: printed during the next measure")
    ratio = median(found) <= 1.5 * alone
    report("restart_p99_beside_output", p99(found), "ms")
    return print_line("restart_median_beside_output", median(found), "ms", alone, "<= 1.5x of quiet", ratio)


def run(count: int) -> bool:
    """All measures of this file; copies and logs in turn."""
    wanted = expected()
    times = TIMES if count >= 50 else 1
    plain, ours, wrong = [], [], 0
    with scene() as (base, stamps), running(base, {"stamped": unit(stamps.trivial("stamped"))}, LOGS) as fleet:
        victims = Victims(stamps, ["stamped"])
        for number in range(times):
            name = f"loud{number}"
            plain.append(copied(base, stamps))
            ours.append(logged(fleet, name, stamps))
            whole = size(fleet, name) == SIZE and digest(fleet, name) == wanted
            wrong += not whole or bool(fleet.unit(name)["log_dropped"])
            for path in files(fleet, name):
                path.unlink()
        (alone,) = victims.rounds(count, ["stamped"])
        held = sibling(fleet, victims, count, median(alone), ["python", *argv("printer", stamps.path)])
    speed, least = SIZE / MEGA / median(ours), SIZE / MEGA / median(plain)
    return all(
        [
            print_line("output_speed", speed, "MB/s", least, ">= 0.5x", speed >= 0.5 * least),
            print_line("output_not_as_printed", wrong, f"logs of {times}", None, "0: by checksum", not wrong),
            held,
        ]
    )
