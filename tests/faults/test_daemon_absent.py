"""Fault row "daemon absent for 60 s" (longer than every time-out in force): units keep working, deaths wait for it.

The keeper has no slot, as under systemd: nobody starts a daemon but the test. It is absent in two ways, killed and
standing still; each strikes units in every moment at once, and each test looks at what became of one of them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import pytest

from tests.faults.moments import Apart, House, Json, agent, each, gone, house, pids, shell, slow, stop_process
from tests.waiting import wait_until

LIMIT = 0.5
AWAY = 4 * LIMIT
LIVE = f'[liveness]\nheartbeat = "{LIMIT}s"\nprogress = "{LIMIT}s"\n[bus]\ndeadline = "{LIMIT}s"\n'


@dataclass
class Struck:
    """What was before, and while the daemon was absent."""

    before: dict[str, Json]
    all_pids: dict[str, int]
    answers: int
    """How often the units had asked each other by then, and when it was over."""
    answers_after: int
    echoed: int
    starts: list[str]
    deaf_lived: bool
    died: float
    back: float
    """Unix seconds."""


@pytest.fixture(scope="module", params=["killed", "stopped"])
def at(request: pytest.FixtureRequest) -> Iterator[House]:
    units = {**dict.fromkeys("imsh", agent(more=LIVE)), **dict.fromkeys(("asks", "echoes"), agent(more=LIVE))}
    units |= {"young": slow(agent=f'start_timeout = "{AWAY}s"'), "dies": slow(), "late": slow()}
    units["deaf"] = slow("--deaf", agent=f'stop_timeout = "{LIMIT}s"')
    units["prints"] = shell("while :; do echo line; sleep 0.02; done", f'[liveness]\nprogress = "{LIMIT}s"')
    with house(units, kind=Apart) as made:
        made.way = request.param  # type: ignore[attr-defined]
        yield made


@pytest.fixture(scope="module")
def struck(at: House) -> Struck:
    f = cast("Apart", at.fleet)
    before = {moment.lower(): at.bring(moment.lower(), moment, move=True) for moment in "IMSH"}
    f.post("/v1/send", {"to": "asks", "kind": "send", "data": {"to": "echoes"}})
    wait_until(lambda: at.remembered("asks", "answers"), 10)
    before["young"] = at.starting("young")
    before |= {name: at.let_in(name) for name in ("dies", "late")}
    before |= {name: f.unit(name) for name in ("asks", "echoes", "prints")}
    before["deaf"] = at.stopping("deaf")
    all_pids, way = pids(f), at.way  # type: ignore[attr-defined]
    stop_process(f.daemon.pid)
    if way == "killed":
        f.daemon.kill()
        f.daemon.wait()
    began, answers = time.monotonic(), len(at.remembered("asks", "answers"))
    at.write("young", "gate")
    at.write("dies", "leave", "7")
    wait_until(lambda: gone(before["dies"]["pid"]), 5)
    died = time.time()
    wait_until(lambda: time.monotonic() > began + AWAY, 10, "longer than every time-out")
    found = {"answers_after": len(at.remembered("asks", "answers")), "echoed": len(at.remembered("echoes", "echoes"))}
    starts, deaf_lived = at.remembered("dies", "starts"), not gone(before["deaf"]["pid"])
    if way == "killed":
        f.start_daemon()
    else:
        os.kill(f.daemon.pid, signal.SIGCONT)
    wait_until(f.answers, 10)
    return Struck(before, all_pids, answers, **found, starts=starts, deaf_lived=deaf_lived, died=died, back=time.time())


@each("IMSH", message="MSH", ledger="SH")
def test_it_works_on(at: House, struck: Struck, moment: str) -> None:
    """No heartbeat, progress or deadline runs out because nobody looked; what it did it brings to its end, once."""
    name = moment.lower()
    at.untouched(name, struck.before[name])
    at.finish(name, moment)
    at.untouched(name, struck.before[name])


@pytest.mark.cell("unit", "M")
@pytest.mark.cell("message", "M")
def test_messages_are_delivered_meanwhile(at: House, struck: Struck) -> None:
    """One unit asked another again and again, and was answered, without a pause."""
    assert struck.answers_after > struck.answers + 10
    assert struck.echoed >= struck.answers_after
    for name in ("asks", "echoes"):
        at.untouched(name, struck.before[name])
    at.write("asks", "go")


@pytest.mark.cell("unit", "I")
def test_what_prints_is_not_hung(at: House, struck: Struck) -> None:
    """Output is progress also where nobody but the keeper took it."""
    at.untouched("prints", struck.before["prints"])


@pytest.mark.cell("unit", "P")
def test_a_start_comes_to_its_end(at: House, struck: Struck) -> None:
    """READY=1 came while the daemon was absent: heard, though start_timeout is over when it looks."""
    now = at.fleet.wait("young", state="running", ready=True)
    assert (now["invocation"], now["failures"]) == (struck.before["young"]["invocation"], 0)
    assert at.remembered("young", "starts") == [now["invocation"]]


@pytest.mark.cell("unit", "P")
def test_a_stop_waits_for_the_daemon(at: House, struck: Struck) -> None:
    """Deaf to SIGTERM it lives as long as nobody decides; then it is killed at once, and that is a clean stop."""
    assert struck.deaf_lived
    after = at.fleet.wait("deaf", state="inactive")
    assert (after["last"]["cause"], after["last"]["signal"], after["failures"]) == ("stopped", "SIGKILL", 0)
    assert after["last"]["at"] < struck.back + 1.5


@pytest.mark.cell("unit", "I")
def test_a_death_waits_and_then_has_its_status(at: House, struck: Struck) -> None:
    """Nobody restarts it meanwhile; the daemon does it on its return, and knows how and when it ended."""
    assert struck.starts == [struck.before["dies"]["invocation"]]
    after = at.fleet.wait("dies", state="running", restarts=1)
    assert (after["last"]["exit"], after["failures"]) == (7, 1)
    assert after["last"]["at"] < struck.died + 0.1
    assert len(at.remembered("dies", "starts")) == 2


def test_neither_bus_nor_router_nor_gateway_notice(at: House, struck: Struck) -> None:
    """agentd's own units live on like all others; and the next death is answered as ever."""
    now = pids(at.fleet)
    for name in ("bus", "router", "gateway"):
        assert now[name] == struck.all_pids[name]
    at.write("late", "leave", "3")
    assert at.fleet.wait("late", state="running", restarts=1)["last"]["exit"] == 3
