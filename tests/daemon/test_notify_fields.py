"""What units say of themselves, in a real fleet: stored descriptors, main processes, and commands that ask them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import Fleet, fleet
from tests.waiting import wait_until

KEEPS = """
import array, os, signal, socket, time
count = int(os.environ.get("LISTEN_FDS", "0"))
names = os.environ.get("LISTEN_FDNAMES", "")
print("handed", [os.pread(3 + n, 64, 0).decode() for n in range(count)], names, flush=True)
def tell(text, *fds):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendmsg([text], rights, 0, os.environ["NOTIFY_SOCKET"])
if not count:
    memfd = os.memfd_create("state")
    os.write(memfd, b"checkpoint of %d" % os.getpid())
    tell(b"FDSTORE=1\\nFDNAME=state\\nREADY=1", memfd)
else:
    tell(b"READY=1")
time.sleep(1000)
"""
HANDS_OVER = """
import os, socket, time
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text, os.environ["NOTIFY_SOCKET"])
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.close(writer)
    os.read(reader, 1)  # until the parent is gone
    tell(b"MAINPID=1\\nREADY=1")
    time.sleep(1000)
tell(b"MAINPID=%d" % child)
"""
ASKS = "test ! -e {base}/sick || {{ echo first; echo the disk is sick >&2; exit 3; }}"
UNIT = '[agent]\ntype = "notify"\nexec = ["python3", "{base}/{name}.py"]\n'
PROBED = """
[agent]
exec = ["sleep", "1000"]
start_timeout = "1s"
[liveness]
probe = {{ exec = ["sh", "{base}/ask.sh"], interval = "100ms", failures = 2 }}
"""


@pytest.fixture(scope="module")
def house() -> Iterator[Fleet]:
    """One fleet for all tests of this file."""
    base = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))
    base.chmod(0o755)
    for name, text in (("keeps.py", KEEPS), ("hands.py", HANDS_OVER), ("ask.sh", ASKS.format(base=base))):
        (base / name).write_text(text)
        (base / name).chmod(0o644)
    units = {name: UNIT.format(base=base, name=name) for name in ("keeps", "hands")}
    units["probed"] = PROBED.format(base=base)
    try:
        with fleet(base, units) as running:
            yield running
    finally:
        shutil.rmtree(base)


def last_handed(house: Fleet) -> str:
    """What the newest invocation printed that it was handed."""
    return [line for line in house.log_of("keeps").splitlines() if line.startswith("handed")][-1]


def test_stored_descriptors_come_back_until_the_unit_is_stopped(house: Fleet) -> None:
    """Over a crash, a restart and the daemon's death they are kept; an operator's stop drops them."""
    first = house.unit("keeps")
    wait_until(lambda: house.unit("keeps")["stored"] == 1)
    wanted = f"handed ['checkpoint of {first['pid']}'] state"
    house.kill(first["pid"])
    house.wait("keeps", state="running", restarts=1)
    wait_until(lambda: last_handed(house) == wanted)
    house.kill_daemon()
    assert house.unit("keeps")["stored"] == 1
    house.post("/v1/units/keeps/restart")
    wait_until(lambda: house.log_of("keeps").count(wanted) == 2, 10)
    house.wait("keeps", state="running")
    house.post("/v1/units/keeps/stop")
    house.wait("keeps", state="inactive")
    wait_until(lambda: house.unit("keeps")["stored"] == 0)
    house.post("/v1/units/keeps/start")
    house.wait("keeps", state="running", ready=True)
    wait_until(lambda: last_handed(house) == "handed [] ")


def test_the_process_that_it_names_is_the_unit(house: Fleet) -> None:
    """The first process exited and ended nothing; status shows the other, over the daemon's death too; what was not its
    own was ignored, and the journal says why; the other's end is the unit's."""
    status = house.wait("hands", state="running", ready=True)
    wait_until(lambda: house.records(unit="hands", kind="unit.main"))
    (moved,) = house.records(unit="hands", kind="unit.main")
    assert moved["reason"].startswith(f"names pid {status['pid']} as its main process")
    assert status["restarts"] == 0
    wait_until(lambda: house.records(unit="hands", kind="unit.ignored"))
    (ignored,) = house.records(unit="hands", kind="unit.ignored")
    assert ignored["reason"] == "MAINPID=1 is no process that it may name: ignored"
    house.kill_daemon()
    assert house.unit("hands")["pid"] == status["pid"]
    os.kill(status["pid"], signal.SIGKILL)
    after = house.wait("hands", state="running", restarts=1, ready=True)
    assert (after["last"]["cause"], after["last"]["signal"]) == ("crashed", "SIGKILL")


def test_a_command_that_fails_is_a_hang(house: Fleet) -> None:
    """Its exit status and the last line that it printed are the reason; a unit that is well is left alone."""
    sick = house.base / "sick"
    sick.touch()
    try:
        after = house.wait("probed", state="running", restarts=1)
    finally:
        sick.unlink()
    assert after["last"]["text"] == "its probe failed 2 times: exited 3: the disk is sick"
    assert after["last"]["cause"] == "hung"
    house.wait("probed", state="running")
