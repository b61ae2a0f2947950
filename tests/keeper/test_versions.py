"""Neighbours of other versions: recorded conversations and a frozen client."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from agentd.keeper.plan import Cgroup, Listener, Output, Process, Rlimit, SpawnPlan
from tests.keeper.conftest import Keeper
from tests.keeper.frozen_v1 import FrozenClient
from tests.keeper.transcript import DIRECTORY, missing, play

TRANSCRIPTS = sorted(DIRECTORY.glob("*.jsonl"))


def test_there_are_transcripts() -> None:
    """The recorded promises are there."""
    assert len(TRANSCRIPTS) >= 5


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_recorded_conversation_is_kept(bare: Keeper, path: Path) -> None:
    """Every packet that was once received is received again, in the same order; further keys are welcome."""
    import json

    bare.start()
    recorded = [json.loads(line) for line in path.read_text().splitlines()]
    assert missing(recorded, play(path, bare)) is None
    ended = recorded[-2].get("send", {}).get("do") == "end"
    assert (bare.process.wait(10) if ended else bare.stop()) == 0


@pytest.mark.bad_input("keeper of another version")
def test_frozen_client_still_works(keeper: Keeper) -> None:
    """A client of version 1 spawns with a descriptor, signals, sees the end, and finds the truth when it is back."""
    path = str(keeper.directory / "keeper.sock")
    client = FrozenClient(path)
    reader, writer = os.pipe()
    os.write(writer, b"word\n")
    os.close(writer)
    plan = keeper.shell("cat <&3; exec sleep 60", fds=["in"], env={"PATH": os.environ["PATH"], "PAD": "x" * 100_000})
    answer = client.ask("spawn", [reader], plan=plan)
    os.close(reader)
    which = {"unit": "a", "invocation": answer["process"]["invocation"]}
    assert client.ask("blob", unit="a", text="x" * 60_001) == {"answer": 2}
    assert client.ask("signal", **which, signal=15) == {"answer": 3}
    assert client.event("ended")["process"]["exit"] == -15
    client.close()
    client = FrozenClient(path)
    (row,) = client.welcome["processes"]
    assert (row["exit"], len(client.welcome["blobs"]["a"])) == (-15, 60_001)
    assert client.ask("release", **which) == {"answer": 1}
    assert client.ask("signal", **which, signal=15)["error"]["code"] == "gone"
    client.close()


def test_plan_survives_its_json_form() -> None:
    """What the daemon compiles is what the keeper reads, and keys of a newer daemon are ignored."""
    plan = SpawnPlan(
        "a@1", "01", ("x", "y"), "/x", {"A": "b"}, "/", 1, 2, (3, 4), 0o22, (Cgroup("/c", (("m", "1"),), True),),
        (Rlimit("RLIMIT_CORE", 0, -1),), False, "/n", Output("/o", "/f", 5), (Listener("l", "unix:/l"),), ("f",),
    )  # fmt: skip
    data = plan.to_dict()
    data["invented"] = {"later": 1}
    data["cgroups"][0]["invented"] = 1
    assert SpawnPlan.from_dict(data) == plan


def test_rows_are_the_dataclass_of_the_page(keeper: Keeper) -> None:
    """A process travels with exactly the fields of ``Process``."""
    client = keeper.client()
    row = client.done("spawn", plan=keeper.shell("exit 0"))["process"]
    assert asdict(Process(**row)) == row
