"""``agentd`` on a terminal: check what can be checked, then become the keeper, which keeps the daemon running.

Everything that a person can get wrong is refused here, in one line, before anything is started.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from pathlib import Path

from agentd import __version__


def main() -> int:  # noqa: RET503 - execv does not return
    """The program ``agentd``. Does not return where all is well: the process becomes the keeper."""
    parser = argparse.ArgumentParser(
        prog="agentd", description="Supervise a fleet of AI agents. Ctrl-C stops all of them in order."
    )
    parser.add_argument("--config", type=Path, help="agentd.toml")
    parser.add_argument("--units", type=Path, help="directory of unit files")
    parser.add_argument("--state", type=Path, help="directory that outlives a reboot: journal, messages, logs, ledger")
    parser.add_argument("--runtime", type=Path, help="directory of this boot: sockets")
    parser.add_argument("--version", action="version", version=f"agentd {__version__}")
    given = parser.parse_args()
    from agentd.errors import AgentdError

    try:
        options = _checked(given)
    except AgentdError as error:
        print(f"agentd: {error.message}", *([f"  {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)  # noqa: T201
        return error.exit_code
    runtime = options[options.index("--runtime") + 1]
    # -P: where we were started may be anybody's directory, and modules that lie there are not ours.
    argv = [sys.executable, "-P", "-m", "agentd.keeper.main", "--runtime", runtime]
    argv += ["--", sys.executable, "-P", "-m", "agentd.main", *options]
    os.execv(sys.executable, argv)  # noqa: S606 - the same interpreter, on purpose


def _checked(given: argparse.Namespace) -> list[str]:
    """The daemon's options with all directories named, once everything that they need is there."""
    from agentd.bus import server
    from agentd.daemon import config as configuration
    from agentd.errors import HostCannot
    from agentd.host.identity import Identities

    config = configuration.load(given.config, units=given.units, state=given.state, runtime=given.runtime)
    try:
        server.find(config.bus.server)
    except HostCannot as error:
        if config.bus.server is None:
            raise
        where = configuration.place(config.file, "bus", "server")
        message = f"{where}: [bus] server: {error.message.removeprefix('bus: ')}"
        raise HostCannot(message, hint=error.hint) from error
    _unlocked(config.runtime / "keeper.lock", config.runtime, "runtime")
    if not _orphaned(config.state / "lock", config.runtime):
        _unlocked(config.state / "lock", config.state, "state")
    if not any((config.runtime / "keeper").glob("*.json")):  # else units of a keeper that died hold our own ports
        configuration.check(config)
    configuration.prepare(config)
    Identities(config.state / "units.json")
    options = ["--units", str(config.units), "--state", str(config.state), "--runtime", str(config.runtime)]
    return [*options, "--config", str(config.file.absolute())] if config.file else options


def _orphaned(lock: Path, runtime: Path) -> bool:
    """Whether the state is held by a daemon of this very runtime directory: its keeper died, the next one adopts it."""
    try:
        pid, _, whose = lock.read_text().strip().partition(" ")
    except OSError:
        return False
    return whose == str(runtime) and os.path.exists(f"/proc/{pid}")


def _unlocked(lock: Path, directory: Path, option: str) -> None:
    """Nobody else holds the directory. Whoever wins a race after this look is told apart by the lock itself."""
    from agentd.errors import Conflict

    try:
        file = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # there is none yet, or making the directory will say what is wrong with it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(
            f"{directory}: another agentd uses this {option} directory.",
            hint=f"agentctl status shows it; choose another --{option} to run a second one.",
        ) from None
    finally:
        os.close(file)


if __name__ == "__main__":
    sys.exit(main())
