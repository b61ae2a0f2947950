"""From an agent to its spawn plan: joins units, the host room's compiler and agentd's own programs.

Knows where things of this fleet are and what the gateway's address is; decides no lifecycle.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentd.bus import server
from agentd.daemon import unitfiles
from agentd.daemon.agent import Agent
from agentd.daemon.config import Config, Upstream, refusal
from agentd.errors import AgentdError, ConfigError, HostCannot, UnitFileError
from agentd.host.capability import Capabilities, sweep
from agentd.host.compile import Compiled, Finding, System, check_host, compile, compile_system, near  # noqa: A004 - the room's word
from agentd.host.identity import Identities
from agentd.host.lent import OwnOnly
from agentd.host.place import Place, Rotation, make_directory
from agentd.host.reach import EXECUTE, closed_component
from agentd.host.stage import Slow, Stage, ours
from agentd.keeper.plan import Listener, SpawnPlan
from agentd.model.lifecycle import Policy
from agentd.model.offspring import parent_of
from agentd.model.probe import Probe
from agentd.model.unit import Unit

Json = dict[str, Any]

HEARTBEAT = 3.0
"""Seconds: the longest silence of router and gateway."""
BUS_INTERVAL, BUS_TIMEOUT = 1.0, 1.7
"""Together less than three seconds: so long may the bus be hung before it is found."""
BUS_STOP = 0.3
"""Seconds that the bus has to end by itself. It needs 10 ms per inbox, in which it only sleeps: messages are written
when they are accepted, and what was acknowledged within 100 ms. Its end is its router's end plus three times that, so a
kill finds nothing unwritten."""


class Spawning:
    """Everything that a plan is made of, for one fleet."""

    def __init__(self, config: Config, capabilities: Capabilities, memory: dict[str, Json]) -> None:
        self.config = config
        self.capabilities = capabilities
        self.transient: set[str] = set()
        self.floors: dict[str, str | None] = {
            name: blob.get("floor") for name, blob in memory.items() if "floor" in blob
        }
        uids = range(config.uids.first, config.uids.last + 1)
        self._place = Place(
            runtime=config.runtime,
            state=config.state,
            secret=_secret(config.runtime / "secret"),
            capabilities=capabilities,
            identities=Identities(config.state / "units.json", uids),
            stage=Stage(config.state / "stage"),
            logs=Rotation(config.logs.max_size, config.logs.keep, config.logs.max_age),
        )
        self._place.prepare()
        self._own_stage = OwnOnly(config.state / "stage")
        self._uids: dict[tuple[str, str | None], int | None] = {}
        self._nats_port = config.bus.port
        self._bus_password = ""
        make_directory(config.runtime / "etc", 0o711)
        make_directory(config.runtime / "facts", 0o711)

    @property
    def runtime(self) -> Path:
        """The runtime directory."""
        return self.config.runtime

    @property
    def gateway(self) -> str | None:
        """``host:port`` of the gateway, once it is known."""
        return self._place.gateway

    def uid(self, unit: Unit) -> int | None:
        """The uid that the unit runs under, where it is one of its own.

        None also where it can have none (no such user, no uid left): it is never spawned, and its refusal says why.
        """
        key = (unit.name, unit.agent.user)
        if key not in self._uids:
            identities = self._place.identities
            try:
                if unit.agent.user is not None:
                    account = identities.named(unit.agent.user, allow_root=unit.agent.allow_root)
                else:
                    account = identities.own(unit.name)
            except AgentdError:
                return None
            self._uids[key] = account.uid if account.switch else None
        return self._uids[key]

    def reserve(self, units: Iterable[Unit]) -> None:
        """Give many units their uids by one write to the disk. What goes wrong is each unit's own to tell, when it is
        spawned."""
        with suppress(AgentdError):
            self._place.identities.reserve(unit.name for unit in units if unit.agent.user is None)

    def forget(self, name: str) -> None:
        """The unit is removed. Its uid stays its own for as long as it has files."""
        self._uids = {key: uid for key, uid in self._uids.items() if key[0] != name}
        self.transient.discard(name)
        if not self._place.home(name).exists():  # or the next unit with this uid would own its files
            self._place.identities.remove(name)

    def floor(self, name: str) -> str | None:
        """The newest invocation id that a unit of this name ever had."""
        return self.floors.get(name)

    def log(self, name: str) -> Path:
        """The file with its output."""
        return self._place.log(name)

    def fifo(self, name: str) -> Path:
        """The FIFO that it writes its output to."""
        return self._place.fifo(name)

    def learn(self, name: str, listeners: dict[str, str]) -> None:
        """The addresses of a unit's listeners, as the keeper opened them."""
        if name == "gateway" and "http" in listeners:
            self._place = replace(self._place, gateway=listeners["http"].removeprefix("tcp:"))

    def check(self, name: str, unit: Unit, texts: Mapping[str, str] | None = None) -> list[Json]:
        """What this host would refuse of the unit, whose files say ``texts``; nothing is made or changed."""
        return [self._told(found, name, unit, texts) for found in check_host(unit, self._place)]

    def _told(self, found: Finding, name: str, unit: Unit, texts: Mapping[str, str] | None) -> Json:
        error = unitfiles.of_host(HostCannot(found.message, hint=found.hint, key=found.key), unit, texts)
        assert isinstance(error, UnitFileError)
        return {**unitfiles.finding(error, name), "severity": found.severity}

    async def examine(self, doctor: Callable[[Place], list[Json]]) -> list[Json]:
        """Have the host examined, beside the loop."""
        return await asyncio.to_thread(doctor, self._place)

    def owns(self, pid: int, parents: frozenset[int]) -> bool:
        """Whether a process belongs to a unit: by its cgroup, or as offspring of the keeper or of a unit's process."""
        try:
            cgroup = Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            return True  # it is gone, or hidden from us: nobody that we would trust
        groups = {str(parent.name) for parent in self.capabilities.parents.values()}
        if any(f"/{group}/" in cgroup for group in groups):
            return True
        return _descends(pid, parents)

    def lend(self, name: str) -> str | None:
        """A uid for units that come and go, by the name of its place; None where units have no uids of their own."""
        account = self._place.identities.own(name)
        return str(account.uid) if account.switch else None

    def home(self, name: str) -> Path:
        """Its state directory."""
        return self._place.home(name)

    async def compile(self, agent: Agent, invocation: str) -> Compiled:
        """The plan of one invocation: at once where that cannot take long, since somebody waits for the restart; beside
        the loop where an environment is to be looked at or staged, or a place that may not answer."""
        if agent.unit is None:
            system = await asyncio.to_thread(self._system, agent.name)
            return await asyncio.to_thread(compile_system, system, invocation, self._place)
        try:
            if parent_of(agent.name) is not None:
                place = replace(self._place, stage=self._own_stage)
                return await asyncio.to_thread(compile, agent.unit, invocation, place)
            with suppress(Slow):
                if near(agent.unit):
                    return compile(agent.unit, invocation, replace(self._place, stage=self._place.stage.at_once()))
            return await asyncio.to_thread(compile, agent.unit, invocation, self._place)
        except AgentdError as error:
            raise unitfiles.of_host(error, agent.unit) from error

    async def command(self, agent: Agent, invocation: str, argv: tuple[str, ...]) -> SpawnPlan:
        """What a command beside a unit needs: program, environment and directory; all else is the unit's own."""
        if agent.unit is None:
            raise HostCannot(f"{agent.name} is a system unit: no command runs beside it")
        unit = agent.unit.model_copy(update={"agent": agent.unit.agent.model_copy(update={"exec": argv})})
        return (await asyncio.to_thread(compile, unit, invocation, self._place)).plan

    def sweep(self) -> None:
        """Remove the fleet's empty cgroups, once the keeper has ended."""
        sweep(self.capabilities)

    async def prepare(self) -> None:
        """Stage agentd's own environment ahead of the first agent, where a uid of its own could not reach it."""
        python = ours()
        identities = self._place.identities
        if python is None or not identities.switch:
            return
        account = identities.own("router")
        from agentd.host.stage import closed

        if closed(python, account.uid, account.gid, account.groups) is not None:
            await asyncio.to_thread(self._place.stage.stage, python)

    # --- agentd's own programs ----------------------------------------------------------------------------------------

    def policy(self, name: str) -> Policy:
        """How a system unit is supervised."""
        if name == "bus":
            return Policy.system(type="simple", stop_timeout=BUS_STOP)
        return Policy.system(heartbeat=HEARTBEAT)

    def probe(self, agent: Agent) -> Probe | None:
        """What is asked of a unit to see whether it is well. Router and gateway beat instead."""
        if agent.unit is not None:
            return agent.unit.liveness.probe
        if agent.name != "bus":
            return None
        where = f"127.0.0.1:{self.nats_port()}"
        return Probe(tcp=where, expect="INFO", interval=BUS_INTERVAL, timeout=BUS_TIMEOUT, failures=1)

    def _system(self, name: str) -> System:
        return {"bus": self._bus, "router": self._router, "gateway": self._gateway}[name]()

    def _bus(self) -> System:
        binary = self._reachable(server.find(self.config.bus.server), "bus")
        store = self.config.state / "bus"
        file = self.runtime / "etc" / "nats.conf"
        text = server.configuration(port=self.nats_port(), store=store, password=self.bus_password())
        _write(file, text, 0o600, self._system_uid("bus"))
        return System("bus", (str(binary), "-c", str(file)), directories={store: 0o700})

    def _router(self) -> System:
        channels = self.runtime / "c"
        settings = {
            "runtime": str(self.runtime),
            "channels": str(channels),
            "uids": self._peers(),
            "nats": {"url": f"nats://127.0.0.1:{self.nats_port()}", "user": server.USER, "secret": "bus"},
        }
        file = self.runtime / "etc" / "router.json"
        _write(file, json.dumps(settings, indent=1), 0o644, None)
        return System(
            "router",
            (sys.executable, "-P", "-m", "agentd.router.main", "--config", str(file)),
            listeners=(self._facts("router"),),
            secrets={"bus": self.bus_password().encode()},
            directories={channels: 0o711},
            heartbeat=HEARTBEAT,
        )

    def _gateway(self) -> System:
        state = self.config.state / "gateway"
        keys: dict[str, bytes] = {}
        upstreams = [self._upstream(up, keys) for up in self.config.upstream]
        settings = {
            "listen": self.config.gateway.listen,
            "runtime": str(self.runtime),
            "state": str(state),
            "uids": self._peers(),
            "upstream": upstreams,
        }
        file = self.runtime / "etc" / "gateway.json"
        _write(file, json.dumps(settings, indent=1), 0o644, None)
        return System(
            "gateway",
            (sys.executable, "-P", "-m", "agentd.gateway.main", "--config", str(file)),
            listeners=(self._facts("gateway"), Listener("http", f"tcp:{self.config.gateway.listen}")),
            secrets={"secret": self._place.secret, **keys},
            directories={state: 0o700},
            heartbeat=HEARTBEAT,
        )

    def _upstream(self, upstream: Upstream, keys: dict[str, bytes]) -> Json:
        """An upstream whose key travels as a descriptor: no file of ours needs to be open to the gateway."""
        table = upstream.model_dump(exclude_none=True, exclude={"key_file", "key_env"})
        try:
            key = upstream.key()
        except ConfigError as error:
            raise refusal(self.config, upstream, error) from error
        if key is not None:
            table["secret"] = f"key-{upstream.name}"
            keys[table["secret"]] = key
        return {**table, "models": list(upstream.models)}

    def _facts(self, owner: str) -> Listener:
        return Listener("facts", f"unix:{self.runtime}/facts/{owner}.sock", mode=0o666)

    def _peers(self) -> list[int]:
        """The uids that may hear facts: ours, and those of router and gateway."""
        uids = {os.geteuid(), *(self._system_uid(name) or os.geteuid() for name in ("router", "gateway"))}
        return sorted(uids)

    def peers(self) -> frozenset[int]:
        """The same, for the daemon's own facts."""
        return frozenset(self._peers())

    def _system_uid(self, name: str) -> int | None:
        account = self._place.identities.own(name)
        return account.uid if account.switch else None

    def _reachable(self, binary: Path, name: str) -> Path:
        """The program itself, or its staged copy where the unit's uid cannot reach it."""
        account = self._place.identities.own(name)
        python = ours()
        if not account.switch or python is None:
            return binary
        if closed_component(binary, account.uid, account.gid, account.groups, EXECUTE) is None:
            return binary
        return self._place.stage.translate(binary, python)

    def nats_port(self) -> int:
        """The port of the embedded bus: the configured one, or one that was free and is kept over restarts."""
        file = self.runtime / "etc" / "nats.port"
        if not self._nats_port and file.exists():
            self._nats_port = int(file.read_text())
        if not self._nats_port:
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                self._nats_port = sock.getsockname()[1]
            _write(file, str(self._nats_port), 0o600, None)
        return self._nats_port

    def bus_password(self) -> str:
        """The password that only bus and router know, kept over restarts of the daemon."""
        file = self.runtime / "etc" / "bus.password"
        if not self._bus_password and file.exists():
            self._bus_password = file.read_text()
        if not self._bus_password:
            self._bus_password = secrets.token_hex(24)
            _write(file, self._bus_password, 0o600, None)
        return self._bus_password


def _secret(file: Path) -> bytes:
    """The boot secret under which virtual keys are made; it outlives keeper, daemon and gateway."""
    if not file.exists():
        _write(file, secrets.token_hex(32), 0o600, None)
    return file.read_bytes()


def _write(file: Path, text: str, mode: int, uid: int | None) -> None:
    """Whole or not at all, and never readable for others in between."""
    fresh = file.with_name(file.name + ".new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(fd, "w") as stream:
        stream.write(text)
        os.fchmod(fd, mode)
        if uid is not None:
            os.fchown(fd, uid, -1)
    fresh.replace(file)


def _descends(pid: int, parents: frozenset[int]) -> bool:
    """Whether it is offspring of one of these, orphans included; the daemon and what it started are not meant."""
    while pid > 1:
        if pid in parents:
            return True
        if pid == os.getpid():
            return False
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
    return False
