"""The rows of API.md: each reads its fields, asks ``Control`` and gives its JSON back.

Knows no sockets and no peers (server.py) and nothing of units.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

from aiohttp import web

from agentd.api.fields import Fields, body, query
from agentd.daemon.ports import Actor, Control, Json
from agentd.errors import AgentdError, BadInput, NoSuchUnit
from agentd.model.offspring import is_name
from agentd.model.template import is_template

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Finish = Callable[[Coroutine[Any, Any, Json]], Awaitable[Json]]
"""Awaits something that is to be finished also when the asker leaves."""

ACTOR: ContextVar[Actor] = ContextVar("actor")
"""Who asks, in the task of a request."""
LINES_MAX = 10_000_000
TEXT, NDJSON = "text/plain; charset=utf-8", "application/x-ndjson"
RECORDS_MAX = 10_000
TOKENS_MAX = 10**15
HEADERS_WITHIN = 0.2
"""Seconds after which a log that says nothing gets its headers, so that a follower knows it is connected."""


class Routes:
    """One handler for each row. ``finish`` carries the changing ones."""

    def __init__(self, control: Control, finish: Finish) -> None:
        self._control, self._finish = control, finish
        self.closing = asyncio.Event()
        """Set it to end all streams."""

    def table(self) -> list[web.RouteDef]:
        """Method, path and handler of every row."""
        unit = "/v1/units/{unit}"
        return [
            web.get("/v1/status", self._status),
            web.post(unit + "/start", self._start),
            web.post(unit + "/stop", self._stop),
            web.post(unit + "/restart", self._restart),
            web.post(unit + "/kill", self._kill),
            web.get(unit + "/logs", self._logs),
            web.get(unit, self._explain),
            web.get(unit + "/files", self._files),
            web.delete(unit, self._remove),
            web.post("/v1/check", self._check),
            web.post("/v1/deploy", self._deploy),
            web.post("/v1/run", self._run),
            web.post("/v1/send", self._send),
            web.get("/v1/dlq", self._letters),
            web.get("/v1/dlq/{id}", self._letter),
            web.post("/v1/dlq/replay", self._replay),
            web.post("/v1/dlq/purge", self._purge),
            web.get("/v1/budget", self._budget),
            web.post("/v1/budget/{unit}/raise", self._raise),
            web.post("/v1/budget/{unit}/reset", self._reset),
            web.get("/v1/journal", self._journal),
            web.get("/v1/doctor", self._doctor),
            web.post("/v1/down", self._down),
        ]

    # -- units ------------------------------------------------------------------------------------------------

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._control.status(query(request).text_or_none("unit") or None))

    async def _start(self, request: web.Request) -> web.Response:
        return await self._change(request, self._control.start)

    async def _stop(self, request: web.Request) -> web.Response:
        return await self._change(request, self._control.stop)

    async def _restart(self, request: web.Request) -> web.Response:
        return await self._change(request, self._control.restart)

    async def _change(
        self, request: web.Request, change: Callable[[str, Actor, float | None], Coroutine[Any, Any, Json]]
    ) -> web.Response:
        wait = (await body(request)).seconds("wait")
        return web.json_response(await self._finish(change(_units(request), ACTOR.get(), wait)))

    async def _kill(self, request: web.Request) -> web.Response:
        signal = (await body(request)).text_or_none("signal") or "SIGKILL"
        return web.json_response(await self._finish(self._control.kill(_unit(request), signal, ACTOR.get())))

    async def _explain(self, request: web.Request) -> web.Response:
        return web.json_response(self._control.explain(_unit(request)))

    async def _files(self, request: web.Request) -> web.Response:
        return web.json_response(self._control.files(_units(request)))

    async def _remove(self, request: web.Request) -> web.Response:
        return web.json_response(await self._finish(self._control.remove(_units(request), ACTOR.get())))

    async def _check(self, request: web.Request) -> web.Response:
        return web.json_response(await self._control.check((await body(request)).files()))

    async def _deploy(self, request: web.Request) -> web.Response:
        files = (await body(request)).files()
        return web.json_response(await self._finish(self._control.deploy(files, ACTOR.get())))

    async def _run(self, request: web.Request) -> web.Response:
        fields = await body(request)
        running = self._control.run(fields.text("name"), fields.table("unit"), ACTOR.get())
        return web.json_response(await self._finish(running))

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        fields = query(request)
        follow, as_json = fields.flag("follow"), fields.flag("json")
        span: Json = {name: value for name in ("since", "until") if (value := fields.seconds(name)) is not None}
        _require_span(span, follow)
        lines = fields.whole("lines", 100, 0, LINES_MAX) if fields.has("lines") or not span else None
        chunks = self._control.logs(_unit(request), lines, follow, **span, **({"json": True} if as_json else {}))
        async with aclosing(_until(self.closing, chunks)) as limited:
            return await _stream(request, limited, NDJSON if as_json else TEXT)

    # -- messages and budgets ---------------------------------------------------------------------------------

    async def _send(self, request: web.Request) -> web.Response:
        message = _message(await body(request))
        return web.json_response(await self._finish(self._control.send(message, ACTOR.get())))

    async def _letters(self, request: web.Request) -> web.Response:
        fields = query(request)
        wanted = fields.given("unit")
        if fields.has("limit"):
            wanted["limit"] = fields.whole("limit", 200, 1, RECORDS_MAX)
        return web.json_response(await self._control.letters("list", wanted, ACTOR.get()))

    async def _letter(self, request: web.Request) -> web.Response:
        wanted = {"id": request.match_info["id"]}
        return web.json_response(await self._control.letters("show", wanted, ACTOR.get()))

    async def _replay(self, request: web.Request) -> web.Response:
        wanted = _selection(await body(request), "unit", "to")
        return web.json_response(await self._finish(self._control.letters("replay", wanted, ACTOR.get())))

    async def _purge(self, request: web.Request) -> web.Response:
        wanted = _selection(await body(request), "unit")
        return web.json_response(await self._finish(self._control.letters("purge", wanted, ACTOR.get())))

    async def _budget(self, request: web.Request) -> web.Response:
        wanted = query(request).given("unit")
        return web.json_response(await self._control.budget("show", wanted, ACTOR.get()))

    async def _raise(self, request: web.Request) -> web.Response:
        fields = await body(request)
        if not fields.has("tokens"):
            raise BadInput("body: tokens is missing.", hint='Say how many, such as {"tokens": 50000}.')
        wanted = {"unit": _unit(request), "tokens": fields.whole("tokens", 0, 1, TOKENS_MAX)}
        return web.json_response(await self._finish(self._control.budget("raise", wanted, ACTOR.get())))

    async def _reset(self, request: web.Request) -> web.Response:
        wanted = {"unit": _unit(request)}
        return web.json_response(await self._finish(self._control.budget("reset", wanted, ACTOR.get())))

    # -- the house --------------------------------------------------------------------------------------------

    async def _journal(self, request: web.Request) -> web.Response:
        fields = query(request)
        wanted = fields.given("unit", "kind", "message", "conversation", "correlation")
        wanted |= {name: value for name in ("since", "until") if (value := fields.seconds(name)) is not None}
        wanted["limit"] = fields.whole("limit", 200, 1, RECORDS_MAX)
        return web.json_response(await self._control.journal(wanted))

    async def _doctor(self, request: web.Request) -> web.Response:
        return web.json_response(await self._control.doctor())

    async def _down(self, request: web.Request) -> web.Response:
        return web.json_response(self._control.down(ACTOR.get()))


def _unit(request: web.Request) -> str:
    """The unit of the path. What cannot be a name is no unit: nothing further in sees a ``..``."""
    name = request.match_info["unit"]
    if not is_name(name):
        raise NoSuchUnit(f"{name!r} is not a unit name.", hint="`agentctl list` shows all units.")
    return name


def _units(request: web.Request) -> str:
    """The unit of the path, or the template: there it stands for all of its instances."""
    name = request.match_info["unit"]
    return name if is_template(name) else _unit(request)


def _message(fields: Fields) -> Json:
    message: Json = {"to": fields.text("to"), "kind": fields.text("kind"), "data": fields.raw("data")}
    message |= fields.given("conversation", "id")
    wait = fields.seconds("wait")
    return message if wait is None else {**message, "wait": wait}


def _selection(fields: Fields, *names: str) -> Json:
    ids = fields.texts("ids")
    return fields.given(*names) | ({} if ids is None else {"ids": ids})


def _require_span(span: Json, follow: bool) -> None:
    if follow and "until" in span:
        raise BadInput("query: follow and until exclude each other.", hint="Following ends when the reader leaves.")
    if span.get("until", math.inf) < span.get("since", 0.0):
        raise BadInput("query: until is earlier than since.")


async def _stream(request: web.Request, chunks: AsyncIterator[bytes], kind: str) -> web.StreamResponse:
    """Send chunks as they come, until they end or the reader leaves."""
    response = web.StreamResponse(headers={"Content-Type": kind})
    first = asyncio.ensure_future(_next(chunks))
    try:
        await asyncio.wait({first}, timeout=HEADERS_WITHIN)
        if first.done():
            first.result()  # an error at the start still gets a status of its own
        await response.prepare(request)
        chunk = await first
        while chunk is not None:
            await response.write(chunk)
            chunk = await _next(chunks)
        await response.write_eof()
    except ConnectionError:
        return response  # the reader left
    except AgentdError as error:
        if not response.prepared:
            raise
        told = json.dumps({"error": error.to_wire()}) if kind == NDJSON else f"\nagentd: {error}"
        await response.write(f"{told}\n".encode())
    finally:
        await _cancel(first)
    return response


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


async def _until(closing: asyncio.Event, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The chunks until closing is set. Ends the source too."""
    stop = asyncio.ensure_future(closing.wait())
    try:
        while True:
            coming = asyncio.ensure_future(_next(chunks))
            try:
                await asyncio.wait({coming, stop}, return_when=asyncio.FIRST_COMPLETED)
                chunk = coming.result() if coming.done() else None
            finally:
                await _cancel(coming)
            if chunk is None:
                return
            yield chunk
    finally:
        await _cancel(stop)
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


async def _cancel(future: asyncio.Future[Any]) -> None:
    future.cancel()
    await asyncio.gather(future, return_exceptions=True)
