"""Upstreams: where a call is forwarded to, over HTTP or into the built-in dry-run model.

Knows addresses, real keys, time-outs and what can go wrong on the way. Knows nothing of budgets. An upstream is asked
once: the gateway never retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from agentd.errors import AgentdError
from agentd.gateway import dryrun
from agentd.gateway.body import ChatRequest
from agentd.gateway.config import UpstreamConfig

CONNECT_WITHIN = 10.0
LIST_WITHIN = 2.0
# Less than the idle time-out of common servers (5 s): a POST on a connection that the server just closed is lost.
_KEEP_ALIVE = 4.0
_REQUEST_HEADERS = ("accept", "user-agent", "traceparent", "idempotency-key", "openai-beta")


class UpstreamDown(AgentdError):
    """The upstream cannot be reached: it saw nothing of the call."""

    status = 503


class UpstreamSilent(AgentdError):
    """The upstream moved no byte for too long."""

    status = 504


class UpstreamBroke(AgentdError):
    """The upstream broke off."""

    status = 502


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it begins: status and headers; its bytes are still to come."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream of events."""
        return self.headers.get("content-type", "").startswith("text/event-stream")


class Upstream:
    """One upstream, configured or discovered."""

    def __init__(self, config: UpstreamConfig, session: aiohttp.ClientSession) -> None:
        self.config = config
        self.models: tuple[str, ...] = config.models or (dryrun.NAMES if config.dialect == "dry-run" else ())
        self.error: str | None = None
        self._session = session

    def request_body(self, chat: ChatRequest, each: int) -> bytes:
        """The body with the clamp under the key that this upstream obeys."""
        if self.config.dialect == "ollama":  # it ignores max_completion_tokens
            return chat.upstream(each, name="max_tokens", also=True)
        official = urlsplit(self.config.base_url).hostname == "api.openai.com"
        return chat.upstream(each, name="max_completion_tokens" if official else "max_tokens")

    @asynccontextmanager
    async def open(
        self, chat: ChatRequest, each: int, headers: Mapping[str, str], silence: float
    ) -> AsyncIterator[Reply]:
        """Forward the call. Leaving the context closes the upstream's side at once."""
        if self.config.dialect == "dry-run":
            kind = "text/event-stream" if chat.stream else "application/json"
            pieces = dryrun.body(chat, each)
            async with contextlib.aclosing(_within(pieces, silence)) as body:
                yield Reply(200, {"content-type": kind}, body)
            return
        async with self._post(self.request_body(chat, each), headers, silence) as reply:
            yield reply

    @asynccontextmanager
    async def _post(self, body: bytes, headers: Mapping[str, str], silence: float) -> AsyncIterator[Reply]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN, sock_read=silence)
        url = self._url("chat/completions")
        with self._translated(silence):
            response = await self._session.post(
                url, data=io.BytesIO(body), headers=self._headers(headers), timeout=timeout, allow_redirects=False
            )
        self.error = None
        try:
            yield Reply(
                response.status,
                {name.lower(): value for name, value in response.headers.items()},
                self._read(response, silence),
            )
        finally:
            response.close()  # gives a wholly read connection back, cuts any other

    async def _read(self, response: aiohttp.ClientResponse, silence: float) -> AsyncIterator[bytes]:
        with self._translated(silence):
            async for data in response.content.iter_any():
                yield data

    @contextlib.contextmanager
    def _translated(self, silence: float) -> Any:
        """The client library's errors as ours. None of them repeats what was sent."""
        name = self.config.name
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self.error = f"cannot be reached at {self.config.base_url} ({type(error).__name__})"
            raise UpstreamDown(f"upstream {name} {self.error}.") from None
        except (aiohttp.ServerTimeoutError, TimeoutError):
            self.error = f"moved no byte for {silence:g} s"
            raise UpstreamSilent(f"upstream {name} {self.error}.") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.error = f"broke off ({type(error).__name__})"
            raise UpstreamBroke(f"upstream {name} {self.error}.") from None

    def _headers(self, given: Mapping[str, str]) -> dict[str, str]:
        headers = {name: given[name] for name in _REQUEST_HEADERS if name in given}
        headers |= {"content-type": "application/json", "accept-encoding": "identity"}
        if self.config.key is not None:
            headers["authorization"] = f"Bearer {self.config.key.reveal()}"
        return headers

    def _url(self, route: str) -> str:
        base = self.config.base_url
        if self.config.dialect == "ollama":
            base = base.removesuffix("/v1") + "/v1"
        return f"{base}/{route}"

    async def refresh(self) -> None:
        """Learn which models there are, where the configuration does not say."""
        if self.config.models or self.config.dialect == "dry-run":
            return
        try:
            async with asyncio.timeout(LIST_WITHIN):
                self.models = await (self._ollama() if self.config.dialect == "ollama" else self._list())
            self.error = None
        except (OSError, ValueError, TimeoutError, aiohttp.ClientError) as error:
            self.error = f"does not list its models ({type(error).__name__})"

    async def _list(self) -> tuple[str, ...]:
        url = self._url("models")
        async with self._session.get(url, headers=self._headers({}), allow_redirects=False) as response:
            listed = await response.json(content_type=None)
        entries = listed.get("data") if isinstance(listed, dict) else None
        if response.status != 200 or not isinstance(entries, list):
            raise ValueError("not a list of models")
        return tuple(entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str))

    async def _ollama(self) -> tuple[str, ...]:
        address = urlsplit(self.config.base_url)
        port = address.port or (443 if address.scheme == "https" else 80)
        _, writer = await asyncio.open_connection(address.hostname, port)
        writer.close()
        await writer.wait_closed()
        import ollama  # late: its import costs more than the whole start of the gateway

        client: Any = ollama.AsyncClient(host=self.config.base_url.removesuffix("/v1"))
        try:
            listed = await client.list()
        except (ollama.ResponseError, ConnectionError) as error:
            raise ValueError(f"Ollama: {type(error).__name__}") from None
        finally:
            await client.close()
        return tuple(model.model for model in listed.models if model.model)

    def blotted(self, data: bytes) -> bytes:
        """The bytes without our real key, should an upstream repeat it."""
        if self.config.key is None:
            return data
        return data.replace(self.config.key.reveal().encode(), b"***")

    def fact(self) -> dict[str, Any]:
        """What the fact `upstreams` says of it."""
        config = self.config
        return {
            "dialect": config.dialect,
            "base_url": config.base_url,
            "models": list(self.models),
            "ok": self.error is None,
            "error": self.error,
        }


async def _within(pieces: AsyncGenerator[bytes, None], silence: float) -> AsyncGenerator[bytes, None]:
    """The pieces, each within `silence` seconds."""
    async with contextlib.aclosing(pieces):
        while True:
            try:
                async with asyncio.timeout(silence):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise UpstreamSilent(f"the dry-run model moved no byte for {silence:g} s.") from None
            yield piece


class Upstreams:
    """All upstreams, and which of them answers a model."""

    def __init__(self, configs: tuple[UpstreamConfig, ...], ollama: str) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        self._all = [Upstream(config, self._session) for config in configs]
        self._usual_ollama = ollama

    async def discover(self) -> None:
        """With none configured: Ollama if it answers. The dry-run model is always there, under its own names."""
        if not self._all:
            found = Upstream(UpstreamConfig("ollama", "ollama", self._usual_ollama), self._session)
            await found.refresh()
            if found.error is None:
                self._all.append(found)
        if not any(upstream.config.dialect == "dry-run" for upstream in self._all):
            self._all.append(Upstream(UpstreamConfig("dry-run", "dry-run"), self._session))

    async def refresh(self) -> None:
        """Ask those that were not told which models they have."""
        await asyncio.gather(*(upstream.refresh() for upstream in self._all))

    def find(self, model: str) -> Upstream | None:
        """The upstream that lists the model; else the first that was given no list."""
        for upstream in self._all:
            if model in upstream.models or (upstream.config.dialect == "dry-run" and model.startswith("dry-run")):
                return upstream
        for upstream in self._all:
            if not upstream.config.models and (upstream.config.dialect != "dry-run" or len(self._all) == 1):
                return upstream
        return None

    def models(self) -> list[tuple[str, str]]:
        """Each model with the name of its upstream."""
        return [(model, upstream.config.name) for upstream in self._all for model in upstream.models]

    def facts(self) -> dict[str, Any]:
        """The fact `upstreams`."""
        return {upstream.config.name: upstream.fact() for upstream in self._all}

    async def close(self) -> None:
        """End all connections."""
        await self._session.close()
