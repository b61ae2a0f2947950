"""The example agents do what their units say, killed or not."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from agentd.model.reading import parse
from tests.agents.conftest import Model
from tests.sdk.conftest import Start
from tests.sdk.stand_in import DEADLINE, ROOT, Notifications, Router
from tests.waiting import until

AGENTS = ROOT / "agents"
TEXT = "Lead.\n\n# One\n\nFirst.\n\n## Two\n\nSecond.\n\n# Empty\n"
NOTES = {"title": "T", "notes": [{"heading": "One", "summary": "s"}, {"heading": "Two", "summary": "s"}]}
DRAFT = {"title": "T", "paragraphs": ["a", "b"], "reply_to": "asker"}


async def finished(router: Router, kind: str, data: Any, **which: Any) -> dict[str, Any]:
    """The outcome of a delivery, whichever it is."""
    router.deliver(kind, data, **which)
    return await router.outcome()


async def only_send(router: Router) -> dict[str, Any]:
    """The one message that was stored."""
    [params] = router.stored.values()
    return params


async def test_researcher_notes_each_section(router: Router, start: Start, model: Model) -> None:
    """A note per section that says something, each from one question, and one message to the writer."""
    await start(AGENTS / "researcher.py", **model.env)
    assert (await finished(router, "text", {"title": "Readme", "text": TEXT}))["result"] is None
    sent = await only_send(router)
    assert (sent["to"], sent["kind"]) == ("writer", "notes")
    headings = [note["heading"] for note in sent["data"]["notes"]]
    assert headings == ["Readme", "One", "Two"]
    assert [note["summary"] for note in sent["data"]["notes"]] == ["answer 1", "answer 2", "answer 3"]
    assert model.keys == {"Bearer agentd.v1.x"}


async def test_writer_killed_in_the_middle_sends_once(router: Router, start: Start, model: Model) -> None:
    """SIGKILL between two paragraphs: the successor writes again, and one draft is stored."""
    first = await start(AGENTS / "writer.py", **model.env)
    router.deliver("notes", NOTES)
    await asyncio.wait_for(router.progress.get(), DEADLINE)
    first.kill()
    await first.wait()
    await start(AGENTS / "writer.py", **model.env)
    assert (await finished(router, "notes", NOTES, attempt=2))["result"] is None
    sent = await only_send(router)
    assert (sent["to"], sent["kind"], len(sent["data"]["paragraphs"])) == ("reviewer", "draft", 2)


async def test_reviewer_keeps_a_result_once(router: Router, start: Start, model: Model, short_dir: Path) -> None:
    """A second attempt leaves the first file; another message of the conversation gets a file of its own."""
    env = {**model.env, "AGENTD_STATE_DIR": str(short_dir)}
    for attempt in (1, 2):
        process = await start(AGENTS / "reviewer.py", **env)
        assert "result" in await finished(router, "draft", DRAFT, attempt=attempt)
        process.kill()
        await process.wait()
    [path] = (short_dir / "results").iterdir()
    kept = json.loads(path.read_text())
    assert path.name == "c1.json"
    assert (kept["message"], kept["attempt"], kept["text"], kept["review"]) == ("m1", 1, "a\n\nb", "answer 1")
    assert (await only_send(router))["to"] == "asker"
    await start(AGENTS / "reviewer.py", **env)
    await finished(router, "draft", DRAFT, message="m2")
    assert {one.name for one in (short_dir / "results").iterdir()} == {"c1.json", "c1.m2.json"}


@pytest.mark.parametrize(
    ("status", "headers", "message", "data"),
    [
        (402, {}, "out of budget: no more", {"retry": True}),
        (503, {"Retry-After": "7"}, "the model is not available: no more", {"retry": True, "delay": 7.0}),
        (401, {}, "RuntimeError: the gateway answered 401: no more", {"retry": True}),
    ],
)
async def test_the_model_says_no(
    router: Router, start: Start, model: Model, status: int, headers: dict[str, str], message: str, data: Any
) -> None:
    """No budget and passing troubles ask for the message again, in words; the agent goes on living."""
    model.failures = [(status, headers)]
    await start(AGENTS / "writer.py", **model.env)
    error = (await finished(router, "notes", NOTES))["error"]
    assert (error["message"], error["data"]) == (message, data)
    assert "result" in await finished(router, "notes", NOTES, attempt=2)


async def test_no_gateway_means_later(router: Router, start: Start) -> None:
    """A gateway that is away is no reason to die."""
    await start(AGENTS / "writer.py", OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    error = (await finished(router, "notes", NOTES))["error"]
    assert error["message"].startswith("the gateway does not answer")
    assert error["data"]["retry"]


async def test_runaway_calls_until_it_is_refused(router: Router, start: Start, model: Model) -> None:
    """Nothing but the budget ends it."""
    model.calls = 5
    await start(AGENTS / "runaway.py", **model.env)
    error = (await finished(router, "go", {}))["error"]
    assert error["message"] == "out of budget: 20000 of 20000 tokens"
    assert len(model.prompts) == 6
    model.calls = 10_000
    assert (await finished(router, "go", {"calls": 2}, message="m2"))["result"] == 2


async def test_poison_kills_until_the_repair(router: Router, start: Start, short_dir: Path) -> None:
    """The poisonous message ends the process; the repaired agent reads it."""
    state = {"AGENTD_STATE_DIR": str(short_dir)}
    process = await start(AGENTS / "poisoned.py", **state)
    assert (await finished(router, "read", {"text": "three short words"}))["result"] == 3
    router.deliver("read", {"text": "bad", "poison": True}, message="m2")
    assert await asyncio.wait_for(process.wait(), DEADLINE) == 13
    (short_dir / "repaired").touch()
    await start(AGENTS / "poisoned.py", **state)
    outcome = await finished(router, "read", {"text": "bad", "poison": True}, message="m2", attempt=2)
    assert outcome["result"] == 1


async def test_hanger_falls_silent(router: Router, heard: Notifications, start: Start) -> None:
    """It lives and does not beat; the next attempt, in a new process, is handled."""
    process = await start(AGENTS / "hanger.py", WATCHDOG_USEC="150000")
    router.deliver("freeze", {})
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), DEADLINE)
    heard.forget()
    with pytest.raises(TimeoutError):
        await heard.word("WATCHDOG=1", 0.5)
    assert process.returncode is None
    process.kill()
    await process.wait()
    await start(AGENTS / "hanger.py")
    assert (await finished(router, "freeze", {}, attempt=2))["result"] == "awake"


def sleepers(parent: int) -> list[Path]:
    """The /proc directories of a process's children that are called sleep."""
    children = [Path("/proc", pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return [child for child in children if (child / "comm").exists() and "sleep" in (child / "comm").read_text()]


async def test_the_clock_stops_when_told() -> None:
    """Plain sh: it prints the time, leaves with 0 at SIGTERM, and leaves no child behind."""
    pipe = asyncio.subprocess.PIPE
    clock = await asyncio.create_subprocess_exec("sh", str(AGENTS / "clock.sh"), stdout=pipe, env=dict(os.environ))
    assert clock.stdout is not None
    assert (await asyncio.wait_for(clock.stdout.readline(), DEADLINE)).endswith(b"Z\n")
    await until(lambda: sleepers(clock.pid), DEADLINE, "the clock sleeps")
    [child] = sleepers(clock.pid)
    clock.terminate()
    out, _ = await asyncio.wait_for(clock.communicate(), DEADLINE)
    assert (out, clock.returncode) == (b"stopped\n", 0)
    await until(lambda: not child.exists(), DEADLINE, "its sleep is gone")


@pytest.mark.parametrize("path", sorted((ROOT / "units").glob("*.toml")), ids=lambda path: path.stem)
def test_units_are_valid(path: Path) -> None:
    """Every example unit parses, and names a program that exists and what runs it."""
    unit = parse(path.read_text(), path.stem, str(path))
    assert unit.agent.workdir is not None
    program = path.parent / unit.agent.workdir / unit.agent.exec[1]
    assert unit.agent.exec[0] == {".py": "python", ".sh": "sh"}[program.suffix]
    assert program.is_file()


def test_every_agent_has_a_unit() -> None:
    """An example nobody can start is none: each program of agents/ is named by a unit."""
    named = {parse(p.read_text(), p.stem, str(p)).agent.exec[1] for p in (ROOT / "units").glob("*.toml")}
    shared = {"messages.py", "model.py", "results.py"}
    assert {p.name for p in AGENTS.iterdir() if p.is_file()} - shared == named
