"""One connection to nats-server that is never given up, with errors in our own words.

The only place that calls nats-py. Knows JetStream's request and error form, not what is stored in it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Any

import nats.errors
import tenacity
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from agentd.errors import BusUnavailable

REQUEST_TIMEOUT = 2.0
_RECONNECT_WAIT = 0.1
_PING_INTERVAL = 1


class Connection:
    """A connection to ``url`` as ``user``; ``start`` connects, and from then on it reconnects for ever.

    ``listeners`` are called with True each time the connection is up and with False each time it was lost.
    They may not raise.
    """

    def __init__(self, url: str, *, user: str | None = None, password: str | None = None, name: str = "router") -> None:
        self.url, self._user, self._password, self._name = url, user, password, name
        self.up = asyncio.Event()
        self.error: str | None = "not connected yet"
        self.listeners: list[Callable[[bool], None]] = []
        self.inbox = f"_INBOX.{name}.{secrets.token_hex(6)}"
        self._client = Client()

    @property
    def server(self) -> str | None:
        """Version of the server, while connected."""
        if not self.up.is_set() or self._client.connected_server_version is None:
            return None
        version = self._client.connected_server_version
        return f"{version.major}.{version.minor}.{version.patch}"

    @property
    def max_payload(self) -> int:
        """Largest body that the server takes, in bytes."""
        return self._client.max_payload

    async def start(self) -> None:
        """Connect; tries until it succeeds or is cancelled."""
        await tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((OSError, nats.errors.Error, TimeoutError)),
            wait=tenacity.wait_exponential(multiplier=0.05, max=1.0),
            before_sleep=lambda state: self._failed(state.outcome.exception() if state.outcome else None),
        )(self._connect)
        self._changed(up=True)

    async def _connect(self) -> None:
        async with asyncio.timeout(5.0):  # nats-py can hang while it connects
            await self._client.connect(
                servers=[self.url],
                name=self._name,
                user=self._user,
                password=self._password,
                inbox_prefix=self.inbox,
                error_cb=self._on_error,
                disconnected_cb=self._on_down,
                reconnected_cb=self._on_up,
                closed_cb=self._on_down,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_WAIT,  # type: ignore[arg-type]  # any number of seconds works
                connect_timeout=2,
                ping_interval=_PING_INTERVAL,
                max_outstanding_pings=2,
                pending_size=-1,  # nothing is buffered while away: what must not be lost is sent again by us
            )

    async def close(self) -> None:
        """Close for good, within two seconds."""
        self.listeners.clear()
        self.up.clear()
        try:
            async with asyncio.timeout(2.0):
                await self._client.close()
        except (OSError, nats.errors.Error, TimeoutError):
            return  # the process ends; the server notices

    async def publish(
        self, subject: str, body: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Hand one message to the server; not confirmed. BusUnavailable while away."""
        try:
            await self._client.publish(subject, body, reply=reply, headers=headers)
        except (OSError, nats.errors.Error) as e:
            raise self._away(e) from e

    async def request(self, subject: str, body: bytes, timeout: float = REQUEST_TIMEOUT) -> bytes:
        """Ask and wait for one answer. BusUnavailable if none comes."""
        if not self.up.is_set():
            raise self._away(None)
        try:
            return (await self._client.request(subject, body, timeout=timeout)).data
        except (OSError, nats.errors.Error, TimeoutError) as e:
            raise self._away(e) from e

    async def api(
        self, call: str, body: dict[str, Any] | None = None, timeout: float = REQUEST_TIMEOUT
    ) -> dict[str, Any]:
        """One JetStream API call. A refusal is BusUnavailable with ``err_code`` and ``status`` in its detail."""
        said = await self.request(f"$JS.API.{call}", json.dumps(body).encode() if body is not None else b"", timeout)
        answer: dict[str, Any] = json.loads(said)
        if "error" in answer:
            raise refusal(answer["error"], call)
        return answer

    async def subscribe(self, subject: str, handler: Callable[[Msg], None]) -> Subscription:
        """Call ``handler`` for each message; survives reconnects."""

        async def called(message: Msg) -> None:
            handler(message)

        try:
            return await self._client.subscribe(subject, cb=called, pending_msgs_limit=-1, pending_bytes_limit=-1)
        except (OSError, nats.errors.Error) as e:
            raise self._away(e) from e

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription and make sure that the server knows."""
        try:
            await subscription.unsubscribe()
        except (OSError, nats.errors.Error) as e:
            raise self._away(e) from e
        await self.ping()

    async def ping(self) -> None:
        """Return when the server has seen everything sent before."""
        try:
            await self._client.flush(timeout=int(REQUEST_TIMEOUT))
        except (OSError, nats.errors.Error, TimeoutError) as e:
            raise self._away(e) from e

    async def _on_error(self, error: Exception) -> None:
        self._failed(error)

    async def _on_down(self) -> None:
        self._changed(up=False)

    async def _on_up(self) -> None:
        self._changed(up=True)

    def _failed(self, error: BaseException | None) -> None:
        self.error = str(error) or type(error).__name__

    def _changed(self, *, up: bool) -> None:
        if up == self.up.is_set():
            return
        if up:
            self.error = None
            self.up.set()
        else:
            self.error = self.error or "the connection was lost"
            self.up.clear()
        for listener in self.listeners:
            listener(up)

    def _away(self, error: BaseException | None) -> BusUnavailable:
        why = str(error) or type(error).__name__ if error else self.error or "not connected"
        return BusUnavailable(f"bus {self.url}: no answer: {why}", hint="It is restarted by itself; try again.")


def refusal(error: dict[str, Any], call: str) -> BusUnavailable:
    """The error for what JetStream answered to ``call``."""
    return BusUnavailable(
        f"bus: {call}: {error.get('description', 'refused')}",
        err_code=error.get("err_code", 0),
        status=error.get("code", 0),
    )
