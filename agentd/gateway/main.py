"""``agentd-gateway --config FILE``: builds the gateway process and runs it until SIGTERM.

Under agentd it inherits its listeners (``http``, ``facts``), the boot secret and real keys as descriptors; alone it
opens what its configuration says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from agentd.errors import AgentdError, BadInput, ConfigError
from agentd.gateway.board import Board
from agentd.gateway.clock import Clock
from agentd.gateway.config import Config, load
from agentd.gateway.ledgerfile import LedgerFile, LedgerUnwritable
from agentd.gateway.meter import FLEET, Meter, scope_of
from agentd.gateway.surface import Surface
from agentd.gateway.units import Units
from agentd.gateway.upstream import Upstreams
from agentd.wire import activation, log
from agentd.wire.facts import Change, Client, Facts, Server
from agentd.wire.leaving import leave
from agentd.wire.notify import notify
from agentd.wire.rhythm import to_next

BEAT = 1.0
HOLD_KNOWN = 0.1
"""Seconds after which every neighbour knows that a unit is being held."""
DRAIN_WITHIN = 5.0
_PR_SET_DUMPABLE = 4


class Gateway:
    """The process: its parts, joined."""

    def __init__(self, config: Config, fds: Mapping[str, int]) -> None:
        secret = activation.read_secret(fds, "secret")
        if not secret and not config.keys:
            raise ConfigError("no [[key]] is configured and no boot secret was handed over: no call could be made.")
        self._config = config
        self._fds = fds
        self.facts = Facts("gateway")
        self._units = Units(config, secret)
        self._board = Board(self.facts)
        self._meter = Meter(LedgerFile(config.state / "ledger"), Clock(), self._board.changed)
        self._board.meter = self._meter
        self._upstreams = Upstreams(config.upstreams, config.ollama)
        self._surface = Surface(self._units, self._meter, self._board, self._upstreams, config.park)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then open calls may finish for a few seconds."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._upstreams.close)
            stack.push_async_callback(self._meter.close)
            self._open_books()
            await self._upstreams.discover()
            self.facts.set("upstreams", self._upstreams.facts())
            await self._serve_facts(stack)
            for task in (self._beat(), self._upstreams.refresh()):
                stack.push_async_callback(_end, loop.create_task(task))  # beats on while open calls drain
            await self._serve_http(stack)
            notify("READY=1\nSTATUS=serving")
            await stop.wait()
            self._surface.stopping = True
            notify("STOPPING=1")

    def _open_books(self) -> None:
        for hold, settle in self._meter.open():
            about = {key: value for key, value in hold.call.items() if key != "unit"}
            end = {"tokens_in": None, "tokens_out": None, "charged": settle.charged, "outcome": settle.why, "ms": None}
            self.facts.record("call.ended", hold.call.get("unit"), **about, **end)
        for unit in self._units.known():
            self._meter.limit(scope_of(unit), self._units.policy(unit).tokens)
        if self._config.fleet is not None:
            self._meter.limit(FLEET, self._config.fleet)
        self._board.changed(set(self._meter.ledger.limits))

    async def _serve_facts(self, stack: contextlib.AsyncExitStack) -> None:
        runtime = self._config.runtime
        if runtime is None:
            return
        methods = {"budget.show": self._show, "budget.raise": self._raise, "budget.reset": self._reset}
        server = Server(self.facts, methods, uids=self._config.uids | {os.geteuid()})
        if "facts" in self._fds:
            await server.start(sock=activation.listener(self._fds, "facts", ""))
        else:
            (runtime / "facts").mkdir(parents=True, exist_ok=True)
            await server.start(path=runtime / "facts/gateway.sock")
        stack.push_async_callback(server.close)
        daemon = Client(runtime / "facts/daemon.sock", "gateway", on_change=self._daemon_said)
        router = Client(
            runtime / "facts/router.sock", "gateway", on_change=self._units.router_says, on_link=self._router_linked
        )
        for client in (daemon, router):
            stack.push_async_callback(_end, asyncio.create_task(client.run()))

    async def _serve_http(self, stack: contextlib.AsyncExitStack) -> None:
        sock = activation.listener(self._fds, "http", f"tcp:{self._config.listen}")
        server = web.Server(self._surface.handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=DRAIN_WITHIN)
        await runner.setup()
        await web.SockSite(runner, sock, backlog=1024).start()
        stack.push_async_callback(runner.cleanup)
        self.facts.set("listen", {"address": _address(sock)})
        log.logger().info("listening", address=_address(sock))

    async def _beat(self) -> None:
        """The watchdog and the metrics, each second, from the loop that serves."""
        while True:
            notify("WATCHDOG=1")
            self._board.metrics()
            self.facts.set("upstreams", self._upstreams.facts())
            await asyncio.sleep(to_next(BEAT))

    # -- neighbours

    def _daemon_said(self, change: Change) -> None:
        for unit in self._units.daemon_says(change):
            self._limit(unit)
            if self._units.held(unit):
                # A moment later: the router must know of the hold too, or it would count the failure that follows.
                asyncio.get_running_loop().call_later(HOLD_KNOWN, self._meter.dismiss, unit)
            for call in self._board.calls_of(unit):
                if not self._units.alive(call.caller):
                    call.task.cancel()

    def _limit(self, unit: str) -> None:
        """Take over the limit that the daemon states; of a unit that was removed the last one stays."""
        if unit not in self._units.known():
            return
        try:
            self._meter.limit(scope_of(unit), self._units.policy(unit).tokens)
        except LedgerUnwritable as error:  # its calls are refused until this succeeds
            log.logger().error("a limit could not be written", unit=unit, error=str(error))

    def _router_linked(self, linked: bool) -> None:
        if not linked:
            self._units.router_away()

    async def _show(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"scopes": self._meter.show(params.get("unit"))}

    async def _raise(self, params: dict[str, Any]) -> dict[str, Any]:
        unit, actor, reason = _who(params)
        scope = self._meter.raise_(unit, params.get("tokens", 0), actor, reason)
        self._board.budget_record("budget.raised", unit, scope, actor, reason, tokens=params["tokens"])
        return scope

    async def _reset(self, params: dict[str, Any]) -> dict[str, Any]:
        unit, actor, reason = _who(params)
        scope = self._meter.reset(unit, actor, reason)
        self._board.budget_record("budget.reset", unit, scope, actor, reason)
        return scope


def _who(params: dict[str, Any]) -> tuple[str, str, str]:
    unit = params.get("unit")
    if not isinstance(unit, str) or not unit:
        raise BadInput("which unit's budget?", hint="Name the unit.")
    return unit, str(params.get("actor") or ""), str(params.get("reason") or "")


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _hide() -> None:
    """Nobody of the same uid may read this process's memory or environment: real keys are in it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


async def _run(path: Path, fds: Mapping[str, int]) -> None:
    await Gateway(load(path, fds), fds).run()


def main() -> int:
    """The program `agentd-gateway`."""
    parser = argparse.ArgumentParser(prog="agentd-gateway", description="agentd's LLM gateway.")
    parser.add_argument("--config", type=Path, required=True, help="a TOML or JSON file")
    options = parser.parse_args()
    _hide()
    log.setup("gateway")
    try:
        fds = activation.inherited()
        asyncio.run(_run(options.config, fds))
    except AgentdError as error:
        print(f"agentd-gateway: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    leave(main())
