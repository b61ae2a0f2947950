"""Several messages in one packet, requests without an answer, and units that are given back in bulk."""

from __future__ import annotations

import os
from typing import Any

import pytest

from agentd.keeper import protocol
from tests.keeper.conftest import TIMEOUT, Client, Json, Keeper, alive
from tests.waiting import wait_until


def batching(keeper: Keeper) -> Client:
    """A client that understands batches."""
    client = keeper.connect()
    protocol.send(client.socket, {"hello": 1, "client": "test", "batch": True})
    assert client.packet()["batch"] is True
    return client


def send(client: Client, *messages: Json) -> None:
    """One batch."""
    protocol.send(client.socket, {"batch": list(messages)})


def taken(client: Client, last: int) -> tuple[list[Json], int]:
    """All messages up to the answer with this number, and in how many packets they came."""
    found: list[Json] = []
    packets = 0
    while not any(message.get("answer") == last for message in found):
        packet = client.packet()
        found += packet.get("batch", [packet])
        packets += 1
    return found, packets


def test_a_batch_is_executed_in_order_and_answered_in_few_packets(keeper: Keeper) -> None:
    """It means the same as so many packets: each request is answered, in order, the bad ones by their error."""
    client = batching(keeper)
    requests: list[Json] = [{"id": n, "do": "blob", "unit": f"u{n % 7}", "text": str(n)} for n in range(200)]
    requests[50] = {"id": 50, "do": "nonsense"}
    send(client, *requests)
    found, packets = taken(client, 199)
    assert [message["answer"] for message in found] == list(range(200))
    assert [message["answer"] for message in found if "error" in message] == [50]
    assert packets <= 20
    blobs = keeper.client().welcome["blobs"]  # type: ignore[attr-defined]
    assert blobs == {f"u{n % 7}": str(n) for n in range(193, 200)}


def test_many_ends_come_in_few_packets(keeper: Keeper) -> None:
    """Units that die together are told together, each once; a client that knows no batches gets one packet each."""
    client = batching(keeper)
    pids = []
    for n in range(20):
        protocol.send(client.socket, {"id": n, "do": "spawn", "plan": keeper.shell("exec sleep 60", unit=f"u{n}")})
        (answer,) = [message for message in taken(client, n)[0] if "answer" in message]
        pids.append(answer["process"]["pid"])
    invocation = answer["process"]["invocation"]
    send(client, *({"do": "kill", "unit": f"u{n}", "invocation": invocation} for n in range(20)))
    ended: list[str] = []
    revisions: list[int] = []
    while len(ended) < 20:
        packet = client.packet()
        for message in packet.get("batch", [packet]):
            assert message["event"] == "ended"
            ended.append(message["process"]["unit"])
            revisions.append(message["rev"])
    assert sorted(ended) == sorted(f"u{n}" for n in range(20))
    assert revisions == list(range(1, 21))
    assert not any(map(alive, pids))


def test_a_request_without_id_gets_no_answer(keeper: Keeper) -> None:
    """What nobody waits for costs no packet back, not even when it is refused."""
    client = batching(keeper)
    send(client, {"do": "blob", "unit": "a", "text": "x"}, {"do": "release", "unit": "a", "invocation": "none"})
    protocol.send(client.socket, {"id": 1, "do": "beats"})
    found, _ = taken(client, 1)
    assert [message["answer"] for message in found] == [1]


@pytest.mark.parametrize("batch", [[1], [{"id": 1, "do": "beats"}, "x"]])
def test_a_batch_of_something_else_ends_the_connection(keeper: Keeper, batch: list[Any]) -> None:
    """Nothing of it is executed."""
    client = batching(keeper)
    protocol.send(client.socket, {"batch": batch})
    with pytest.raises(EOFError):
        client.packet()


def test_many_units_are_given_back_beside_the_rest(keeper: Keeper) -> None:
    """Files, sockets and blobs of the dead go; what lives keeps everything; one that is spawned meanwhile lives."""
    client = keeper.client()
    files = keeper.directory / "keeper"
    for n in range(12):
        plan = keeper.shell("exit 0", unit=f"u{n}", notify=f"{keeper.directory}/n/u{n}")
        client.done("spawn", plan=plan)
        client.event("ended")
        client.done("blob", unit=f"u{n}", text="of a dead one")
    client.done("blob", unit="living", text="kept")
    row = client.done("spawn", plan=keeper.shell("exec sleep 60", unit="living"))["process"]
    client.start("forget", units=[*(f"u{n}" for n in range(12)), "living", "never heard of"])
    again = client.start("spawn", plan=keeper.shell("exec sleep 60", unit="u11", invocation="0000000000000002"))
    while "answer" not in (answer := client.packet()) or answer["answer"] != again:
        assert "error" not in answer
    wait_until(lambda: len([p for p in files.glob("*.json") if p.name != "keeper.json"]) == 2, TIMEOUT)
    wait_until(lambda: not any((keeper.directory / "n").iterdir()), TIMEOUT)
    assert alive(row["pid"])
    welcome: Json = keeper.client().welcome  # type: ignore[attr-defined]
    assert welcome["blobs"] == {"living": "kept"}
    assert sorted(process["unit"] for process in welcome["processes"]) == ["living", "u11"]
    assert os.path.exists(files / "blobs.log")
