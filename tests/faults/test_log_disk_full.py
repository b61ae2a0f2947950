"""Fault row "log disk full": units and messages go on untouched; what could not be written is counted and shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentd.keeper.output import OutputPipe
from agentd.keeper.plan import Output
from chaos.fleet import CONFIG, DRY_RUN, Fleet
from tests.faults.moments import House, agent, each, slow
from tests.faults.moments import house as start_house
from tests.fleet import fleet
from tests.waiting import wait_until

Json = dict[str, Any]
TALKER = """
import os, pathlib, sys, time
from agentd.sdk import Agent

app = Agent()

@app.on("print")
async def say(ctx, data):
    os.write(1, (data["text"] * data["times"]).encode())
    return {"pid": os.getpid()}

app.run()
"""
UNIT = '[agent]\nexec = ["python", "{program}"]\ntype = "notify"\n'


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of that size at path; call what it yields with mount options to change it. Skips without mount."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def mount(options: str) -> int:
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True
        ).returncode

    if os.geteuid() != 0 or mount(f"size={size}"):
        pytest.skip("needs root that may mount a tmpfs")
    try:
        yield lambda options: subprocess.run(
            ["mount", "-o", f"remount,{options}", str(path)], check=True
        ).check_returncode()
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def disk(short_dir: Path) -> Iterator[Callable[[str], None]]:
    """The logs of the fleet below have 256 KiB."""
    with small_disk(short_dir / "s" / "log", "256k") as change:
        yield change


@pytest.fixture
def house(short_dir: Path, disk: Callable[[str], None]) -> Iterator[Fleet]:
    (short_dir / "s").chmod(0o711)
    program = short_dir / "talker.py"
    program.write_text(TALKER)
    program.chmod(0o755)
    with fleet(short_dir, {"talker": UNIT.format(program=program)}, CONFIG + DRY_RUN) as running:
        running.wait("talker", state="running", ready=True)
        yield running


def say(house: Fleet, text: str, times: int = 1) -> Json:
    """The unit prints this while it works on a message; the answer proves that the message was done."""
    return house.post("/v1/send", {"to": "talker", "kind": "print", "data": {"text": text, "times": times}, "wait": 10})


def dropped(house: Fleet) -> int:
    page = httpx.get(f"http://{house.status()['agentd']['metrics']}/metrics").text
    line = next(x for x in page.splitlines() if x.startswith('agentd_log_dropped_bytes_total{unit="talker"}'))
    return int(float(line.split()[1]))


def printed(house: Fleet, *options: str) -> str:
    argv = [sys.executable, "-m", "agentd.ctl.main", "--socket", str(house.runtime / "control.sock")]
    return subprocess.run([*argv, "logs", "talker", "-n", "1000", *options], capture_output=True, text=True).stdout


@pytest.mark.cell("unit", "M")
@pytest.mark.cell("message", "M")
def test_log_disk_full(house: Fleet, disk: Callable[[str], None]) -> None:
    """The unit runs on and its messages are done; each dropped byte is in status, metrics and the log's own marker."""
    before = house.unit("talker")
    assert dropped(house) == before["log_dropped"] == 0
    for _ in range(5):
        assert say(house, "x" * 99 + "\n", 1000)["result"] == {"pid": before["pid"]}
    warned = house.wait("talker", state="running")
    wait_until(lambda: any("cannot be written" in w for w in house.unit("talker")["warnings"]), 5)
    warned = house.unit("talker")
    assert any("No space left on device" in warning for warning in warned["warnings"])
    assert say(house, "y" * 99 + "\n", 10)["result"] == {"pid": before["pid"]}
    kept = sum(p.stat().st_size for p in (house.state / "log").glob("talker.log*") if p.suffix != ".idx")
    expected = 5 * 100_000 + 1000 - kept
    assert kept < 256 << 10
    wait_until(lambda: house.unit("talker")["log_dropped"] == expected, 5)
    assert dropped(house) == expected

    disk("size=8M")
    say(house, "room again\n")
    wait_until(lambda: "room again" in printed(house), 5)
    marker = f"[agentd: {expected} bytes of output were dropped here: the file could not be written]"
    assert printed(house).splitlines()[-2:] == [marker, "room again"]
    marked = [json.loads(text) for text in printed(house, "--json").splitlines()]
    assert [line["dropped"] for line in marked if "dropped" in line] == [expected]
    wait_until(lambda: any("written again" in w for w in house.unit("talker")["warnings"]), 5)
    after = house.unit("talker")
    assert (after["pid"], after["invocation"], after["failures"]) == (before["pid"], before["invocation"], 0)
    assert dropped(house) == expected


def test_dropped_output_is_remembered_by_the_next_daemon(house: Fleet) -> None:
    """The keeper counts: a daemon that was killed meanwhile shows the same number."""
    for _ in range(4):
        say(house, "x" * 99 + "\n", 1000)
    wait_until(lambda: house.unit("talker")["log_dropped"] > 0, 5)
    count = house.unit("talker")["log_dropped"]
    house.kill_daemon()
    house.settle()
    assert house.unit("talker")["log_dropped"] >= count
    assert house.unit("talker")["warnings"]


@contextmanager
def full_later(base: Path) -> Iterator[None]:
    """The logs have 1 MiB; what fills it is written by ``struck``."""
    with small_disk(base / "s" / "log", "1M"):
        (base / "s").chmod(0o711)
        yield


@pytest.fixture(scope="module")
def at() -> Iterator[House]:
    """Units that print all the while."""
    units = {**dict.fromkeys("imsh", agent("--print")), "young": slow("--print"), "deaf": slow("--deaf", "--print")}
    with start_house({**units, "fresh": agent("--print")}, ground=full_later) as made:
        yield made


def fill(file: Path) -> None:
    """Make the file as large as its disk lets it be."""
    with file.open("wb", 0) as filler, suppress(OSError):
        while filler.write(b"x" * 1024):
            pass


@pytest.fixture(scope="module")
def struck(at: House) -> dict[str, Json]:
    """Each in its moment; then the disk is full, and output of all of them is lost."""
    before = {moment.lower(): at.bring(moment.lower(), moment) for moment in "IMSH"}
    at.fleet.post("/v1/units/fresh/stop")
    before |= {"young": at.starting("young"), "deaf": at.stopping("deaf")}
    fill(at.fleet.state / "log" / "filler")
    for name in "imsh":
        wait_until(lambda name=name: at.fleet.unit(name)["log_dropped"] > 10_000, 10)
    return before


@each("IMSH", message="MSH", ledger="SH")
def test_untouched(at: House, struck: dict[str, Json], moment: str) -> None:
    """It loses output, which is counted and shown, and nothing else: what it did it brings to its end, once."""
    name = moment.lower()
    at.untouched(name, struck[name])
    at.finish(name, moment)
    now = at.untouched(name, struck[name])
    assert any("No space left on device" in warning for warning in now["warnings"])


@pytest.mark.cell("unit", "P")
def test_starts_go_on_and_new_ones_begin(at: House, struck: dict[str, Json]) -> None:
    """One that was starting becomes ready; one whose log has no room starts all the same."""
    at.let_in("young")
    at.untouched("young", struck["young"])
    lost = at.fleet.unit("fresh")["log_dropped"]
    assert at.fleet.post("/v1/units/fresh/start")["failures"] == 0
    at.bring("fresh", "I")
    wait_until(lambda: at.fleet.unit("fresh")["log_dropped"] > lost, 10)


@pytest.mark.cell("unit", "P")
def test_a_stop_goes_on(at: House, struck: dict[str, Json]) -> None:
    """As ever: a clean stop."""
    at.write("deaf", "leave", "0")
    after = at.fleet.wait("deaf", state="inactive")
    assert (after["last"]["cause"], after["failures"]) == ("stopped", 0)


def test_a_unit_starts_while_its_log_cannot_be_made(short_dir: Path) -> None:
    """Read-only from the start: output is dropped and counted; once it can be written, it is, behind a marker."""
    with small_disk(short_dir / "log", "1M") as change:
        change("ro")
        output = Output(str(short_dir / "fifo"), str(short_dir / "log" / "x.log"))
        pipe = OutputPipe(output, None, None)
        writer = pipe.writer()
        os.write(writer, b"lost\n")
        pipe.drain()
        assert (pipe.losses.dropped, pipe.losses.losing) == (5, True)
        assert pipe.losses.error == "Read-only file system"
        change("rw")
        os.write(writer, b"kept\n")
        pipe.drain()
        assert (pipe.losses.dropped, pipe.losses.losing) == (5, False)
        assert (
            Path(output.file)
            .read_text()
            .endswith("5 bytes of output were dropped here: the file could not be written]\nkept\n")
        )
        os.close(writer)
        pipe.close()
