"""The HTTP surface towards agents: routes, keys, and the way of a call from its hold to its settlement.

Every route that is not listed here is refused before any upstream sees it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from agentd.errors import AgentdError, ProtocolError
from agentd.gateway import body, refusal
from agentd.gateway.board import Board, Call
from agentd.gateway.body import ChatRequest
from agentd.gateway.ledgerfile import LedgerUnwritable
from agentd.gateway.meter import Meter, scope_of
from agentd.gateway.refusal import Refusal
from agentd.gateway.stream import SseMeter, Usage, usage_in
from agentd.gateway.units import Caller, Units
from agentd.gateway.upstream import Reply, Upstream, UpstreamBroke, Upstreams
from agentd.model.ledger import Ask, Hold
from agentd.wire.log import logger

BODY_MAX = 32 << 20
ANSWER_MAX = 64 << 20
BODY_WITHIN = 60.0
_RETRY_AFTER_MOST = 30.0
_ANSWER_HEADERS = ("content-type", "x-request-id", "openai-processing-ms", "openai-version", "retry-after")

Answer = web.StreamResponse
Route = Callable[[web.BaseRequest, Caller], Awaitable[Answer]]


class Refused(Exception):
    """The call is not forwarded, or its answer not passed on."""

    def __init__(self, answer: Refusal) -> None:
        super().__init__(answer.message)
        self.answer = answer


@dataclass(slots=True)
class Bill:
    """What a call will be charged: its whole hold, until something better is known."""

    charged: int
    why: str = "aborted"
    usage: Usage | None = None

    def pay(self, usage: Usage | None) -> None:
        """The call is complete; without a usage it stays at the whole hold."""
        self.usage = usage
        self.why = "usage" if usage else "no usage"
        if usage:
            self.charged = usage.total

    def free(self, why: str) -> None:
        """The upstream produced nothing."""
        self.charged, self.why = 0, why


class Surface:
    """The handler of all requests."""

    def __init__(self, units: Units, meter: Meter, board: Board, upstreams: Upstreams, park: float) -> None:
        self.stopping = False
        self._units = units
        self._meter = meter
        self._board = board
        self._upstreams = upstreams
        self._park = park
        self._routes: dict[str, tuple[str, Route]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/models": ("GET", self._models),
        }

    async def handle(self, request: web.BaseRequest) -> Answer:
        """Answer one request: the root of its task."""
        try:
            return await self._route(request)
        except Refused as refused:
            return _answer(refused.answer)
        except AgentdError as error:
            return _answer(refusal.of(error))
        except ConnectionError:
            raise  # the client left: nobody to answer
        except Exception:  # noqa: BLE001 - the root of a request's task
            logger().exception("call failed", path=request.path)
            return _answer(
                Refusal(500, "internal_error", "agentd: the gateway failed; its log says why.", "server_error")
            )

    async def _route(self, request: web.BaseRequest) -> Answer:
        path = request.path
        method, route = self._routes.get(path, ("", None))
        if route is None and path.startswith("/v1/models/"):
            method, route = "GET", self._model
        if route is None:
            raise Refused(refusal.FORBIDDEN if path.startswith(("/v1/", "/api/")) else refusal.NO_SUCH_ROUTE)
        if request.method != method:
            raise Refused(refusal.WRONG_METHOD)
        if self.stopping:
            raise Refused(refusal.STOPPING)
        return await route(request, self._caller(request))

    def _caller(self, request: web.BaseRequest) -> Caller:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        caller = self._units.identify(token.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise Refused(refusal.BAD_KEY)
        if not self._units.alive(caller):
            self._board.refused(caller.unit, "dead_key", invocation=caller.invocation)
            raise Refused(refusal.DEAD_KEY)
        return caller

    # -- models

    async def _models(self, request: web.BaseRequest, caller: Caller) -> Answer:
        await self._upstreams.refresh()
        data = [_model(model, owner) for model, owner in self._upstreams.models()]
        return _json({"object": "list", "data": data})

    async def _model(self, request: web.BaseRequest, caller: Caller) -> Answer:
        name = request.path.removeprefix("/v1/models/")
        for model, owner in self._upstreams.models():
            if model == name:
                return _json(_model(model, owner))
        raise Refused(refusal.no_such_model(name))

    # -- chat

    async def _chat(self, request: web.BaseRequest, caller: Caller) -> Answer:
        chat = body.parse(await _read(request))
        upstream = self._upstreams.find(chat.model)
        if upstream is None:
            raise Refused(refusal.no_such_model(chat.model))
        attribution = self._units.attribution(caller)
        call = self._board.begin(caller, attribution, chat.model, upstream.config.name)
        try:
            hold = await self._reserve(chat, upstream, call)
            return await self._forward(request, chat, upstream, call, hold)
        finally:
            self._board.end(call)

    async def _reserve(self, chat: ChatRequest, upstream: Upstream, call: Call) -> Hold:
        """The hold of this call, after waiting for budget if its unit's policy says so."""
        unit = call.caller.unit
        policy = self._units.policy(unit)
        self._meter.limit(scope_of(unit), policy.tokens)
        wanted = min(chat.wanted or upstream.config.max_output, body.OUTPUT_MAX)
        about = {"unit": unit, **call.about()}
        ask = Ask(chat.tokens_in, wanted, (scope_of(unit),), chat.choices, about)
        try:
            return await self._meter.reserve(
                ask, policy.on_exhausted, self._park, lambda: self._board.parked(call, parked=True)
            )
        except AgentdError as error:
            self._board.refused(unit, refusal.of(error).code, **call.about())
            raise
        finally:
            self._board.parked(call, parked=False)

    async def _forward(
        self, request: web.BaseRequest, chat: ChatRequest, upstream: Upstream, call: Call, hold: Hold
    ) -> Answer:
        """From the hold to its settlement. However this ends, it is settled exactly once."""
        self._board.started(call)
        bill = Bill(hold.total)
        silence = self._units.policy(call.caller.unit).silence
        try:
            async with upstream.open(chat, hold.each, request.headers, silence) as reply:
                return await self._relay(request, chat, upstream, call, reply, bill)
        except AgentdError as error:
            why = refusal.of(error).code
            if why == "upstream_down":
                bill.free(why)
            elif bill.why == "aborted":
                bill.why = why
            raise
        finally:
            self._settle(call, hold, bill)

    def _settle(self, call: Call, hold: Hold, bill: Bill) -> None:
        try:
            self._meter.settle(hold, bill.charged, bill.why)
        except LedgerUnwritable as error:
            logger().error("a settlement could not be written; its whole hold stays", call=call.id, error=str(error))
        self._board.settled(call, bill.usage, bill.charged, bill.why)

    async def _relay(
        self, request: web.BaseRequest, chat: ChatRequest, upstream: Upstream, call: Call, reply: Reply, bill: Bill
    ) -> Answer:
        if reply.status == 200 and reply.is_stream:
            return await self._stream(request, chat, call, reply, bill)
        data = await self._whole(call, reply)
        if reply.status == 200:
            usage = usage_in(data)
            bill.pay(usage)
            if usage is None and not _is_json(data):
                bill.why = refusal.GARBAGE.code
                raise Refused(refusal.GARBAGE)
            return web.Response(body=data, headers=_headers(reply))
        bill.free(f"upstream {reply.status}")  # an upstream that answers with an error says that it made nothing
        if reply.status in (401, 402, 403):
            upstream.error = f"refused our key or account ({reply.status})"
            raise Refused(refusal.OUR_KEY)
        if reply.status < 400:
            raise Refused(refusal.GARBAGE)
        return web.Response(status=reply.status, body=upstream.blotted(data), headers=_headers(reply))

    async def _whole(self, call: Call, reply: Reply) -> bytes:
        parts, size = [], 0
        async for data in reply.body:
            self._board.moved(call)
            parts.append(data)
            size += len(data)
            if size > ANSWER_MAX:
                raise UpstreamBroke(f"the upstream's answer is larger than {ANSWER_MAX} bytes.")
        return b"".join(parts)

    async def _stream(
        self, request: web.BaseRequest, chat: ChatRequest, call: Call, reply: Reply, bill: Bill
    ) -> Answer:
        """Pass events on as they come. Once begun, the only way to say that it failed is to break off."""
        meter = SseMeter(strip=not chat.wants_usage)
        response = web.StreamResponse(headers={**_headers(reply), "cache-control": "no-cache"})
        await response.prepare(request)
        try:
            async for data in reply.body:
                self._board.moved(call)
                if out := meter.feed(data):
                    await response.write(out)
            if rest := meter.end():
                await response.write(rest)
            bill.pay(meter.usage)
            await response.write_eof()
        except (AgentdError, ProtocolError) as error:
            bill.why = refusal.of(error).code
            logger().warning("a stream broke off", call=call.id, unit=call.caller.unit, error=str(error))
            if request.transport is not None:
                request.transport.abort()
        finally:
            if meter.final:
                bill.pay(meter.usage)
        return response


async def _read(request: web.BaseRequest) -> bytes:
    """The request's body, within its bounds of size and time."""
    if (request.content_length or 0) > BODY_MAX:
        raise Refused(refusal.TOO_LARGE)
    if request.headers.get("expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_WITHIN):
            async for data in request.content.iter_any():
                parts.append(data)
                size += len(data)
                if size > BODY_MAX:
                    raise Refused(refusal.TOO_LARGE)
    except TimeoutError:
        raise Refused(refusal.TOO_SLOW) from None
    return b"".join(parts)


def _headers(reply: Reply) -> dict[str, str]:
    """The upstream's headers that an agent may see."""
    headers = {
        name: value
        for name, value in reply.headers.items()
        if name in _ANSWER_HEADERS or name.startswith("x-ratelimit-")
    }
    after = headers.get("retry-after")
    if after is not None and not (after.isdigit() and int(after) <= _RETRY_AFTER_MOST):
        headers["x-should-retry"] = "false"  # an SDK would sleep through it
    return headers


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _model(model: str, owner: str) -> dict[str, object]:
    return {"id": model, "object": "model", "created": 0, "owned_by": owner}


def _json(value: object) -> web.Response:
    return web.Response(body=json.dumps(value, ensure_ascii=False).encode(), content_type="application/json")


def _answer(answer: Refusal) -> web.Response:
    headers = {**answer.headers, "content-type": "application/json"}
    return web.Response(status=answer.status, body=answer.body, headers=headers)
