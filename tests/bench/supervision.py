"""`make bench BENCH=supervision`: agentd against the bare loop of reference.py, in the same run on the same machine.

One JSON line per measure: measure, value, unit, reference, ratio, target, ok. Ratios are what counts: machines differ.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chaos.fleet import Fleet, wait_until
from chaos.run import place

STAMP = ["/bin/bash", "-c", 'echo "$$ $EPOCHREALTIME" >> {}/stamps; exec sleep 1000000']
UNIT = """[agent]
exec = ["/bin/bash", "-c", 'echo "$$ $EPOCHREALTIME" >> $AGENTD_STATE_DIR/stamps; exec sleep 1000000']
[restart]
healthy_after = "0s"
burst = 1000000
"""
IDLE = '[agent]\nexec = ["/bin/sleep", "1000000"]\n'
BEATING = """[agent]
exec = ["python", "-c", '''
import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
while True:
    s.sendto(b"WATCHDOG=1", os.environ["NOTIFY_SOCKET"])
    time.sleep(0.1)
''']
[restart]
healthy_after = "0s"
burst = 1000000
[liveness]
heartbeat = "1s"
"""


def measure(name: str, value: float, unit: str, reference: float | None, target: str, ok: bool) -> bool:
    """Print one line."""
    ratio = None if not reference else round(value / reference, 2)
    row = {"measure": name, "value": round(value, 3), "unit": unit}
    row |= {"reference": None if reference is None else round(reference, 3), "ratio": ratio, "target": target, "ok": ok}
    print(json.dumps(row), flush=True)
    return ok


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def last(stamps: Path) -> tuple[int, float]:
    """Pid and start of the newest process."""
    lines = stamps.read_text().splitlines() if stamps.exists() else []
    pid, at = lines[-1].split() if lines else ("0", "0")
    return int(pid), float(at)


def restarts(stamps: Path, count: int) -> list[float]:
    """Milliseconds from kill -9 to the first act of the replacement, count times."""
    found = []
    for _ in range(count):
        pid, _ = wait_until(lambda: last(stamps) if last(stamps)[0] else None, 10, "a stamp")
        time.sleep(0.02)
        at = time.time()
        os.kill(pid, 9)
        _, started = wait_until(lambda pid=pid: last(stamps) if last(stamps)[0] != pid else None, 10, "a replacement")
        found.append((started - at) * 1000)
    return found


@contextmanager
def reference(base: Path, count: int, argv: list[str]) -> Iterator[tuple[float, Callable[[], float]]]:
    """The bare loop: seconds until all units ran, and a function that stops it and tells how long that took."""
    script = Path(__file__).with_name("reference.py")
    command = [sys.executable, "-S", str(script), str(count), str(base / "ref"), "--", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = float(process.stdout.readline().split()[1])
    stopped: list[float] = []

    def stop() -> float:
        if not stopped:
            process.terminate()
            assert process.stdout is not None
            stopped.append(float(process.stdout.readline().split()[1]))
            process.wait()
        return stopped[0]

    try:
        yield ready, stop
    finally:
        stop()


def restart(count: int) -> bool:
    """kill -9 → replacement running, alone and with 500 idle siblings."""
    with place() as base:
        with reference(base, 1, STAMP):
            plain = restarts(base / "ref" / "0" / "stamps", count)
        fleet = Fleet(base, {"stamped": UNIT})
        try:
            fleet.start()
            stamps = fleet.state / "home" / "stamped" / "stamps"
            ours = restarts(stamps, count)
            files = [{"path": f"{fleet.units}/idle{n}.toml", "text": IDLE} for n in range(500)]
            fleet.post("/v1/deploy", {"files": files})
            fleet.settle(120)
            crowded = restarts(stamps, count)
        finally:
            fleet.stop()
    reference_median, median = statistics.median(plain), statistics.median(ours)
    limit = max(30.0, 3 * p99(plain))
    return all(
        [
            measure("restart_median", median, "ms", reference_median, "<= 2.5x", median <= 2.5 * reference_median),
            measure("restart_p99", p99(ours), "ms", p99(plain), "<= max(30 ms, 3x)", p99(ours) <= limit),
            measure(
                "restart_median_500_siblings",
                statistics.median(crowded),
                "ms",
                median,
                "<= 1.3x of none",
                statistics.median(crowded) <= 1.3 * median,
            ),
        ]
    )


def thousand() -> bool:
    """1000 idle agents: start, idle cost, stop."""
    with place() as base:
        with reference(base, 1000, ["/bin/sleep", "1000000"]) as (plain, stop):
            plain_stop = stop()
        fleet = Fleet(base, {})
        try:
            fleet.start()
            at = time.monotonic()
            files = [{"path": f"{fleet.units}/idle{n}.toml", "text": IDLE} for n in range(1000)]
            fleet.post("/v1/deploy", {"files": files})
            wait_until(lambda: running(fleet) == 1000, 120, "1000 units run")
            started = time.monotonic() - at
            status = fleet.status()["agentd"]
            pids = (status["pid"], status["keeper_pid"])
            busy, at = cpu(pids), time.monotonic()
            time.sleep(10)
            idle = 100 * (cpu(pids) - busy) / (time.monotonic() - at)
            memory = resident(pids[0])
            at = time.monotonic()
        finally:
            fleet.stop()
        stopped = time.monotonic() - at
    return all(
        [
            measure("thousand_start", started, "s", plain, "<= 3x", started <= 3 * plain),
            measure("thousand_stop", stopped, "s", plain_stop, "<= 1 s", stopped <= 1),
            measure("thousand_idle_cpu", idle, "% of a core", None, "<= 0.2 %", idle <= 0.2),
            measure("thousand_daemon_memory", memory, "MB", None, "<= 100 MB", memory <= 100),
        ]
    )


def hang(count: int) -> bool:
    """SIGSTOP of a beating agent → judged hung, beyond its limit of 1 s."""
    late = []
    with place() as base:
        fleet = Fleet(base, {"beating": BEATING})
        try:
            fleet.start()
            for _ in range(count):
                unit = fleet.wait("beating", state="running", activity="idle")
                time.sleep(0.5)
                at = time.time()
                os.kill(unit["pid"], 19)
                fleet.wait("beating", 10, restarts=unit["restarts"] + 1)
                found = wait_until(
                    lambda at=at: [r for r in fleet.records(kind="unit.stopping", unit="beating") if r["at"] > at],
                    5,
                    "",
                )
                late.append((found[0]["at"] - at - 1.0) * 1000)
        finally:
            fleet.stop()
    return measure("hang_found_late_p99", p99(late), "ms", None, "<= 50 ms beyond the limit", p99(late) <= 50)


def running(fleet: Fleet) -> int:
    """Agent units that run."""
    return sum(unit["state"] == "running" and not unit["system"] for unit in fleet.status()["units"])


def cpu(pids: tuple[int, ...]) -> float:
    """CPU seconds of these processes."""
    spent = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/schedstat").read_text().split()
        spent += int(fields[0]) / 1e9
    return spent


def resident(pid: int) -> float:
    """Megabytes."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(lines["VmRSS"].split()[0]) / 1024


def run(options: Any) -> bool:
    """All measures; whether each met its target."""
    return all([restart(options.count), thousand(), hang(min(10, options.count))])
