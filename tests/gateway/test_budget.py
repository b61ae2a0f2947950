"""Budgets on a real gateway process: held, raised, reset, killed and started again."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from agentd.errors import BadInput, NoSuchUnit
from tests.gateway.rig import FakeUpstream, Rig, ask, chunk, fake_upstream, rig, served, unit_fact, usage
from tests.waiting import until

SMALL = ask(model="dry-run-long")


async def spend(house: Rig, key: str | None = None) -> None:
    """Call until the budget of the key's unit is gone."""
    status, _, text = await house.post(SMALL, key)
    assert (status, json.loads(text).get("usage") is not None) == (200, True), text


async def shown(house: Rig, unit: str = "a") -> dict[str, Any]:
    return (await house.call("budget.show", {"unit": unit}))["scopes"][0]


async def test_hold_parks_the_call_until_the_budget_is_raised(short_dir: Path) -> None:
    """The call waits, the unit is marked exhausted by level, and a raise lets both go on."""
    async with rig(short_dir, a=unit_fact(600, "hold")) as house:
        await spend(house)
        waiting = asyncio.create_task(house.post(SMALL))
        await until(lambda: house.standing()["exhausted"])
        fact = house.standing()
        assert fact["exhausted"]["scope"] == "unit/a"
        assert fact["exhausted"]["limit"] == 600
        assert fact["calls"][0]["parked"] is True
        raised = await house.call("budget.raise", {"unit": "a", "tokens": 5000, "actor": "eve", "reason": "go"})
        assert (raised["raised"], raised["limit"]) == (5000, 600)
        assert (await waiting)[0] == 200
        await until(lambda: house.standing()["exhausted"] is None)
        await until(lambda: house.kinds("budget.raised") and house.kinds("budget.exhausted"))
        assert house.kinds("budget.raised")[0]["actor"] == "eve"


async def test_a_parked_call_gets_402_when_nobody_acts(short_dir: Path) -> None:
    """Parking is brief; the mark outlives it, and a reset clears it."""
    async with rig(short_dir, config={"park": 0.2}, a=unit_fact(600, "hold")) as house:
        await spend(house)
        assert (await house.post(SMALL))[0] == 402
        assert house.standing()["exhausted"]["scope"] == "unit/a"
        await house.call("budget.reset", {"unit": "a", "actor": "eve"})
        await until(lambda: house.standing()["exhausted"] is None)
        assert (await house.post(SMALL))[0] == 200


async def test_a_client_that_leaves_while_parked_holds_nothing(short_dir: Path) -> None:
    """Its place is given up, and nothing is charged."""
    async with rig(short_dir, a=unit_fact(600, "hold")) as house:
        await spend(house)
        used = (await shown(house))["used"]
        waiting = asyncio.create_task(house.post(SMALL))
        await until(lambda: house.standing()["exhausted"])
        waiting.cancel()
        await until(lambda: not house.standing()["calls"])
        await house.call("budget.raise", {"unit": "a", "tokens": 5000, "actor": "eve"})
        scope = await shown(house)
        assert (scope["used"], scope["held"]) == (used, 0)


async def test_holds_alone_park_without_exhausting(short_dir: Path) -> None:
    """A call that only waits for another one to end is parked, but its unit is not told to rest."""
    release = asyncio.Event()

    async def slow(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        await release.wait()
        return web.json_response({"usage": usage(1, 1)})

    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(1000, "hold")) as house:
        upstream.answer = slow
        first = asyncio.create_task(house.post(ask(max_tokens=900)))
        await until(lambda: upstream.seen)
        second = asyncio.create_task(house.post(ask(max_tokens=900)))
        await until(lambda: any(call["parked"] for call in house.standing()["calls"]))
        assert house.standing()["exhausted"] is None
        release.set()
        assert [(await call)[0] for call in (first, second)] == [200, 200]
        assert not house.kinds("budget.exhausted")


async def test_stop_refuses_at_once_and_marks(short_dir: Path) -> None:
    """With on_exhausted = stop the call gets 402 without waiting, and the daemon is told to stop the unit."""
    async with rig(short_dir, a=unit_fact(600, "stop"), b=unit_fact(600, "refuse")) as house:
        for unit in "ab":
            await spend(house, house.key(unit))
            assert (await house.post(SMALL, house.key(unit)))[0] == 402
        await until(lambda: house.standing("b")["refused"] == 1)
        assert house.standing("a")["exhausted"]["scope"] == "unit/a"
        assert house.standing("b")["exhausted"] is None, "refuse only refuses"


async def test_the_fleet_has_a_budget_too(short_dir: Path) -> None:
    """A call is refused when the fleet has nothing left, whatever its unit has; and the mark names the fleet."""
    async with rig(short_dir, config={"fleet": {"tokens": "600/day"}}, a=unit_fact(50_000, "stop")) as house:
        await spend(house)
        status, _, text = await house.post(SMALL)
        assert status == 402
        assert "fleet has used" in text
        await until(lambda: house.standing()["exhausted"])
        assert house.standing()["exhausted"]["scope"] == "fleet"
        await house.call("budget.raise", {"unit": "fleet", "tokens": 5000, "actor": "eve"})
        await until(lambda: house.standing()["exhausted"] is None)


async def test_budget_calls_refuse_nonsense(short_dir: Path) -> None:
    """An unknown unit, no unit and no amount are errors; nothing is written."""
    async with rig(short_dir, a=unit_fact(600), b=unit_fact(None)) as house:
        before = house.ledger.read_bytes()
        call = house.call
        with pytest.raises(NoSuchUnit):
            await call("budget.raise", {"unit": "nobody", "tokens": 1, "actor": "eve"})
        with pytest.raises(NoSuchUnit):
            await call("budget.show", {"unit": "nobody"})
        nonsense: list[dict[str, Any]] = [{"unit": "a", "tokens": 0}, {"unit": "a", "tokens": "5"}, {"tokens": 5}]
        for params in [*nonsense, {"unit": "b", "tokens": 1}]:
            with pytest.raises(BadInput):
                await call("budget.raise", params)
        assert house.ledger.read_bytes() == before
        scopes = (await call("budget.show", {}))["scopes"]
        assert [(scope["scope"], scope["limit"]) for scope in scopes] == [("unit/a", 600), ("unit/b", None)]


async def test_kill_between_hold_and_settlement_charges_the_whole_hold(short_dir: Path) -> None:
    """At each step of a call, kill -9 leaves recorded ≥ true spend; a restart refills nothing."""
    asked_whole, began = asyncio.Event(), asyncio.Event()

    async def stuck(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        if asked.get("stream"):
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            await response.write(chunk("a"))
            began.set()
        else:
            asked_whole.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(10_000)) as house:
        assert (await house.post(ask(max_tokens=100)))[0] == 200
        upstream.answer = stuck
        bodies = [ask(max_tokens=700), ask(stream=True, max_tokens=900)]
        calls = [asyncio.create_task(house.post(body)) for body in bodies]
        await asked_whole.wait()  # the hold is written, the upstream has the request
        await began.wait()  # the upstream has begun to answer
        await house.kill()
        for call in calls:
            with pytest.raises(aiohttp.ClientError):
                await call
        await house.start()
        expected = 30 + sum(len(json.dumps(body)) + 16 + body["max_tokens"] for body in bodies)
        scope = await shown(house)
        assert (scope["used"], scope["held"]) == (expected, 0)
        await until(lambda: [r["outcome"] for r in house.kinds("call.ended")] == ["usage", "crashed", "crashed"])
        await house.kill()
        await house.start()
        assert (await shown(house))["used"] == expected, "charged once, however often it starts"


async def test_kill_before_the_upstream_reads_a_byte_still_has_the_hold(short_dir: Path) -> None:
    """The hold is in the file before the upstream sees anything."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # the kernel connects; nobody ever reads
        upstream = FakeUpstream()
        upstream.url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        async with rig(short_dir, upstream, a=unit_fact(10_000)) as house:
            call = asyncio.create_task(house.post(ask(max_tokens=700)))
            await until(lambda: b'"r":"hold"' in house.ledger.read_bytes())
            await house.kill()
            with pytest.raises(aiohttp.ClientError):
                await call
            await house.start()
            assert (await shown(house))["used"] > 700


async def test_the_exhausted_mark_and_the_limits_outlive_a_crash(short_dir: Path) -> None:
    """Without the daemon the last known limits apply, and who was exhausted still is."""
    async with rig(short_dir, a=unit_fact(600, "stop")) as house:
        await spend(house)
        assert (await house.post(SMALL))[0] == 402
        house.daemon.drop("unit/a")
        await house.kill()
        await house.start()
        await until(lambda: (house.standing().get("exhausted") or {}).get("scope") == "unit/a")
        assert (await shown(house))["limit"] == 600


async def test_ollama_is_found_where_it_answers(short_dir: Path) -> None:
    """With nothing configured the gateway takes Ollama's models, and clamps by the key that Ollama obeys."""
    seen: list[Any] = []

    async def ollama(request: web.Request) -> web.StreamResponse:
        if request.path == "/api/tags":
            return web.json_response({"models": [{"model": "qwen2.5:7b"}]})
        assert request.path == "/v1/chat/completions"
        seen.append(await request.json())
        return web.json_response({"choices": [], "usage": usage(3, 4)})

    async with served(ollama) as url, rig(short_dir, config={"ollama": url}, a=unit_fact(50_000)) as house:
        assert house.gateway.facts["upstreams"]["ollama"]["models"] == ["qwen2.5:7b"]
        assert (await house.post(ask(model="qwen2.5:7b", max_completion_tokens=9)))[0] == 200
        assert (seen[0]["max_completion_tokens"], seen[0]["max_tokens"]) == (9, 9)
        status, _, text = await house.post(ask(model="dry-run"))
        assert (status, "dry-run model" in text) == (200, True)


async def test_the_dry_run_model_says_that_it_is_one(short_dir: Path) -> None:
    """It is deterministic, obeys max_tokens, streams the same text, and is metered to the token."""
    async with rig(short_dir, a=unit_fact(50_000)) as house:
        _, _, first = await house.post(ask("tell me", "any-model"))
        _, _, again = await house.post(ask("tell me", "any-model"))
        assert first == again
        message = json.loads(first)["choices"][0]["message"]["content"]
        assert "dry-run model" in message
        assert "no LLM was called" in message
        _, _, events = await house.post(ask("tell me", "any-model", stream=True))
        chunks = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == message
        _, _, cut = await house.post(ask("tell me", "any-model", max_tokens=2))
        assert json.loads(cut)["usage"]["completion_tokens"] == 2
        assert json.loads(cut)["choices"][0]["finish_reason"] == "length"


async def test_alone_it_needs_keys_and_serves_them(short_dir: Path) -> None:
    """A TOML file with a [[key]] is enough; without keys and without agentd it says what is missing."""
    import os
    import sys

    config = short_dir / "alone.toml"
    text = f'[gateway]\nlisten = "127.0.0.1:0"\nstate = "{short_dir}/alone"\nollama = "http://127.0.0.1:1"\n'
    config.write_text(text)
    command = (sys.executable, "-m", "agentd.gateway.main", "--config", str(config))
    run = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, said = await run.communicate()
    assert run.returncode == 2
    assert b"no [[key]] is configured" in said
    config.write_text(text + '[[key]]\nkey = "sesame"\nunit = "me"\ntokens = "50k/day"\n')
    run = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env={**os.environ})
    try:
        assert run.stderr is not None
        address = json.loads(await asyncio.wait_for(run.stderr.readline(), 10))["address"]
        headers = {"authorization": "Bearer sesame"}
        async with aiohttp.ClientSession() as session:
            async with session.post(f"http://{address}/v1/chat/completions", json=ask(), headers=headers) as response:
                assert response.status == 200
    finally:
        run.terminate()
        await run.communicate()
    assert run.returncode == 0
