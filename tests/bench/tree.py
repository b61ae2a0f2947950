"""Nothing that a unit started outlives it: 100 trials of each death and each kind of stubborn child; and how fast."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from chaos.fleet import wait_until
from tests.bench.lines import median, print_line, report
from tests.bench.processes import Watched
from tests.bench.scene import pids, running, scene, unit
from tests.bench.stamps import Stamp, Stamps
from tests.fleet import Fleet

UNITS = 20
TRIALS = 100
BRANCHES = 19
SAY = 'echo "$0 {role} $BASHPID $EPOCHREALTIME" > {fifo}'
SHAPES = {
    "double_fork": "(setsid /bin/bash -c '{child}; exec sleep 1000000' \"$0\" &); {main}; exec sleep 1000000",
    "ignores_sigterm": "trap '' TERM; ({child}; exec sleep 1000000) & {main}; while :; do sleep 1000; done",
}
"""What a unit is, in bash: the first leaves its session and its parent, the second can only be killed."""
Death = Callable[[Fleet, list[Stamp]], None]


def tree(name: str, shape: str, stamps: Stamps) -> list[str]:
    """The argv of a unit with a child; both say so."""
    child, main = (SAY.format(role=role, fifo=stamps.path) for role in ("child", "main"))
    return ["/bin/bash", "-c", SHAPES[shape].format(child=child, main=main), name]


def crash(fleet: Fleet, mains: list[Stamp]) -> None:
    """kill -9 of each main process; replaced by policy."""
    for main in mains:
        os.kill(main.pid, 9)


def stop(fleet: Fleet, mains: list[Stamp]) -> None:
    """An operator's stop of each; then started again."""
    posts = [f"/v1/units/{main.name}/stop" for main in mains]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: fleet.post(path, {"wait": 20}), posts))


def daemon_crash(fleet: Fleet, mains: list[Stamp]) -> None:
    """kill -9 of each main process, and of the daemon while it is at it."""
    _, daemon = pids(fleet)
    for main in mains[: len(mains) // 2]:
        os.kill(main.pid, 9)
    os.kill(daemon, 9)
    for main in mains[len(mains) // 2 :]:
        os.kill(main.pid, 9)


DEATHS: dict[str, Death] = {"crash": crash, "stop": stop, "daemon_crash": daemon_crash}


def trials(fleet: Fleet, stamps: Stamps, death: str, born: list[Stamp], rounds: int) -> tuple[int, list[Stamp]]:
    """How many processes were left at the moment when their unit was stopped or replaced; the last ones born."""
    left = 0
    for _ in range(rounds):
        watched = Watched(stamp.pid for stamp in born)
        DEATHS[death](fleet, [stamp for stamp in born if stamp.role == "main"])
        if death == "stop":
            left += len(watched.alive())
            for stamp in born:
                if stamp.role == "main":
                    fleet.post(f"/v1/units/{stamp.name}/start", {"wait": 20})
        born = stamps.gather(len(born))
        left += len(watched.alive())
        watched.kill()
        watched.close()
        wait_until(fleet.answers, 20, "the control API is back")
    return left, born


def shape_left(shape: str, level: str, rounds: int) -> dict[str, int]:
    """What one kind of child left, by death."""
    found = {}
    with scene() as (base, stamps):
        names = [f"tree{n}" for n in range(UNITS)]
        more = f'[isolation]\nlevel = "{level}"\n' if level else ""
        units = {n: unit(tree(n, shape, stamps), more, agent='stop_timeout = "200ms"\n') for n in names}
        with running(base, units) as fleet:
            born = stamps.gather(2 * UNITS)
            for death in DEATHS:
                found[death], born = trials(fleet, stamps, death, born, rounds)
    return found


def twenty(count: int) -> None:
    """A tree of 20 processes: kill -9 of its main process until the last of them is dead."""
    script = (
        f"for i in {{1..{BRANCHES}}}; do (setsid sleep 1000000 &); done; "
        'echo "$0 main $$ $EPOCHREALTIME" > {fifo}; exec sleep 1000000'
    )
    took = []
    with scene() as (base, stamps):
        argv = ["/bin/bash", "-c", script.replace("{fifo}", str(stamps.path)), "bush"]
        with running(base, {"bush": unit(argv)}) as fleet:
            for _ in range(count):
                main = stamps.of("bush")
                whole = wait_until(lambda: len(found := members(fleet)) == BRANCHES + 1 and found, 10, "20 processes")
                watched = Watched(whole)
                at = time.monotonic()
                os.kill(main.pid, 9)
                left = watched.alive(10)
                took.append(1000 * (time.monotonic() - at))
                watched.close()
                assert not left
    report("tree_of_20_killed_median", median(took), "ms", None, "aim <= 50 ms")


def members(fleet: Fleet) -> list[int]:
    """The tree: all whose environment names the unit of this fleet."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and b"AGENTD_UNIT=bush" in (environ := (entry / "environ").read_bytes()):
                found += [int(entry.name)] if os.fsencode(fleet.runtime) in environ else []
    return found


def run(count: int) -> bool:
    """All measures of this file. A host without cgroups has the second level only."""
    rounds = max(1, min(count, TRIALS) // UNITS)
    held = True
    for shape in SHAPES:
        for death, left in shape_left(shape, "", rounds).items():
            name = f"tree_left_{death}_{shape}"
            held &= print_line(name, left, f"processes of {2 * UNITS * rounds}", None, "0", not left)
        for death, left in shape_left(shape, "rlimit", rounds).items():
            report(f"tree_left_{death}_{shape}_without_cgroup", left, f"processes of {2 * UNITS * rounds}")
    twenty(max(1, min(count, 50)))
    return held
