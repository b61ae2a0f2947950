"""Fault row "agent beats, no progress on its message": hung by deadline or progress; not if a model call moves."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults.moments import House, Json, agent, house, shell
from tests.waiting import wait_until

LIMIT = 1.0
BEATS = '[liveness]\nheartbeat = "2s"\n'
DEADLINE = f'{BEATS}[bus]\ndeadline = "{LIMIT}s"\n'
PROGRESS = f'{BEATS}progress = "{LIMIT}s"\n'
WORDS = {"deadline": "without result or progress", "progress": "no progress on its message"}
SLACK = 1.5
"""Seconds that a busy machine may add."""


@pytest.fixture(scope="module")
def at() -> Iterator[House]:
    units = {f"{by}-{how}": agent(more=DEADLINE if by == "deadline" else PROGRESS) for by in WORDS for how in "ms"}
    units["moving"] = agent(more=f'{PROGRESS}[bus]\ndeadline = "{LIMIT}s"\n')
    units["stuck"] = agent(more='[llm]\nsilence = "1s"\n')
    units["patient"] = agent(more=f'{PROGRESS}[bus]\ndeadline = "{LIMIT}s"\n[llm]\nsilence = "1h"\n')
    script = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done; exec sleep 1000"
    units["mute"] = shell(script, f'[liveness]\nprogress = "{LIMIT}s"')
    with house(units) as made:
        yield made


@pytest.fixture(scope="module")
def struck(at: House) -> dict[str, Json]:
    """All of them at once: what each was when it began to owe progress."""
    before = {name: at.bring(name, name[-1].upper()) for name in (f"{by}-{how}" for by in WORDS for how in "ms")}
    before["moving"] = at.bring("moving", "M", move=True)
    before |= {name: at.bring(name, "H") for name in ("stuck", "patient")}
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 2.5 * LIMIT, 10, "longer than every limit")
    return before


@pytest.mark.parametrize("by", WORDS)
@pytest.mark.cell("unit", "M")
@pytest.mark.cell("message", "M")
def test_beats_alone_are_no_progress(at: House, struck: dict[str, Json], by: str) -> None:
    """Found in time, by the message's deadline or by liveness.progress; the successor finishes the message."""
    name = f"{by}-m"
    after = at.fleet.wait(name, state="running", restarts=1)
    assert after["last"]["cause"] == "timed_out"
    assert WORDS[by] in after["last"]["text"]
    found = at.fleet.records(unit=name, kind="unit.stopping")[0]["at"]
    assert found - at.fleet.records(unit=name, kind="message.delivered")[0]["at"] < LIMIT + SLACK
    wait_until(lambda: at.remembered(name, "attempts") == ["1", "2"], 10)


@pytest.mark.cell("unit", "M")
def test_progress_on_the_message_is_enough(at: House, struck: dict[str, Json]) -> None:
    """Twice and a half the limit with progress told: the same process finishes what it held."""
    at.untouched("moving", struck["moving"])
    at.finish("moving", "M")


@pytest.mark.parametrize("by", WORDS)
@pytest.mark.cell("unit", "S")
@pytest.mark.cell("message", "S")
def test_a_model_call_that_moves_is_progress(at: House, struck: dict[str, Json], by: str) -> None:
    """A slow model keeps its unit from being hung, and from losing its message, for as long as it streams."""
    name = f"{by}-s"
    at.untouched(name, struck[name])
    assert at.fleet.unit(name)["activity"] == "thinking"
    at.finish(name, "S")
    at.untouched(name, struck[name])


@pytest.mark.cell("unit", "H")
@pytest.mark.cell("message", "H")
def test_waiting_for_the_first_byte_within_its_cap_is_no_hang(at: House, struck: dict[str, Json]) -> None:
    """llm.silence, not progress nor deadline, bounds a call that has not moved yet."""
    at.untouched("patient", struck["patient"])
    assert at.fleet.unit("patient")["activity"] == "thinking"
    at.finish("patient", "H")


@pytest.mark.cell("unit", "H")
def test_a_model_call_silent_beyond_its_cap_is_a_hang(at: House, struck: dict[str, Json]) -> None:
    """Found in time and named as what it is."""
    after = at.fleet.wait("stuck", state="running", restarts=1)
    assert after["last"]["cause"] == "hung"
    assert after["last"]["text"].startswith("model call silent for 1")


def test_a_unit_without_a_channel_owes_output(at: House, struck: dict[str, Json]) -> None:
    """liveness.progress without a channel: as long as it prints it goes on, then it is replaced in time."""
    (first, *_) = at.fleet.records(unit="mute", kind="unit.ended")
    assert "no output for 1" in at.fleet.records(unit="mute", kind="unit.stopping")[0]["reason"]
    assert 1.4 + LIMIT < first["detail"]["ran"] < 1.6 + LIMIT + SLACK
