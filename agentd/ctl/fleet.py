"""``agentctl up`` and ``agentctl down``: the whole of it, in the background."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from agentd.ctl import place
from agentd.ctl.client import Client, decoded
from agentd.ctl.options import JsonFlag, Reason, client_of, print_json
from agentd.errors import AgentdError, BadInput, ConfigError, DaemonUnreachable, TooLate

app = typer.Typer()
PROGRAM = (sys.executable, "-P", "-m", "agentd")
LOG_MOST = 16 << 20
"""Bytes beyond which agentd's own log becomes ``.1`` before the next start."""
UP_DEADLINE = 60.0
DOWN_DEADLINE = 120.0
LOOK = 0.05
"""Seconds between two looks at a daemon that has no socket to listen on yet."""
TAIL_LINES = 12


@app.command(rich_help_panel="Fleet")
def up(
    ctx: typer.Context,
    units: Annotated[Path | None, typer.Option("--units", metavar="DIR", help="Where unit files are.")] = None,
    state: Annotated[Path | None, typer.Option("--state", metavar="DIR", help="What outlives a reboot.")] = None,
    runtime: Annotated[Path | None, typer.Option("--runtime", metavar="DIR", help="Sockets and the secret.")] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="agentd.toml.")] = None,
    json: JsonFlag = False,
) -> None:
    """Start the fleet in the background and wait until every unit has settled."""
    client, runtime = _addressed(client_of(ctx), runtime, config)
    already = client.reachable() and _answers(client)
    if not already:
        _start(client, place.state(state, config), _options(units=units, state=state, runtime=runtime, config=config))
    elif not json:
        print(f"agentd runs already ({client.path}).")
    text, waiting = _settled(client)
    if json:
        print_json(text)
    else:
        from agentd.ctl.status import print_overview

        print_overview(decoded(text))
        if not client.named and client.path != place.control_socket(place.runtime()):
            print(f"\nTo talk to it:  export AGENTD_SOCKET={client.path}")
    if waiting and not already:
        if json:
            raise typer.Exit(TooLate.exit_code)
        raise TooLate(
            f"after {UP_DEADLINE:.0f} s these have not settled: {', '.join(waiting)}.",
            hint="agentd goes on with them. Look with `agentctl status NAME` and `agentctl logs NAME`.",
        )


@app.command(rich_help_panel="Fleet")
def down(ctx: typer.Context, reason: Reason = None, json: JsonFlag = False) -> None:
    """Stop every unit in order, then agentd itself."""
    client = client_of(ctx)
    keeper = decoded(client.get("/v1/status"))["agentd"].get("keeper_pid")
    with _watched(keeper) as ended:
        text = client.post("/v1/down", reason=reason)
        with _told("stopping every unit"):
            _until_gone(client, ended)
        _ended_well(client)
    print_json(text) if json else print("agentd is down: all units stopped.")


def _addressed(client: Client, runtime: Path | None, config: Path | None) -> tuple[Client, Path]:
    """Make the socket and the runtime directory agree: ``up`` must find the daemon that it starts."""
    if not client.named:
        directory = place.runtime(runtime, config)
        return Client(place.control_socket(directory)), directory
    if client.path.name != "control.sock" or (runtime and place.control_socket(runtime.absolute()) != client.path):
        expected = place.control_socket(place.runtime(runtime, config))
        raise BadInput(
            f"up: the control socket will be {expected}, not {client.path}.",
            hint="Give --runtime alone, or a --socket (or $AGENTD_SOCKET) that is <runtime>/control.sock.",
        )
    return client, client.path.parent


def _options(**paths: Path | None) -> list[str]:
    return [word for name, path in paths.items() if path for word in (f"--{name}", str(path.absolute()))]


def _start(client: Client, state: Path, options: list[str]) -> None:
    """Start agentd detached from this terminal and wait until it answers, or until it ends."""
    import subprocess

    log = state / "log" / "agentd.log"
    with _appended(log) as output:
        begin = output.tell()
        child = subprocess.Popen(
            [*PROGRAM, *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    ended = os.pidfd_open(child.pid)
    try:
        with _told("starting agentd"):
            _until_answers(client, ended, child, log, begin)
    finally:
        os.close(ended)
    child.returncode = 0  # it goes on without us: subprocess must not warn of it


@contextmanager
def _appended(log: Path) -> Iterator[Any]:
    try:
        log.parent.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        log.parent.mkdir(mode=0o700, exist_ok=True)
        if log.exists() and log.stat().st_size > LOG_MOST:
            log.replace(f"{log}.1")
        output = log.open("ab")
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}.", hint="Choose a state directory of yours with --state DIR."
        ) from error
    with output:
        yield output


def _until_answers(client: Client, ended: int, child: Any, log: Path, begin: int) -> None:
    end = time.monotonic() + UP_DEADLINE
    while time.monotonic() < end:
        if select.select([ended], [], [], LOOK)[0]:
            if _answers(client):  # another `up` was faster
                return
            code = child.wait()
            kind = BadInput if code == BadInput.exit_code else AgentdError
            raise kind(f"agentd ended at once (exit {code}).\n{_tail(log, begin)}", hint=f"All of it is in {log}.")
        if _answers(client):
            return
    raise TooLate(f"agentd did not answer within {UP_DEADLINE:.0f} s.\n{_tail(log, begin)}", hint=f"See {log}.")


def _answers(client: Client) -> bool:
    """A daemon is there, and a keeper with it: one whose keeper was killed gets the next."""
    try:
        return decoded(client.get("/v1/status", timeout=2.0))["agentd"].get("keeper_pid") is not None
    except DaemonUnreachable:
        return False


def _tail(log: Path, begin: int) -> str:
    from agentd.ctl.paint import harmless

    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    return "\n".join(f"  | {harmless(text)}" for text in lines) or "  | (it printed nothing)"


def _settled(client: Client) -> tuple[bytes, list[str]]:
    """The status once every unit has settled, and who had not when time was up."""
    end = time.monotonic() + UP_DEADLINE
    with _told("waiting for the units"):
        while True:
            text = client.get("/v1/status")
            answer = decoded(text)
            waiting = [unit["name"] for unit in answer["units"] if not _is_settled(unit)]
            if answer["agentd"].get("starting"):
                waiting = waiting or ["agentd"]
            if not waiting or time.monotonic() >= end:
                return text, waiting
            select.select([], [], [], LOOK)


def _is_settled(unit: dict[str, Any]) -> bool:
    """It runs, or rests for a reason. What agentd itself is made of has to run: agents are started after it."""
    if unit.get("system"):
        return bool(unit["state"] == "running")
    return unit["state"] not in ("starting", "stopping")


@contextmanager
def _watched(pid: int | None) -> Iterator[int | None]:
    """A descriptor that tells when the process has ended; None where there is none to watch."""
    try:
        descriptor = os.pidfd_open(pid) if pid else None
    except ProcessLookupError:
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _until_gone(client: Client, keeper: int | None) -> None:
    end = time.monotonic() + DOWN_DEADLINE
    if keeper is not None:
        select.select([keeper], [], [], DOWN_DEADLINE)
    while client.reachable():
        if time.monotonic() >= end:
            raise TooLate(
                f"agentd still answers after {DOWN_DEADLINE:.0f} s.",
                hint="A unit may have a long stop_timeout: `agentctl status` shows who is still there.",
            )
        select.select([], [], [], LOOK)


def _ended_well(client: Client) -> None:
    """A keeper that ended by itself leaves nothing; one that was killed leaves its lock, and perhaps units."""
    if (client.path.parent / "keeper.lock").exists():
        raise AgentdError(
            "agentd was killed before everything was stopped: units may still run.",
            hint="Start it again, which takes them over, and stop it in order: agentctl up, then agentctl down.",
        )


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say on a terminal what is waited for."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what}…", spinner="dots"):
        yield
