"""The router process: ``agentd-router --config FILE``.

The file (JSON or TOML): ``{"runtime": dir, "channels": dir, "uids": [who may read the facts], "nats": {"url", "user",
"secret": name of an inherited descriptor | "password"}, "bounds": {"messages", "dead", "state"}}``; channels default to
``<runtime>/c``, bounds are bytes. Its facts listener is the inherited descriptor ``facts``, or
``<runtime>/facts/router.sock``.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentd.bus import topology
from agentd.bus.connection import Connection
from agentd.errors import AgentdError, ConfigError
from agentd.router.router import Router
from agentd.wire import activation, config, log
from agentd.wire.facts import Client, Server
from agentd.wire.leaving import leave
from agentd.wire.notify import notify
from agentd.wire.rhythm import to_next

_BEAT = 1.0


async def run(settings: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, fds, stop)


async def serve(settings: Mapping[str, Any], fds: Mapping[str, int], stop: asyncio.Event) -> None:
    """Serve until ``stop``."""
    runtime = Path(settings["runtime"])
    _channels(Path(settings.get("channels") or runtime / "c"))
    router = Router(_connection(settings.get("nats") or {}, fds), topology.Bounds(**settings.get("bounds") or {}))
    server = Server(router.facts, router.calls, uids=frozenset(settings.get("uids") or ()))
    if "facts" in fds:
        await server.start(sock=activation.listener(fds, "facts", ""))
    else:
        await server.start(path=runtime / "facts" / "router.sock")
    daemon = Client(runtime / "facts" / "daemon.sock", "router", on_change=router.changed_facts)
    router.daemon = daemon
    tasks = [asyncio.create_task(work) for work in (router.run(), daemon.run(), _ready(router), _beat(router))]
    ended = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([*tasks[:2], ended], return_when=asyncio.FIRST_COMPLETED)
    for task in [*tasks, ended]:
        task.cancel()
    await asyncio.gather(*tasks, ended, return_exceptions=True)
    await server.close()
    await router.close()
    for task in done - {ended}:
        task.result()  # the router or its client failed: say why and end


async def _ready(router: Router) -> None:
    """READY once facts and channels are served."""
    await router.served.wait()
    notify("READY=1")


async def _beat(router: Router) -> None:
    """From the loop that does the work: if it hangs, this stops."""
    while True:
        notify("WATCHDOG=1")
        router.beat()
        await asyncio.sleep(to_next(_BEAT))


def _channels(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o711)  # units with a uid of their own pass through to their socket


def _connection(nats: Mapping[str, Any], fds: Mapping[str, int]) -> Connection:
    if "url" not in nats:
        raise ConfigError("router: nats.url: is missing")
    password = nats.get("password")
    if "secret" in nats:
        secret = activation.read_secret(fds, nats["secret"])
        if secret is None:
            raise ConfigError(f"router: nats.secret: no descriptor {nats['secret']!r} was handed over")
        password = secret.decode().strip()
    return Connection(nats["url"], user=nats.get("user"), password=password)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="agentd-router", description="agentd's message router.")
    parser.add_argument("--config", type=Path, required=True, help="the configuration file")
    arguments = parser.parse_args()
    log.setup("router")
    try:
        fds = activation.inherited()
        settings = config.read(arguments.config)
        if "runtime" not in settings:
            raise ConfigError(f"{arguments.config}: runtime: is missing")
        asyncio.run(run(settings, fds))
    except AgentdError as error:
        print(f"agentd-router: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
    leave(0)
