"""Calls through a real gateway process to a real HTTP upstream."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.gateway.rig import NEWEST, OLDER, REAL_KEY, Rig, ask, chunk, fake_upstream, rig, streamed, unit_fact, usage
from tests.waiting import until

OURS = "upstream_refused_our_key"


async def settled(house: Rig, unit: str = "a") -> dict[str, Any]:
    """The unit's fact once nothing is held any more and the fact says so."""
    while True:
        scope = (await house.call("budget.show", {"unit": unit}))["scopes"][0]
        if scope["held"] == 0:
            break
    await until(lambda: house.standing(unit)["used"] == scope["used"] and not house.standing(unit)["calls"])
    return house.standing(unit)


async def test_a_whole_call_is_metered_by_its_usage(short_dir: Path) -> None:
    """The answer passes unchanged, the tokens that the upstream counted are charged, and it is told in facts."""
    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        house.router.set("unit/a", {"held": [{"message": "m1", "conversation": "c1"}], "connected": NEWEST})
        status, _, text = await house.post(ask(seed=3, unknown={"x": [1]}, max_tokens=100))
        assert status == 200
        assert json.loads(text)["usage"] == usage(10, 20)
        assert upstream.seen == [ask(seed=3, unknown={"x": [1]}, max_tokens=100)]
        assert upstream.headers[0]["authorization"] == f"Bearer {REAL_KEY}"
        assert upstream.headers[0]["accept-encoding"] == "identity"
        fact = await settled(house)
        assert (fact["used"], fact["limit"], fact["window"], fact["exhausted"]) == (30, 50_000, "day", None)
        await until(lambda: house.kinds("call.ended"))
        ended = house.kinds("call.ended")[0]
        counts = {"tokens_in": 10, "tokens_out": 20, "charged": 30}
        wanted = {"unit": "a", "invocation": NEWEST, "outcome": "usage", **counts}
        assert {key: ended[key] for key in wanted} == wanted
        await until(lambda: "agentd_tokens_total" in (house.gateway.facts.get("metrics") or {}))


async def test_a_call_belongs_to_the_message_that_its_unit_holds(short_dir: Path) -> None:
    """The router's fact at the start of the call names message and conversation; between messages, the last one."""
    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        held = [{"message": "m1", "conversation": "c1"}]
        house.router.set("unit/a", {"held": held, "connected": NEWEST})
        await house.post(ask())
        house.router.set("unit/a", {"held": [], "connected": NEWEST})

        async def last() -> tuple[str | None, str | None]:
            count = len(house.kinds("call.ended"))
            await house.post(ask())
            await until(lambda: len(house.kinds("call.ended")) > count)
            return house.kinds("call.ended")[-1]["message"], house.kinds("call.ended")[-1]["conversation"]

        seen = []
        for _ in range(20):  # the router's facts travel beside the call
            seen.append(await last())
            if seen[-1] == (None, "c1"):
                break
        assert seen[-1] == (None, "c1"), seen


async def test_the_usage_chunk_is_asked_for_and_taken_out_again(short_dir: Path) -> None:
    """A client that did not ask for usage gets the stream as if nobody had, and is metered exactly."""
    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        upstream.answer = streamed
        status, headers, text = await house.post(ask(stream=True))
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        plain = [json.dumps({"id": "c", "choices": [{"index": 0, "delta": {"content": t}}]}) for t in "abc"]
        assert text == "".join(f"data: {line}\n\n" for line in plain) + "data: [DONE]\n\n"
        assert upstream.seen[0]["stream_options"] == {"include_usage": True}
        assert (await settled(house))["used"] == 10


async def test_a_client_that_asks_for_usage_gets_every_byte(short_dir: Path) -> None:
    """With include_usage the stream passes as it came."""
    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        upstream.answer = streamed
        _, _, text = await house.post(ask(stream=True, stream_options={"include_usage": True}))
        expected = b"".join(chunk(t) for t in "abc") + chunk(None, usage(7, 3)) + b"data: [DONE]\n\n"
        assert text.encode() == expected
        assert (await settled(house))["used"] == 10


async def test_the_clamp_is_written_into_the_upstream_request(short_dir: Path) -> None:
    """max_tokens shrinks to what is left; all other bytes of the body are the client's own."""
    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(1000)) as house:
        body = b'{ "model":"m","max_tokens" : 9000, "messages":[{"role":"user","content":"h\\u00e9"}] , "x":1.50}'
        assert (await house.post(body))[0] == 200
        left = 1000 - len(body) - 16
        assert upstream.bodies[0] == body.replace(b"9000", str(left).encode())
        await house.post(ask())
        assert upstream.seen[1]["max_tokens"] == 1000 - 30 - len(json.dumps(ask())) - 16


async def test_200_calls_at_once_never_pass_the_limit(short_dir: Path) -> None:
    """A budget for about nine calls admits about nine, whatever comes at once; the rest gets 402."""
    release = asyncio.Event()

    async def slow(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        await release.wait()
        return web.json_response({"choices": [], "usage": usage(100, asked["max_tokens"])})

    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(4_000)) as house:
        upstream.answer = slow
        calls = [asyncio.create_task(house.post(ask(max_tokens=300))) for _ in range(200)]
        await until(lambda: sum(task.done() for task in calls) + len(upstream.seen) == 200)
        release.set()
        statuses = [(await task)[0] for task in calls]
        admitted = statuses.count(200)
        assert statuses.count(402) == 200 - admitted
        assert 8 <= admitted <= 10
        fact = await settled(house)
        assert fact["used"] == sum(100 + asked["max_tokens"] for asked in upstream.seen)
        assert fact["used"] <= 4_000
        assert fact["refused"] == 200 - admitted


async def test_a_refusal_says_everything_and_is_not_retried(short_dir: Path) -> None:
    """402 with x-should-retry: false, no retry-after, and a text that says scope, used, limit, reset and what to do."""
    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(100)) as house:
        status, headers, text = await house.post(ask())
        assert (status, headers["x-should-retry"], "retry-after" in headers) == (402, "false", False)
        error = json.loads(text)["error"]
        assert (error["type"], error["code"], error["param"]) == ("insufficient_quota", "budget_exceeded", None)
        for part in ("unit/a", "used 0", "100 tokens per day", "T00:00:00Z", "agentctl budget raise a 50k"):
            assert part in error["message"]
        assert not upstream.seen
        await until(lambda: house.kinds("call.refused"))
        assert house.kinds("call.refused")[0]["reason"] == "budget_exceeded"


async def test_an_aborted_stream_closes_the_upstream_and_is_charged_whole(short_dir: Path) -> None:
    """When the client leaves, the upstream's side is closed at once and the whole hold is charged."""

    async def endless(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("a"))
        await asyncio.Event().wait()
        return response

    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        upstream.answer = endless
        body = json.dumps(ask(stream=True, max_tokens=700)).encode()
        headers = {"authorization": f"Bearer {house.key()}"}
        async with house.session.post(f"{house.base}/v1/chat/completions", data=body, headers=headers) as response:
            assert b'"a"' in await response.content.readany()
            await until(lambda: house.standing()["calls"] and house.standing()["calls"][0]["last_byte"])
            response.close()
        await asyncio.wait_for(upstream.gone.wait(), 5)
        assert (await settled(house))["used"] == len(body) + 16 + 700
        await until(lambda: house.kinds("call.ended"))
        assert house.kinds("call.ended")[0]["outcome"] == "aborted"


async def test_an_upstream_that_breaks_off_ends_the_stream_and_is_charged_whole(short_dir: Path) -> None:
    """The client sees a broken stream, never one that looks complete."""

    async def broken(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("a"))
        assert request.transport is not None
        request.transport.abort()
        return response

    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        upstream.answer = broken
        with pytest.raises(aiohttp.ClientError):
            await house.post(ask(stream=True, max_tokens=700))
        assert (await settled(house))["used"] > 700
        assert REAL_KEY not in house.log()


async def test_a_count_in_the_middle_is_not_taken_for_the_end(short_dir: Path) -> None:
    """An upstream that counts along in each chunk and then breaks off is charged the whole hold."""

    async def counting(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("a", usage(5, 1)))
        assert request.transport is not None
        request.transport.abort()
        return response

    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        upstream.answer = counting
        with pytest.raises(aiohttp.ClientError):
            await house.post(ask(stream=True, max_tokens=700))
        assert (await settled(house))["used"] > 700


async def test_an_upstream_error_is_not_paid(short_dir: Path) -> None:
    """Trouble with our key is ours, other errors pass; the real key is in none of them."""
    statuses = iter((401, 402, 500, 429))

    async def fail(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        headers = {"retry-after": "3600"}
        error = {"message": f"no: {REAL_KEY}", "code": None}
        return web.json_response({"error": error}, status=next(statuses), headers=headers)

    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        upstream.answer = fail
        for expected in ((502, OURS), (502, OURS), (500, None), (429, None)):
            got, headers, text = await house.post(ask())
            assert (got, json.loads(text)["error"]["code"]) == expected
            assert headers["x-should-retry"] == "false"
            assert REAL_KEY not in text + str(headers)
        assert len(upstream.seen) == 4
        assert (await settled(house))["used"] == 0


async def test_garbage_and_a_hang_are_charged_whole(short_dir: Path) -> None:
    """An answer that cannot be read, or that never comes, may have cost something: the whole hold is charged."""

    async def garbage(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        return web.Response(body=b"\x00<html>", content_type="application/json")

    async def hang(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    fact = unit_fact(50_000, llm={"silence": 0.2})
    async with fake_upstream() as upstream, rig(short_dir, upstream, a=fact) as house:
        hold = len(json.dumps(ask(max_tokens=100))) + 16 + 100
        upstream.answer = garbage
        status, _, text = await house.post(ask(max_tokens=100))
        assert (status, json.loads(text)["error"]["code"]) == (502, "upstream_garbage")
        await until(lambda: house.standing()["used"] == hold)
        upstream.answer = hang
        status, _, text = await house.post(ask(max_tokens=100))
        assert (status, json.loads(text)["error"]["code"]) == (504, "upstream_silent")
        await until(lambda: house.standing()["used"] == 2 * hold)


async def test_an_upstream_that_is_down_costs_nothing(short_dir: Path) -> None:
    """503 with a short retry-after, and no token charged: it saw nothing."""
    async with fake_upstream() as upstream:
        pass
    async with rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        status, headers, text = await house.post(ask())
        assert (status, json.loads(text)["error"]["code"]) == (503, "upstream_down")
        assert int(headers["retry-after"]) <= 30
        assert (await settled(house))["used"] == 0
        await until(lambda: house.gateway.facts["upstreams"]["fake"]["ok"] is False)


async def test_only_listed_routes_pass(short_dir: Path) -> None:
    """Every other route of an upstream is refused before the upstream sees it."""
    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        before = len(upstream.paths)
        for path in ("/v1/embeddings", "/v1/responses", "/api/pull", "/v1/chat/completions/x", "/v1/../v1/files"):
            status, _, _ = await house.post(ask(), path=path)
            assert status == 403, path
        assert (await house.post(ask(), path="/metrics"))[0] == 404
        assert (await house.post(ask(), path="/v1/models"))[0] == 405
        assert len(upstream.paths) == before


async def test_models_are_listed_with_their_upstream(short_dir: Path) -> None:
    """/v1/models names what the upstreams have; a configured list is the whole list."""
    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        headers = {"authorization": f"Bearer {house.key()}"}
        async with house.session.get(f"{house.base}/v1/models", headers=headers) as response:
            data = (await response.json())["data"]
        assert [(model["id"], model["owned_by"]) for model in data][:2] == [("big", "fake"), ("small", "fake")]
        assert "dry-run" in [model["id"] for model in data]
        async with house.session.get(f"{house.base}/v1/models/small", headers=headers) as response:
            assert (await response.json())["id"] == "small"
        async with house.session.get(f"{house.base}/v1/models/none", headers=headers) as response:
            assert response.status == 404


async def test_keys_die_with_their_invocation(short_dir: Path) -> None:
    """A forged key, one of an older invocation, and one of a unit that is down are refused with 401."""
    async with rig(short_dir, a=unit_fact(50_000), b=unit_fact(50_000, down=True)) as house:
        request = ask(model="dry-run")
        for key in ("sk-x", house.key()[:-1] + "0", house.key("a", OLDER), house.key("b"), "agentd.v1.a.b"):
            if key == house.key():
                continue
            status, headers, text = await house.post(request, key)
            assert (status, headers["x-should-retry"]) == (401, "false"), text
        assert (await house.post(request))[0] == 200
        newer = "00000000000000ab"
        assert (await house.post(request, house.key("a", newer)))[0] == 200, "spawned after our last fact"
        assert (await house.post(request, house.key("never-heard-of")))[0] == 200
        assert house.standing("never-heard-of").get("limit", 2_000_000) == 2_000_000
        house.daemon.set("unit/a", unit_fact(50_001, invocation=newer, endings=[[NEWEST, "crashed"]]))
        await until(lambda: house.standing()["limit"] == 50_001)
        assert (await house.post(request))[0] == 401


async def test_a_dead_keys_open_calls_are_dropped(short_dir: Path) -> None:
    """When an invocation is over, its open calls are closed towards the upstream too, and charged."""
    async with rig(short_dir, a=unit_fact(50_000)) as house:
        call = asyncio.create_task(house.post(ask(model="dry-run-hang", max_tokens=500)))
        await until(lambda: house.standing().get("calls"))
        house.daemon.set("unit/a", unit_fact(50_000, invocation=None, down=True))
        with pytest.raises(aiohttp.ClientError):
            await call
        assert (await settled(house))["used"] > 500


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"model":"m"} x',
        b'{"model":"m",}',
        b'{"messages":[]}',
        b"\xff",
        b'{"model":"m","max_tokens":"5"}',
        b'{"model":"m","max_tokens":-1}',
        b'{"model":"m","max_tokens":true}',
        b'{"model":"m","n":1000}',
        b'{"model":"m","max_tokens":5,"max_tokens":900000}',
        b'{"model":"m","max_tokens":5,"MAX_TOKENS":900000}',
        '{"model":"m","max_toKens":900000}'.replace("K", "\u212a").encode(),
        b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"m","x":' + b"9" * 5000 + b"}",
    ],
    ids=range(16),
)
def test_a_body_that_two_readers_could_read_differently_is_refused(body: bytes) -> None:
    """What is not plainly one JSON request with one limit is an error, never a guess."""
    from agentd.gateway.body import BadBody, parse

    with pytest.raises(BadBody):
        parse(body)


async def test_bad_and_huge_bodies_reach_no_upstream(short_dir: Path) -> None:
    """400 for what is not a request, 413 above 32 MiB; the gateway goes on."""
    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        assert (await house.post(b"{"))[0] == 400
        status, _, text = await house.post(io.BytesIO(b" " * ((32 << 20) + 1)))
        assert (status, json.loads(text)["error"]["code"]) == (413, "body_too_large")
        assert not upstream.seen
        assert (await house.post(ask()))[0] == 200
